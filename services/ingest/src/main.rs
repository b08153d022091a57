//! The `medfleet-ingest` binary: configuration, port, connections, then the service until it is told to stop.

use std::process::ExitCode;

use medfleet_ingest::{Deployment, Error, MainConfig};
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
    let listener = process::bind("ingest.listen", config.ingest.listen).await?;
    let dependencies = Dependencies::connect(&process, &config.queue, &config.store).await?;
    let queue = dependencies.queue.clone();
    let deployment = Deployment {
        listener,
        pages: process.pages,
        random: process.random,
    };
    let served = medfleet_ingest::run(config.ingest, deployment, dependencies).await;
    process.shutdown.begin();
    // The dispatcher still gives its lease back; only then may the connection go.
    let joined = process.tasks.join().await;
    queue.drain().await;
    served.map_err(Error::into_stop)?;
    joined.map_err(TaskFailure::into_stop)
}
