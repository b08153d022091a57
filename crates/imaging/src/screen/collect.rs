//! The identifiers of a header: every person's name wherever it stands, and the numbers, dates and places by their tags, also
//! inside sequences, each in the character set of its data set.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::{IDENTIFIER_CHARS_MAX, IDENTIFIERS_MAX, Identifiers};
use crate::charset::CharacterSet;
use crate::elements::{Elements, Extent, NESTING_MAX, VrEncoding, each_item};
use crate::vocabulary::{is_sequence, standard_vr, vr_of};
use crate::{Archive, Format, Limits, Reason, Refusal, header, members, sniff};

/// Letters and digits of a number of the patient or the study.
const OWN_MIN: usize = 4;
/// Of a number that other things use too: study id, procedure, device, telephone.
const OTHER_MIN: usize = 6;
/// Of a UID.
const UID_MIN: usize = 10;

/// Bytes of a value that is read. Names, numbers and addresses have a length of 16 bits where their VR is written; without that it
/// could be all of a file, whose words take many times its size.
const VALUE_BYTES_MAX: usize = u16::MAX as usize;

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
            return Err(Refusal::new(Reason::TooLarge).found(format_args!(
                "more than {IDENTIFIERS_MAX} identifiers, or one of more than {IDENTIFIER_CHARS_MAX} characters"
            )));
        }
        Ok(self)
    }

    /// Adds what the header of one file says, unless there are too many already.
    pub(crate) fn read_file(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if self.too_many() || sniff(bytes)? != Format::Dicom {
            return Ok(());
        }
        self.read_opened(&header::open(bytes, limits)?)
    }

    /// The same of a file that is open.
    pub(crate) fn read_opened(&mut self, opened: &header::Opened<'_>) -> Result<(), Refusal> {
        if self.too_many() {
            return Ok(());
        }
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
                    // Also where a writer gave a name the value representation of other text; and what a patient wants to be
                    // called is a name that the standard has as text.
                    let name = [vr_of(&element), standard_vr(tag)].contains(&Some(VR::PN))
                        || tag == tags::NAME_TO_USE;
                    let number = NUMBERS.iter().find(|(known, _)| *known == tag);
                    let (place, birth_date) =
                        (PLACES.contains(&tag), tag == tags::PATIENT_BIRTH_DATE);
                    if !(name || number.is_some() || place || birth_date) {
                        continue;
                    }
                    if value.len() > VALUE_BYTES_MAX {
                        self.too_long = true;
                        break;
                    }
                    let texts = set.readings(value).into_iter();
                    if name {
                        texts.for_each(|text| each(&text, |name| self.add_name(name)));
                    } else if let Some((_, least)) = number {
                        texts.for_each(|text| each(&text, |n| self.add_number(n, *least)));
                    } else if place {
                        texts.for_each(|text| self.add_place(trimmed(&text)));
                    } else {
                        texts.for_each(|text| self.add_birth_date(trimmed(&text)));
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
        // A header that is refused for its size is read here all the same: its items are not listed.
        if each_item(value, owner.tag, owner.inner, |_| {}).is_err() {
            return;
        }
        // They were gone through, so that this ends as that did; and what was read of an item up to its fault is kept, as above.
        let _ = each_item(value, owner.tag, owner.inner, |item| {
            let _ = self.read(item, owner.inner, set, depth + 1);
        });
    }
}

/// Each of several values in a text.
fn each(text: &str, take: impl FnMut(&str)) {
    text.split('\\').map(trimmed).for_each(take);
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], text: &str, expected: &str) {
        let mut found = Identifiers::default();
        let set = CharacterSet::unnamed();
        found.read(bytes, VrEncoding::Explicit, set, 0).unwrap();
        assert_eq!(found.screen(text).text, expected);
    }

    #[test]
    fn the_name_to_use_is_a_name() {
        check(
            b"\x10\0\x12\0LT\x0a\0Jane Roe  ",
            "Is Jane's lung clear, Roe?",
            "Is [name]'s lung clear, [name]?",
        );
    }

    #[test]
    fn a_name_is_one_whatever_its_writer_called_it() {
        let bytes = b"\x10\0\x10\0LO\x08\0Roe^Jane";
        check(bytes, "Roe, Jane", "[name], [name]");
    }

    /// Without a VR its length has 32 bits, and may be that of a file.
    #[test]
    fn an_identifier_that_is_longer_than_any_is_too_many() {
        let of = |tag: &[u8; 4], letters: usize| {
            let mut bytes = tag.to_vec();
            bytes.extend((letters as u32).to_le_bytes());
            bytes.resize(bytes.len() + letters, b'a');
            let mut found = Identifiers::default();
            let set = CharacterSet::unnamed();
            found.read(&bytes, VrEncoding::Implicit, set, 0).unwrap();
            let (count, too_many) = (found.needles.len(), found.too_many());
            assert_eq!(found.complete().is_err(), too_many);
            (count, too_many)
        };
        let (name, address, comments) = (b"\x10\0\x10\0", b"\x10\0\x40\x10", b"\x20\0\0\x40");
        for tag in [name, address] {
            assert_eq!(of(tag, 1024), (1, false));
            assert_eq!(of(tag, 1025), (0, true));
            assert_eq!(of(tag, 100_000), (0, true));
        }
        assert_eq!(of(comments, 100_000), (0, false));
        let mut all = Identifiers::default();
        all.merge(Identifiers {
            too_long: true,
            ..Identifiers::default()
        });
        assert!(all.too_many());
    }

    /// Its header says Latin, and its bytes are UTF-8; then the other way round.
    #[test]
    fn a_name_is_found_though_its_set_is_not_the_one_that_is_named() {
        let latin = b"\x08\0\x05\0CS\x0a\0ISO_IR 100\x10\0\x10\0PN\x08\0M\xc3\xbcller ";
        check(latin, "Herr Müller", "Herr [name]");
        let utf8 = b"\x08\0\x05\0CS\x0a\0ISO_IR 192\x10\0\x10\0PN\x06\0M\xfcller";
        check(utf8, "Herr Müller", "Herr [name]");
    }
}
