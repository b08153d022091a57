//! All roles in one process: each with its own metrics, health and admin port, all with one queue, store and model.

use std::net::SocketAddr;
use std::sync::Arc;

use medfleet_encode::Deployment;
use medfleet_engine::{DecodeEngine, EncodeEngine, Half, LoadedModel, ModelConfig};
use medfleet_ingest::Deps;
use medfleet_runtime::process::{self, Process};
use medfleet_runtime::{Health, Metrics, OnFailure, OnShutdown, Stop, TaskKind, TaskSet, admin};
use medfleet_worker::Dependencies;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::config::FleetConfig;

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

/// The running roles.
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
        let api = process::bind(config.ingest.listen).await?;
        let tokens = process::bind(config.encode.listen).await?;
        let model = load(config.model.clone()).await?;
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
        roles.preprocess(process, &config, &model).await?;
        roles.encode(process, &config, tokens, &model).await?;
        roles.decode(process, &config, &model).await?;
        Ok(roles)
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
        Ok(joined?)
    }

    async fn ingest(
        &mut self,
        process: &Process<FleetConfig>,
        config: medfleet_ingest::Config,
        listener: TcpListener,
    ) -> Result<(), Stop> {
        let Dependencies {
            queue,
            store,
            clock,
            tasks,
            metrics,
            health,
        } = self.member("ingest", process).await?;
        let random = Arc::clone(&process.random);
        let deps = Deps {
            listener,
            queue,
            store,
            metrics,
            health,
            tasks,
            clock,
            random,
        };
        self.tasks.start(
            role("ingest"),
            medfleet_ingest::run(config, deps, process.shutdown.clone()),
        );
        Ok(())
    }

    async fn preprocess(
        &mut self,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        model: &LoadedModel,
    ) -> Result<(), Stop> {
        let dependencies = self.member("preprocess", process).await?;
        let mut config = config.preprocess.clone();
        if config.frame_side == 0 {
            config.frame_side = model.description().frame_side;
        }
        self.tasks.start(
            role("preprocess"),
            medfleet_preprocess::run(config, dependencies),
        );
        Ok(())
    }

    async fn encode(
        &mut self,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        listener: TcpListener,
        model: &LoadedModel,
    ) -> Result<(), Stop> {
        let dependencies = self.member("encode", process).await?;
        let config = config.encode.clone();
        let engine = EncodeEngine::start(model.encoder(), config.worker.slots.get())?;
        let deployment = Deployment { engine, listener };
        self.tasks.start(
            role("encode"),
            medfleet_encode::run(config, deployment, dependencies),
        );
        Ok(())
    }

    async fn decode(
        &mut self,
        process: &Process<FleetConfig>,
        config: &FleetConfig,
        model: &LoadedModel,
    ) -> Result<(), Stop> {
        let dependencies = self.member("decode", process).await?;
        let config = config.decode.clone();
        let backend = model
            .decoder(config.kv_bytes_max.get())
            .map_err(Stop::usage)?;
        let engine = DecodeEngine::start(backend, config.limits())?;
        self.tasks.start(
            role("decode"),
            medfleet_decode::run(config, engine, dependencies),
        );
        Ok(())
    }

    /// What one role gets: the shared connections, and metrics, health and an admin port of its own.
    async fn member(
        &mut self,
        name: &'static str,
        process: &Process<FleetConfig>,
    ) -> Result<Dependencies, Stop> {
        let listener = process::bind(SocketAddr::new(process.admin.ip(), 0)).await?;
        let (metrics, health) = (Metrics::new(), Health::new());
        // Named here already, so that a role that has not begun yet counts as unready.
        let _named = health.part(name);
        self.admin.push((name, listener.local_addr()?));
        self.health.push(health.clone());
        process.tasks.start(
            ADMIN,
            admin::serve(
                listener,
                metrics.clone(),
                health.clone(),
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

async fn load(model: ModelConfig) -> Result<LoadedModel, Stop> {
    let loading = tokio::task::spawn_blocking(move || model.load(Half::Both));
    loading.await?.map_err(Stop::usage)
}
