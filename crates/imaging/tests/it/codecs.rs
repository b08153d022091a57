//! One 12-bit original in every lossless transfer syntax, each written by a codec that is not ours
//! (`tests/reference/make_codecs.py`): one frame, down to its digest. And what is not decoded at all.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dicom_dictionary_std::tags;
use medfleet_imaging::{
    CodestreamError, Codestreams, Decoder, Here, Limits, Plane, Reason, decode_file, decode_values,
};
use sha2::{Digest, Sha256};

use crate::synthetic::{COLUMNS, ROWS, file, put_cells, set};
use crate::{decode, options};

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

/// Whoever decodes for somebody who may leave.
#[derive(Debug, Default)]
pub(crate) struct Left(pub(crate) AtomicBool);

impl Codestreams for Left {
    fn decode(&self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
        Here.decode(codestream)
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn frames_that_nobody_waits_for_are_not_decoded() {
    let bytes = file(|object| {
        let pixels = vec![7_u16; 3 * usize::from(ROWS * COLUMNS)];
        set(object, tags::NUMBER_OF_FRAMES, "3");
        put_cells(object, pixels);
    });
    let decode = |leaves: bool| {
        let left: &'static Left = Box::leak(Box::<Left>::default());
        let limits = Limits {
            codestreams: Decoder::new(left),
            ..Limits::default()
        };
        let mut came = 0;
        let all = decode_values(&bytes, &limits, 3, |_, _| {
            came += 1;
            left.0.store(leaves, Ordering::Relaxed);
        });
        (all.map_err(|refusal| refusal.reason), came)
    };
    assert_eq!(decode(false), (Ok(3), 3));
    assert_eq!(decode(true), (Err(Reason::DecoderUnavailable), 1));
}

/// Without an offset table and within one fragment nothing else tells that there are two.
#[test]
fn a_second_image_in_a_fragment_is_not_lost() {
    const ITEM: &[u8] = b"\xfe\xff\0\xe0";
    let good = [
        &include_bytes!("../golden/mono2-jpeg-baseline.dcm")[..],
        include_bytes!("../golden/mono2-jpeg-lossless.dcm"),
        include_bytes!("../golden/mono2-j2k.dcm"),
    ];
    for good in good {
        let item = good.windows(4).rposition(|four| four == ITEM).unwrap() + 4;
        let length = u32::from_le_bytes(good[item..item + 4].try_into().unwrap());
        let image = item + 4..item + 4 + length as usize;
        let mut twice = good[..item].to_vec();
        twice.extend((length * 2).to_le_bytes());
        twice.extend(&good[image.clone()]);
        twice.extend(&good[image.start..]);
        let refused = decode_file(&twice, &options(8)).unwrap_err();
        assert_eq!(refused.reason, Reason::PixelDataMismatch);
    }
}
