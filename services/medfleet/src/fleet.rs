//! A whole fleet in one process: data folder, supervised nats-server, all four roles.
//!
//! Reading order: `data` (what lies on disk), `nats` (the server below us), `child` (processes that end with us).

pub(crate) mod child;
pub(crate) mod data;
pub(crate) mod nats;
pub(crate) mod settings;
