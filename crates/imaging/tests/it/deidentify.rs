//! The ten checks of the MIDI-B challenge's scorer (MICCAI 2024) as properties of objects with planted identifiers, for every
//! combination of options and several transfer syntaxes. The planted values follow from a seed; none is of a person.

use std::collections::{BTreeMap, BTreeSet};

use dicom_core::header::Header;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileDicomObject, InMemDicomObject};
use medfleet_imaging::{
    BurnedIn, DeidentificationKey, Deidentified, Deidentifier, Limits, Profile, Reason,
};

use crate::synthetic::{file_as, put, put_sequence, set, text};

type Object = FileDicomObject<InMemDicomObject>;

const PATIENTS: u64 = 3;
const INSTANCES: u64 = 2;
const SYNTAXES: [&str; 3] = [
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.2",
];
/// Text that names nobody and must stay.
const PROSE: &str = "Chest two views upright";

/// What is planted into one object.
#[derive(Clone, Debug)]
struct Planted {
    syntax: &'static str,
    family: String,
    given: String,
    id: String,
    accession: String,
    physician: String,
    phone: String,
    hospital: String,
    birth: String,
    days: [u64; 2],
    study: String,
    instance: String,
    /// The instance that it refers to.
    other: String,
}

impl Planted {
    fn new(patient: u64, instance: u64) -> Self {
        let letters = |seed: u64| -> String {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let letter = |_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                char::from(b'a' + ((state >> 33) % 26) as u8)
            };
            (0..9).map(letter).collect()
        };
        let number = |seed: u64| seed.wrapping_mul(2_654_435_761) % 90_000_000 + 10_000_000;
        let uid = |instance: u64| format!("1.2.999.{}.{instance}", number(patient + 70));
        Self {
            syntax: SYNTAXES[(patient % 3) as usize],
            family: letters(patient * 10 + 1),
            given: letters(patient * 10 + 2),
            id: format!("PID-{}", number(patient)),
            accession: format!("ACC{}", number(patient + 50)),
            physician: letters(patient * 10 + 3),
            phone: format!("555-{}", number(patient + 60)),
            hospital: letters(patient * 10 + 4),
            birth: format!("19{:02}0412", 40 + patient * 7),
            days: [3 + patient, 9 + patient * 2 + instance],
            study: uid(1000),
            instance: uid(instance),
            other: uid((instance + 1) % INSTANCES),
        }
    }

    fn date(&self, which: usize) -> String {
        format!("202403{:02}", self.days[which])
    }

    /// Everything that must not leave.
    fn secrets(&self) -> Vec<String> {
        let texts = [
            &self.family,
            &self.given,
            &self.id,
            &self.accession,
            &self.physician,
            &self.phone,
            &self.hospital,
            &self.birth,
            &self.study,
            &self.instance,
            &self.other,
        ];
        texts
            .into_iter()
            .cloned()
            .chain([self.date(0), self.date(1)])
            .collect()
    }

    fn file(&self) -> Vec<u8> {
        let name = format!("{}^{}", self.family, self.given);
        file_as(self.syntax, |object| {
            set(object, tags::SPECIFIC_CHARACTER_SET, "ISO_IR 192");
            set(object, tags::SOP_INSTANCE_UID, self.instance.as_str());
            set(object, tags::STUDY_INSTANCE_UID, self.study.as_str());
            set(object, tags::PATIENT_NAME, name.as_str());
            set(object, tags::PATIENT_ID, self.id.as_str());
            set(object, tags::PATIENT_BIRTH_DATE, self.birth.as_str());
            set(object, tags::PATIENT_AGE, "093Y");
            set(object, tags::PATIENT_SEX, "F");
            set(object, tags::PATIENT_WEIGHT, "70");
            set(object, tags::ACCESSION_NUMBER, self.accession.as_str());
            set(
                object,
                tags::REFERRING_PHYSICIAN_NAME,
                self.physician.as_str(),
            );
            set(object, tags::INSTITUTION_NAME, self.hospital.as_str());
            set(object, tags::STUDY_DATE, self.date(0).as_str());
            set(object, tags::CONTENT_DATE, self.date(1).as_str());
            set(object, tags::STUDY_TIME, "101500");
            set(
                object,
                tags::ACQUISITION_DATE_TIME,
                format!("{}101500", self.date(1)).as_str(),
            );
            self.texts(object, &name);
            self.sequences(object, &name);
        })
    }

    fn texts(&self, object: &mut InMemDicomObject, name: &str) {
        set(object, tags::BODY_PART_EXAMINED, "CHEST");
        set(object, tags::MANUFACTURER, "Maker");
        set(object, tags::STUDY_DESCRIPTION, PROSE);
        let comments = format!(
            "{PROSE}: {} seen by {}, call {}",
            self.family.to_uppercase(),
            self.physician,
            self.phone
        );
        set(object, tags::IMAGE_COMMENTS, comments.as_str());
        // Nobody's list has this one, so that only screening can find what is in it.
        set(
            object,
            tags::MANUFACTURER_MODEL_NAME,
            format!("Model {}", self.given).as_str(),
        );
        put(object, Tag(0x0009, 0x0010), VR::LO, "PLANTER");
        put(object, Tag(0x0009, 0x1001), VR::LO, name);
        put(object, Tag(0x6000, 0x4000), VR::LT, name);
    }

    fn sequences(&self, object: &mut InMemDicomObject, name: &str) {
        let mut reference = InMemDicomObject::new_empty();
        set(
            &mut reference,
            tags::REFERENCED_SOP_CLASS_UID,
            uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
        );
        set(
            &mut reference,
            tags::REFERENCED_SOP_INSTANCE_UID,
            self.other.as_str(),
        );
        put_sequence(object, tags::REFERENCED_IMAGE_SEQUENCE, reference);
        let mut request = InMemDicomObject::new_empty();
        set(&mut request, tags::REQUESTED_PROCEDURE_DESCRIPTION, name);
        put_sequence(object, tags::REQUEST_ATTRIBUTES_SEQUENCE, request);
        // A sequence that the profile keeps, with a name and a private element inside.
        let mut inner = InMemDicomObject::new_empty();
        set(&mut inner, tags::CODE_VALUE, "T-D3000");
        set(
            &mut inner,
            tags::CODE_MEANING,
            format!("Chest of {}", self.family).as_str(),
        );
        put(&mut inner, Tag(0x0011, 0x1001), VR::LO, name);
        put_sequence(object, tags::ANATOMIC_REGION_SEQUENCE, inner);
    }
}

/// An object before and after.
struct Pair {
    planted: Planted,
    before: Object,
    after: Object,
    bytes: Vec<u8>,
}

fn key() -> DeidentificationKey {
    DeidentificationKey::new([42; 32])
}

fn deidentified(bytes: &[u8], profile: Profile) -> Deidentified {
    let deidentifier = Deidentifier::new(key(), profile);
    deidentifier.deidentify(bytes, &Limits::default()).unwrap()
}

fn pairs(profile: Profile) -> Vec<Pair> {
    let all =
        (0..PATIENTS).flat_map(|patient| (0..INSTANCES).map(move |instance| (patient, instance)));
    all.map(|(patient, instance)| {
        let planted = Planted::new(patient, instance);
        let file = planted.file();
        let out = deidentified(&file, profile);
        let open = |bytes: &[u8]| dicom_object::from_reader(bytes).unwrap();
        let after = open(&out.bytes);
        assert_eq!(text(&after, tags::SOP_INSTANCE_UID), out.instance);
        Pair {
            before: open(&file),
            after,
            bytes: out.bytes,
            planted,
        }
    })
    .collect()
}

fn profiles() -> impl Iterator<Item = Profile> {
    (0..8).map(|bits| Profile {
        modified_dates: bits & 1 != 0,
        clean_descriptors: bits & 2 != 0,
        patient_characteristics: bits & 4 != 0,
        burned_in: BurnedIn::Refuse,
    })
}

fn all_options() -> Profile {
    profiles().last().unwrap()
}

/// Of a date, the day counted from one that lies before all of them.
fn day(date: &str) -> i64 {
    let number: i64 = date[..8].parse().unwrap();
    let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
    let months = [
        31,
        28 + i64::from(year % 4 == 0),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let years: i64 = (1901..year)
        .map(|year| 365 + i64::from(year % 4 == 0))
        .sum();
    years + months[..month as usize - 1].iter().sum::<i64>() + day
}

/// 1. date_shifted: all dates of a patient move by one number of days, and by another for another patient.
#[test]
fn dates_are_shifted_and_keep_their_distances() {
    let mut shifts: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for pair in pairs(all_options()) {
        for tag in [
            tags::STUDY_DATE,
            tags::CONTENT_DATE,
            tags::ACQUISITION_DATE_TIME,
        ] {
            let shift = day(&text(&pair.before, tag)) - day(&text(&pair.after, tag));
            assert!(shift > 0, "{tag}");
            shifts
                .entry(pair.planted.id.clone())
                .or_default()
                .insert(shift);
        }
        assert_eq!(text(&pair.after, tags::STUDY_TIME), "101500");
    }
    assert!(shifts.values().all(|days| days.len() == 1), "{shifts:?}");
    let different: BTreeSet<_> = shifts.values().collect();
    assert_eq!(different.len(), PATIENTS as usize);
}

/// 2. patid_consistent: one pseudonym for each patient, the same over files, options and runs, another with another key.
#[test]
fn a_patient_has_one_pseudonym() {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pair in profiles().flat_map(pairs) {
        let pseudonym = text(&pair.after, tags::PATIENT_ID);
        assert_eq!(text(&pair.after, tags::PATIENT_NAME), pseudonym);
        names.entry(pair.planted.id).or_default().insert(pseudonym);
    }
    assert!(names.values().all(|names| names.len() == 1), "{names:?}");
    assert_eq!(
        names.values().collect::<BTreeSet<_>>().len(),
        PATIENTS as usize
    );
    let file = Planted::new(0, 0).file();
    let other = Deidentifier::new(DeidentificationKey::new([43; 32]), all_options());
    let other = other.deidentify(&file, &Limits::default()).unwrap();
    assert_ne!(other.instance, deidentified(&file, all_options()).instance);
}

/// 3. pixels_hidden: an object whose pixels may carry text does not leave at all, unless somebody says so.
#[test]
fn pixels_with_text_do_not_leave() {
    let planted = Planted::new(0, 0);
    let refused = |change: fn(&mut InMemDicomObject)| {
        let file = file_as(planted.syntax, change);
        let of = |burned_in| {
            Deidentifier::new(
                key(),
                Profile {
                    burned_in,
                    ..all_options()
                },
            )
        };
        assert!(
            of(BurnedIn::Allow)
                .deidentify(&file, &Limits::default())
                .is_ok()
        );
        let refusal = of(BurnedIn::Refuse).deidentify(&file, &Limits::default());
        refusal.unwrap_err().reason
    };
    let burned = Reason::BurnedInAnnotation;
    assert_eq!(
        refused(|object| set(object, tags::BURNED_IN_ANNOTATION, "YES")),
        burned
    );
    assert_eq!(refused(|object| set(object, tags::MODALITY, "US")), burned);
    // An overlay within the pixel cells is text in the pixels, too.
    let overlay = |object: &mut InMemDicomObject| {
        put(object, Tag(0x6000, 0x0100), VR::US, 16_u16);
        put(object, Tag(0x6000, 0x0102), VR::US, 15_u16);
    };
    assert_eq!(refused(overlay), burned);
}

/// 4. pixels_retained: every pixel of what leaves is as it was.
#[test]
fn pixels_are_retained() {
    for pair in profiles().flat_map(pairs) {
        let pixels = |object: &Object| {
            object
                .element(tags::PIXEL_DATA)
                .unwrap()
                .to_bytes()
                .unwrap()
                .into_owned()
        };
        assert_eq!(pixels(&pair.before), pixels(&pair.after));
        for tag in [
            tags::ROWS,
            tags::COLUMNS,
            tags::BITS_STORED,
            tags::PHOTOMETRIC_INTERPRETATION,
        ] {
            assert_eq!(text(&pair.before, tag), text(&pair.after, tag));
        }
        assert_eq!(
            pair.before.meta().transfer_syntax(),
            pair.after.meta().transfer_syntax()
        );
    }
}

/// 5. tag_retained: what the profile does not name stays.
#[test]
fn other_attributes_are_retained() {
    for pair in profiles().flat_map(pairs) {
        for tag in [
            tags::MODALITY,
            tags::BODY_PART_EXAMINED,
            tags::MANUFACTURER,
            tags::SOP_CLASS_UID,
        ] {
            assert_eq!(text(&pair.before, tag), text(&pair.after, tag), "{tag}");
        }
        let region = pair.after.element(tags::ANATOMIC_REGION_SEQUENCE).unwrap();
        let items = region.items().unwrap();
        assert_eq!(text(&items[0], tags::CODE_VALUE), "T-D3000");
    }
}

/// 6. text_notnull: what must have a value has one.
#[test]
fn required_values_are_not_empty() {
    for pair in profiles().flat_map(pairs) {
        let required = [
            tags::PATIENT_ID,
            tags::PATIENT_NAME,
            tags::STUDY_INSTANCE_UID,
            tags::SOP_INSTANCE_UID,
            tags::MODALITY,
            tags::PATIENT_IDENTITY_REMOVED,
            tags::DEIDENTIFICATION_METHOD,
            tags::LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED,
        ];
        for tag in required {
            assert!(!text(&pair.after, tag).is_empty(), "{tag}");
        }
        assert_eq!(text(&pair.after, tags::PATIENT_IDENTITY_REMOVED), "YES");
        let codes = pair
            .after
            .element(tags::DEIDENTIFICATION_METHOD_CODE_SEQUENCE)
            .unwrap();
        assert_eq!(text(&codes.items().unwrap()[0], tags::CODE_VALUE), "113100");
    }
}

/// 7. text_removed: no planted identifier is anywhere in the bytes, in whatever case; no private element is left.
#[test]
fn identifiers_are_removed() {
    for pair in profiles().flat_map(pairs) {
        // Every file is small, and holds text in a form that a search finds.
        let bytes = pair.bytes.to_ascii_lowercase();
        for secret in pair.planted.secrets() {
            let secret = secret.to_ascii_lowercase();
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret}");
        }
        check_tags(&pair.after);
        assert!(
            pair.after
                .element(tags::PATIENT_BIRTH_DATE)
                .unwrap()
                .to_str()
                .unwrap()
                .is_empty()
        );
    }
}

fn check_tags(object: &InMemDicomObject) {
    for element in object.iter() {
        let tag = element.tag();
        assert!(
            tag.group() % 2 == 0 && tag.group() < 0x5000 || tag == tags::PIXEL_DATA,
            "{tag}"
        );
        element.items().into_iter().flatten().for_each(check_tags);
    }
}

/// 8. text_retained: with the option, descriptions keep their words; age and sex keep theirs, 90 being the highest age.
#[test]
fn descriptions_and_characteristics_are_retained_where_asked() {
    for pair in pairs(all_options()) {
        assert_eq!(text(&pair.after, tags::STUDY_DESCRIPTION), PROSE);
        let comments = text(&pair.after, tags::IMAGE_COMMENTS);
        assert_eq!(
            comments,
            format!("{PROSE}: [name] seen by [name], call [removed]")
        );
        assert_eq!(text(&pair.after, tags::PATIENT_AGE), "090Y");
        assert_eq!(text(&pair.after, tags::PATIENT_SEX), "F");
        assert_eq!(text(&pair.after, tags::PATIENT_WEIGHT), "70");
    }
    for pair in pairs(Profile::default()) {
        for tag in [
            tags::STUDY_DESCRIPTION,
            tags::IMAGE_COMMENTS,
            tags::PATIENT_AGE,
        ] {
            assert!(pair.after.element_opt(tag).unwrap().is_none(), "{tag}");
        }
    }
}

/// 9. uid_changed: every UID that names something of the hospital is another, and one that DICOM allows.
#[test]
fn uids_are_changed() {
    for pair in profiles().flat_map(pairs) {
        for tag in [tags::SOP_INSTANCE_UID, tags::STUDY_INSTANCE_UID] {
            let (before, after) = (text(&pair.before, tag), text(&pair.after, tag));
            assert_ne!(before, after);
            assert!(
                after.len() <= 64 && after.bytes().all(|b| b.is_ascii_digit() || b == b'.'),
                "{after}"
            );
        }
    }
}

/// 10. uid_consistent: one UID is one UID everywhere: in references, in file meta information, in other files.
#[test]
fn uids_are_consistent() {
    let pairs: Vec<Pair> = pairs(all_options());
    let mapped: BTreeMap<String, String> = pairs
        .iter()
        .map(|pair| {
            (
                pair.planted.instance.clone(),
                text(&pair.after, tags::SOP_INSTANCE_UID),
            )
        })
        .collect();
    let different: BTreeSet<&String> = mapped.values().collect();
    assert_eq!(different.len(), pairs.len());
    for pair in &pairs {
        let reference = pair.after.element(tags::REFERENCED_IMAGE_SEQUENCE).unwrap();
        let item = &reference.items().unwrap()[0];
        assert_eq!(
            text(item, tags::REFERENCED_SOP_INSTANCE_UID),
            mapped[&pair.planted.other]
        );
        assert_eq!(
            text(item, tags::REFERENCED_SOP_CLASS_UID),
            uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE
        );
        let meta = pair.after.meta().media_storage_sop_instance_uid();
        assert_eq!(meta.trim_matches('\0'), mapped[&pair.planted.instance]);
    }
}

#[test]
fn what_is_no_image_does_not_leave() {
    let deidentifier = Deidentifier::new(key(), all_options());
    let reason = |bytes: &[u8]| {
        deidentifier
            .deidentify(bytes, &Limits::default())
            .unwrap_err()
            .reason
    };
    let report = file_as(uids::EXPLICIT_VR_LITTLE_ENDIAN, |object| {
        object.remove_element(tags::PIXEL_DATA);
    });
    assert_eq!(reason(&report), Reason::NoPixelData);
    assert_eq!(reason(b"\x89PNG\r\n\x1a\n"), Reason::NotDicom);
    let whole = Planted::new(1, 0).file();
    // Cut behind the preamble: within an element, the file is not taken for a shorter one.
    assert_eq!(reason(&whole[..whole.len() - 30]), Reason::Truncated);
}
