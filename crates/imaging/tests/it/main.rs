//! The crate from outside: golden frames of an independent implementation, refusals, pictures, and the documentation.

#![allow(
    clippy::unwrap_used,
    reason = "a test helper fails its test by panicking"
)]

mod acquisitions;
mod burned_in;
mod chest_films;
mod codecs;
mod contradictions;
mod corpus;
mod deidentified_objects;
mod deidentify;
mod documentation;
mod formats;
mod golden;
mod lettering;
mod parts;
mod pictures;
mod refusals;
mod shutters;
mod slides;
mod synthetic;
mod threads;
mod turned;
mod volumes;

use medfleet_imaging::{Decoded, Limits, Options, Reason, decode_file};

fn options(frame_side: u32) -> Options {
    Options::new(frame_side, Limits::default()).unwrap()
}

fn decode(bytes: &[u8], frame_side: u32) -> Decoded {
    decode_file(bytes, &options(frame_side)).unwrap()
}

fn reason(bytes: &[u8]) -> Reason {
    decode_file(bytes, &options(8)).unwrap_err().reason
}

/// Why a file is refused, if it is.
fn refusal(bytes: &[u8]) -> Option<Reason> {
    let decoded = decode_file(bytes, &options(8));
    decoded.err().map(|refusal| refusal.reason)
}

/// Where a part of a file begins, which is in it.
fn find(bytes: &[u8], part: &[u8]) -> usize {
    let mut windows = bytes.windows(part.len());
    windows.position(|window| window == part).unwrap()
}
