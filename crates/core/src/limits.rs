//! Limits of the public contract that are checked where a job is accepted and again where it is done.

/// Most strings that end a text.
pub const STOPS_MAX: usize = 8;
/// Longest string that ends a text, in bytes.
pub const STOP_BYTES_MAX: usize = 64;
