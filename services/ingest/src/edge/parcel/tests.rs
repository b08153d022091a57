//! What is put into the file for the hub, and what is not.

use medfleet_proto::work::v1::{FrameEntry, MaskedText, TokensEntry};

use super::*;

fn frame(byte: u8) -> FrameEntry {
    FrameEntry {
        digest: Bytes::from(vec![byte; 32]),
        width: 64,
        channels: 1,
        info: Some(v1::FrameUsed {
            input_index: byte.into(),
            ..v1::FrameUsed::default()
        }),
    }
}

fn tokens(byte: u8) -> TokensEntry {
    TokensEntry {
        digest: Bytes::from(vec![byte + 100; 32]),
        count: 2,
        width: 4,
        dtype: "bf16".to_owned(),
        frame_digest: Bytes::from(vec![byte; 32]),
        made_for: Bytes::from(vec![5; 16]),
    }
}

/// Three frames in two chunks, and the lists of their tokens.
fn made() -> (FramesManifest, Vec<TokensManifest>) {
    let frames = FramesManifest {
        frames: vec![frame(0), frame(1), frame(2)],
        preprocessing_version: "rules-1".to_owned(),
        chunk_starts: vec![0, 2],
        input_digests: vec![Bytes::from(vec![7; 32]); 3],
        screening: Some(TextScreening {
            masked_task: Some(v1::Task::default()),
            masked: vec![MaskedText {
                kind: "NAME".to_owned(),
                count: 1,
            }],
        }),
        ..FramesManifest::default()
    };
    let list = |tokens| TokensManifest {
        tokens,
        encoder_digest: Bytes::from(vec![9; 32]),
        encoder_url: "http://10.0.0.7:7444".to_owned(),
        device: "cuda".to_owned(),
    };
    let lists = vec![list(vec![tokens(0), tokens(1)]), list(vec![tokens(2)])];
    (frames, lists)
}

#[test]
fn a_file_has_the_tokens_of_every_frame_and_nothing_of_the_task() {
    let (frames, lists) = made();
    let (mut study, names) = head(frames, &lists, 3).expect("it fits");
    let expected = [100, 101, 102].map(|byte| Digest::new([byte; 32]));
    assert_eq!(names, expected);
    let indexes = study.frames.iter().map(|frame| frame.info.as_ref());
    let indexes = indexes.map(|info| info.map(|info| info.input_index));
    assert!(indexes.eq([Some(0), Some(1), Some(2)]));
    let screening = study.screening.clone().expect("screened");
    assert!(screening.masked_task.is_none());
    assert_eq!(screening.masked.len(), 1);
    assert_eq!((study.image_count, study.device.as_str()), (3, "cuda"));
    // The reader's own form.
    let values = [0_u8; 16];
    for frame in &mut study.frames {
        frame.tokens_checksum = encoded::checksum(&values);
    }
    let begin = encoded::beginning(&study).expect("a good head");
    let file = [begin.to_vec(), [values, values, values].concat()].concat();
    let read = encoded::read(&Bytes::from(file)).expect("it is whole");
    assert_eq!(read.study, study);
}

#[test]
fn lists_that_are_not_of_the_frames_make_no_file() {
    let check = |change: &dyn Fn(&mut FramesManifest, &mut Vec<TokensManifest>)| {
        let (mut frames, mut lists) = made();
        change(&mut frames, &mut lists);
        let refused = head(frames, &lists, 3);
        assert!(matches!(refused, Err(Refusal::Broken { .. })));
    };
    check(&|frames, _| frames.frames.swap(0, 1));
    check(&|frames, _| frames.chunk_starts = vec![0, 1]);
    check(&|frames, _| frames.frames.truncate(2));
    check(&|_, lists| lists.swap(0, 1));
    check(&|_, lists| lists.truncate(1));
    check(&|_, lists| lists[1].tokens.clear());
    check(&|_, lists| lists[1].encoder_digest = Bytes::from(vec![8; 32]));
    check(&|_, lists| lists[0].tokens[1].dtype = "f32".to_owned());
    check(&|_, lists| lists[0].tokens[0].width = 5);
    check(&|_, lists| lists[0].tokens[0].digest = Bytes::new());
    check(&|frames, lists| {
        frames.frames.clear();
        frames.chunk_starts.clear();
        lists.clear();
    });
}

#[test]
fn several_kinds_of_device_are_not_told_as_one() {
    let (frames, mut lists) = made();
    lists[1].device = "cpu".to_owned();
    let (study, _) = head(frames, &lists, 3).expect("it fits");
    assert_eq!(study.device, "");
}
