//! The only service that clients face: accepts jobs durably, tells how they go, hands out results; and, one replica at a
//! time, releases accepted work to the stages.
//!
//! Never: looks into an image, links the model, answers before JetStream has confirmed, holds a job's state in memory
//! only, or shows one tenant what another has.
//!
//! Reading order: `rpc` (the handlers) with `calls` and `places`, `tokens` (who calls), `validate`, `pseudonym`, `study`,
//! `cost`, `quota` with `stored`, `clock`, `accept` with `pad`, `room` and `sweep` (Submit), `upload`, `watch` with `fanout` and
//! `stitch`, `erase` and `keeper`, `open` (the open jobs), `leader`, `unit` and `work` (the dispatcher), `edge` (in its place
//! where there is a hub above), `dead`, `operator`, `rebuild` (a figure), `roster`, `census` and `status` (how the fleet stands),
//! then `server` with `connections`, `unnamed`, `timely`, `load` and `shape`, `convert`, `keys`, `blobs`, `error`, `metrics`.

mod accept;
mod blobs;
mod calls;
mod census;
mod clock;
pub mod config;
mod connections;
mod convert;
mod cost;
mod dead;
mod edge;
mod erase;
mod error;
mod fanout;
mod keeper;
mod keys;
mod leader;
mod load;
mod metrics;
mod open;
mod operator;
mod pad;
mod places;
mod pseudonym;
mod quota;
mod rebuild;
mod room;
mod roster;
mod rpc;
mod server;
mod shape;
mod status;
mod stitch;
mod stored;
mod study;
mod sweep;
mod timely;
pub mod tokens;
pub mod unit;
mod unnamed;
mod upload;
mod validate;
mod watch;
mod work;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::PoolName;
use medfleet_queue::Queue;
use medfleet_runtime::{
    Clock, Metrics, OnFailure, OnShutdown, Pages, Part, Random, Shutdown, TaskKind, TaskSet,
};
use medfleet_worker::{Dependencies, register_connection, register_store};
use tokio::net::TcpListener;
use tonic_health::server::HealthReporter;

pub use config::{Config, MainConfig, UPLOADS_RENEWED_EVERY};
pub use error::Error;
pub use rebuild::rebuild;
pub use tokens::{TokenEntry, TokensFile, create_token};
pub use validate::UPLOAD_INSTEAD;

use accept::Acceptor;
use blobs::Blobs;
use calls::{Calls, Gate};
use census::Census;
use clock::QueueClock;
use connections::ConnectionLimits;
use dead::DeadLetters;
use edge::Edge;
use fanout::Fanout;
use keeper::Keeper;
use keys::Keys;
use metrics::Figures;
use open::OpenJobs;
use operator::Operator;
use pad::Pad;
use places::Places;
use quota::Quotas;
use room::Room;
use roster::Roster;
use rpc::Jobs;
use server::Served;
use status::Status;
use stored::Counting;
use tokens::Tokens;
use upload::Uploads;
use watch::Watching;
use work::{Dispatcher, Scope};

/// How often the connection to the queue is looked at.
const CONNECTION_EVERY: Duration = Duration::from_millis(500);

/// What ingest needs besides what every service needs.
#[derive(Debug)]
pub struct Deployment {
    /// The bound port of the public API.
    pub listener: TcpListener,
    /// Where the status page goes.
    pub pages: Pages,
    /// For ids.
    pub random: Arc<dyn Random>,
}

/// Registers every metric of this service, each with a value, for the reference page.
pub fn every_metric(metrics: &Metrics) {
    if let Ok(pool) = PoolName::new("main") {
        Figures::new(metrics).touch(&pool);
    }
}

/// Serves until the shutdown of `dependencies.tasks`, which the caller joins, has begun and the calls under way have ended. The
/// queue's streams are made ready here, and the store's key also makes job ids.
///
/// # Errors
/// [`Error`] when the service cannot start, or its server fails.
pub async fn run(
    config: Config,
    deployment: Deployment,
    dependencies: Dependencies,
) -> Result<(), Error> {
    config.check()?;
    let Deployment {
        listener,
        pages,
        random,
    } = deployment;
    let shutdown = dependencies.tasks.shutdown().clone();
    let ready = dependencies.health.part("ingest");
    let (pools, rules) = (config.pools(), config.rules()?);
    let tokens = Tokens::load(&config.tokens).await?;
    dependencies.queue.ensure(&pools).await?;
    let clock = QueueClock::new(Arc::clone(&dependencies.clock));
    clock.ask(&dependencies.queue).await;
    let figures = Figures::new(&dependencies.metrics);
    let open = OpenJobs::default();
    let fanout = Fanout::new(config.watch.signals_max, open.clone());
    let (quotas, retry_after) = (config.quotas.clone(), config.limits.retry_after.get());
    let quotas = Quotas::new(quotas, retry_after, Arc::clone(&dependencies.clock));
    let config = Arc::new(config);
    let holder = hex::encode(random.id());
    let parts = Parts {
        config,
        tokens,
        figures,
        quotas,
        fanout,
        open,
        pools,
        rules,
        clock,
        random,
        shutdown: shutdown.clone(),
        roster: Roster::default(),
        pad: Pad::new(dependencies.queue.clone(), &holder),
        room: Room::default(),
        holder,
    };
    let connected = dependencies.queue.clone();
    register_connection(&dependencies.metrics, move || connected.is_connected());
    let store = dependencies.store.clone();
    register_store(&dependencies.metrics, move || store.full_writes());
    parts.status(&dependencies).add_to(&pages);
    let served = parts.served(&dependencies);
    let (router, reporter) = server::build(served, parts.config.tls.as_ref()).await?;
    match parts.edge(&dependencies).await? {
        Some(edge) => start(&dependencies.tasks, "edge", Arc::new(edge).run()),
        None => {
            let dispatcher = parts.dispatcher(&dependencies, Scope::Fleet);
            start(&dependencies.tasks, "dispatcher", dispatcher.run());
        }
    }
    parts.start_tasks(&dependencies);
    ready.ready();
    let connection = follow_connection(
        dependencies.queue.clone(),
        dependencies.health.part("queue"),
        reporter,
        shutdown.clone(),
    );
    start(&dependencies.tasks, "queue connection", connection);
    let address = listener.local_addr().map_err(Error::Listener)?;
    tracing::info!(%address, "serving the public API");
    let limits = parts.connection_limits();
    let stopped = async move { shutdown.begun().await };
    let served = server::serve(router, listener, limits, stopped).await;
    parts.pad.close().await;
    served
}

/// What the parts of the service share.
struct Parts {
    config: Arc<Config>,
    tokens: Tokens,
    figures: Figures,
    quotas: Quotas,
    fanout: Fanout,
    open: OpenJobs,
    pools: Vec<PoolName>,
    rules: unit::Rules,
    clock: QueueClock,
    random: Arc<dyn Random>,
    shutdown: Shutdown,
    roster: Roster,
    pad: Pad,
    room: Room,
    /// Tells this process from others.
    holder: String,
}

impl Parts {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    fn served(&self, dependencies: &Dependencies) -> Served {
        Served {
            jobs: self.jobs(dependencies),
            dead_letters: self.dead_letters(dependencies),
            operator: self.operator(dependencies),
            gate: self.gate(),
            request_time_max: self.config.limits.request_time_max.get(),
            retry_after: self.config.limits.retry_after.get(),
        }
    }

    fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            connections_max: self.config.limits.connections_max,
            first_call_time_max: self.config.limits.first_call_time_max.get(),
        }
    }

    fn acceptor(&self, dependencies: &Dependencies) -> Acceptor {
        Acceptor {
            config: Arc::clone(&self.config),
            queue: dependencies.queue.clone(),
            blobs: Blobs::new(dependencies.store.clone()),
            keys: Keys::new(dependencies.store.key().clone()),
            clock: self.clock(),
            random: Arc::clone(&self.random),
            tasks: dependencies.tasks.clone(),
            figures: self.figures.clone(),
            quotas: self.quotas.clone(),
            open: self.open.clone(),
            pad: self.pad.clone(),
            room: self.room.clone(),
        }
    }

    fn calls(&self) -> Calls {
        Calls {
            figures: self.figures.clone(),
        }
    }

    fn gate(&self) -> Gate {
        Gate {
            tokens: self.tokens.clone(),
            figures: self.figures.clone(),
        }
    }

    fn dead_letters(&self, dependencies: &Dependencies) -> DeadLetters {
        DeadLetters {
            calls: self.calls(),
            acceptor: self.acceptor(dependencies),
        }
    }

    fn operator(&self, dependencies: &Dependencies) -> Operator {
        Operator {
            calls: self.calls(),
            acceptor: self.acceptor(dependencies),
        }
    }

    fn jobs(&self, dependencies: &Dependencies) -> Jobs {
        let acceptor = self.acceptor(dependencies);
        let uploads = Uploads {
            config: Arc::clone(&self.config),
            queue: dependencies.queue.clone(),
            blobs: acceptor.blobs.clone(),
            clock: self.clock(),
            random: Arc::clone(&self.random),
            figures: self.figures.clone(),
            quotas: self.quotas.clone(),
            shutdown: self.shutdown.clone(),
            places: Places::new(self.config.limits.uploads_max),
        };
        let watching = Watching {
            config: self.config.watch.clone(),
            queue: dependencies.queue.clone(),
            blobs: acceptor.blobs.clone(),
            fanout: self.fanout.clone(),
            tokens: self.tokens.clone(),
            clock: self.clock(),
            figures: self.figures.clone(),
            shutdown: self.shutdown.clone(),
        };
        Jobs {
            calls: self.calls(),
            acceptor,
            uploads,
            watching: Arc::new(watching),
            places: Places::new(self.config.limits.watches_max),
        }
    }

    fn keeper(&self, dependencies: &Dependencies) -> Keeper {
        Keeper {
            config: self.config.retention.clone(),
            time_to_live_max: self.config.limits.time_to_live_max.get(),
            queue: dependencies.queue.clone(),
            blobs: Blobs::new(dependencies.store.clone()),
            counting: self.counting(dependencies),
            // Blobs are dated by the machine, or by their store.
            clock: Arc::clone(&dependencies.clock),
            figures: self.figures.clone(),
            shutdown: self.shutdown.clone(),
            holder: hex::encode(self.random.id()),
        }
    }

    fn dispatcher(&self, dependencies: &Dependencies, scope: Scope) -> Dispatcher {
        Dispatcher {
            scope,
            config: self.config.dispatcher.clone(),
            queue: dependencies.queue.clone(),
            fanout: self.fanout.clone(),
            roster: self.roster.clone(),
            open: self.open.clone(),
            pools: self.pools.clone(),
            rules: self.rules.clone(),
            clock: self.clock(),
            figures: self.figures.clone(),
            shutdown: self.shutdown.clone(),
            holder: self.holder.clone(),
        }
    }

    /// What hands jobs on, where there is a hub.
    async fn edge(&self, dependencies: &Dependencies) -> Result<Option<Edge>, Error> {
        let Some(config) = self.config.edge.clone() else {
            return Ok(None);
        };
        let scope = Scope::Site(Arc::new(config.clone()));
        let parts = edge::Parts {
            dispatcher: self.dispatcher(dependencies, scope),
            config,
            queue: dependencies.queue.clone(),
            blobs: Blobs::new(dependencies.store.clone()),
            open: self.open.clone(),
            clock: self.clock.clone(),
            random: Arc::clone(&self.random),
            figures: self.figures.clone(),
            shutdown: self.shutdown.clone(),
            holder: self.holder.clone(),
        };
        Edge::open(parts).await.map(Some)
    }

    fn start_tasks(&self, dependencies: &Dependencies) {
        let (queue, shutdown) = (dependencies.queue.clone(), self.shutdown.clone());
        start(
            &dependencies.tasks,
            "job events",
            self.fanout
                .clone()
                .carry_events(queue.clone(), shutdown.clone()),
        );
        start(
            &dependencies.tasks,
            "job texts",
            self.fanout
                .clone()
                .carry_texts(queue.clone(), shutdown.clone()),
        );
        start(
            &dependencies.tasks,
            "open jobs",
            self.open.clone().follow(queue.clone(), shutdown.clone()),
        );
        let figures = self.figures.clone();
        start(
            &dependencies.tasks,
            "backlog",
            self.open
                .clone()
                .show(self.pools.clone(), figures, shutdown.clone()),
        );
        start(
            &dependencies.tasks,
            "accept sweep",
            sweep::sweep(self.acceptor(dependencies), shutdown.clone()),
        );
        let tidy = self.pad.clone().tidy(shutdown.clone());
        start(&dependencies.tasks, "pending entries", tidy);
        let every = self.config.tokens_reload.get();
        start(
            &dependencies.tasks,
            "tokens file",
            self.tokens.clone().follow(every, shutdown.clone()),
        );
        start(
            &dependencies.tasks,
            "keeper",
            self.keeper(dependencies).run(),
        );
        let clock = self.clock.clone().follow(queue, shutdown);
        start(&dependencies.tasks, "queue's clock", clock);
        self.start_watching(dependencies);
    }

    /// What tells how the fleet stands.
    fn start_watching(&self, dependencies: &Dependencies) {
        let (queue, shutdown) = (dependencies.queue.clone(), self.shutdown.clone());
        let listen = self.roster.clone().listen(queue.clone(), shutdown.clone());
        start(&dependencies.tasks, "workers' presences", listen);
        let census = Census {
            queue,
            pools: self.pools.clone(),
            roster: self.roster.clone(),
            clock: self.clock(),
            figures: self.figures.clone(),
            room: self.room.clone(),
            holder: self.holder.clone(),
        };
        start(&dependencies.tasks, "census", census.run(shutdown.clone()));
        if self.quotas.bound_stored_bytes() {
            let counting = self.counting(dependencies).run(shutdown);
            start(&dependencies.tasks, "stored bytes", counting);
        }
    }

    fn counting(&self, dependencies: &Dependencies) -> Counting {
        Counting {
            quotas: self.quotas.clone(),
            blobs: Blobs::new(dependencies.store.clone()),
            figures: self.figures.clone(),
        }
    }

    fn status(&self, dependencies: &Dependencies) -> Status {
        Status {
            queue: dependencies.queue.clone(),
            store: dependencies.store.clone(),
            quotas: self.quotas.clone(),
            pools: self.pools.clone(),
            roster: self.roster.clone(),
            fanout: self.fanout.clone(),
            figures: self.figures.clone(),
            clock: self.clock(),
            holder: self.holder.clone(),
        }
    }
}

/// Starts a task that the service cannot do without and that ends by itself when the shutdown begins.
fn start(tasks: &TaskSet, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let kind = TaskKind {
        name,
        on_failure: OnFailure::Shutdown,
        on_shutdown: OnShutdown::Wait,
    };
    tasks.start(kind, async move {
        task.await;
        Ok::<_, Infallible>(())
    });
}

/// Tells the admin port and the health service whether the queue is there.
async fn follow_connection(
    queue: Queue,
    ready: Part,
    reporter: HealthReporter,
    shutdown: Shutdown,
) {
    let mut told = None;
    loop {
        let is_connected = queue.is_connected();
        match is_connected {
            true => ready.ready(),
            false => ready.unready(),
        }
        // Whoever watches the health hears of each time that it is told.
        if told.replace(is_connected) != Some(is_connected) {
            server::tell_health(&reporter, is_connected).await;
        }
        tokio::select! {
            () = tokio::time::sleep(CONNECTION_EVERY) => {}
            () = shutdown.begun() => break,
        }
    }
    ready.unready();
    server::end_health(reporter).await;
}
