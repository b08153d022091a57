//! `medfleet requeue`: queues what open jobs wait for once more, after a backup was put back. Needs an operator's token.

use clap::builder::NonEmptyStringValueParser;
use medfleet_proto::v1::RequeueJobsRequest;
use serde_json::json;

use super::with_client;
use crate::client::ServerArgs;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Whose jobs [default: every tenant's]
    #[arg(long, value_name = "TENANT", value_parser = NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    with_client(&args.server, async |client| {
        let mut request = RequeueJobsRequest {
            tenant: args.tenant.unwrap_or_default(),
            page_token: String::new(),
        };
        let (mut open, mut queued) = (0_u64, 0_u64);
        loop {
            let page = client.requeue(&request).await?;
            open += u64::from(page.open_jobs);
            queued += u64::from(page.queued_units);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if args.json {
            show::print_json(&json!({ "open_jobs": open, "queued_units": queued }))?;
        } else {
            show::print(&format!(
                "{open} open jobs; {queued} pieces of work were not waiting and do so now"
            ))?;
        }
        Ok(Exit::Done)
    })
}
