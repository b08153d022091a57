//! One 12-bit original in every lossless transfer syntax, each written by a codec that is not ours
//! (`tests/reference/make_codecs.py`): one frame, down to its digest.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::decode;

/// Files that must be there; a codec that is left out is not tested.
const NAMES: [&str; 16] = [
    "native",
    "rle",
    "jpeg-lossless-p1",
    "jpeg-lossless-p2",
    "jpeg-lossless-p3",
    "jpeg-lossless-p4",
    "jpeg-lossless-p5",
    "jpeg-lossless-p6",
    "jpeg-lossless-p7",
    "jpeg-lossless-sv1",
    "jpeg-ls",
    "jpeg-ls-restarts",
    "j2k",
    "htj2k",
    "htj2k-rpcl",
    "deflated",
];

fn frame_digest(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/codecs");
    let bytes = std::fs::read(folder.join(format!("{name}.dcm"))).unwrap();
    let decoded = decode(&bytes, 896);
    let [(frame, _)] = decoded.frames.as_slice() else {
        panic!("{name}: one frame")
    };
    hex::encode(Sha256::digest(&frame.pixels))
}

#[test]
fn every_lossless_syntax_gives_one_frame_digest() {
    let native = frame_digest("native");
    for name in NAMES {
        assert_eq!(frame_digest(name), native, "{name}");
    }
}
