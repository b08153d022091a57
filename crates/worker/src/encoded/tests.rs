//! An encoded study comes back as it was written, and every damage to it is refused.

use medfleet_proto::work::v1::MaskedText;

use super::*;

/// A study of two frames of three images, and the tokens of its frames.
fn study() -> (EncodedStudy, Vec<Vec<u8>>) {
    let tokens: Vec<Vec<u8>> = (0..2).map(|frame| (frame..frame + 16).collect()).collect();
    let frames = tokens
        .iter()
        .zip([0, 2])
        .map(|(tokens, input_index)| EncodedFrame {
            width: 64,
            channels: 1,
            info: Some(v1::FrameUsed {
                input_index,
                modality: "CR".to_owned(),
                frame_digest: "ab".repeat(32),
                notes: vec!["PRIOR_EXAMINATION".to_owned()],
                ..v1::FrameUsed::default()
            }),
            tokens_checksum: checksum(tokens),
        });
    let study = EncodedStudy {
        image_count: 3,
        frames: frames.collect(),
        files_refused: vec![v1::FileRefused {
            input_index: 1,
            reason: "NO_IMAGE".to_owned(),
            message: "a report (file 2 of the archive)".to_owned(),
        }],
        preprocessing_version: "medgemma-1.5-5".to_owned(),
        input_digests: vec![Bytes::from(vec![7; 32]); 3],
        screening: Some(TextScreening {
            masked_task: None,
            masked: vec![MaskedText {
                kind: "NAME".to_owned(),
                count: 2,
            }],
        }),
        encoder_digest: Bytes::from(vec![9; 32]),
        device: "cuda NVIDIA H100 sm_90".to_owned(),
        tokens_per_frame: 2,
        token_width: 4,
        dtype: "bf16".to_owned(),
    };
    (study, tokens)
}

fn file() -> Vec<u8> {
    let (study, tokens) = study();
    let begin = beginning(&study).expect("a good head");
    [begin.to_vec(), tokens.concat()].concat()
}

/// A file that begins with these bytes as its head.
fn with_head(head: &[u8]) -> Vec<u8> {
    let length = u32::try_from(head.len()).expect("it is short");
    let begin = [&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes()].concat();
    [&begin[..], blake3::hash(head).as_bytes(), head].concat()
}

#[test]
fn what_was_written_is_read() {
    let (study, tokens) = study();
    let read = read(&Bytes::from(file())).expect("it is whole");
    assert_eq!(read.study, study);
    assert_eq!(read.tokens, tokens);
}

#[test]
fn a_file_with_any_byte_changed_missing_or_added_is_refused() {
    let whole = file();
    for at in 0..whole.len() {
        for flip in [1, 0x80] {
            let mut changed = whole.clone();
            changed[at] ^= flip;
            assert!(read(&Bytes::from(changed)).is_err(), "byte {at}");
        }
        let cut = Bytes::copy_from_slice(&whole[..at]);
        assert!(read(&cut).is_err(), "cut at {at}");
    }
    let longer = Bytes::from([whole.as_slice(), &[0]].concat());
    assert!(matches!(read(&longer), Err(EncodedError::Form(_))));
    let mut later = whole;
    later[8] = 2;
    let found = read(&Bytes::from(later));
    assert_eq!(found, Err(EncodedError::Version { found: 2 }));
    let picture = Bytes::from_static(&[0x89, b'P', b'N', b'G', 13, 10, 26, 10]);
    assert!(matches!(read(&picture), Err(EncodedError::Form(_))));
}

#[test]
fn a_head_that_cannot_be_is_refused_by_writer_and_reader() {
    let check = |what: &str, change: &dyn Fn(&mut EncodedStudy)| {
        let (mut study, tokens) = study();
        change(&mut study);
        let refused = beginning(&study);
        assert!(matches!(refused, Err(EncodedError::Head(_))), "{what}");
        // As somebody would who has another writer.
        let bytes = [with_head(&study.encode_to_vec()), tokens.concat()].concat();
        let refused = read(&Bytes::from(bytes));
        assert!(matches!(refused, Err(EncodedError::Head(_))), "{what}");
    };
    check("no frame", &|study| study.frames.clear());
    check("no image", &|study| study.image_count = 0);
    check("another input", &|study| study.image_count = 2);
    check("no encoder", &|study| study.encoder_digest.clear());
    check("no shape", &|study| study.token_width = 0);
    check("too wide", &|study| study.token_width = u32::MAX);
    check("too many", &|study| study.tokens_per_frame = u32::MAX);
    check("no type", &|study| study.dtype = "f64".to_owned());
    check("no rules", &|study| study.preprocessing_version.clear());
    check("not screened", &|study| study.screening = None);
    check("a task", &|study| {
        let screening = study.screening.get_or_insert_default();
        screening.masked_task = Some(v1::Task::default());
    });
    check("a text", &|study| {
        let info = study.frames[0].info.get_or_insert_default();
        info.notes.push("Erika Mustermann".to_owned());
    });
    check("no number", &|study| {
        let info = study.frames[0].info.get_or_insert_default();
        info.window = Some(v1::Window {
            center: f64::NAN,
            ..v1::Window::default()
        });
    });
    check("no record", &|study| study.frames[1].info = None);
    check("two channels", &|study| study.frames[1].channels = 2);
    check("no digest", &|study| {
        study.input_digests.pop();
    });
    check("lines", &|study| study.device = "cpu\n".to_owned());
}

/// A field with a length.
fn field(number: u8, contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![(number << 3) | 2];
    prost::encode_length_delimiter(contents.len(), &mut bytes).expect("a vector grows");
    bytes.extend(contents);
    bytes
}

/// Two bytes each, and hundreds of them in memory.
#[test]
fn a_head_of_more_fields_than_there_can_be_is_not_decoded() {
    let check = |head: &[u8], expected: &'static str| {
        let refused = read(&Bytes::from(with_head(head)));
        assert_eq!(refused, Err(EncodedError::Head(expected)));
    };
    let frames = |count: usize| field(2, &[]).repeat(count);
    check(&frames(FRAMES_MAX), "it stands for no image, or too many");
    check(&frames(FRAMES_MAX + 1), "it has too many fields");
    let digests = |count: usize| field(5, &[]).repeat(count);
    check(&digests(FIELDS_MAX), "it has no frame, or too many");
    check(&digests(FIELDS_MAX + 1), "it has too many fields");
    // Of every kind of field, and within a group.
    let mut mixed = vec![
        0x08, 0x80, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4,
    ];
    mixed.push(0x7b);
    mixed.extend(digests(FIELDS_MAX - 4));
    mixed.push(0x7c);
    check(&mixed, "it has too many fields");
    check(&[0x0f], "it does not decode");
    check(&[0x12, 5, 0], "it does not decode");
}

/// A single field of a head can have in it what takes twenty times its bytes in memory.
#[test]
fn fields_within_fields_are_counted() {
    let check = |what: &str, within: &dyn Fn(&[u8]) -> Vec<u8>, number: u8| {
        let outer = within(&[]);
        let around = fields_within(&outer);
        let head = |count: usize| within(&field(number, &[]).repeat(count - around));
        assert!(has_fields_of_a_head(&head(FIELDS_MAX)), "{what}");
        let many = head(FIELDS_MAX + 1);
        assert!(many.len() < HEAD_BYTES_MAX, "{what}");
        let refused = read(&Bytes::from(with_head(&many)));
        let expected = Err(EncodedError::Head("it has too many fields"));
        assert_eq!(refused, expected, "{what}");
    };
    let frame = |info: &[u8]| field(2, &field(3, info));
    check("windows of channels", &frame, 10);
    check("notes", &frame, 9);
    check("infos", &|infos| field(2, infos), 3);
    check("masked texts", &|masked| field(6, masked), 2);
    let task = |kind: u8| move |task: &[u8]| field(6, &field(1, &field(kind, task)));
    check("labels to classify", &task(3), 1);
    check("labels to score", &task(8), 1);
}

/// How many fields one is that has one in it, and so on.
fn fields_within(message: &[u8]) -> usize {
    fields(message)
        .map(|(_, contents)| 1 + fields_within(contents))
        .sum()
}

/// The most of everything that [`check`] lets through.
#[test]
fn the_fullest_head_has_no_more_fields_than_are_read() {
    let (mut study, _) = study();
    let window = v1::Window {
        center: 40.0,
        width: 400.0,
        function: "LINEAR".to_owned(),
    };
    let frame = EncodedFrame {
        info: Some(v1::FrameUsed {
            input_index: 1,
            frame_index: 1,
            modality: "CT".to_owned(),
            window: Some(window.clone()),
            frame_digest: "a".to_owned(),
            original_width: 1,
            original_height: 1,
            notes: vec![String::new(); NOTES_MAX],
            channel_windows: vec![window; 3],
            placement: Some(v1::Placement {
                pad_left_pixels: 1,
                pad_top_pixels: 1,
                padded_side_pixels: 1,
            }),
            ..v1::FrameUsed::default()
        }),
        ..study.frames[0].clone()
    };
    study.frames = vec![frame; FRAMES_MAX];
    study.image_count = IMAGES_MAX;
    study.files_refused = vec![study.files_refused[0].clone(); IMAGES_MAX as usize];
    study.input_digests = vec![Bytes::from(vec![7; 32]); IMAGES_MAX as usize];
    let screening = study.screening.get_or_insert_default();
    screening.masked = vec![screening.masked[0].clone(); NOTES_MAX];
    super::check(&study).expect("it is a head");
    assert!(has_fields_of_a_head(&study.encode_to_vec()));
}

#[test]
fn a_frame_known_by_its_tokens_has_a_name_of_its_own() {
    let key = FleetKey::new([1; 32]);
    let [a, b] = ["a", "b"].map(|tenant| TenantId::new(tenant).expect("a name"));
    let [first, second] = [1, 2].map(|byte| Digest::new([byte; 32]));
    let name = frame_name(&key, &a, &first);
    assert_eq!(name, frame_name(&key, &a, &first));
    for other in [
        first,
        frame_name(&key, &a, &second),
        frame_name(&key, &b, &first),
        frame_name(&FleetKey::new([2; 32]), &a, &first),
    ] {
        assert_ne!(name, other);
    }
}
