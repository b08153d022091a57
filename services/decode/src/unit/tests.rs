//! Every way in which lists can fail to name the declared images.

use medfleet_core::{Class, Cost, JobId, JobKey, PoolName, Stage};
use medfleet_engine::Dtype;
use medfleet_proto::v1::{FileRefused, FrameUsed};
use medfleet_proto::work::v1::{EncodedImages, MaskedText, TextScreening, TokensEntry};

use super::*;

fn frame(byte: u8) -> FrameEntry {
    FrameEntry {
        digest: vec![byte; 32].into(),
        info: Some(FrameUsed {
            input_index: byte.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn frames(count: u8, chunk_starts: &[u32]) -> FramesManifest {
    FramesManifest {
        frames: (0..count).map(frame).collect(),
        chunk_starts: chunk_starts.to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_text_is_as_hasty_as_its_job() {
    let unit = WorkUnit {
        key: JobKey::new("a".parse().expect("a tenant"), JobId::from_bytes([1; 16])),
        stage: Stage::Decode,
        pool: PoolName::new("m").expect("a pool"),
        class: Class::Urgent,
        unit: 0,
        epoch: 0,
        expires: UnixMillis(5_000),
        cost: Cost::default(),
    };
    let check = |now, texts, left| {
        let expected = Haste {
            class: Class::Urgent,
            time_left: Duration::from_millis(left),
        };
        assert_eq!(haste(&unit, UnixMillis(now), texts), expected);
    };
    check(2_000, 1, 3_000);
    check(6_000, 1, 0);
    // Of a list of labels each text has its part of the time, and what is left at the last one is that one's.
    check(2_000, 3, 1_000);
    check(4_000, 1, 1_000);
    check(6_000, 3, 0);
}

#[test]
fn an_encoded_study_stands_for_the_images_of_its_edge() {
    let mut manifest = frames(3, &[0]);
    manifest.encoded = Some(EncodedImages {
        image_count: 3,
        ..Default::default()
    });
    let check = |manifest: &FramesManifest, declared, expected: bool| {
        assert_eq!(chunks(manifest, declared).is_ok(), expected, "{declared}");
    };
    check(&manifest, 1, true);
    check(&manifest, 2, false);
    manifest.encoded = Some(EncodedImages {
        image_count: 4,
        ..Default::default()
    });
    check(&manifest, 1, false);
    manifest.encoded = None;
    check(&manifest, 1, false);
}

#[test]
fn the_chunks_are_exactly_the_declared_images() {
    let check = |count, starts: &[u32], declared, expected: Option<&[(usize, usize)]>| {
        let manifest = frames(count, starts);
        let found = chunks(&manifest, declared).ok();
        let found: Option<Vec<(usize, usize)>> = found.map(|chunks| {
            chunks
                .iter()
                .map(|(at, frames)| (*at, frames.len()))
                .collect()
        });
        assert_eq!(found.as_deref(), expected, "{count} {starts:?} {declared}");
    };
    check(0, &[], 0, Some(&[]));
    check(3, &[0, 1, 2], 3, Some(&[(0, 1), (1, 1), (2, 1)]));
    check(3, &[0, 2], 3, Some(&[(0, 2), (2, 1)]));
    check(2, &[0, 1], 3, None);
    check(3, &[0, 1, 2], 2, None);
    check(3, &[1, 2], 3, None);
    check(3, &[], 3, None);
    check(3, &[0, 2, 1], 3, None);
    check(3, &[0, 3], 3, None);
    check(3, &[0, 0], 3, None);
}

#[test]
fn every_declared_input_is_shown_or_has_a_reason() {
    let check = |shown: &[u32], unused: &[u32], declared, expected: Option<usize>| {
        let frames = shown.iter().map(|index| {
            let mut frame = frame(0);
            frame.info = Some(FrameUsed {
                input_index: *index,
                ..Default::default()
            });
            frame
        });
        let refused = unused.iter().map(|index| FileRefused {
            input_index: *index,
            ..Default::default()
        });
        let manifest = FramesManifest {
            frames: frames.collect(),
            files_refused: refused.collect(),
            ..Default::default()
        };
        assert_eq!(accounted(&manifest, declared), expected);
    };
    // A localiser left out, a multi-frame file with two frames shown.
    check(&[2, 1], &[0], 3, Some(3));
    check(&[0, 0], &[], 1, Some(1));
    check(&[0, 2], &[], 3, Some(2));
    check(&[0, 3], &[1], 3, None);
    // Two archives, and files of the second that are no slice or more slices than the model takes.
    check(&[0, 1], &[1, 1], 2, Some(2));
    check(&[0, 0], &[0], 2, Some(1));
    check(&[0, 1], &[1], 3, Some(2));
    check(&[], &[0, 1], 2, None);
    let mut nameless = frames(1, &[0]);
    nameless.frames[0].info = None;
    assert_eq!(accounted(&nameless, 1), None);
}

#[test]
fn a_task_is_asked_as_it_was_screened_or_not_at_all() {
    let task = |question: &str| v1::Task {
        kind: Some(v1::task::Kind::Answer(v1::AnswerTask {
            question: question.to_owned(),
        })),
    };
    let study = StudyManifest {
        task: Some(task("as sent")),
        ..Default::default()
    };
    let mut manifest = frames(1, &[0]);
    assert!(screened_task(&study, &manifest).is_err());
    manifest.screening = Some(TextScreening::default());
    assert_eq!(
        screened_task(&study, &manifest).ok(),
        Some(&task("as sent"))
    );
    assert_eq!(masked_warning(&manifest), None);
    manifest.screening = Some(TextScreening {
        masked_task: Some(task("masked")),
        masked: vec![MaskedText {
            kind: "NAME".to_owned(),
            count: 2,
        }],
    });
    assert_eq!(screened_task(&study, &manifest).ok(), Some(&task("masked")));
    let warning = masked_warning(&manifest).expect("something was masked");
    assert!(
        warning.starts_with("PROMPT_MASKED: ") && warning.ends_with("NAME 2"),
        "{warning}"
    );
}

fn model() -> Description {
    Description {
        model: "tiny".to_owned(),
        model_digest: Digest::new([7; 32]),
        settings_digest: Digest::new([6; 32]),
        encoder_digest: Digest::new([9; 32]),
        device: "cpu".to_owned(),
        dtype: Dtype::F32,
        weights: String::new(),
        reproducible: true,
        frame_side: 8,
        tokens_per_image: 4,
        token_width: 8,
        context_tokens_max: 100,
    }
}

fn tokens() -> TokensManifest {
    let entry = |byte: u8| TokensEntry {
        digest: vec![byte + 100; 32].into(),
        count: 4,
        width: 8,
        dtype: "f32".to_owned(),
        frame_digest: vec![byte; 32].into(),
        made_for: vec![5; 16].into(),
    };
    TokensManifest {
        tokens: vec![entry(0), entry(1)],
        encoder_digest: vec![9; 32].into(),
        ..Default::default()
    }
}

#[test]
fn tokens_of_another_frame_encoder_shape_or_number_are_refused() {
    let check = |change: &dyn Fn(&mut TokensManifest), expected: Option<usize>| {
        let mut manifest = tokens();
        change(&mut manifest);
        let found = declared(&manifest, 4, &[frame(0), frame(1)], &model());
        let refused = match &found {
            Ok(_) => None,
            Err(DecodeError::Tokens { image, .. } | DecodeError::Dtype { image, .. }) => {
                Some(*image)
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!(refused, expected, "{found:?}");
    };
    check(&|_| {}, None);
    check(&|m| m.tokens.swap(0, 1), Some(4));
    check(&|m| m.tokens.truncate(1), Some(4));
    check(&|m| m.tokens[1].frame_digest = vec![3; 32].into(), Some(5));
    check(&|m| m.tokens[1].count = 5, Some(5));
    check(&|m| m.tokens[0].dtype = "f16".to_owned(), Some(4));
    check(&|m| m.tokens[1].dtype = "bf16".to_owned(), Some(5));
    check(&|m| m.tokens[1].digest = vec![1; 3].into(), Some(5));
    check(&|m| m.encoder_digest = vec![8; 32].into(), Some(4));
}

#[test]
fn tokens_of_another_job_came_from_the_cache() {
    let check = |marks: [&[u8]; 2], expected| {
        let mut manifest = tokens();
        for (entry, mark) in manifest.tokens.iter_mut().zip(marks) {
            entry.made_for = mark.to_vec().into();
        }
        assert_eq!(cached(&manifest, &[5; 16]), expected, "{marks:?}");
    };
    check([&[5; 16], &[5; 16]], 0);
    check([&[5; 16], &[6; 16]], 1);
    check([&[7; 16], &[6; 16]], 2);
    // As an earlier release, or a hospital's edge, has them.
    check([&[], &[]], 0);
}

#[test]
fn every_kind_of_device_that_encoded_is_named_once() {
    let check = |of_chunks: &[&str], expected: &[&str]| {
        assert_eq!(devices(of_chunks.iter().copied()), expected);
    };
    check(
        &["cuda:sm_90", "cpu:amx", "cuda:sm_90"],
        &["cuda:sm_90", "cpu:amx"],
    );
    // As an earlier release has them.
    check(&["", ""], &[]);
}

#[test]
fn a_text_that_calls_other_images_an_x_ray_has_a_warning() {
    let check = |modalities: &[&str], text: &str, expected: Option<&str>| {
        let frames = modalities.iter().map(|modality| FrameEntry {
            info: Some(FrameUsed {
                modality: (*modality).to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        });
        let frames: Vec<FrameEntry> = frames.collect();
        let found = misnamed_warning(&frames, text);
        let expected = expected.map(|shown| {
            format!("the text speaks of an X-ray, and no image is one: they are {shown}")
        });
        assert_eq!(found, expected, "{modalities:?} {text}");
    };
    let said = "Findings: The chest X-ray shows clear lungs.";
    check(&["CT", "CT"], said, Some("CT"));
    check(&["XC", "OP"], "This radiograph, a fundus.", Some("OP, XC"));
    check(&["CT"], "No radiographic correlate.", None);
    check(&["CT", "DX"], said, None);
    check(&["MG"], said, None);
    check(&[""], said, None);
    check(&["CT", ""], said, None);
    check(&[], said, None);
}

#[test]
fn slices_are_a_volume_and_patches_a_slide() {
    let of = |frames: &[(&str, u32, u32)], notes: &[&str]| {
        let frames: Vec<FrameEntry> = frames
            .iter()
            .map(|(modality, input_index, frame_index)| FrameEntry {
                info: Some(FrameUsed {
                    modality: (*modality).to_owned(),
                    input_index: *input_index,
                    frame_index: *frame_index,
                    notes: notes.iter().map(|note| (*note).to_owned()).collect(),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect();
        images(&frames)
    };
    let check = |modalities: &[&str], expected: Arrangement| {
        let frames = (0..).zip(modalities);
        let frames: Vec<_> = frames.map(|(input, one)| (*one, input, 0)).collect();
        let found = of(&frames, &["FEW_SLICES"]);
        assert_eq!(found.modalities, modalities);
        assert_eq!(found.arrangement, expected, "{modalities:?}");
    };
    check(&[], Arrangement::Apart);
    check(&["CR"], Arrangement::Apart);
    // One slice is no volume.
    check(&["CT"], Arrangement::Apart);
    check(&["CT", "CT"], Arrangement::Volume);
    check(&["MR", "MR", "MR"], Arrangement::Volume);
    check(&["CT", "MR"], Arrangement::Apart);
    check(&["CT", ""], Arrangement::Apart);
    check(&["SM"], Arrangement::Apart);
    // Photographs through a microscope, each a file of its own.
    check(&["SM", "SM"], Arrangement::Apart);
    let patches = of(&[("SM", 1, 0), ("SM", 1, 4), ("SM", 1, 5)], &[]);
    assert_eq!(patches.arrangement, Arrangement::Slide);
    let photographs = of(&[("SM", 1, 0), ("SM", 1, 0)], &[]);
    assert_eq!(photographs.arrangement, Arrangement::Apart);
    // Pictures of which their sender says that they are of CT: nothing says that they are one series.
    let pictures = of(&[("CT", 0, 0), ("CT", 1, 0)], &[MODALITY_AS_GIVEN]);
    assert_eq!(pictures, Images::of("CT", 2));
    let nameless = [frame(0), FrameEntry::default()];
    assert_eq!(images(&nameless), Images::of("", 2));
}
