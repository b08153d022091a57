//! A whole fleet in one process: data folder, supervised nats-server, all four roles.
//!
//! Reading order: `data` and `tenant` (what lies on disk), `settings` and `config` (what is decided), `nats` and `child`
//! (the server below us), `roles` (what runs in this process).

pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod nats;
pub(crate) mod roles;
pub(crate) mod settings;
pub(crate) mod tenant;
