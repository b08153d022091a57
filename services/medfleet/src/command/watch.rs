//! `medfleet watch`: follows a job from its first event to its end, then shows the draft.

use std::time::Instant;

use super::{follow, job_name, on_one_thread};
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::CommandResult;
use crate::show::Progress;

/// Flags of `watch`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job, as submit and list print it
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per line on stdout: every event, then the result
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let started = Instant::now();
    let name = job_name(&args.job)?;
    let fleet = args.server.resolve()?;
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        follow::follow(&client, &name, args.json, Progress::new(started)).await
    })
}
