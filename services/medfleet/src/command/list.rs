//! `medfleet list`: the tenant's jobs, page after page, as a table or as JSON lines.

use medfleet_core::JobState;
use medfleet_queue::wire::state_to_wire;

use super::pages::{self, Shown};
use super::with_client;
use crate::choices::one_of;
use crate::client::ServerArgs;
use crate::exit::CommandResult;
use crate::show;

/// Flags of `list`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only jobs in these states, separated by commas
    #[arg(
        long,
        value_name = "STATE,…",
        value_delimiter = ',',
        value_parser = one_of(JobState::ALL, JobState::as_str)
    )]
    state: Vec<JobState>,
    /// At most this many jobs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per job and line on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let states: Vec<_> = args.state.iter().copied().map(state_to_wire).collect();
    with_client(&args.server, async |client| {
        let shown = Shown {
            what: "jobs",
            limit: args.limit,
            head: (!args.json).then(show::job_table_head),
        };
        let page = async |token: String| {
            let page = client.jobs(&states, &token).await?;
            Ok((page.jobs, page.next_page_token))
        };
        pages::show(shown, page, |job| match args.json {
            true => show::print_json(&show::job_json(job)),
            false => show::print(&show::job_table_row(job)),
        })
        .await
    })
}
