//! Blobs: studies, frames, tokens, prompts, texts and results, named by tenant, kind and keyed hash of the content.
//! Sole owner of object_store. It knows nothing of jobs' states or of messages.
//!
//! What it promises: a put that returned survives a power cut (folder: file and folder are synced); a get that returned
//! gives exactly what was put; no tenant can learn from a name what another stored; a referenced blob is never collected.
//!
//! Reading order: [`blob`] (what callers use), [`key`], [`backend`] (what a place to store must do), [`config`],
//! [`contract`] (the tests that every backend must pass); [`bucket`] is apart: files of a bucket that are no blobs.

pub mod backend;
pub mod blob;
pub mod bucket;
pub mod config;
pub mod contract;
pub mod key;

pub use backend::{Backend, BackendError, Entry, Name, Version};
pub use blob::{
    BlobStore, COLLECT_AGE_MIN, Collected, Erased, Head, Holder, Limits, Named, Relied, StoreError,
};
pub use bucket::{Bucket, Reading};
pub use config::{BackendConfig, OpenError, S3Config, StoreConfig};
pub use key::{FleetKey, KeyError};
