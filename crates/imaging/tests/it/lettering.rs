//! Text that a reader finds in the pixels: which files it is shown, and what becomes of those in which it finds some.

use std::sync::atomic::{AtomicU32, Ordering};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use medfleet_imaging::{
    Area, BurnedIn, DeidentificationKey, Deidentifier, FoundText, Limits, Note, Options, Page,
    Profile, Reason, TextCheck, TextKind, TextReader, TextReaderError, Word, decode_file,
};

use crate::synthetic::{file, put_cells, set};

const SIDE: u16 = 16;
const PICTURE: &[u8] = include_bytes!("../golden/mono2-8bit.png");
const VOLUME: &[u8] = include_bytes!("../golden/formats/ct-left-back-up.nii");
const SLIDE: &[u8] = include_bytes!("../golden/slides/pyramid-deflate.tif");

/// Finds one word in whatever it is shown, and counts that.
#[derive(Debug, Default)]
struct Finds {
    shown: AtomicU32,
}

impl TextReader for Finds {
    fn read(&self, page: &Page<'_>) -> Result<Vec<Word>, TextReaderError> {
        let bytes = page.width * page.height * page.channels;
        assert_eq!(page.pixels.len(), bytes as usize);
        self.shown.fetch_add(1, Ordering::Relaxed);
        let area = Area {
            left: 0,
            top: 0,
            width: page.width,
            height: page.height,
        };
        Ok(vec![Word {
            text: "DOE^JANE".to_owned(),
            confidence: 90.0,
            area,
            line: area,
        }])
    }
}

fn looking(kinds: &[TextKind], found: FoundText) -> (Options, &'static Finds) {
    let reader: &'static Finds = Box::leak(Box::default());
    let check = TextCheck {
        reader,
        kinds: kinds.iter().copied().collect(),
        confidence_min: 60.0,
        length_min: 3,
        found,
    };
    let options = Options::new(32, Limits::default()).unwrap();
    (options.checking_text(Some(check)), reader)
}

/// A square image that says this, large enough for a letter.
fn image(says: &[(Tag, &str)]) -> Vec<u8> {
    let pixels: Vec<u16> = (0..SIDE * SIDE).collect();
    file(|object| {
        set(object, tags::ROWS, SIDE);
        set(object, tags::COLUMNS, SIDE);
        put_cells(object, pixels);
        set(object, tags::RESCALE_SLOPE, "1");
        set(object, tags::RESCALE_INTERCEPT, "-1");
        for (tag, value) in says {
            set(object, *tag, *value);
        }
    })
}

const VOUCHED: (Tag, &str) = (tags::BURNED_IN_ANNOTATION, "NO");
const STATED: (Tag, &str) = (tags::BURNED_IN_ANNOTATION, "YES");
const CAPTURE: (Tag, &str) = (tags::SOP_CLASS_UID, uids::SECONDARY_CAPTURE_IMAGE_STORAGE);
const CT: (Tag, &str) = (tags::MODALITY, "CT");

/// The file is of this kind: refused where the reader looks at it, and used where it looks at everything else.
#[track_caller]
fn check(bytes: &[u8], kind: TextKind) {
    let (options, reader) = looking(&[kind], FoundText::Refuse);
    let refusal = decode_file(bytes, &options.burned_in(BurnedIn::Allow)).unwrap_err();
    assert_eq!(refusal.reason, Reason::BurnedInText);
    assert!(!refusal.to_string().contains("DOE"), "{refusal}");
    assert_eq!(reader.shown.load(Ordering::Relaxed), 1);
    let others = TextKind::ALL.iter().copied();
    let others: Vec<TextKind> = others.filter(|other| *other != kind).collect();
    let (options, reader) = looking(&others, FoundText::Refuse);
    decode_file(bytes, &options.burned_in(BurnedIn::Allow)).unwrap();
    assert_eq!(reader.shown.load(Ordering::Relaxed), 0);
}

#[test]
fn files_are_looked_at_by_what_their_headers_say() {
    check(PICTURE, TextKind::Picture);
    check(&image(&[]), TextKind::Unsaid);
    check(&image(&[VOUCHED]), TextKind::Vouched);
    check(&image(&[STATED]), TextKind::Allowed);
    check(&image(&[CAPTURE]), TextKind::Allowed);
    check(&image(&[CT]), TextKind::Slice);
    check(&image(&[CT, VOUCHED]), TextKind::Vouched);
    check(&image(&[CT, CAPTURE]), TextKind::Allowed);
    check(VOLUME, TextKind::Slice);
}

#[test]
fn what_the_header_rules_refuse_is_not_even_looked_at() {
    let (options, reader) = looking(TextKind::ALL, FoundText::PaintOver);
    let refusal = decode_file(&image(&[CAPTURE]), &options).unwrap_err();
    assert_eq!(refusal.reason, Reason::BurnedInAnnotation);
    assert_eq!(reader.shown.load(Ordering::Relaxed), 0);
}

#[test]
fn patches_of_slides_are_not_looked_at() {
    let (options, reader) = looking(TextKind::ALL, FoundText::Refuse);
    decode_file(SLIDE, &options).unwrap();
    assert_eq!(reader.shown.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_painted_over_is_black_before_the_model_sees_it_and_said() {
    for bytes in [PICTURE, &image(&[]), VOLUME] {
        let (options, _) = looking(TextKind::ALL, FoundText::PaintOver);
        for (frame, info) in decode_file(bytes, &options).unwrap().frames {
            assert!(frame.pixels.iter().all(|level| *level == 0));
            assert!(info.notes.contains(&Note::TextPaintedOver));
        }
    }
}

#[test]
fn no_object_leaves_with_text_whatever_its_header_says() {
    let (options, reader) = looking(&[], FoundText::PaintOver);
    let key = DeidentificationKey::new([1; 32]);
    let plain = Deidentifier::new(key, Profile::default());
    let looking = plain.clone().checking_text(options.text_check());
    for says in [&[][..], &[VOUCHED]] {
        let bytes = image(says);
        plain.deidentify(&bytes, &Limits::default()).unwrap();
        let refusal = looking.deidentify(&bytes, &Limits::default()).unwrap_err();
        assert_eq!(refusal.reason, Reason::BurnedInText);
    }
    assert_eq!(reader.shown.load(Ordering::Relaxed), 2);
}
