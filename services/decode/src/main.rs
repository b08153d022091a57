//! The `medfleet-decode` binary: configuration, connections, model, then the service until it is told to stop.

use std::path::Path;
use std::process::ExitCode;

use medfleet_decode::{MainConfig, StartError};
use medfleet_engine::Half;
use medfleet_runtime::{Process, Program, Stop, process};
use medfleet_worker::Dependencies;

const PROGRAM: Program = Program {
    name: "medfleet-decode",
    about: "Turns image tokens and a prompt into text",
    version: env!("CARGO_PKG_VERSION"),
    threads_max: 1,
};

fn main() -> ExitCode {
    process::main(PROGRAM, body)
}

async fn body(process: Process<MainConfig>) -> Result<(), Stop> {
    let config = process.config.clone();
    let dependencies = Dependencies::connect(&process, &config.queue, &config.store).await?;
    let (model, kv_bytes_max) = (config.model.clone(), config.decode.kv_bytes_max.get());
    let limits = config.decode.limits();
    let draft = config.decode.draft().map(Path::to_path_buf);
    let loading = tokio::task::spawn_blocking(move || {
        model
            .load_with_draft(Half::Decode, draft.as_deref())
            .and_then(|model| model.start_decode(kv_bytes_max, limits, None))
    });
    let model = loading.await?.map_err(Stop::usage)?;
    let queue = dependencies.queue.clone();
    let ended = medfleet_decode::run(config.decode, model, dependencies).await;
    queue.drain().await;
    ended.map_err(StartError::into_stop)
}
