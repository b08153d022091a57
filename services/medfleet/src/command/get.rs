//! `medfleet get`: a job as it stands, and its draft if it has completed.

use medfleet_proto::v1::JobState;

use super::{follow, job_name, on_one_thread};
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `get`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job, as submit and list print it
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per line on stdout: the job, then its result
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let name = job_name(&args.job)?;
    let fleet = args.server.resolve()?;
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        let job = client.job(&name).await?;
        show::print_job(&job, args.json)?;
        // Of an erased job there is none any more, and the job says so.
        if job.state == i32::from(JobState::Completed) && job.erase_time.is_none() {
            follow::show_draft(&client, &job, args.json).await?;
        }
        Ok(Exit::Done)
    })
}
