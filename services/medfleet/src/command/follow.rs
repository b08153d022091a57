//! What `submit` and `watch` have in common: follow a job to its end, then show the draft or the reason.

use std::path::{Path, PathBuf};

use medfleet_proto::v1::{Job, JobState};

use crate::client::{Client, ClientError, Cursor};
use crate::exit::{CommandResult, Exit};
use crate::show::{self, Progress};

/// Follows `name` to its final state and shows what came of it. Exit code 0 only for a completed job that has its draft.
/// `files` are its inputs, where they are known.
pub(super) async fn follow(
    client: &Client,
    name: &str,
    files: &[PathBuf],
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
    end(client, &job, files, json).await
}

/// Shows the draft of a completed job; says why there is none otherwise.
async fn end(client: &Client, job: &Job, files: &[PathBuf], json: bool) -> CommandResult {
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
            let failure = job.failure.as_ref();
            if let Some(file) = failure.and_then(|failure| meant(&failure.message, files)) {
                eprintln!("medfleet: that is {}", file.display());
            }
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

/// The file that a message names by its number: the fleet was told no name of it.
fn meant<'a>(message: &str, files: &'a [PathBuf]) -> Option<&'a Path> {
    let (_, number) = message.split_once("input ")?;
    let number = number.split(|char: char| !char.is_ascii_digit()).next()?;
    let number = number.parse::<usize>().ok()?;
    files.get(number).map(PathBuf::as_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_file_is_named() {
        let files = ["a.dcm", "b.dcm"].map(PathBuf::from);
        let check = |message: &str, expected: Option<&str>| {
            assert_eq!(meant(message, &files), expected.map(Path::new), "{message}");
        };
        check("input 1 was refused: NOT_AN_IMAGE: …", Some("b.dcm"));
        check("input 2 was refused", None);
        check("the input was refused", None);
        check("an image's tokens are missing", None);
    }
}
