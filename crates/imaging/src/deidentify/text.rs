//! Text that stays: without the header's own names and numbers, and without what looks like an identifier wherever it is from.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::patterns::masked;
use super::terms::{has_only_terms, is_term};
use crate::Identifiers;
use crate::vocabulary::standard_vr;

/// Where a text stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) tag: Tag,
    pub(super) vr: VR,
    /// Whether it belongs to a code of a published scheme.
    pub(super) published: bool,
}

/// The text without them; `None` if there was nothing to take out.
pub(super) fn clean(text: &str, field: Field, identifiers: &Identifiers) -> Option<String> {
    // Also where a writer called it another kind of text.
    if field.vr == VR::CS || standard_vr(field.tag) == Some(VR::CS) {
        return codes(text, field.tag, identifiers);
    }
    if is_term(field.tag, text) {
        return None;
    }
    let screened = identifiers.screen(text);
    let found = !screened.masked.is_empty();
    // A published code is a long number as often as not.
    if field.published && field.tag == tags::CODE_VALUE {
        return found.then_some(screened.text);
    }
    masked(&screened.text).or_else(|| found.then_some(screened.text))
}

/// Codes have no room for a mask, nor for anything that was not meant to be a word of a list: each of the values is left empty in
/// which something is found, or a character that no code has. Words of the standard say nothing of a patient, whatever the patient
/// is called.
fn codes(text: &str, tag: Tag, identifiers: &Identifiers) -> Option<String> {
    let values = text.split('\\').map(|value| {
        let stays = value.trim_matches([' ', '\0']).is_empty()
            || is_term(tag, value)
            || !has_only_terms(tag)
                && !value.contains(['^', '=', '@'])
                && masked(value).is_none()
                && identifiers.screen(value).masked.is_empty();
        if stays { value } else { "" }
    });
    let cleaned = values.collect::<Vec<_>>().join("\\");
    (cleaned != text).then_some(cleaned)
}

/// Whether the value representation has room for it (PS3.5 6.2), in characters of each value.
pub(super) fn fits(text: &str, vr: VR) -> bool {
    let most = match vr {
        VR::AE | VR::SH | VR::CS => 16,
        VR::LO | VR::PN => 64,
        VR::ST => 1024,
        VR::LT => 10_240,
        _ => usize::MAX,
    };
    let mut values = text.split('\\');
    values.all(|value| value.chars().count() <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charset::CharacterSet;
    use crate::elements::VrEncoding;

    /// Of a patient whose names are words of the standard, and one that is not: Primary^Hu^Doe, with the id 717310.
    fn identifiers() -> Identifiers {
        let header = b"\x10\0\x10\0PN\x0e\0Primary^Hu^Doe\x10\0\x20\0LO\x06\x00717310";
        let mut found = Identifiers::default();
        let set = CharacterSet::unnamed();
        found.read(header, VrEncoding::Explicit, set, 0).unwrap();
        found
    }

    #[track_caller]
    fn check_field((tag, vr, published): (Tag, VR, bool), text: &str, expected: Option<&str>) {
        let field = Field { tag, vr, published };
        let cleaned = clean(text, field, &identifiers());
        assert_eq!(cleaned.as_deref(), expected, "{tag} {text}");
    }

    #[test]
    fn words_of_the_standard_stay_whatever_the_patient_is_called() {
        let image_type = (tags::IMAGE_TYPE, VR::CS, false);
        check_field(image_type, "ORIGINAL\\PRIMARY\\AXIAL ", None);
        let rescale_type = (tags::RESCALE_TYPE, VR::LO, false);
        check_field(rescale_type, "HU", None);
        // The same words elsewhere are the patient's names.
        let description = (tags::SERIES_DESCRIPTION, VR::LO, false);
        check_field(description, "PRIMARY of Hu", Some("[name] of [name]"));
        check_field(rescale_type, "HU of Doe", Some("[name] of [name]"));
    }

    #[test]
    fn codes_lose_the_values_that_name_somebody() {
        let image_type = (tags::IMAGE_TYPE, VR::CS, false);
        let left = "ORIGINAL\\PRIMARY\\\\OTHER";
        check_field(image_type, "ORIGINAL\\PRIMARY\\DOE_J\\OTHER", Some(left));
        check_field((tags::BODY_PART_EXAMINED, VR::CS, false), "DOE", Some(""));
        // Nobody that the header names.
        let scan_options = (tags::SCAN_OPTIONS, VR::CS, false);
        check_field(
            scan_options,
            "HELICAL MODE\\FS\\ROE^ANN",
            Some("HELICAL MODE\\FS\\"),
        );
        check_field(scan_options, "PID4711234", Some(""));
        check_field(
            (tags::BODY_PART_EXAMINED, VR::CS, false),
            "PRIMARY",
            Some(""),
        );
        assert!(fits("[name]", VR::SH) && !fits("[name] [name] [name]", VR::SH));
    }

    #[test]
    fn codes_that_a_file_is_decoded_by_are_words_of_the_standard() {
        let modality = (tags::MODALITY, VR::CS, false);
        check_field(modality, "CT", None);
        check_field(modality, " ", None);
        check_field(modality, "ROE^ANN", Some(""));
        check_field(modality, "ROE", Some(""));
        check_field((tags::MODALITY, VR::LO, false), "ROE", Some(""));
        let set = (tags::SPECIFIC_CHARACTER_SET, VR::CS, false);
        check_field(set, "\\ISO 2022 IR 87", None);
        check_field(set, "ISO_IR 100\\ROE^ANN", Some("ISO_IR 100\\"));
        let corrected = (tags::CORRECTED_IMAGE, VR::CS, false);
        check_field(corrected, "ATTN\\DECY ", None);
        check_field(corrected, "ATTN\\ROE\\DECY", Some("ATTN\\\\DECY"));
        // Image Format: retired, and without a list here.
        let format = (Tag(0x0028, 0x0040), VR::CS, false);
        check_field(format, "RECT", None);
        check_field(format, "DOE", Some(""));
    }

    #[test]
    fn published_codes_are_no_numbers_of_a_person() {
        check_field((tags::CODE_VALUE, VR::SH, true), "51185008", None);
        check_field(
            (tags::CODE_VALUE, VR::SH, false),
            "51185008",
            Some("[removed]"),
        );
        check_field((tags::CODE_VALUE, VR::SH, true), "717310", Some("[number]"));
        check_field(
            (tags::CODE_MEANING, VR::LO, true),
            "Of 51185008",
            Some("Of [removed]"),
        );
    }
}
