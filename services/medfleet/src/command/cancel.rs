//! `medfleet cancel`: ends a job that is not final.

use super::JobArgs;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `cancel`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// One JSON object on stdout: the job
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    args.job.with(async |client, name| {
        let job = client.cancel(name).await?;
        show::print_job(&job, args.json)?;
        Ok(Exit::Done)
    })
}
