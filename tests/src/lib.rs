//! The harness of the end-to-end tests: real service processes, a real nats-server, a client that speaks only the public API.
//! Reading order: [`fleet`] (processes of a fleet), [`client`] (a client of the public API), [`picture`] (test images),
//! [`mod@edge`] (a hospital's edge before a fleet), [`gguf`] (a model in llama.cpp's format), [`collector`] and [`rotel`]
//! (receivers of traces), [`prometheus`] and [`alerts`] (metrics and the alerts on them), [`s3`] (a blob store in S3); then
//! [`chaos`] (faults on real processes), [`virtual_time`] (faults in a simulation), [`autoscale`] (workers that follow the load),
//! [`upgrade`] (data and processes of an earlier release).

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
