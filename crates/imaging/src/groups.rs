//! Functional groups of enhanced multi-frame files (DICOM PS3.3 C.7.6.16): for each frame, the item that holds an attribute,
//! whether it is the frame's own, shared, or at the top as in single-frame files.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::dataset::DataSet;
use crate::{Reason, Refusal};

/// The groups that are looked into, each of which is either shared or every frame's own (C.7.6.16.1.1).
const GROUPS: [Tag; 5] = [
    tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
    tags::FRAME_VOILUT_SEQUENCE,
    tags::PLANE_POSITION_SEQUENCE,
    tags::PLANE_ORIENTATION_SEQUENCE,
    tags::PIXEL_MEASURES_SEQUENCE,
];

/// Looked into as well, of slides only.
const OF_SLIDES: Tag = tags::PLANE_POSITION_SLIDE_SEQUENCE;

/// The groups of a file.
#[derive(Debug)]
pub(crate) struct Groups<'a> {
    top: DataSet<'a>,
    /// Those that all frames share, or why they can't be read. Each is read once: it may be as large as a header, and every
    /// frame asks for it.
    shared: Vec<(Tag, Result<DataSet<'a>, Refusal>)>,
    per_frame: Vec<DataSet<'a>>,
}

impl<'a> Groups<'a> {
    /// # Errors
    /// A file that has groups for another number of frames than it has frames, or one group both shared and of a frame where the
    /// two are not the same: one of them would be believed. Nor may some frames have a group that the others lack.
    pub(crate) fn read(top: &DataSet<'a>, frames: u32) -> Result<Self, Refusal> {
        let per_frame = top.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)?;
        if !per_frame.is_empty() && per_frame.len() != frames as usize {
            return Err(Refusal::at(
                Reason::InvalidAttribute,
                tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
            )
            .found(format_args!(
                "{} items for {frames} frames",
                per_frame.len()
            )));
        }
        let shared = top.first_item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE)?;
        for group in GROUPS {
            let bytes = |item: &DataSet<'a>| item.value(group).map(|value| value.bytes);
            let Some(of_all) = shared.as_ref().and_then(bytes) else {
                // Several frames are slices, which are not shown by its windows.
                let matters = group != tags::FRAME_VOILUT_SEQUENCE;
                let having = per_frame.iter().filter_map(bytes).count();
                if matters && having != 0 && having != per_frame.len() {
                    return Err(Refusal::at(Reason::InvalidAttribute, group)
                        .found(format_args!("{having} of {frames} frames with the group")));
                }
                continue;
            };
            if per_frame.iter().filter_map(bytes).any(|own| own != of_all) {
                return Err(Refusal::at(Reason::InvalidAttribute, group)
                    .found("a functional group both shared and of a frame"));
            }
        }
        let groups = GROUPS.into_iter().chain([OF_SLIDES]);
        let shared = groups.filter_map(|group| {
            let item = shared.as_ref()?.first_item(group).transpose()?;
            Some((group, item))
        });
        Ok(Self {
            top: top.clone(),
            shared: shared.collect(),
            per_frame,
        })
    }

    /// The item of the sequence `group` that holds for a frame, or the top of the file.
    pub(crate) fn of(&self, frame: u32, group: Tag) -> Result<DataSet<'a>, Refusal> {
        match self.own(frame, group)? {
            Some(item) => Ok(item),
            None => self.of_all(group).cloned(),
        }
    }

    /// The item of the sequence `group` that is the frame's own.
    pub(crate) fn own(&self, frame: u32, group: Tag) -> Result<Option<DataSet<'a>>, Refusal> {
        match self.per_frame.get(frame as usize) {
            Some(item) => item.first_item(group),
            None => Ok(None),
        }
    }

    /// What holds for every frame that has no such item of its own.
    pub(crate) fn of_all(&self, group: Tag) -> Result<&DataSet<'a>, Refusal> {
        match self.shared.iter().find(|(shared, _)| *shared == group) {
            Some((_, item)) => item.as_ref().map_err(Clone::clone),
            None => Ok(&self.top),
        }
    }
}
