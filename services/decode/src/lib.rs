//! Decode: image tokens and a prompt in, streamed text and a result out. It owns the order of effects of its stage, the
//! fail-closed check that every declared image is present, and what a result says.
//!
//! It never writes a token about fewer images than were declared, and a worker that lost its attempt writes nothing more.
//!
//! Reading order: `unit` (pure: are these the declared images), `gather` (their tokens, verified), `work` (the effects
//! in order), `task` (pure: what each task asks the model, and what its text means), `stream` (text to watchers,
//! checkpoints), `result` (what a result says), `fetch` (the fast path), `error`.

mod config;
mod error;
mod fetch;
mod gather;
mod metrics;
mod result;
mod scopes;
mod stream;
mod task;
pub mod unit;
mod work;

use std::convert::Infallible;
use std::sync::Arc;

use medfleet_core::{FRAMES_MAX, Stage};
use medfleet_engine::{DecodeLoad, DecodeModel};
use medfleet_runtime::{Metrics, OnFailure, OnShutdown, TaskKind};
use medfleet_worker::{Dependencies, internal_token};

use crate::fetch::Fetcher;
use crate::scopes::Scopes;

pub use config::{Config, MainConfig};
pub use error::{DecodeError, StartError};

/// Tokens of a text for which there should be room beside all images of a job: those of one that asks for no number.
const TEXT_TOKENS: u32 = 1024;

const HURRY: TaskKind = TaskKind {
    name: "end of waiting for company",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Wait,
};

/// Registers every metric of this service, each with a value, for the reference page.
pub fn every_metric(metrics: &Metrics) {
    metrics::DecodeMetrics::register(metrics);
    metrics::register_load(metrics, DecodeLoad::default);
}

/// Runs the service until the shutdown has begun and its units are settled.
///
/// # Errors
/// When it cannot start; trouble with single units becomes their verdict, a broken model ends the process in order.
pub async fn run(
    config: Config,
    model: DecodeModel,
    dependencies: Dependencies,
) -> Result<(), StartError> {
    let scopes = Scopes::default();
    let part = dependencies.health.part("decode");
    let ended = model.ended();
    dependencies.follow_model(
        "decode model",
        part.clone(),
        async move { ended.await.check() },
    );
    if let DecodeModel::Writer(engine) = &model {
        metrics::register_load(&dependencies.metrics, engine.load());
        if let Some(images) = engine.images_held(FRAMES_MAX, TEXT_TOKENS) {
            tracing::warn!(
                images,
                kv_bytes_max = config.kv_bytes_max.get(),
                "decode.kv_bytes_max holds fewer images than preprocess makes of a job by default: a job with more than these fails with PROMPT_TOO_LONG"
            );
        }
        let phrases = engine.phrases();
        if phrases.is_none() {
            tracing::info!(
                "no tokens are proposed: not asked for, or not exact with this model on this device"
            );
        }
        dependencies.follow_erasures({
            let scopes = scopes.clone();
            move |tenant| {
                // Neither memory knows which job an entry comes from, so everything of the tenant goes.
                if let (Some(before), Some(phrases)) = (scopes.renew(tenant), &phrases) {
                    phrases.forget(&before);
                }
            }
        });
        if let Some(encoding) = engine.encoding() {
            let shutdown = dependencies.tasks.shutdown().clone();
            dependencies.tasks.start(HURRY, async move {
                shutdown.begun().await;
                encoding.hurry();
                Ok::<(), Infallible>(())
            });
        }
    }
    let worker = dependencies
        .worker(
            Stage::Decode,
            config.pool.clone(),
            config.worker.of_any_stage(),
        )
        .await?;
    let fetcher = Fetcher::of(&config, &internal_token(dependencies.store.key())).await?;
    let handler = work::Decode::new(&config, (model, fetcher, scopes), &dependencies);
    part.ready();
    medfleet_worker::run(worker, Arc::new(handler)).await;
    Ok(())
}
