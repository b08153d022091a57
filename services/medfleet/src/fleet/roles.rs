//! All roles in one process: each with its own metrics, health and admin port, all with one queue, store and model.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use medfleet_engine::{
    EncodeEngine, Encoding, FolderWeights, Half, LoadedModel, ModelConfig, ModelDtype,
};
use medfleet_runtime::process::{self, Process};
use medfleet_runtime::{
    Health, Metrics, OnFailure, OnShutdown, Pages, Stop, TaskFailure, TaskKind, TaskSet, admin,
};
use medfleet_worker::Dependencies;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::config::{EmbedderConfig, FleetConfig};

/// A role's admin port answers until the whole fleet has ended.
const ADMIN: TaskKind = TaskKind {
    name: "admin port of a role",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Wait,
};

/// Runs a role to its end. When one fails, the whole fleet stops in order.
const fn role(name: &'static str) -> TaskKind {
    TaskKind {
        name,
        on_failure: OnFailure::Shutdown,
        on_shutdown: OnShutdown::Wait,
    }
}

/// The roles of the model that writes, and of the one that compares.
const WRITER: [&str; 3] = ["preprocess", "encode", "decode"];
const EMBEDDER: [&str; 3] = ["embedder-preprocess", "embedder-encode", "embedder-decode"];
/// How MedSigLIP's pictures are made.
const CONVENTION: &str = "medsiglip";

#[derive(Debug)]
pub(crate) struct Roles {
    /// Where the public API answers.
    pub(crate) api: SocketAddr,
    /// Each role with its admin port.
    pub(crate) admin: Vec<(&'static str, SocketAddr)>,
    tasks: TaskSet,
    health: Vec<Health>,
    dependencies: Dependencies,
    until: CancellationToken,
}

impl Roles {
    /// Binds every port, connects, loads the model and starts the roles; they end with the process's shutdown.
    ///
    /// # Errors
    /// With the exit code that fits: a port that is taken, an unreachable queue, a model that does not load.
    pub(crate) async fn start(
        process: &Process<FleetConfig>,
        config: FleetConfig,
    ) -> Result<Self, Stop> {
        let api = process::bind("ingest.listen", config.ingest.listen).await?;
        let tokens = process::bind("encode.listen", config.encode.listen).await?;
        let draft = config.decode.draft().map(Path::to_path_buf);
        let embedder = match &config.embedder {
            Some(embedder) => Some(Embedder::load(embedder, &config).await?),
            None => None,
        };
        // Last: it may pin the threads that both compute on.
        let model = load(config.model.clone(), draft).await?;
        let mut dependencies = Dependencies::connect(process, &config.queue, &config.store).await?;
        // A set of their own: nats-server must outlive the roles, and the process's set waits for it.
        dependencies.tasks = TaskSet::new(process.shutdown.clone());
        let mut roles = Self {
            api: api.local_addr()?,
            admin: Vec::new(),
            tasks: dependencies.tasks.clone(),
            health: Vec::new(),
            dependencies,
            until: CancellationToken::new(),
        };
        roles.ingest(process, config.ingest.clone(), api).await?;
        roles
            .stages(process, &config, (tokens, model), &WRITER)
            .await?;
        if let Some(Embedder {
            config,
            tokens,
            model,
        }) = embedder
        {
            roles
                .stages(process, &config, (tokens, model), &EMBEDDER)
                .await?;
        }
        Ok(roles)
    }

    /// The three workers of one model.
    async fn stages(
        &mut self,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        (tokens, model): (TcpListener, LoadedModel),
        [preprocess, encode, decode]: &[&'static str; 3],
    ) -> Result<(), Stop> {
        self.preprocess(preprocess, process, config, &model).await?;
        let encoding = self
            .encode(encode, process, config, (tokens, &model))
            .await?;
        self.decode(decode, process, config, (encoding, &model))
            .await
    }

    /// Whether every role serves.
    pub(crate) fn are_ready(&self) -> bool {
        self.health.iter().all(Health::is_ready)
    }

    /// Waits until the shutdown has begun and every role has ended, then closes the connection and the admin ports.
    ///
    /// # Errors
    /// The role that failed, or those that missed the deadline.
    pub(crate) async fn join(self) -> Result<(), Stop> {
        let joined = self.tasks.join().await;
        self.dependencies.queue.drain().await;
        self.until.cancel();
        joined.map_err(TaskFailure::into_stop)
    }

    async fn ingest(
        &mut self,
        process: &Process<FleetConfig>,
        config: medfleet_ingest::Config,
        listener: TcpListener,
    ) -> Result<(), Stop> {
        let pages = Pages::default();
        let dependencies = self.member("ingest", process, &pages).await?;
        // Those of all roles, on one of the pages that are scraped: one end is one alert.
        let ends = process.certificate_ends.clone();
        dependencies.metrics.certificates(ends);
        let deployment = medfleet_ingest::Deployment {
            listener,
            pages,
            random: Arc::clone(&process.random),
        };
        self.tasks.start(
            role("ingest"),
            medfleet_ingest::run(config, deployment, dependencies),
        );
        Ok(())
    }

    async fn preprocess(
        &mut self,
        name: &'static str,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        model: &LoadedModel,
    ) -> Result<(), Stop> {
        let dependencies = self.member(name, process, &Pages::default()).await?;
        let mut config = config.preprocess.clone();
        if config.frame_side == 0 {
            config.frame_side = model.description().frame_side;
        }
        self.tasks
            .start(role(name), medfleet_preprocess::run(config, dependencies));
        Ok(())
    }

    async fn encode(
        &mut self,
        name: &'static str,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        (listener, model): (TcpListener, &LoadedModel),
    ) -> Result<Encoding, Stop> {
        let dependencies = self.member(name, process, &Pages::default()).await?;
        let config = config.encode.clone();
        let engine = EncodeEngine::start(model.encoder())?;
        let encoding = engine.encoding();
        let deployment = medfleet_encode::Deployment { engine, listener };
        self.tasks.start(
            role(name),
            medfleet_encode::run(config, deployment, dependencies),
        );
        Ok(encoding)
    }

    async fn decode(
        &mut self,
        name: &'static str,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        (encoding, model): (Encoding, &LoadedModel),
    ) -> Result<(), Stop> {
        let dependencies = self.member(name, process, &Pages::default()).await?;
        let config = config.decode.clone();
        // Both halves compute on the model's device.
        let model = model
            .start_decode(config.kv_bytes_max.get(), config.limits(), Some(encoding))
            .map_err(Stop::usage)?;
        self.tasks.start(
            role(name),
            medfleet_decode::run(config, model, dependencies),
        );
        Ok(())
    }

    /// What one role gets: the shared connections, and metrics, health and an admin port of its own.
    async fn member(
        &mut self,
        name: &'static str,
        process: &Process<FleetConfig>,
        pages: &Pages,
    ) -> Result<Dependencies, Stop> {
        let listener = process::bind(
            "process.admin_listen",
            SocketAddr::new(process.admin.ip(), 0),
        )
        .await?;
        let (metrics, health) = (Metrics::new(), Health::new());
        let service = format!("medfleet-{name}");
        metrics.describe(&service, env!("CARGO_PKG_VERSION"), process.clock.now());
        // Named here already, so that a role that has not begun yet counts as unready; by the name that the service itself
        // gives its part, which is the last word of the role's.
        let part = name.rsplit('-').next().unwrap_or(name);
        let _named = health.part(part);
        self.admin.push((name, listener.local_addr()?));
        self.health.push(health.clone());
        process.tasks.start(
            ADMIN,
            admin::serve(
                listener,
                metrics.clone(),
                health.clone(),
                pages.clone(),
                self.until.clone(),
            ),
        );
        Ok(Dependencies {
            metrics,
            health,
            ..self.dependencies.clone()
        })
    }
}

/// A MedSigLIP that is loaded, with its workers' settings and the port of its token service.
struct Embedder {
    config: FleetConfig,
    tokens: TcpListener,
    model: LoadedModel,
}

impl Embedder {
    async fn load(embedder: &EmbedderConfig, fleet: &FleetConfig) -> Result<Self, Stop> {
        let model = ModelConfig::Folder {
            path: embedder.path.clone(),
            dtype: ModelDtype::F32,
            weights: FolderWeights::Plain,
            device: embedder.device,
            digest_cache: None,
            quantised_cache: None,
            pin_threads: false,
        };
        let model = load(model, None).await?;
        let tokens = process::bind(
            "encode.listen",
            SocketAddr::new(fleet.encode.listen.ip(), 0),
        )
        .await?;
        // Its own pool, its own pictures, its own conventions.
        let mut config = fleet.clone();
        for name in [
            &mut config.preprocess.pool,
            &mut config.encode.pool,
            &mut config.decode.pool,
        ] {
            embedder.pool.clone_into(name);
        }
        CONVENTION.clone_into(&mut config.preprocess.convention);
        config.preprocess.frame_side = model.description().frame_side;
        Ok(Self {
            config,
            tokens,
            model,
        })
    }
}

async fn load(model: ModelConfig, draft: Option<PathBuf>) -> Result<LoadedModel, Stop> {
    let loading =
        tokio::task::spawn_blocking(move || model.load_with_draft(Half::Both, draft.as_deref()));
    loading.await?.map_err(Stop::usage)
}
