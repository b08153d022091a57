//! The `medfleet-preprocess` binary: configuration, connections, then the service until it is told to stop.

use std::process::ExitCode;

use medfleet_preprocess::{MainConfig, codecs};
use medfleet_runtime::{Process, Program, Stop, process};
use medfleet_worker::Dependencies;

const PROGRAM: Program = Program {
    name: "medfleet-preprocess",
    about: "Turns submitted studies into model-ready frames",
    version: env!("CARGO_PKG_VERSION"),
    threads_max: 1,
};

fn main() -> ExitCode {
    if codecs::is_child(std::env::args_os()) {
        return codecs::child_main(std::env::args_os());
    }
    process::main(PROGRAM, body)
}

async fn body(process: Process<MainConfig>) -> Result<(), Stop> {
    let config = &process.config;
    let dependencies = Dependencies::connect(&process, &config.queue, &config.store).await?;
    let queue = dependencies.queue.clone();
    let ended = medfleet_preprocess::run(config.preprocess.clone(), dependencies).await;
    queue.drain().await;
    Ok(ended?)
}
