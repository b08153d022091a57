//! The table of PS3.15 as data: what happens to an attribute.

use std::collections::HashMap;
use std::sync::LazyLock;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::Profile;

const TABLE: &str = include_str!("profile.tsv");

/// Curves, retired; the profile's own line for them names the whole group.
const CURVES: std::ops::RangeInclusive<u16> = 0x5000..=0x50ff;
/// Overlays. The profile names data and comments; without them the rest of a plane means nothing.
const OVERLAYS: std::ops::RangeInclusive<u16> = 0x6000..=0x60ff;
/// Group of the patient.
const PATIENT: u16 = 0x0010;
/// Group of padding behind the data set.
const PADDING: u16 = 0xfffc;

/// What to do with an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Keep,
    Remove,
    Empty,
    Dummy,
    /// Map the UIDs in it, and the items' elements by their own rules.
    Map,
    /// Keep the text, without the header's names and numbers.
    Clean,
    /// Move the date.
    Shift,
    /// The patient's pseudonym.
    Pseudonym,
    /// An age, 90 years at most.
    Age,
    /// A sequence whose items go by their own rules.
    Items,
    /// A sequence with its first item alone, in which no value stays what it was.
    DummyItem,
}

impl Action {
    /// The same where no value may stay what it was: words of lists stay, since an object is read by them.
    pub(super) fn within_dummy(self, vr: Option<VR>) -> Self {
        match self {
            Self::Items => Self::DummyItem,
            Self::Keep | Self::Clean if vr == Some(VR::CS) => self,
            Self::Keep | Self::Clean | Self::Shift | Self::Age => Self::Dummy,
            other => other,
        }
    }
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
struct Line {
    basic: &'static str,
    dates: bool,
    descriptors: bool,
    patient: bool,
}

static LINES: LazyLock<HashMap<Tag, Line>> = LazyLock::new(|| {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &'static str| {
        let mut fields = line.split('\t');
        let tag = tag_of(fields.next()?)?;
        let basic = fields.next()?;
        let mut option = || Some(fields.next()? != "-");
        let (dates, descriptors, patient) = (option()?, option()?, option()?);
        Some((
            tag,
            Line {
                basic,
                dates,
                descriptors,
                patient,
            },
        ))
    };
    // The lines of repeating groups have no number; their groups are treated as wholes.
    lines.filter_map(line).collect()
});

/// Of eight hexadecimal digits.
pub(super) fn tag_of(digits: &str) -> Option<Tag> {
    let number = u32::from_str_radix(digits, 16).ok()?;
    Some(Tag((number >> 16) as u16, number as u16))
}

/// Decides. `vr` as written or as the dictionary has it; `None` for what is in neither.
pub(super) fn action(tag: Tag, vr: Option<VR>, profile: &Profile) -> Action {
    let group = tag.group();
    let repeating = CURVES.contains(&group) || OVERLAYS.contains(&group);
    // Group lengths would be wrong afterwards.
    if group % 2 == 1 || repeating || group == PADDING || tag.element() == 0 {
        return Action::Remove;
    }
    // Private attributes have no dictionary, and what the standard does not know can't be judged.
    let Some(vr) = vr else {
        return Action::Remove;
    };
    match LINES.get(&tag) {
        Some(line) => listed(tag, vr, *line, profile),
        // What the table does not know of a patient is newer than it: names to use, pronouns, dates in other calendars.
        None if group == PATIENT => Action::Remove,
        None => unlisted(vr, profile),
    }
}

fn listed(tag: Tag, vr: VR, line: Line, profile: &Profile) -> Action {
    if tag == tags::PATIENT_ID || tag == tags::PATIENT_NAME {
        return Action::Pseudonym;
    }
    if line.patient && profile.patient_characteristics {
        return match vr {
            VR::AS if tag == tags::PATIENT_AGE => Action::Age,
            vr if is_text(vr) => Action::Clean,
            VR::SQ => Action::Items,
            _ => Action::Keep,
        };
    }
    if line.dates && profile.modified_dates {
        match vr {
            VR::DA | VR::DT => return Action::Shift,
            VR::TM => return Action::Keep,
            _ => {}
        }
    }
    if line.descriptors && profile.clean_descriptors {
        match vr {
            VR::SQ => return Action::Items,
            vr if is_text(vr) => return Action::Clean,
            _ => {}
        }
    }
    match (line.basic, vr) {
        ("X/Z/U*", _) => Action::Items,
        ("U", VR::UI) => Action::Map,
        ("D" | "X/D" | "Z/D" | "X/Z/D", VR::SQ) => Action::DummyItem,
        // Where images have such a sequence it may be left out, but not be without items; only this one is of type 2.
        ("X/Z", VR::SQ) if tag != tags::ACQUISITION_CONTEXT_SEQUENCE => Action::Remove,
        ("D" | "X/D" | "Z/D" | "X/Z/D", _) => Action::Dummy,
        // The types of attributes differ between objects: empty is right for all but type 1, which the table has as D.
        ("Z" | "X/Z", _) => Action::Empty,
        _ => Action::Remove,
    }
}

/// The profile keeps what it does not list, but for the patient's group; names, dates, UIDs and text are looked at all the same.
fn unlisted(vr: VR, profile: &Profile) -> Action {
    match vr {
        VR::SQ => Action::Items,
        VR::UI => Action::Map,
        VR::PN => Action::Empty,
        VR::DA | VR::DT if profile.modified_dates => Action::Shift,
        VR::DA | VR::DT => Action::Empty,
        vr if is_text(vr) => Action::Clean,
        _ => Action::Keep,
    }
}

pub(super) fn is_text(vr: VR) -> bool {
    matches!(
        vr,
        VR::AE | VR::CS | VR::LO | VR::LT | VR::PN | VR::SH | VR::ST | VR::UC | VR::UR | VR::UT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Profile = Profile {
        modified_dates: true,
        clean_descriptors: true,
        patient_characteristics: true,
        burned_in: crate::BurnedIn::Refuse,
    };

    #[track_caller]
    fn check(tag: Tag, basic: Action, with_options: Action) {
        let vr = crate::vocabulary::standard_vr(tag);
        assert_eq!(action(tag, vr, &Profile::default()), basic, "{tag}");
        assert_eq!(action(tag, vr, &ALL), with_options, "{tag}");
    }

    #[test]
    fn the_table_is_read_whole() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        let repeating = TABLE.lines().filter(|line| line.contains("xx")).count();
        assert_eq!((LINES.len(), repeating), (lines - repeating, 3));
        let known = ["D", "Z", "X", "U", "X/D", "X/Z", "Z/D", "X/Z/D", "X/Z/U*"];
        assert!(LINES.values().all(|line| known.contains(&line.basic)));
    }

    #[test]
    fn attributes_are_treated_as_the_profile_says() {
        check(tags::PATIENT_NAME, Action::Pseudonym, Action::Pseudonym);
        check(tags::PATIENT_BIRTH_DATE, Action::Empty, Action::Empty);
        check(tags::ACCESSION_NUMBER, Action::Empty, Action::Empty);
        check(tags::STUDY_DATE, Action::Empty, Action::Shift);
        check(tags::STUDY_TIME, Action::Empty, Action::Keep);
        check(tags::PATIENT_AGE, Action::Remove, Action::Age);
        check(tags::PATIENT_WEIGHT, Action::Remove, Action::Keep);
        check(tags::STUDY_DESCRIPTION, Action::Remove, Action::Clean);
        check(tags::SOP_INSTANCE_UID, Action::Map, Action::Map);
        check(
            tags::REFERENCED_IMAGE_SEQUENCE,
            Action::Items,
            Action::Items,
        );
        check(tags::INSTITUTION_NAME, Action::Dummy, Action::Dummy);
        for (tag, action) in [
            (tags::REFERENCED_STUDY_SEQUENCE, Action::Remove),
            (tags::ACQUISITION_CONTEXT_SEQUENCE, Action::Empty),
            (tags::SPECIMEN_PREPARATION_SEQUENCE, Action::Empty),
            (tags::OPERATOR_IDENTIFICATION_SEQUENCE, Action::DummyItem),
        ] {
            check(tag, action, action);
        }
        for newer in [
            tags::NAME_TO_USE,
            tags::PERSON_NAMES_TO_USE_SEQUENCE,
            tags::PRONOUN_COMMENT,
            tags::PATIENT_BIRTH_DATE_IN_ALTERNATIVE_CALENDAR,
            tags::GENDER_IDENTITY_SEQUENCE,
        ] {
            check(newer, Action::Remove, Action::Remove);
        }
        check(tags::MODALITY, Action::Clean, Action::Clean);
        check(
            tags::PHOTOMETRIC_INTERPRETATION,
            Action::Clean,
            Action::Clean,
        );
        check(tags::BODY_PART_EXAMINED, Action::Clean, Action::Clean);
        check(tags::ROWS, Action::Keep, Action::Keep);
        check(tags::PIXEL_DATA, Action::Keep, Action::Keep);
        check(Tag(0x0009, 0x0010), Action::Remove, Action::Remove);
        check(Tag(0x6000, 0x3000), Action::Remove, Action::Remove);
        check(Tag(0x5002, 0x3000), Action::Remove, Action::Remove);
        check(Tag(0x0008, 0x0000), Action::Remove, Action::Remove);
        check(Tag(0x0008, 0xfff0), Action::Remove, Action::Remove);
    }
}
