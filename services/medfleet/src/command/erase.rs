//! `medfleet erase`: removes everything that was stored for jobs.

use super::{job_name, on_one_thread};
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `erase`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The jobs, as submit and list print them; one that has not ended is cancelled first
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per job and line on stdout
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let names = args.jobs.iter().map(|job| job_name(job));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let fleet = args.server.resolve()?;
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        for name in &names {
            let erased = client.erase(name).await?;
            if args.json {
                show::print_json(&show::erased_json(&erased))?;
            } else {
                show::print(&show::erased_line(name, &erased))?;
            }
        }
        Ok(Exit::Done)
    })
}
