//! What is run on broken input, each a plain function of bytes.

use medfleet_imaging::{
    Limits, Options, Prepared, decode_file, decode_values, identifiers, members, prepare,
    prepare_parts, sniff,
};

use crate::corpus;
use crate::dicom::{self, Header};

/// A function under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As it is given on the command line and in the names of findings.
    pub name: &'static str,
    /// Returns whether the input was read to its end; refusals are as good.
    pub run: fn(&[u8]) -> bool,
    /// What it starts from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("file", file, corpus::files),
    target("archive", archive, corpus::archives),
    target("packed-tar", packed_tar, corpus::tars),
    target("picture", picture, corpus::pictures),
    target("tiff", whole, corpus::tiffs),
    target("nifti", whole, corpus::volumes),
    target("native", native, corpus::native),
    target("rle", rle, corpus::rle),
    target("jpeg-baseline", jpeg_baseline, || {
        corpus::streams(&["8.jpg", "s.jpg"])
    }),
    target("jpeg-extended", jpeg_extended, || {
        corpus::streams(&["12.jpg"])
    }),
    target("jpeg-lossless", jpeg_lossless, || {
        corpus::streams(&[".ljpg"])
    }),
    target("jpeg-ls", jpeg_ls, || corpus::streams(&[".jls"])),
    target("jpeg-2000", jpeg_2000, || corpus::streams(&[".j2k"])),
    target("htj2k", htj2k, || corpus::streams(&[".j2c"])),
];

/// Faults on purpose, which prove that the hunt sees each kind.
pub const PLANTED: &[Target] = &[
    target(
        "planted-panic",
        |bytes| planted(bytes, || panic!("planted")),
        corpus::archives,
    ),
    target(
        "planted-abort",
        |bytes| planted(bytes, || std::process::abort()),
        corpus::archives,
    ),
    target(
        "planted-stack",
        |bytes| planted(bytes, stack),
        corpus::archives,
    ),
    target(
        "planted-memory",
        |bytes| planted(bytes, memory),
        corpus::archives,
    ),
    target(
        "planted-hang",
        |bytes| planted(bytes, hang),
        corpus::archives,
    ),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

/// The target of a name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS
        .iter()
        .chain(PLANTED)
        .find(|target| target.name == name)
}

/// Small, so that a run is quick and what is beyond a limit is far beyond the memory that real limits would need.
fn limits() -> Limits {
    Limits {
        file_bytes_max: 4 << 20,
        frame_pixels_max: 1 << 18,
        frames_max: 64,
        archive_entries_max: 64,
        archive_bytes_max: 4 << 20,
        header_bytes_max: 1 << 20,
        ..Limits::default()
    }
}

/// Room for what is unpacked that some files of the corpus need more than, as a service begins with too little.
const UNPACKED_BYTES_FIRST: u64 = 1 << 10;

fn options() -> Options {
    Options::new(16, limits()).expect("16 is a side in range")
}

/// A whole DICOM file, as a stranger sends it.
fn file(bytes: &[u8]) -> bool {
    // Refusals are what is wanted; only how it ends is looked at.
    let _format = sniff(bytes);
    let values = decode_values(bytes, &limits(), 4, |_, _| {}).is_ok();
    decode_file(bytes, &options()).is_ok() || values
}

/// A picture or a volume in one file, to its frames.
fn whole(bytes: &[u8]) -> bool {
    decode_file(bytes, &options()).is_ok()
}

fn archive(bytes: &[u8]) -> bool {
    let mut found = Vec::new();
    let whole = members(bytes, &limits(), &mut |member| found.push(member)).is_ok();
    for member in found {
        let _refused = prepare(&member.bytes, &options());
    }
    // As one input, whose files several threads make.
    let [one, several] = [1, 3].map(|threads| {
        let options = options().on_threads(threads);
        let parts = prepare_parts(bytes, &options, limits().frames_max);
        format!("{parts:?}")
    });
    assert!(one == several, "several threads make something else of it");
    whole
}

/// A tar that is read as it is unpacked. It is broken before it is packed: a break behind that would end at the checksum.
fn packed_tar(bytes: &[u8]) -> bool {
    let packed = corpus::packed(bytes);
    let frames_max = limits().frames_max;
    let short = options().unpacking(UNPACKED_BYTES_FIRST);
    let _refused = prepare_parts(&packed, &short, frames_max);
    let named = identifiers(&packed, &limits()).is_ok();
    prepare_parts(&packed, &options(), frames_max).is_ok() && named
}

fn picture(bytes: &[u8]) -> bool {
    matches!(prepare(bytes, &options()), Ok(Prepared::Frames(_)))
}

fn native(bytes: &[u8]) -> bool {
    let Some((control, pixels)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    let header = Header::of_control(*control);
    values(&dicom::native(&header, pixels))
}

fn rle(bytes: &[u8]) -> bool {
    let Some((control, stream)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    let header = Header::of_control(*control);
    values(&dicom::encapsulated(&header, dicom::RLE, stream))
}

fn jpeg_baseline(bytes: &[u8]) -> bool {
    coded(dicom::JPEG_BASELINE, bytes)
}

fn jpeg_extended(bytes: &[u8]) -> bool {
    coded(dicom::JPEG_EXTENDED, bytes)
}

fn jpeg_lossless(bytes: &[u8]) -> bool {
    coded(dicom::JPEG_LOSSLESS, bytes)
}

fn jpeg_ls(bytes: &[u8]) -> bool {
    coded(dicom::JPEG_LS, bytes)
}

fn jpeg_2000(bytes: &[u8]) -> bool {
    coded(dicom::JPEG_2000, bytes)
}

fn htj2k(bytes: &[u8]) -> bool {
    coded(dicom::HTJ2K, bytes)
}

/// A codestream in a file that agrees with what the stream says of itself, so that it is not refused for its header.
fn coded(syntax: &str, stream: &[u8]) -> bool {
    let header = Header::of_stream(stream).unwrap_or_default();
    values(&dicom::encapsulated(&header, syntax, stream))
}

fn values(file: &[u8]) -> bool {
    decode_values(file, &limits(), 4, |_, _| {}).is_ok()
}

/// The fault, unless the input is as it was in the corpus.
fn planted(bytes: &[u8], fault: fn()) -> bool {
    if corpus::archives().iter().all(|seed| seed != bytes) {
        fault();
    }
    true
}

fn stack() {
    let _end = deep(u64::MAX);
}

fn deep(depth: u64) -> [u64; 512] {
    if std::hint::black_box(depth) == 0 {
        return [0; 512];
    }
    let below = deep(depth - 1);
    std::hint::black_box(below.map(|value| value + depth))
}

fn memory() {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1u8; 16 << 20]));
    }
}

fn hang() {
    loop {
        std::hint::spin_loop();
    }
}
