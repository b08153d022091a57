//! Preprocess: a submitted study in, model-ready frames out. It owns the order of effects of its stage; what a file
//! means and how it becomes pixels is the business of `crates/imaging`.
//!
//! It never uses fewer images than were declared without saying so: one input that is refused fails the job, with the refusal's
//! code, and each file of a volume that is not shown is listed with its reason.
//! It never links a model, and decodes on blocking threads only.
//!
//! JPEG 2000, whose decoder is not memory-safe, is decoded in processes of its own; text in pixels is looked for in others, by
//! a program that the operator names.
//!
//! Reading order: `unit` (pure: chunks, what follows, prior and current), `screen` (pure: texts without the patient), `decodes`
//! (how many at a time), `encoded` (pure: images that came encoded), `inputs` (their bytes, and how many), `children` (the other
//! processes, and how they are limited), `codecs` (those that decode), `ocr` (those that read text), `puts` (frames on their way
//! to the store), `study` (inputs → frames), `record` (what is said of them), `work` (the effects in order), `error` (error →
//! verdict); `frames` is how files become frames by a configuration.

mod children;
pub mod codecs;
mod config;
mod decodes;
mod encoded;
mod error;
pub mod frames;
mod inputs;
mod metrics;
pub mod ocr;
mod puts;
mod record;
mod screen;
mod study;
pub mod unit;
mod work;

use std::sync::Arc;

use medfleet_core::Stage;
use medfleet_imaging::TextReaderError;
use medfleet_runtime::Metrics;
use medfleet_worker::Dependencies;

pub use children::Times;
pub use config::{Config, ImageKind, MainConfig, TextReaderConfig};
pub use error::StartError;

/// Registers every metric of this service, each with a value, for the reference page.
pub fn every_metric(metrics: &Metrics) {
    metrics::PreprocessMetrics::register(metrics);
}

/// Runs the service until the shutdown has begun and its units are settled.
///
/// # Errors
/// When it cannot start; trouble with single units becomes their verdict.
pub async fn run(config: Config, dependencies: Dependencies) -> Result<(), StartError> {
    try_text_reader(&config).await?;
    let part = dependencies.health.part("preprocess");
    let handler = Arc::new(work::Preprocess::new(&config, &dependencies)?);
    let worker = dependencies
        .worker(Stage::Preprocess, config.pool, config.worker)
        .await?;
    part.ready();
    medfleet_worker::run(worker, Arc::clone(&handler)).await;
    handler.close();
    Ok(())
}

/// Has the program that reads text look at a picture as it will, with all of its limits, before the first unit comes.
async fn try_text_reader(config: &Config) -> Result<(), StartError> {
    let (Some(reader), Some(program)) = (frames::reader(config), &config.text_reader.program)
    else {
        return Ok(());
    };
    let trial = tokio::task::spawn_blocking(move || reader.trial()).await;
    // A trial that breaks off says no more than one that fails.
    let trial = trial.unwrap_or(Err(TextReaderError::Failed));
    trial.map_err(|error| StartError::TextReader {
        program: program.clone(),
        error,
    })
}
