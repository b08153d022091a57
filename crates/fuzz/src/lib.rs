//! Broken files on purpose, for everything that reads what a stranger sent: admission, decoding, archives.
//!
//! It never judges pixels (the corpora do that); it looks for panics, aborts, overflowed stacks, hangs and memory beyond a
//! limit. Every run follows from its seed. Not linked by any service.
//!
//! Reading order: `targets` (what is run), `corpus` and `dicom` (what it starts from), `mutate` (how it is broken), `child`
//! (the process that runs inputs), `hunt` (the process that watches it, and makes what it found small).

pub mod child;
pub mod corpus;
pub mod dicom;
pub mod hunt;
pub mod mutate;
pub mod targets;
