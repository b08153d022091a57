//! What can be asked: the commands and their dispatch. Every command that is listed here works; the others are not listed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command::{
    bench, cancel, dead, deidentify, doctor, embed, erase, eval, frames, get, infer, list, metrics,
    pause, phantom, plan, requeue, submit, up, watch, weights,
};
use crate::exit::{CommandResult, Exit, Fault};

/// Default data folder of a local fleet.
pub(crate) const DATA: &str = ".medfleet";

/// A worker fleet that drafts medical-image reports.
///
/// Every text is a draft: a radiologist reads the images and signs.
/// Exit codes: 0 done, 1 the job or a check failed, 2 usage or configuration, 3 unreachable or timed out; of `up` also 4: the
/// fleet did not end within process.drain; of `submit` also 130: it was interrupted.
#[derive(Debug, Parser)]
#[command(name = "medfleet", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole fleet here: every role and a supervised nats-server in one process tree
    Up(up::Args),
    /// Submit a study and follow it to its draft
    Submit(submit::Args),
    /// Show a job, and its draft if it has completed
    Get(get::Args),
    /// Follow a job to its end
    Watch(watch::Args),
    /// Cancel a job
    Cancel(cancel::Args),
    /// Remove everything that was stored for jobs: files, prompt, frames, image tokens, text, result
    Erase(erase::Args),
    /// List the tenant's jobs
    List(list::Args),
    /// Work that was given up on: list it, look at it, start its job over, put it away
    #[command(subcommand)]
    Dead(dead::Command),
    /// Hold back the work of a tenant, a class, or a class of a tenant; an operator's token is needed
    Pause(pause::Args),
    /// Let paused work go on
    Resume(pause::Args),
    /// List what is paused
    Pauses(pause::ListArgs),
    /// Queue what open jobs wait for once more, after a backup was put back; an operator's token is needed
    Requeue(requeue::Args),
    /// Run the model alone, without a queue
    Infer(infer::Args),
    /// Run MedSigLIP alone: embeddings of pictures and texts, and how well they fit
    Embed(embed::Args),
    /// Turn files into model-ready frames: one PNG for each and a manifest
    Frames(frames::Args),
    /// Make DICOM objects that may leave: PS3.15's Basic Profile with a tenant's key
    Deidentify(deidentify::Args),
    /// Run a labelled set through the fleet and score the answers
    Eval(eval::Args),
    /// Make synthetic chest radiographs with known findings
    Phantom(phantom::Args),
    /// Say how many encoders and decoders a load needs, and how long its jobs then take
    Plan(plan::Args),
    /// Say what is installed, reachable, too old or misconfigured
    Doctor(doctor::Args),
    /// List every metric of every service
    Metrics(metrics::Args),
    /// A model's files and their digests: list, check, put into a bucket, fetch
    #[command(subcommand)]
    Weights(weights::Command),
    /// Measure, on this machine
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Runs the command and says on stderr why it failed, if it did.
pub fn run(cli: Cli) -> ExitCode {
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(fault) if is_closed_pipe(&fault) => Exit::Done.into(),
        Err(fault) => {
            eprintln!("medfleet: {fault}");
            fault.exit.into()
        }
    }
}

fn dispatch(command: Command) -> CommandResult {
    match command {
        Command::Up(args) => up::run(args),
        Command::Submit(args) => submit::run(args),
        Command::Get(args) => get::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Cancel(args) => cancel::run(args),
        Command::Erase(args) => erase::run(args),
        Command::List(args) => list::run(args),
        Command::Dead(command) => dead::run(command),
        Command::Pause(args) => pause::pause(args),
        Command::Resume(args) => pause::resume(args),
        Command::Pauses(args) => pause::list(args),
        Command::Requeue(args) => requeue::run(args),
        Command::Infer(args) => infer::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Frames(args) => frames::run(args),
        Command::Deidentify(args) => deidentify::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Phantom(args) => phantom::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Metrics(args) => metrics::run(args),
        Command::Weights(command) => weights::run(command),
        Command::Bench(command) => bench::run(command),
    }
}

/// Whoever read our output has seen enough (`medfleet list | head`): not a failure.
fn is_closed_pipe(fault: &Fault) -> bool {
    fault.error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests;
