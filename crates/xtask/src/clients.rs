//! Clients in other languages, generated from the .proto files alone and run against a fleet.
//!
//! Each client uploads, submits, watches and fetches, and prints one line of JSON; this module prepares the three tool chains,
//! starts a simulated fleet and compares the lines. The simulated answer is a digest over the image tokens, so three clients that
//! sent the same image get the same text.
//!
//! The clients must also recover: the connection breaks during the upload, before the answer to the submit, and in the middle of
//! the text, and the fleet first refuses the job and says when to try again.

mod link;
mod toolchain;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::fetch::pins::Set;
use crate::fleet::{Address, Fleet};
use crate::{demo, fetch, places, process};
use link::{Cut, Link};

/// One open job a tenant, and what is more is to come back after a second. A model that nobody runs, so that its job stays
/// open. A model that writes a word in a quarter of a second, so that a watch breaks while the text is written.
const FLEET: [&str; 9] = [
    "--simulate",
    "--set",
    "ingest.quotas.default.open_jobs_max=1",
    "--set",
    "ingest.limits.retry_after=1s",
    "--set",
    "ingest.models={\"simulated\"=simulated-local,\"nobody\"=nobody-here}",
    "--set",
    "model.decode_step=250ms",
];
/// A word in the middle of the simulated text.
const WORD: &[u8] = b"Impression";
/// What a client says on stderr when it was told to come back.
const REFUSED: &str = "RESOURCE_EXHAUSTED";

/// What a client prints.
#[derive(Debug, Deserialize)]
struct Line {
    job: String,
    state: String,
    stages: Vec<String>,
    draft: bool,
    streamed: String,
    text: String,
}

/// What `medfleet submit --json` says of a job that was accepted.
#[derive(Deserialize)]
struct Accepted {
    job: Held,
}

/// A job that stays open, and takes the one place that the tenant has.
#[derive(Deserialize)]
struct Held {
    name: String,
}

/// A client, ready to run but for its arguments.
struct Client {
    language: &'static str,
    command: Command,
    /// Arguments after address, token and image.
    last: Vec<std::ffi::OsString>,
}

/// Prepares the clients, runs each against one fleet and compares what they saw.
pub(crate) fn run() -> Result<()> {
    fetch::of(Set::Demo)?;
    let mut clients = [toolchain::python()?, toolchain::node()?, toolchain::cpp()?];
    process::build_workspace()?;

    let fleet = Fleet::start("clients", &FLEET)?;
    let lines = clients
        .iter_mut()
        .map(|client| run_one(client, &fleet.address))
        .collect::<Result<Vec<_>>>();
    let stopped = fleet.stop();
    let lines = lines?;
    stopped?;
    for line in &lines {
        ensure!(
            line.text == lines[0].text,
            "two clients sent the same image and got different texts"
        );
    }
    Ok(())
}

fn run_one(client: &mut Client, address: &Address) -> Result<Line> {
    let language = client.language;
    let host_and_port = address.server.rsplit('/').next().unwrap_or(&address.server);
    let study = fetch::path(demo::STUDY)?;
    let bytes = fs::metadata(&study)?.len();
    let half = usize::try_from(bytes / 2).context("half of the film")?;
    let cuts = [Cut::Sent(half), Cut::Answer, Cut::After(WORD)];
    let link = Link::start(host_and_port, &cuts)?;
    let held = hold(address, &study)?;
    let mut child = client
        .command
        .arg(link.address.to_string())
        .arg(address.token()?)
        .arg(study)
        .args(&client.last)
        // Where there is a proxy for what is fetched, the libraries would ask it for this machine, too.
        .env("no_grpc_proxy", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start the {language} client"))?;
    let said = release_when_refused(&mut child, address, &held);
    if said.is_err() {
        // The client would go on by itself. An error means that it has ended already.
        let _ended = child.kill();
    }
    let output = child.wait_with_output()?;
    let said = said?;
    ensure!(
        output.status.success(),
        "the {language} client ended with {}: {said}",
        output.status,
    );
    let line: Line = serde_json::from_slice(&output.stdout).with_context(|| {
        let wrote = String::from_utf8_lossy(&output.stdout);
        format!("the {language} client wrote {wrote:?}")
    })?;
    check(&line).with_context(|| format!("the {language} client wrote {line:?}"))?;
    let seen = link.seen();
    ensure!(
        seen.cuts == cuts.len() && said.contains(REFUSED),
        "the {language} client met {} of {} broken connections, and said {said:?}, where {REFUSED} should be",
        seen.cuts,
        cuts.len()
    );
    ensure!(
        seen.lost == line.job,
        "the answer that was lost named {}, and the {language} client went on with {}",
        seen.lost,
        line.job
    );
    println!(
        "clients: {language:6} submitted, watched and fetched {}, over 3 broken connections and a refusal",
        line.job
    );
    Ok(line)
}

/// Submits a job that nobody works on.
fn hold(address: &Address, study: &Path) -> Result<Held> {
    let mut submit = medfleet(address, &["submit", "--task", "report"])?;
    submit.args(["--model", "nobody", "--no-wait", "--json"]);
    let said = process::capture(submit.arg(study))?;
    let accepted: Accepted =
        serde_json::from_str(&said).with_context(|| format!("medfleet submit said {said:?}"))?;
    Ok(accepted.job)
}

/// Reads what the client says to its end, and makes room once it says that there is none.
fn release_when_refused(child: &mut Child, address: &Address, held: &Held) -> Result<String> {
    let stderr = child.stderr.take().context("the client's stderr")?;
    let (mut said, mut is_held) = (String::new(), true);
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read the client's stderr")?;
        if is_held && line.contains(REFUSED) {
            release(address, held)?;
            is_held = false;
        }
        said.push_str(&line);
        said.push('\n');
    }
    if is_held {
        release(address, held)?;
    }
    Ok(said)
}

fn release(address: &Address, held: &Held) -> Result<()> {
    let mut cancel = medfleet(address, &["cancel", "--json", &held.name])?;
    process::capture(&mut cancel).map(drop)
}

/// A command of ours for this fleet.
fn medfleet(address: &Address, arguments: &[&str]) -> Result<Command> {
    let mut command = process::in_root(&places::built("medfleet").to_string_lossy());
    command.args(arguments).args(["--server", &address.server]);
    // By the environment and not by an argument: arguments show in the list of processes.
    command.env("MEDFLEET_TOKEN", address.token()?);
    Ok(command)
}

/// What every client must have seen of a job that went well.
fn check(line: &Line) -> Result<()> {
    ensure!(line.job.starts_with("jobs/"), "the job has no name");
    ensure!(
        line.state == "JOB_STATE_COMPLETED",
        "the job did not complete"
    );
    ensure!(line.draft, "the result is not marked as a draft");
    ensure!(!line.text.is_empty(), "the result has no text");
    ensure!(
        line.streamed == line.text,
        "the streamed text is not the result's text"
    );
    ensure!(
        line.stages
            .iter()
            .any(|stage| stage == "JOB_STATE_DECODING"),
        "the stages were not seen"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Line {
        Line {
            job: "jobs/a".to_owned(),
            state: "JOB_STATE_COMPLETED".to_owned(),
            stages: vec!["JOB_STATE_DECODING".to_owned()],
            draft: true,
            streamed: "text".to_owned(),
            text: "text".to_owned(),
        }
    }

    #[test]
    fn a_walk_that_went_well_passes_and_each_fault_fails() {
        assert!(check(&good()).is_ok());
        for wrong in [
            Line {
                job: String::new(),
                ..good()
            },
            Line {
                state: "JOB_STATE_FAILED".to_owned(),
                ..good()
            },
            Line {
                stages: Vec::new(),
                ..good()
            },
            Line {
                draft: false,
                ..good()
            },
            Line {
                streamed: "tex".to_owned(),
                ..good()
            },
        ] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
