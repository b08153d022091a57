//! Functional groups of enhanced multi-frame files (DICOM PS3.3 C.7.6.16): for each frame, the item that holds an attribute,
//! whether it is the frame's own, shared, or at the top as in single-frame files.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::dataset::DataSet;
use crate::{Reason, Refusal};

/// The groups of a file.
#[derive(Debug)]
pub(crate) struct Groups<'a> {
    top: DataSet<'a>,
    shared: Option<DataSet<'a>>,
    per_frame: Vec<DataSet<'a>>,
}

impl<'a> Groups<'a> {
    /// # Errors
    /// A file that has groups for another number of frames than it has frames.
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
        Ok(Self {
            top: top.clone(),
            shared: top.first_item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE)?,
            per_frame,
        })
    }

    /// The item of the sequence `group` that holds for a frame, or the top of the file.
    pub(crate) fn of(&self, frame: u32, group: Tag) -> Result<DataSet<'a>, Refusal> {
        let places = [self.per_frame.get(frame as usize), self.shared.as_ref()];
        for place in places.into_iter().flatten() {
            if let Some(item) = place.first_item(group)? {
                return Ok(item);
            }
        }
        Ok(self.top.clone())
    }
}
