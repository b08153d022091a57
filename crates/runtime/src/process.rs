//! The life of a process in one function: arguments → configuration → telemetry → admin port → the program's own body →
//! ordered stop → exit code. Each service's main is a call of [`main`] and a body.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args as _, FromArgMatches as _};
use futures::future::LocalBoxFuture;
use medfleet_core::setting::DurationText;
use medfleet_core::{UnixMillis, chain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::certificates;
use crate::config::{self, ConfigError, Sources};
use crate::telemetry::TelemetryConfig;
use crate::{
    Clock, Exit, Health, Metrics, OnFailure, OnShutdown, Pages, Random, Settings, Shutdown, Stop,
    SystemClock, SystemRandom, TaskFailure, TaskKind, TaskSet, Telemetry, admin,
};

/// The part of a configuration that every program has.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessConfig {
    /// Where `/metrics`, `/healthz` and `/readyz` answer. Port 0 takes a free one, which the log names.
    pub admin_listen: SocketAddr,
    /// From the first signal until everything must have ended; shorter than the pod's grace period.
    pub drain: DurationText,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self {
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            drain: DurationText::from_secs(25),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// The arguments that every program has. Flatten it into a bigger command line, or let [`main`] parse it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key, such as --set process.drain=10s; stronger than file and environment
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Checks the configuration and stops
    #[arg(long)]
    pub check_config: bool,
    /// Shows the resulting configuration, secrets hidden, and stops
    #[arg(long)]
    pub print_config: bool,
    /// Shows the JSON schema of the configuration, and stops
    #[arg(long)]
    pub print_schema: bool,
}

impl Arguments {
    /// Whether nothing is to be started.
    pub const fn only_looks(&self) -> bool {
        self.check_config || self.print_config || self.print_schema
    }
}

/// What holds for every service, behind its flags.
const AFTER_HELP: &str = "Settings come from the file, then from variables (MEDFLEET_QUEUE__ACK_WAIT=30s sets queue.ack_wait), \
    then from --set; the later is the stronger.\n\
    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not reachable, 4 not finished within process.drain.";

/// Which program this is.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its service name in traces and logs, such as `medfleet-encode`.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    pub version: &'static str,
    /// Most threads of the async runtime. It has at least one, and at most half as many as there are cores: the other cores are
    /// for the processes that answer it and for blocking calls. Several threads wake one another with nearly every message, and
    /// the connection's task runs right after each sender. So one thread is best where the work itself is done elsewhere: on a
    /// model's thread, by child processes, or on the threads of blocking calls. On one thread, all tasks that are awake run
    /// before the connection's, and what they send leaves in one write.
    pub threads_max: usize,
}

/// What the body of a program is given.
#[derive(Debug, Clone)]
pub struct Process<C> {
    pub config: C,
    /// Where metrics are registered; served already.
    pub metrics: Metrics,
    /// Parts name themselves here and report when they are ready; served already.
    pub health: Health,
    /// Where pages are added to the admin port; served already.
    pub pages: Pages,
    /// Where tasks start; the process waits for them when the body has returned.
    pub tasks: TaskSet,
    /// Begun by the first signal or by a failed task.
    pub shutdown: Shutdown,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Where the admin port really is.
    pub admin: SocketAddr,
    /// When the certificates that were read at the start end, each by its setting; told on the admin port already.
    pub certificate_ends: Vec<(String, UnixMillis)>,
}

impl Process<()> {
    fn with<C>(self, config: C) -> Process<C> {
        Process {
            config,
            metrics: self.metrics,
            health: self.health,
            pages: self.pages,
            tasks: self.tasks,
            shutdown: self.shutdown,
            clock: self.clock,
            random: self.random,
            admin: self.admin,
            certificate_ends: self.certificate_ends,
        }
    }
}

/// A port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: cannot listen on {address}")]
struct BindError {
    setting: &'static str,
    address: SocketAddr,
    source: std::io::Error,
}

/// A signal handler could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for signals")]
struct SignalError(#[source] std::io::Error);

/// Binds a port; the error names the address and the setting that it comes from.
///
/// # Errors
/// [`Exit::Usage`], because the address comes from the configuration.
pub async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, Stop> {
    TcpListener::bind(address).await.map_err(|source| {
        Stop::usage(BindError {
            setting,
            address,
            source,
        })
    })
}

/// Parses this process's arguments and runs the program. The body returns when its work has ended, which is after
/// `shutdown` has begun, or earlier with an error; the exit code says which.
pub fn main<C, F, Fut>(program: Program, body: F) -> std::process::ExitCode
where
    C: Settings,
    F: FnOnce(Process<C>) -> Fut,
    Fut: Future<Output = Result<(), Stop>>,
{
    match Arguments::from_arg_matches(&command(program).get_matches()) {
        Ok(arguments) => run(program, &arguments, body).into(),
        Err(error) => error.exit(),
    }
}

/// The command line of a program that has no other arguments.
fn command(program: Program) -> clap::Command {
    // First the arguments: they bring what is said of themselves as what the program does.
    Arguments::augment_args(clap::Command::new(program.name))
        .about(program.about)
        .version(program.version)
        .after_help(AFTER_HELP)
}

/// Like [`main`], with arguments parsed elsewhere.
pub fn run<C, F, Fut>(program: Program, arguments: &Arguments, body: F) -> Exit
where
    C: Settings,
    F: FnOnce(Process<C>) -> Fut,
    Fut: Future<Output = Result<(), Stop>>,
{
    let sources = Sources::of_process(arguments.config.clone(), arguments.set.clone());
    let config = match prepare::<C>(&sources, arguments) {
        Ok(Some(config)) => config,
        Ok(None) => return Exit::Done,
        Err(error) => return early(program, Exit::Usage, &error),
    };
    let common = config.process().clone();
    let ends = certificates::ends(&config);
    let body: Body<'_> = Box::new(|process| Box::pin(body(process.with(config))));
    run_body(program, &common, ends, body)
}

/// Until when the certificates are good that a configuration names, by their settings.
type Ends = Vec<(String, UnixMillis)>;

/// A body with its configuration already bound. Boxed, so that the life of a process is compiled once, not for each program.
type Body<'a> = Box<dyn FnOnce(Process<()>) -> LocalBoxFuture<'a, Result<(), Stop>> + 'a>;

fn run_body(program: Program, config: &ProcessConfig, ends: Ends, body: Body<'_>) -> Exit {
    let runtime = match runtime(program) {
        Ok(runtime) => runtime,
        Err(error) => return early(program, Exit::Failed, &error),
    };
    let exit = runtime.block_on(live(program, config, ends, body));
    // Blocking calls that ignore the shutdown can't be dropped; the process does not wait for them.
    runtime.shutdown_background();
    exit
}

fn runtime(program: Program) -> std::io::Result<tokio::runtime::Runtime> {
    // As many as this process may use at once, where a limit is set for it.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = match program.threads_max.clamp(1, cores.div_ceil(2)) {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build()
}

/// Loads and checks; none when the arguments ask for no more than that.
fn prepare<C: Settings>(
    sources: &Sources,
    arguments: &Arguments,
) -> Result<Option<C>, ConfigError> {
    if arguments.print_schema {
        // Before anything is read: it is the same for every configuration.
        show(&format!("{:#}\n", config::schema::<C>()));
        return Ok(None);
    }
    let config = config::load::<C>(sources)?;
    config::check(&config)?;
    if arguments.print_config {
        show(&config::print(&config)?);
    }
    Ok((!arguments.only_looks()).then_some(config))
}

#[expect(clippy::print_stdout, reason = "a flag asks for it on stdout")]
fn show(text: &str) {
    print!("{text}");
}

/// Before there is a log, an error is a line on stderr.
fn early(program: Program, exit: Exit, error: &(dyn std::error::Error + 'static)) -> Exit {
    eprintln!("{}: {}", program.name, chain(error));
    exit
}

async fn live(program: Program, config: &ProcessConfig, ends: Ends, body: Body<'_>) -> Exit {
    let telemetry = Telemetry::new(program.name, &config.telemetry);
    let telemetry = match telemetry.and_then(|t| t.install().map(|()| t)) {
        Ok(telemetry) => telemetry,
        Err(error) => return early(program, Exit::Usage, &error),
    };
    let shutdown = Shutdown::new(config.drain.get());
    let exit = match serve(program, config, ends, &shutdown, body).await {
        Ok(()) => Exit::Done,
        Err(stop) => {
            tracing::error!(error = stop.chain(), exit = stop.exit as u8, "stopped");
            stop.exit
        }
    };
    // A program that ended by itself has the whole drain time for its last spans.
    telemetry
        .shutdown(
            shutdown
                .remaining()
                .max(std::time::Duration::from_millis(500)),
        )
        .await;
    exit
}

async fn serve(
    program: Program,
    config: &ProcessConfig,
    ends: Ends,
    shutdown: &Shutdown,
    body: Body<'_>,
) -> Result<(), Stop> {
    let listener = bind("process.admin_listen", config.admin_listen).await?;
    let admin = listener.local_addr()?;
    let (metrics, health, pages) = (Metrics::new(), Health::new(), Pages::default());
    metrics.describe(program.name, program.version, SystemClock.now());
    metrics.certificates(ends.clone());
    // The admin port and the signals outlive the drain, so they belong to a set with an end of its own.
    let tasks = TaskSet::new(shutdown.clone());
    let last = TaskSet::new(Shutdown::new(std::time::Duration::from_secs(1)));
    let until = CancellationToken::new();
    last.start(
        ADMIN,
        admin::serve(
            listener,
            metrics.clone(),
            health.clone(),
            pages.clone(),
            until.clone(),
        ),
    );
    last.start(
        SIGNALS,
        watch_signals(shutdown.clone(), health.clone()).await?,
    );
    // Whoever reads this line may connect, or send a signal, right away.
    tracing::info!(service = program.name, version = program.version, %admin, "started");
    let process = Process {
        config: (),
        metrics,
        health: health.clone(),
        pages,
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        admin,
        certificate_ends: ends,
    };
    let ended = tokio::select! {
        ended = body(process) => ended,
        () = shutdown.expired() => Err(Stop::new(Exit::DeadlineMissed, Overdue)),
    };
    shutdown.begin();
    health.drain();
    let joined = tasks.join().await;
    until.cancel();
    last.shutdown().begin();
    last.join().await?;
    // The body's own error says more than the tasks that it took with it.
    ended?;
    joined.map_err(TaskFailure::into_stop)
}

/// The body did not return before the deadline.
#[derive(Debug, thiserror::Error)]
#[error("the drain deadline passed")]
struct Overdue;

const ADMIN: TaskKind = TaskKind {
    name: "admin port",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Wait,
};

const SIGNALS: TaskKind = TaskKind {
    name: "signals",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Abort,
};

/// The handlers are in place when this returns; the future it returns waits for them.
async fn watch_signals(
    shutdown: Shutdown,
    health: Health,
) -> Result<impl Future<Output = Result<(), std::convert::Infallible>>, Stop> {
    let install = |kind| signal(kind).map_err(|error| Stop::from(SignalError(error)));
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    Ok(async move {
        for count in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if count > 1 {
                tracing::error!("second signal, leaving at once");
                leave_at_once();
            }
            // Unready before the line is logged, for whoever acts on the line.
            health.drain();
            tracing::info!(drain_ms = shutdown.remaining().as_millis(), "stopping");
            shutdown.begin();
        }
        Ok(())
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a second signal asks for exactly this"
)]
fn leave_at_once() -> ! {
    std::process::exit(Exit::DeadlineMissed as i32)
}

#[cfg(test)]
mod tests;
