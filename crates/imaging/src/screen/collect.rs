//! The identifiers of a header: every person's name wherever it stands, and the numbers, dates and places by their tags, also
//! inside sequences, each in the character set of its data set.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::{IDENTIFIERS_MAX, Identifiers};
use crate::charset::CharacterSet;
use crate::elements::{Elements, Extent, NESTING_MAX, VrEncoding, items};
use crate::vocabulary::{is_sequence, vr_of};
use crate::{Archive, Format, Limits, Reason, Refusal, header, members, sniff};

/// Letters and digits of a number of the patient or the study.
const OWN_MIN: usize = 4;
/// Of a number that other things use too: study id, procedure, device, telephone.
const OTHER_MIN: usize = 6;
/// Of a UID.
const UID_MIN: usize = 10;

const NUMBERS: &[(Tag, usize)] = &[
    (tags::PATIENT_ID, OWN_MIN),
    (tags::ACCESSION_NUMBER, OWN_MIN),
    // Other Patient IDs, retired.
    (Tag(0x0010, 0x1000), OWN_MIN),
    // Medical Record Locator.
    (Tag(0x0010, 0x1090), OWN_MIN),
    (tags::ADMISSION_ID, OWN_MIN),
    (tags::SERVICE_EPISODE_ID, OTHER_MIN),
    (tags::STUDY_ID, OTHER_MIN),
    (tags::REQUESTED_PROCEDURE_ID, OTHER_MIN),
    (tags::SCHEDULED_PROCEDURE_STEP_ID, OTHER_MIN),
    (tags::PERFORMED_PROCEDURE_STEP_ID, OTHER_MIN),
    (tags::PLACER_ORDER_NUMBER_IMAGING_SERVICE_REQUEST, OTHER_MIN),
    (tags::FILLER_ORDER_NUMBER_IMAGING_SERVICE_REQUEST, OTHER_MIN),
    (tags::DEVICE_SERIAL_NUMBER, OTHER_MIN),
    (tags::PATIENT_TELEPHONE_NUMBERS, OTHER_MIN),
    (tags::PERSON_TELEPHONE_NUMBERS, OTHER_MIN),
    (tags::REFERRING_PHYSICIAN_TELEPHONE_NUMBERS, OTHER_MIN),
    (tags::STUDY_INSTANCE_UID, UID_MIN),
    (tags::SERIES_INSTANCE_UID, UID_MIN),
    (tags::SOP_INSTANCE_UID, UID_MIN),
];

const PLACES: &[Tag] = &[
    tags::INSTITUTION_NAME,
    tags::INSTITUTION_ADDRESS,
    tags::PATIENT_ADDRESS,
    tags::PERSON_ADDRESS,
    tags::REFERRING_PHYSICIAN_ADDRESS,
];

/// What a file's header says about who it is of; nothing where it is no DICOM file.
///
/// # Errors
/// A header that can't be walked, or with more identifiers than are kept.
pub fn identifiers(bytes: &[u8], limits: &Limits) -> Result<Identifiers, Refusal> {
    let mut found = Identifiers::default();
    if Archive::of(bytes).is_none() {
        found.read_file(bytes, limits)?;
    } else {
        let mut fault = None;
        members(bytes, limits, &mut |member| {
            // What is no image at all is decided on where it is decoded.
            if fault.is_none() && sniff(&member.bytes).is_ok() {
                let limits = limits.beside(&member.bytes);
                fault = found.read_file(&member.bytes, &limits).err();
            }
        })?;
        if let Some(refusal) = fault {
            return Err(refusal);
        }
    }
    found.complete()
}

impl Identifiers {
    /// Themselves, unless there are more than are kept.
    pub(crate) fn complete(self) -> Result<Self, Refusal> {
        if self.too_many() {
            return Err(Refusal::new(Reason::TooLarge)
                .found(format_args!("more than {IDENTIFIERS_MAX} identifiers")));
        }
        Ok(self)
    }

    /// Adds what the header of one file says, unless there are too many already.
    pub(crate) fn read_file(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if self.too_many() || sniff(bytes)? != Format::Dicom {
            return Ok(());
        }
        let opened = header::open(bytes, limits)?;
        let (data_set, encoding) = opened.data_set();
        self.read(data_set, encoding, CharacterSet::unnamed(), 0)
    }

    /// Of a data set or an item, up to its pixels.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        encoding: VrEncoding,
        set: CharacterSet,
        depth: u32,
    ) -> Result<(), Refusal> {
        let mut set = set;
        for element in Elements::new(bytes, encoding) {
            let element = element?;
            let value = &bytes[element.value.clone()];
            match element.tag {
                tags::PIXEL_DATA => break,
                tags::SPECIFIC_CHARACTER_SET => {
                    set = CharacterSet::named(&String::from_utf8_lossy(value));
                }
                _ if is_sequence(&element) => self.read_items(value, &element, set, depth),
                tag => {
                    let is = |vr: VR| vr_of(&element) == Some(vr);
                    // What a patient wants to be called is a name, though its value representation is that of text.
                    if is(VR::PN) || tag == tags::NAME_TO_USE {
                        let text = set.decode(value);
                        text.split('\\')
                            .for_each(|name| self.add_name(trimmed(name)));
                    } else if let Some((_, least)) = NUMBERS.iter().find(|(known, _)| *known == tag)
                    {
                        let text = set.decode(value);
                        text.split('\\')
                            .for_each(|number| self.add_number(trimmed(number), *least));
                    } else if PLACES.contains(&tag) {
                        self.add_place(trimmed(&set.decode(value)));
                    } else if tag == tags::PATIENT_BIRTH_DATE {
                        self.add_birth_date(trimmed(&set.decode(value)));
                    }
                }
            }
            if self.too_many() {
                break;
            }
        }
        Ok(())
    }

    /// Items that do not follow the encoding hold no text that could be read; implicit headers do not name sequences, so that
    /// such a one was not measured before.
    fn read_items(&mut self, value: &[u8], owner: &Extent, set: CharacterSet, depth: u32) {
        if depth == NESTING_MAX {
            return;
        }
        for item in items(value, owner.tag, owner.inner).unwrap_or_default() {
            // As above: what was read of the item up to its fault is kept.
            let _ = self.read(item, owner.inner, set, depth + 1);
        }
    }
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_to_use_is_a_name() {
        let bytes = b"\x10\0\x12\0LT\x0a\0Jane Roe  ";
        let mut found = Identifiers::default();
        let set = CharacterSet::unnamed();
        found.read(bytes, VrEncoding::Explicit, set, 0).unwrap();
        let screened = found.screen("Is Jane's lung clear, Roe?");
        assert_eq!(screened.text, "Is [name]'s lung clear, [name]?");
    }
}
