//! Restarts, against what CharLS reads from the same codestreams (`tests/reference/make_codecs.py`).

use std::path::Path;

use super::*;

fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/codecs");
    std::fs::read(folder.join(name)).unwrap()
}

#[track_caller]
fn check(name: &str) {
    let expected: Vec<u32> = file(&format!("{name}.u16"))
        .chunks_exact(2)
        .map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])))
        .collect();
    let found = decode(&file(&format!("{name}.jls"))).unwrap();
    assert!(found.values == expected, "{name}");
}

#[test]
fn restarts_come_out_as_charls_reads_them() {
    check("restarts-every-line");
    check("restarts-more-than-eight");
    check("restarts-one-restart");
    check("restarts-near");
    check("restarts-eight-bits");
    check("restarts-colour-by-sample");
}

/// The number of a restart tells whether one was lost.
#[test]
fn a_missing_or_wrong_restart_is_refused() {
    let whole = file("restarts-more-than-eight.jls");
    let at = whole
        .windows(2)
        .position(|pair| pair == [0xff, 0xd1])
        .unwrap();
    let mut wrong = whole.clone();
    wrong[at + 1] = 0xd2;
    assert_eq!(decode(&wrong).unwrap_err().reason, Reason::DecodeFailed);
    let mut missing = whole.clone();
    missing.drain(at..at + 2);
    assert!(decode(&missing).is_err());
    assert!(decode(&whole[..at + 1]).is_err());
}

/// Red and blue as differences to green would come out as colours of their own.
#[test]
fn a_transform_of_colours_is_refused() {
    let whole = file("restarts-colour-by-sample.jls");
    let with = |transform: u8| {
        let mut bytes = whole.clone();
        let marker = [&[0xff, 0xe8, 0, 7][..], b"mrfx", &[transform]].concat();
        drop(bytes.splice(2..2, marker));
        decode(&bytes).map(|cells| cells.values)
    };
    assert_eq!(with(0), decode(&whole).map(|cells| cells.values));
    for transform in [1, 2, 3] {
        assert_eq!(with(transform).unwrap_err().reason, Reason::DecodeFailed);
    }
}

/// Its size would be believed, whatever was compared before.
#[test]
fn a_second_frame_header_is_refused() {
    const SEGMENT_BYTES: usize = 13;
    let whole = file("restarts-eight-bits.jls");
    let marker = whole.windows(2).position(|pair| pair == [0xff, 0xf7]);
    let at = marker.unwrap();
    let mut twice = whole.clone();
    let again = whole[at..at + SEGMENT_BYTES].to_vec();
    drop(twice.splice(at..at, again));
    assert_eq!(decode(&twice).unwrap_err().reason, Reason::DecodeFailed);
}

/// Before it ended, each of 255 would have a plane of its own.
#[test]
fn a_component_that_a_scan_names_twice_is_refused() {
    let start = b"\xff\xd8\xff\xf7\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0";
    let scan = b"\xff\xda\0\x0a\x02\x01\0\x01\0\0\x01\0";
    let bytes = [&start[..], scan].concat();
    assert_eq!(decode(&bytes).unwrap_err().reason, Reason::DecodeFailed);
}
