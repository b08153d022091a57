//! The harness of the end-to-end tests: real service processes, a real nats-server, a client that speaks only the public API.
//! Reading order: [`fleet`] (what runs), [`client`] (what a hospital does), [`picture`] (what it sends), [`gguf`] (a model in llama.cpp's form), [`collector`] (what it traces), [`rotel`] (who may stand between), [`alerts`] (what it tells, and who is called), [`prometheus`] (who watches it), [`s3`] (where its blobs may lie),
//! [`chaos`] (how it is broken), [`virtual_time`] (how it is broken without waiting), [`autoscale`] (who starts and stops workers), [`upgrade`] (what another release left behind), [`mod@edge`] (a hospital that hands its jobs on to a fleet).

pub mod alerts;
pub mod autoscale;
pub mod chaos;
pub mod client;
pub mod collector;
pub mod config;
pub mod edge;
pub mod fleet;
pub mod gguf;
mod outside;
pub mod picture;
mod process;
pub mod prometheus;
pub mod rotel;
pub mod s3;
pub mod upgrade;
pub mod virtual_time;

/// Runs a client beside the test; the test awaits it, or ends it with its runtime.
pub fn beside<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are no service: nothing has to stop in order"
    )]
    tokio::spawn(work)
}
