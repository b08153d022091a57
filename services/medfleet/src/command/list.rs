//! `medfleet list`: the tenant's jobs, page after page, as a table or as JSON lines.

use clap::ValueEnum;
use medfleet_proto::v1::JobState;

use super::pages::{self, Shown};
use super::with_client;
use crate::client::ServerArgs;
use crate::exit::CommandResult;
use crate::show;

/// Flags of `list`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only jobs in these states, separated by commas
    #[arg(long, value_enum, value_name = "STATE,…", value_delimiter = ',')]
    state: Vec<StateName>,
    /// At most this many jobs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per job and line on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateName {
    Accepted,
    Forwarded,
    Released,
    Preprocessed,
    Encoding,
    Decoding,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let states: Vec<JobState> = args.state.iter().map(|state| state.wire()).collect();
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

impl StateName {
    fn wire(self) -> JobState {
        match self {
            Self::Accepted => JobState::Accepted,
            Self::Forwarded => JobState::Forwarded,
            Self::Released => JobState::Released,
            Self::Preprocessed => JobState::Preprocessed,
            Self::Encoding => JobState::Encoding,
            Self::Decoding => JobState::Decoding,
            Self::Completed => JobState::Completed,
            Self::Failed => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
            Self::Expired => JobState::Expired,
        }
    }
}
