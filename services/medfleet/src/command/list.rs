//! `medfleet list`: the tenant's jobs, page after page, as a table or as JSON lines.

use clap::ValueEnum;
use medfleet_proto::v1::JobState;

use super::on_one_thread;
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Exit};
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
    let fleet = args.server.resolve()?;
    let states: Vec<JobState> = args.state.iter().map(|state| state.wire()).collect();
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        if !args.json {
            show::print(&show::job_table_head())?;
        }
        let (mut shown, mut page_token) = (0, String::new());
        loop {
            let page = client.jobs(&states, &page_token).await?;
            for job in page.jobs {
                if shown == args.limit {
                    eprintln!("medfleet: more than {shown} jobs; see the rest with --limit N");
                    return Ok(Exit::Done);
                }
                shown += 1;
                if args.json {
                    show::print_json(&show::job_json(&job))?;
                } else {
                    show::print(&show::job_table_row(&job))?;
                }
            }
            if page.next_page_token.is_empty() {
                return Ok(Exit::Done);
            }
            page_token = page.next_page_token;
        }
    })
}

impl StateName {
    fn wire(self) -> JobState {
        match self {
            Self::Accepted => JobState::Accepted,
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
