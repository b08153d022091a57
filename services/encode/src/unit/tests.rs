//! Chunks, keys and manifests of tokens, by example.

use medfleet_proto::work::v1::EncodedImages;

use super::*;

#[test]
fn chunks_cover_frames_and_nothing_else() {
    let check = |starts: &[u32], frames, chunk, expected| {
        assert_eq!(range(starts, frames, chunk), expected, "{starts:?} {chunk}");
    };
    check(&[0, 2, 4], 5, 0, Some(0..2));
    check(&[0, 2, 4], 5, 2, Some(4..5));
    check(&[0, 2, 4], 5, 3, None);
    check(&[0, 2, 2], 5, 1, None);
    check(&[], 0, 0, None);
}

#[test]
fn a_text_follows_the_chunk_without_which_all_are_done() {
    let check = |total, done_bitmap, chunk, expected| {
        let chunks = Chunks { total, done_bitmap };
        assert_eq!(is_last(chunks, chunk), expected, "{chunks:?} {chunk}");
    };
    check(1, 0, 0, true);
    check(3, 0b001, 1, false);
    check(3, 0b101, 1, true);
    // It is done again, and another one is missing.
    check(3, 0b011, 1, false);
    check(3, 0b111, 1, true);
}

fn model() -> Description {
    Description {
        model: "tiny".to_owned(),
        model_digest: Digest::new([8; 32]),
        settings_digest: Digest::new([7; 32]),
        encoder_digest: Digest::new([9; 32]),
        device: "cpu".to_owned(),
        dtype: Dtype::Bf16,
        weights: String::new(),
        reproducible: true,
        frame_side: 8,
        tokens_per_image: 2,
        token_width: 4,
        context_tokens_max: 100,
    }
}

fn frame(byte: u8) -> FrameEntry {
    FrameEntry {
        digest: vec![byte; 32].into(),
        ..Default::default()
    }
}

/// What the model makes of that frame.
fn entry(byte: u8) -> TokensEntry {
    TokensEntry {
        digest: vec![byte + 100; 32].into(),
        count: 2,
        width: 4,
        dtype: "bf16".to_owned(),
        frame_digest: vec![byte; 32].into(),
        made_for: vec![5; 16].into(),
    }
}

/// Three frames in two chunks that came encoded.
fn encoded() -> FramesManifest {
    FramesManifest {
        frames: vec![frame(0), frame(1), frame(2)],
        chunk_starts: vec![0, 2],
        encoded: Some(EncodedImages {
            image_count: 3,
            encoder_digest: vec![9; 32].into(),
            device: "cuda".to_owned(),
            tokens: vec![entry(0), entry(1), entry(2)],
        }),
        ..Default::default()
    }
}

#[test]
fn what_came_encoded_is_taken_for_its_own_frames() {
    let taken = came_encoded(&encoded(), 1, &model()).expect("it is ours");
    let taken = taken.expect("it came encoded");
    assert_eq!(
        taken.tokens,
        encoded().encoded.expect("encoded").tokens[2..]
    );
    assert_eq!(taken.device, "cuda");
    let frames = &encoded().frames[2..];
    assert!(still_good(&taken, frames, &model()).is_some());
    let plain = FramesManifest {
        encoded: None,
        ..encoded()
    };
    assert!(matches!(came_encoded(&plain, 0, &model()), Ok(None)));
    let mut swapped = encoded();
    swapped.frames.swap(0, 1);
    let refused = came_encoded(&swapped, 0, &model());
    assert!(matches!(refused, Err(EncodeError::Manifest(_))));
    let mut short = encoded();
    short.encoded.as_mut().expect("encoded").tokens.pop();
    let refused = came_encoded(&short, 1, &model());
    assert!(matches!(refused, Err(EncodeError::Manifest(_))));
}

#[test]
fn what_another_encoder_made_is_refused_and_both_are_named() {
    let check = |change: &dyn Fn(&mut EncodedImages), named: &str| {
        let mut manifest = encoded();
        change(manifest.encoded.as_mut().expect("encoded"));
        let refused = came_encoded(&manifest, 0, &model());
        let Err(error @ EncodeError::OtherEncoder { .. }) = refused else {
            panic!("{refused:?}");
        };
        let text = error.to_string();
        assert!(
            text.contains(named) && text.contains(&"09".repeat(32)),
            "{text}"
        );
    };
    check(
        &|it| it.encoder_digest = vec![7; 32].into(),
        &"07".repeat(32),
    );
    check(&|it| it.tokens[1].count = 3, "3x4 bf16");
    check(&|it| it.tokens[0].width = 5, "2x5 bf16");
    check(&|it| it.tokens[0].dtype = "f32".to_owned(), "2x4 f32");
}

#[test]
fn tokens_of_a_frame_are_found_by_all_that_decides_them() {
    let frame = FrameEntry {
        digest: vec![1; 32].into(),
        width: 8,
        channels: 1,
        ..Default::default()
    };
    let mine = frame_key(&frame, "rules-1", &model());
    assert_eq!(mine, frame_key(&frame, "rules-1", &model()));
    // Where it lay in its file and how it was windowed is not in its pixels, or is in them already.
    let elsewhere = FrameEntry {
        info: Some(medfleet_proto::v1::FrameUsed::default()),
        ..frame.clone()
    };
    assert_eq!(mine, frame_key(&elsewhere, "rules-1", &model()));
    let with_frame = |change: &dyn Fn(&mut FrameEntry)| {
        let mut frame = frame.clone();
        change(&mut frame);
        frame_key(&frame, "rules-1", &model())
    };
    let with_model = |change: &dyn Fn(&mut Description)| {
        let mut model = model();
        change(&mut model);
        frame_key(&frame, "rules-1", &model)
    };
    let others = [
        frame_key(&frame, "rules-2", &model()),
        with_frame(&|frame| frame.digest = vec![2; 32].into()),
        with_frame(&|frame| frame.width = 9),
        with_frame(&|frame| frame.channels = 3),
        with_model(&|model| model.encoder_digest = Digest::new([8; 32])),
        with_model(&|model| model.dtype = Dtype::F32),
        with_model(&|model| model.device = "cuda".to_owned()),
        with_model(&|model| model.tokens_per_image = 3),
        with_model(&|model| model.token_width = 5),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(mine, *other, "{index}");
    }
    // The vision half alone makes them.
    let mine_too = with_model(&|model| model.model_digest = Digest::new([7; 32]));
    assert_eq!(mine, mine_too);
    let job = medfleet_core::JobId::from_bytes([1; 16]);
    let handed = medfleet_worker::handed_key((&job, 0), &Digest::new([1; 32]), 0);
    assert!(mine.len() > handed.len(), "no other list has its name");
}

#[test]
fn tokens_are_fetched_from_the_one_encoder_that_has_all_of_them() {
    let check = |encoders: &[&str], expected: &str| {
        assert_eq!(fetched_from(encoders.iter().copied()), expected);
    };
    check(&[], "");
    check(&["http://a"], "http://a");
    check(&["http://a", "http://a"], "http://a");
    check(&["http://a", "http://b"], "");
    check(&["", "http://b"], "");
}

#[test]
fn a_unit_in_a_hurry_waits_about_as_long_as_it_would_encode() {
    let check = |class, frames, frame_took: Option<u64>, expected: Duration| {
        let frame_took = frame_took.map(Duration::from_millis);
        assert_eq!(patience(class, frames, frame_took), expected);
    };
    check(Class::Stat, 3, Some(40), Duration::from_millis(120));
    check(Class::Stat, 3, None, Duration::ZERO);
    check(Class::Stat, usize::MAX, Some(40), WAIT_MAX);
    check(Class::Urgent, 3, Some(40), Duration::from_millis(480));
    check(Class::Urgent, 3, None, Duration::ZERO);
    check(Class::Urgent, usize::MAX, Some(40), WAIT_MAX);
    check(Class::Routine, 3, Some(40), WAIT_MAX);
    check(Class::Bulk, 3, None, WAIT_MAX);
}

#[test]
fn only_numbers_are_numbers() {
    let f32s = |values: &[f32]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    assert!(are_numbers(
        &f32s(&[0.0, -1.5, f32::MAX, 1e-40]),
        Dtype::F32
    ));
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!are_numbers(&f32s(&[1.0, wrong]), Dtype::F32));
        let half = &f32s(&[wrong])[2..];
        assert!(!are_numbers(half, Dtype::Bf16));
    }
    assert!(are_numbers(&[0x80, 0x3f], Dtype::Bf16));
}

#[test]
fn a_stored_manifest_counts_only_for_its_own_frames_and_for_what_made_it() {
    let stored = TokensManifest {
        tokens: vec![entry(1), entry(2)],
        encoder_digest: vec![9; 32].into(),
        ..Default::default()
    };
    let check = |frames: &[FrameEntry], model: &Description, good: bool| {
        assert_eq!(still_good(&stored, frames, model).is_some(), good);
    };
    let frames = [frame(1), frame(2)];
    check(&frames, &model(), true);
    check(&[frame(2), frame(1)], &model(), false);
    check(&[frame(1)], &model(), false);
    // Other weights; the same ones in another type, or pooled to another shape.
    let with = |change: &dyn Fn(&mut Description)| {
        let mut model = model();
        change(&mut model);
        check(&frames, &model, false);
    };
    with(&|model| model.encoder_digest = Digest::new([8; 32]));
    with(&|model| model.dtype = Dtype::F32);
    with(&|model| model.tokens_per_image = 3);
    with(&|model| model.token_width = 5);
}
