//! The harness of the end-to-end tests: real service processes, a real nats-server, a client that speaks only the public API.
//! Reading order: [`fleet`] (what runs), [`client`] (what a hospital does), [`picture`] (what it sends), [`collector`] (what it traces).

pub mod client;
pub mod collector;
pub mod config;
pub mod fleet;
pub mod picture;
