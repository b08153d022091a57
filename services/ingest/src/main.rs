//! The `medfleet-ingest` binary: configuration, connections, then [`medfleet_ingest::run`].

use std::process::ExitCode;
use std::sync::Arc;

use medfleet_ingest::{Deps, MainConfig};
use medfleet_queue::{ConnectError, Queue, Replicas};
use medfleet_runtime::process::{self, Process, Program};
use medfleet_runtime::{Clock, Exit, Stop, TaskFailure};
use medfleet_store::{BackendConfig, BlobStore};

const PROGRAM: Program = Program {
    name: "medfleet-ingest",
    about: "Accepts jobs, tells how they go, hands out results, and releases work to the stages",
    version: env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    process::main(PROGRAM, body)
}

async fn body(process: Process<MainConfig>) -> Result<(), Stop> {
    let Process {
        config,
        metrics,
        health,
        tasks,
        shutdown,
        clock,
        random,
        ..
    } = process;
    let listener = process::bind(config.ingest.listen).await?;
    let queue = connect(&config, &clock).await?;
    let store = open(&config, &queue)?;
    let deps = Deps {
        listener,
        queue: queue.clone(),
        store,
        metrics,
        health,
        tasks: tasks.clone(),
        clock,
        random,
    };
    let served = medfleet_ingest::run(config.ingest, deps, shutdown.clone()).await;
    shutdown.begin();
    // The dispatcher still gives its lease back; only then may the connection go.
    let joined = tasks.join().await;
    queue.drain().await;
    served?;
    joined.map_err(|failure| match failure {
        TaskFailure::DeadlineMissed { .. } => Stop::new(Exit::DeadlineMissed, failure),
        TaskFailure::Failed { .. } => failure.into(),
    })
}

async fn connect(config: &MainConfig, clock: &Arc<dyn Clock>) -> Result<Queue, Stop> {
    let clock = Arc::clone(clock);
    let connected = Queue::connect(&config.queue, Arc::new(move || clock.now())).await;
    connected.map_err(|error| match error {
        ConnectError::Unreachable { .. } => Stop::unreachable(error),
        error => Stop::usage(error),
    })
}

fn open(config: &MainConfig, queue: &Queue) -> Result<BlobStore, Stop> {
    let opened = match &config.store.backend {
        BackendConfig::Jetstream { bucket, replicas } => {
            let replicas = Replicas::try_from(*replicas).map_err(Stop::usage)?;
            config
                .store
                .open_over(Arc::new(queue.objects(bucket, replicas)))
        }
        _ => config.store.open(),
    };
    opened.map_err(Stop::usage)
}
