//! The loop that every worker service runs: take a unit when a slot is free, start it by compare-and-set, work, settle.
//!
//! A service brings a [`Handler`], which makes outputs durable and then calls [`Started::advance`]. Everything that is
//! the same for all stages is here once: heartbeats, fencing, cancellation, expiry, exhausted attempts, hand-back on
//! shutdown, the span of a unit and its metrics. Nothing is acknowledged before its effects are confirmed.
//!
//! Reading order: `handler` (what a service implements), `slot` (the loop; what it decides is in core's `protocol`), `watch`
//! (what stops a unit from outside), `place` (how one that waits makes room), `presence`; `encoded` is the file that a
//! hospital's edge sends in place of images, `tls` reads certificates, `http2` sizes connections.

mod config;
mod dependencies;
pub mod encoded;
mod handler;
pub mod http2;
mod metrics;
mod place;
mod presence;
mod slot;
mod tls;
mod watch;

pub use config::WorkerConfig;
pub use dependencies::{
    ConnectionError, Dependencies, chunk_key, handed_key, handed_key_of_any_job, internal_token,
    made_for, text_key,
};
pub use handler::{Ending, Handler, Started};
pub use metrics::{WorkerMetrics, register_connection, register_store};
pub use place::Place;
pub use presence::PRESENCE_EVERY;
pub use slot::{Worker, run};
pub use tls::{PemError, PemFile, identity};
pub use watch::Stopped;
