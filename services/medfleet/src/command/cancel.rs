//! `medfleet cancel`: ends a job that is not final.

use super::{job_name, on_one_thread};
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `cancel`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job, as submit and list print it
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout: the job
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let name = job_name(&args.job)?;
    let fleet = args.server.resolve()?;
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        let job = client.cancel(&name).await?;
        show::print_job(&job, args.json)?;
        Ok(Exit::Done)
    })
}
