//! Encode: a chunk of frames in, image tokens out, durable in the store before the unit is acknowledged, and for a while
//! also in memory for decoders that fetch them directly. It owns the order of effects of its stage and the token service.
//!
//! It never waits for a decoder, and never computes what the tenant's store has already, or what came encoded from a
//! hospital's edge.
//!
//! Reading order: `unit` (pure: which frames, by what their tokens are found, what follows), `work` (the effects in order),
//! `frames` (the tokens of frames: found, or encoded once), `cache` (tokens in memory), `claims` (what is being encoded here),
//! `elsewhere` (and by other encoders), `rpc` (the token service), `error` (error → verdict).

mod cache;
mod claims;
mod config;
mod elsewhere;
mod error;
mod frames;
mod metrics;
mod rpc;
pub mod unit;
mod work;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use medfleet_core::Stage;
use medfleet_engine::EncodeEngine;
use medfleet_runtime::{Metrics, OnFailure, OnShutdown, Task, TaskKind};
use medfleet_worker::{Dependencies, internal_token};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use elsewhere::Elsewhere;

pub use config::{Config, MainConfig};
pub use error::{EncodeError, StartError};

/// What encode needs besides what every worker needs.
#[derive(Debug)]
pub struct Deployment {
    pub engine: EncodeEngine,
    /// Where the token service answers.
    pub listener: TcpListener,
}

const CLAIMS: TaskKind = TaskKind {
    name: "claims on images",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Wait,
};

const TOKENS: TaskKind = TaskKind {
    name: "token service",
    on_failure: OnFailure::Shutdown,
    on_shutdown: OnShutdown::Wait,
};

/// Registers every metric of this service, each with a value, for the reference page.
pub fn every_metric(metrics: &Metrics) {
    metrics::EncodeMetrics::register(metrics);
    metrics::register_cache(metrics, Arc::new(cache::Cache::new(0)));
    metrics::register_load(metrics, medfleet_engine::EncodeLoad::default);
}

/// Runs the service until the shutdown has begun and its units are settled.
///
/// # Errors
/// When it cannot start; trouble with single units becomes their verdict, a broken model ends the process in order.
pub async fn run(
    config: Config,
    deployment: Deployment,
    dependencies: Dependencies,
) -> Result<(), StartError> {
    let part = dependencies.health.part("encode");
    let address = deployment
        .listener
        .local_addr()
        .map_err(StartError::Listener)?;
    let url = config.advertised(address);
    let cache = Arc::new(cache::Cache::new(config.cache_bytes_max.get()));
    let metrics = metrics::EncodeMetrics::register(&dependencies.metrics);
    metrics::register_cache(&dependencies.metrics, Arc::clone(&cache));
    let server = rpc::server(config.tls.as_ref(), rpc::KEEP_ALIVE).await?;
    let tokens = rpc::Tokens {
        cache: Arc::clone(&cache),
        metrics: metrics.clone(),
    };
    let serving = rpc::serve(
        deployment.listener,
        server,
        tokens,
        internal_token(dependencies.store.key()),
        dependencies.tasks.shutdown().token(),
    );
    dependencies.tasks.start(TOKENS, serving);
    let engine = deployment.engine;
    metrics::register_load(&dependencies.metrics, engine.load());
    let ended = engine.ended();
    dependencies.follow_model(
        "encode model",
        part.clone(),
        async move { ended.await.check() },
    );
    dependencies.follow_erasures({
        let cache = Arc::clone(&cache);
        move |tenant| cache.forget(tenant)
    });
    let worker = dependencies
        .worker(Stage::Encode, config.pool, config.worker)
        .await?;
    let (elsewhere, settled, keeping) = among_encoders(&dependencies, &metrics).await;
    let handler = work::Encode {
        store: dependencies.store,
        engine,
        cache,
        claims: claims::Claims::default(),
        elsewhere,
        frame_nanos: AtomicU64::new(0),
        url,
        metrics,
    };
    part.ready();
    medfleet_worker::run(worker, Arc::new(handler)).await;
    settled.cancel();
    keeping.ended().await;
    Ok(())
}

/// Starts the claims on images among the encoders of the site. Gives them, the token that ends their renewal, and the task that
/// renews them. The caller cancels the token once the last unit is settled, and then waits for the task: until then claims hold
/// also beyond the shutdown, as units are still being encoded.
async fn among_encoders(
    dependencies: &Dependencies,
    metrics: &metrics::EncodeMetrics,
) -> (Arc<Elsewhere>, CancellationToken, Task) {
    let claims = dependencies.queue.claims();
    let elsewhere = Arc::new(Elsewhere::new(Some(claims), metrics.clone()));
    elsewhere.open().await;
    let settled = CancellationToken::new();
    let keeping = dependencies.tasks.start(CLAIMS, {
        let (elsewhere, settled) = (Arc::clone(&elsewhere), settled.clone());
        async move {
            elsewhere.keep(&settled).await;
            Ok::<(), Infallible>(())
        }
    });
    (elsewhere, settled, keeping)
}
