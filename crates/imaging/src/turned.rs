//! Films that a presentation state of their study shows mirrored or turned. States are not followed, and whoever made one saw that
//! the film as it is stored does not lie as it is looked at: such films are refused, as those are whose own header says so.
//!
//! It keeps instance UIDs to compare, and gives none of them away.

use std::collections::BTreeSet;
use std::fmt;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::admission::is_presentation_state;
use crate::elements::{Elements, VrEncoding, items};
use crate::header::{self, Opened};
use crate::volume::kept;
use crate::{Format, Limits, Reason, Refusal, sniff};

/// Images that are kept of those that states show turned; of more it is as if they were all.
const IMAGES_MAX: usize = 4096;

/// What files say about films and how they are shown, each by its SOP Instance UID.
#[derive(Clone, Default)]
pub struct Turned {
    films: BTreeSet<String>,
    by_states: BTreeSet<String>,
    /// More than are kept.
    all: bool,
}

impl fmt::Debug for Turned {
    /// Says nothing: a UID leads to a patient.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turned").finish_non_exhaustive()
    }
}

impl Turned {
    /// Of a file that is no archive; nothing where it is no DICOM file.
    ///
    /// # Errors
    /// A header that can't be walked, and a presentation state that is larger than a header may be.
    pub fn of(bytes: &[u8], limits: &Limits) -> Result<Self, Refusal> {
        let mut found = Self::default();
        if sniff(bytes) == Ok(Format::Dicom) {
            found.read(&header::open(bytes, limits)?, limits)?;
        }
        Ok(found)
    }

    /// Learns what other files of the study say.
    pub fn merge(&mut self, other: &Self) {
        self.films.extend(other.films.iter().cloned());
        self.by_states.extend(other.by_states.iter().cloned());
        self.all |= other.all;
        self.limit();
    }

    /// Whether no film of some files is shown turned by these ones.
    ///
    /// # Errors
    /// [`Reason::ShownTurned`].
    pub fn check(&self, files: &Self) -> Result<(), Refusal> {
        if files
            .films
            .iter()
            .any(|film| self.all || self.by_states.contains(film))
        {
            Err(Refusal::new(Reason::ShownTurned))
        } else {
            Ok(())
        }
    }

    /// Learns what a DICOM file says.
    pub(crate) fn read(&mut self, opened: &Opened<'_>, limits: &Limits) -> Result<(), Refusal> {
        let (data_set, encoding) = opened.data_set();
        let (mut is_film, mut is_state, mut is_turned) = (false, false, false);
        let mut instance = String::new();
        for element in Elements::new(data_set, encoding) {
            let element = element?;
            if element.tag == tags::PIXEL_DATA {
                if is_film && !instance.is_empty() {
                    self.films.insert(instance);
                }
                return Ok(());
            }
            if !header::is_within(&element, limits) {
                // What it says of images would be overlooked.
                if is_state {
                    return Err(header::too_large(element.whole.end));
                }
                continue;
            }
            let value = &data_set[element.value.clone()];
            match element.tag {
                tags::SOP_CLASS_UID => is_state = is_presentation_state(&text(value)),
                tags::SOP_INSTANCE_UID => instance = text(value),
                // Not of breasts: they are hung mirrored, back to back, which a state may keep.
                tags::MODALITY => is_film = matches!(text(value).as_str(), "CR" | "DX"),
                tags::IMAGE_HORIZONTAL_FLIP => is_turned |= text(value) == "Y",
                // In degrees, clockwise.
                tags::IMAGE_ROTATION => is_turned |= value.iter().any(|byte| *byte != 0),
                _ => {}
            }
        }
        if is_state && is_turned {
            self.read_state(data_set, encoding)?;
        }
        Ok(())
    }

    /// The images that a state is of (PS3.3 C.11.11), all of which it shows in one way (C.10.6).
    fn read_state(&mut self, data_set: &[u8], encoding: VrEncoding) -> Result<(), Refusal> {
        for (series, inner) in items_of(data_set, encoding, tags::REFERENCED_SERIES_SEQUENCE)? {
            for (image, inner) in items_of(series, inner, tags::REFERENCED_IMAGE_SEQUENCE)? {
                for element in Elements::new(image, inner) {
                    let element = element?;
                    if element.tag == tags::REFERENCED_SOP_INSTANCE_UID {
                        self.by_states.insert(text(&image[element.value]));
                        self.limit();
                    }
                }
            }
        }
        Ok(())
    }

    fn limit(&mut self) {
        self.all |= self.by_states.len() > IMAGES_MAX;
        if self.all {
            self.by_states.clear();
        }
    }
}

/// The items of a sequence at the top of some elements, and how they are written.
fn items_of(
    bytes: &[u8],
    encoding: VrEncoding,
    sequence: Tag,
) -> Result<Vec<(&[u8], VrEncoding)>, Refusal> {
    let mut found = Vec::new();
    for element in Elements::new(bytes, encoding) {
        let element = element?;
        if element.tag == sequence {
            let (value, inner) = (&bytes[element.value], element.inner);
            let items = items(value, sequence, inner)?;
            found.extend(items.into_iter().map(|item| (item, inner)));
        }
    }
    Ok(found)
}

fn text(value: &[u8]) -> String {
    kept(String::from_utf8_lossy(value).trim_matches(['\0', ' ']))
}
