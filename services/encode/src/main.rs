//! The `medfleet-encode` binary: configuration, ports, connections, model, then the service until it is told to stop.

use std::process::ExitCode;

use medfleet_encode::{Deployment, MainConfig, StartError};
use medfleet_engine::{EncodeEngine, Half};
use medfleet_runtime::{Process, Program, Stop, process};
use medfleet_worker::Dependencies;

const PROGRAM: Program = Program {
    name: "medfleet-encode",
    about: "Turns frames into image tokens",
    version: env!("CARGO_PKG_VERSION"),
    threads_max: 1,
};

fn main() -> ExitCode {
    process::main(PROGRAM, body)
}

async fn body(process: Process<MainConfig>) -> Result<(), Stop> {
    let config = process.config.clone();
    let listener = process::bind("encode.listen", config.encode.listen).await?;
    let dependencies = Dependencies::connect(&process, &config.queue, &config.store).await?;
    let model = config.model.clone();
    let loading = tokio::task::spawn_blocking(move || model.load(Half::Encode));
    let backend = loading.await?.map_err(Stop::usage)?.encoder();
    let engine = EncodeEngine::start(backend)?;
    let queue = dependencies.queue.clone();
    let deployment = Deployment { engine, listener };
    let ended = medfleet_encode::run(config.encode, deployment, dependencies).await;
    queue.drain().await;
    ended.map_err(StartError::into_stop)
}
