//! Words that the standard itself lists for an attribute. They are public, and an object is read by them: a patient may be called
//! Axial or Hu, and an image is axial and its values are Hounsfield units all the same.

use std::collections::HashMap;
use std::sync::LazyLock;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::profile::tag_of;

const TABLE: &str = include_str!("terms.tsv");

static TERMS: LazyLock<HashMap<Tag, Vec<&'static str>>> = LazyLock::new(|| {
    let mut terms = HashMap::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        if let (Some(tags), Some(words)) = (fields.next(), fields.next()) {
            let words: Vec<&str> = words.split('|').collect();
            let tags = tags.split(' ').filter_map(tag_of);
            terms.extend(tags.map(|tag| (tag, words.clone())));
        }
    }
    terms
});

/// Whether one value is a word of the standard for this attribute.
pub(super) fn is_term(tag: Tag, value: &str) -> bool {
    let value = value.trim_matches([' ', '\0']);
    TERMS.get(&tag).is_some_and(|words| words.contains(&value))
}

/// Whether an attribute has no values but those: what a file is decoded and admitted by.
pub(super) fn has_only_terms(tag: Tag) -> bool {
    let decides = matches!(tag, tags::MODALITY | tags::SPECIFIC_CHARACTER_SET);
    (decides || tag.group() == 0x0028) && TERMS.contains_key(&tag)
}

#[cfg(test)]
mod tests {
    use dicom_core::VR;

    use super::*;
    use crate::deidentify::profile::is_text;
    use crate::vocabulary::standard_vr;

    #[test]
    fn the_table_is_read_whole_and_has_words_of_codes_only() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        let tags = lines.flat_map(|line| line.split('\t').next().unwrap_or_default().split(' '));
        assert_eq!(TERMS.len(), tags.count());
        for (tag, words) in TERMS.iter() {
            let vr = standard_vr(*tag);
            let free = matches!(vr, Some(VR::PN | VR::LT | VR::ST | VR::UT));
            assert!(vr.is_some_and(is_text) && !free, "{tag}");
            let short = |word: &&str| (1..=16).contains(&word.len());
            assert!(words.iter().all(short), "{tag}");
        }
    }

    #[test]
    fn words_count_whole_and_for_their_attribute() {
        assert!(is_term(tags::IMAGE_TYPE, "ORIGINAL"));
        assert!(is_term(tags::RESCALE_TYPE, "HU "));
        // Unspecified is US.
        assert!(!is_term(tags::RESCALE_TYPE, "UNSPECIFIED"));
        // Each has a word that the other has not.
        assert!(is_term(tags::RGBLUT_TRANSFER_FUNCTION, "EQUAL_RGB"));
        assert!(!is_term(tags::ALPHA_LUT_TRANSFER_FUNCTION, "EQUAL_RGB"));
        assert!(!is_term(tags::IMAGE_TYPE, "ORIGINAL OF DOE"));
        assert!(!is_term(tags::IMAGE_TYPE, ""));
        assert!(!is_term(tags::SERIES_DESCRIPTION, "ORIGINAL"));
    }
}
