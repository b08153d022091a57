//! `medfleet bench`: figures of this machine, measured on real processes. A figure is printed, never judged.

mod backlog;
mod checkpoint;
mod drive;
mod form;
pub(super) mod frames;
mod gguf;
mod job;
mod local;
mod memory;
mod model;
mod programs;
mod queue;
mod release;
mod report;
mod sample;
mod scaling;
mod side;
mod simulated;
mod speculation;
mod spent;
mod start;
mod throughput;
mod usage;

use clap::Subcommand;

use crate::exit::CommandResult;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What a fleet adds to the model's own time, from submit to result
    Report(report::Args),
    /// Reports an hour of a whole fleet with jobs queued at once, and what a single one takes, with random weights
    Backlog(backlog::Args),
    /// Jobs a second through a whole fleet around a model that takes no time, next to the same writes without a fleet
    Throughput(throughput::Args),
    /// How throughput grows with encoders and with decoders, next to what `plan` predicts
    Scaling(scaling::Args),
    /// Publish, deliver and settle on a nats-server of its own, every write synced to disk
    Queue(queue::Args),
    /// How long a new leader takes to read the waiting jobs into its index
    Release(release::Args),
    /// From the start of a process to its first token, cold and warm, with the memory it takes at most
    Start(start::Args),
    /// Encoding, reading and writing at MedGemma 4B's true shapes on one device, with random weights
    Model(model::Args),
    /// Writing reports with proposed tokens and without, in turns, on the demo model or another
    Speculation(speculation::Args),
    /// From a file to model-ready frames, for each codec: wall time, all cores, memory
    Frames(frames::Args),
    /// Resident memory of idle ingest and preprocess processes
    Memory(memory::Args),
}

pub(crate) fn run(command: Command) -> CommandResult {
    match command {
        Command::Report(args) => report::run(args),
        Command::Backlog(args) => backlog::run(args),
        Command::Throughput(args) => throughput::run(args),
        Command::Scaling(args) => scaling::run(args),
        Command::Queue(args) => queue::run(args),
        Command::Release(args) => release::run(args),
        Command::Start(args) => start::run(args),
        Command::Model(args) => model::run(args),
        Command::Speculation(args) => speculation::run(args),
        Command::Frames(args) => frames::run(args),
        Command::Memory(args) => memory::run(args),
    }
}
