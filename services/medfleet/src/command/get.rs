//! `medfleet get`: a job as it stands, and its draft if it has completed.

use medfleet_proto::v1::JobState;

use super::{JobArgs, follow};
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `get`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// One JSON object per line on stdout: the job, then its result
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    args.job.with(async |client, name| {
        let job = client.job(name).await?;
        show::print_job(&job, args.json)?;
        // Of an erased job there is none any more, and the job says so.
        if job.state == i32::from(JobState::Completed) && job.erase_time.is_none() {
            follow::show_draft(client, &job, args.json).await?;
        }
        Ok(Exit::Done)
    })
}
