//! The `medfleet-ingest` binary: configuration, port, connections, then the service until it is told to stop.

use std::process::ExitCode;

use medfleet_ingest::MainConfig;
use medfleet_runtime::{Process, Program, Stop, TaskFailure, process};
use medfleet_worker::Dependencies;

const PROGRAM: Program = Program {
    name: "medfleet-ingest",
    about: "Accepts jobs, tells how they go, hands out results, and releases work to the stages",
    version: env!("CARGO_PKG_VERSION"),
    // A call or an event costs it more than a unit costs a worker, and one ingest may serve a whole fleet.
    threads_max: 4,
};

fn main() -> ExitCode {
    process::main(PROGRAM, body)
}

async fn body(process: Process<MainConfig>) -> Result<(), Stop> {
    let config = process.config.clone();
    let listener = process::bind(config.ingest.listen).await?;
    let Dependencies {
        queue,
        store,
        clock,
        tasks,
        metrics,
        health,
    } = Dependencies::connect(&process, &config.queue, &config.store).await?;
    let dependencies = medfleet_ingest::Dependencies {
        listener,
        queue: queue.clone(),
        store,
        metrics,
        health,
        pages: process.pages.clone(),
        tasks: tasks.clone(),
        clock,
        random: process.random,
    };
    let served = medfleet_ingest::run(config.ingest, dependencies, process.shutdown.clone()).await;
    process.shutdown.begin();
    // The dispatcher still gives its lease back; only then may the connection go.
    let joined = tasks.join().await;
    queue.drain().await;
    served?;
    joined.map_err(TaskFailure::into_stop)
}
