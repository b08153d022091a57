//! Starts and stops a process: configuration, telemetry, admin port, tasks, ordered shutdown, exit code.
//! Sole owner of opentelemetry, and the only crate that reads the environment, the clock and the machine's randomness.
//! It knows nothing of jobs, queues or models.
//!
//! Reading order: [`process`] (a whole life in one function), [`config`], [`shutdown`], [`tasks`], [`telemetry`],
//! [`health`], [`metrics`], [`admin`], [`certificates`], then [`clock`], [`random`] and [`exit`].

pub mod admin;
pub mod certificates;
pub mod clock;
pub mod config;
pub mod exit;
pub mod health;
pub mod metrics;
pub mod process;
pub mod random;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use admin::{Page, Pages};
pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{ConfigError, Settings};
pub use exit::{Exit, Stop};
pub use health::{Health, Part};
pub use medfleet_core::setting::{ByteSize, DurationText, Secret};
pub use metrics::{Exemplar, Metrics, Reading, Readings};
pub use process::{Arguments, Process, ProcessConfig, Program};
pub use random::{Random, SeededRandom, SystemRandom};
pub use shutdown::Shutdown;
pub use tasks::{OnFailure, OnShutdown, Task, TaskFailure, TaskKind, TaskSet};
pub use telemetry::Telemetry;
