//! `medfleet watch`: follows a job from its first event to its end, then shows the draft.

use std::time::Instant;

use super::{JobArgs, follow};
use crate::exit::CommandResult;
use crate::show::Progress;

/// Flags of `watch`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// One JSON object per line on stdout: every event, then the result
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let started = Instant::now();
    args.job.with(async |client, name| {
        follow::follow(client, name, &[], args.json, Progress::new(started)).await
    })
}
