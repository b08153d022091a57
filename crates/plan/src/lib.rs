//! How many encoders and decoders a load needs, and how long its jobs then take. Pure and seeded: no clock, no I/O.
//!
//! Percentiles come from a discrete-event simulation of the two stages; queueing formulas give the waits beside it, so
//! that each checks the other. Reading order: `load` (what is asked), `queueing` (formulas), `simulation`, `search` (the
//! smallest fleet that meets a target), `streams` (what the queue has to write for it); then `scaling` (the rules of an
//! autoscaler) and `day` (jobs of a day, which its tests have a fleet follow by them).

mod day;
mod load;
mod queueing;
mod scaling;
mod search;
mod simulation;
mod streams;

pub use day::{Arrival, arrivals, units};
pub use load::{Fleet, JobKind, Load, LoadError, Service};
pub use queueing::{Predicted, predict, wait};
pub use scaling::{ADDED_MAX, Controller, Rules, TARGET_SECONDS, oracle};
pub use search::{NoPlan, Plan, Target, WORKERS_MAX, smallest};
pub use simulation::{CLASSES, Run, Simulated, Turnaround, batch_seconds, simulate};
pub use streams::{StreamLoad, streams};
