//! Limits of a job that more than one stage has to know.

/// Frames of one job at most, where an operator says nothing else: preprocess refuses more, and decode says at its start where its
/// memory holds fewer.
pub const FRAMES_MAX: u32 = 256;
/// Most strings that end a text.
pub const STOPS_MAX: usize = 8;
/// Longest string that ends a text, in bytes.
pub const STOP_BYTES_MAX: usize = 64;
