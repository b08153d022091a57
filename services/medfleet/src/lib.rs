//! The command line of medfleet, and the whole fleet in one process.
//!
//! It owns what a person sees (words, tables, exit codes) and the composition of the four services behind `medfleet up`.
//! It never decides anything about a job: client commands only speak the public API, `infer` and `frames` only call
//! `crates/model` and `crates/imaging`, and `crates/engine` for an answer with a draft model.
//!
//! Reading order: `cli` (what can be asked), `command` (one file for each command), `client` (the public API with
//! resume and bounded retries), `show` (words and JSON), `fleet` (data folder, supervised nats-server, all roles).

mod choices;
mod cli;
mod client;
mod command;
mod exit;
mod fleet;
mod modality;
mod paths;
mod show;

pub use cli::{Cli, run};
