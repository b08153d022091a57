//! What `submit` and `watch` have in common: follow a job to its end, then show the draft or the reason.

use medfleet_proto::v1::{Job, JobState};

use crate::client::{Client, ClientError, Cursor};
use crate::exit::{CommandResult, Exit};
use crate::show::{self, Progress};

/// Follows `name` to its final state and shows what came of it. Exit code 0 only for a completed job that has its draft.
pub(super) async fn follow(
    client: &Client,
    name: &str,
    json: bool,
    mut progress: Progress,
) -> CommandResult {
    let job = client
        .watch(name, Cursor::default(), &mut |event| {
            if json {
                return show::print_json(&show::event_json(event));
            }
            progress.event(event);
            Ok(())
        })
        .await?;
    end(client, &job, json).await
}

/// Shows the draft of a completed job; says why there is none otherwise.
pub(super) async fn end(client: &Client, job: &Job, json: bool) -> CommandResult {
    if job.state != i32::from(JobState::Completed) {
        if !json {
            let reason = job
                .failure
                .as_ref()
                .map_or_else(|| "no draft".to_owned(), show::failure_text);
            eprintln!(
                "medfleet: {} ended {}: {reason}; trace {}",
                job.name,
                show::state_word(job.state),
                job.trace_id
            );
        }
        return Ok(Exit::Failed);
    }
    if job.erase_time.is_some() {
        if !json {
            eprintln!("medfleet: {} was completed, and erased since", job.name);
        }
        return Ok(Exit::Failed);
    }
    show_draft(client, job, json).await?;
    Ok(Exit::Done)
}

/// Fetches and prints the draft.
pub(super) async fn show_draft(client: &Client, job: &Job, json: bool) -> Result<(), ClientError> {
    let draft = client.draft(&job.name).await?;
    if json {
        show::print_json(&show::draft_json(&draft, job))?;
    } else {
        show::print(&show::draft(&draft, job))?;
    }
    Ok(())
}
