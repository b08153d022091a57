//! `medfleet dead`: units of work that were given up on. Starting over begins the whole job anew, from its stored inputs.

use clap::Subcommand;
use medfleet_core::JobId;

use super::pages::{self, Shown};
use super::with_client;
use crate::client::{Client, ServerArgs};
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, oldest first
    List(ListArgs),
    /// Show one with everything that is known of it
    Show(LetterArgs),
    /// Start its job over, in a new epoch and with a fresh time to live; the letter goes
    Replay(LetterArgs),
    /// Put it away; its job stays failed
    Discard(LetterArgs),
}

/// Flags of `dead list`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// At most this many letters
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per letter and line on stdout
    #[arg(long)]
    json: bool,
}

/// Flags of what is done with one letter.
#[derive(clap::Args, Debug)]
pub(crate) struct LetterArgs {
    /// The letter, as list prints it
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: Command) -> CommandResult {
    match command {
        Command::List(args) => list(&args),
        Command::Show(args) => with_letter(&args, async |client, name| {
            let letter = client.dead_letter(name).await?;
            if args.json {
                show::print_json(&show::dead_letter_json(&letter))?;
            } else {
                show::print(&show::dead_letter_lines(&letter))?;
            }
            Ok(Exit::Done)
        }),
        Command::Replay(args) => with_letter(&args, async |client, name| {
            let job = client.replay(name).await?;
            show::print_job(&job, args.json)?;
            Ok(Exit::Done)
        }),
        Command::Discard(args) => with_letter(&args, async |client, name| {
            client.discard(name).await?;
            if args.json {
                show::print_json(&show::discarded_json(name))?;
            }
            Ok(Exit::Done)
        }),
    }
}

fn list(args: &ListArgs) -> CommandResult {
    with_client(&args.server, async |client| {
        let shown = Shown {
            what: "dead letters",
            limit: args.limit,
            head: (!args.json).then(show::dead_letter_table_head),
        };
        let page = async |token: String| {
            let page = client.dead_letters(&token).await?;
            Ok((page.dead_letters, page.next_page_token))
        };
        pages::show(shown, page, |letter| match args.json {
            true => show::print_json(&show::dead_letter_json(letter)),
            false => show::print(&show::dead_letter_table_row(letter)),
        })
        .await
    })
}

fn with_letter(
    args: &LetterArgs,
    act: impl AsyncFnOnce(&Client, &str) -> CommandResult,
) -> CommandResult {
    let name = letter_name(&args.id)?;
    with_client(&args.server, async |client| {
        let acted = act(client, &name).await;
        acted.map_err(|fault| fault.about(&name))
    })
}

/// `deadLetters/{id}` from what a person types: the name, or the id alone. An id is a job's, a hyphen and a number; in lists that
/// an earlier release printed, a number.
fn letter_name(letter: &str) -> Result<String, Fault> {
    let id = letter.strip_prefix("deadLetters/").unwrap_or(letter);
    let is_of_job =
        |(job, epoch): (&str, &str)| JobId::new(job).is_ok() && epoch.parse::<u32>().is_ok();
    if id.parse::<u64>().is_err() && !id.split_once('-').is_some_and(is_of_job) {
        return Err(Fault::usage(anyhow::anyhow!(
            "{letter:?} is not a dead letter; expected deadLetters/ID or ID, as `medfleet dead list` prints it"
        )));
    }
    Ok(format!("deadLetters/{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_named_with_and_without_prefix() {
        let check = |letter: &str, expected: Option<&str>| {
            assert_eq!(letter_name(letter).ok().as_deref(), expected);
        };
        check("deadLetters/7", Some("deadLetters/7"));
        check("7", Some("deadLetters/7"));
        let id = format!("{}-2", "ab".repeat(16));
        let name = format!("deadLetters/{id}");
        check(&id, Some(&name));
        check(&name, Some(&name));
        check("ab-2", None);
        check("", None);
        check("jobs/7", None);
    }
}
