//! Clients in other languages, generated from the .proto files alone and run against a fleet.
//!
//! Each client uploads, submits, watches and fetches, and prints one line of JSON; this module prepares the three tool
//! chains, starts a simulated fleet and compares the lines. The simulated answer is a digest over the image tokens, so
//! three clients that sent the same image get the same text.

mod toolchain;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::fetch::pins::Set;
use crate::fleet::{Address, Fleet};
use crate::{demo, fetch, process};

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

/// A client, ready to run but for its arguments.
struct Client {
    language: &'static str,
    command: Command,
    /// Arguments after address, token and image.
    last: Vec<std::ffi::OsString>,
}

/// A Python with exactly what a requirements file names, every package by hash.
pub(crate) fn python_with(
    name: &str,
    requirements: &std::path::Path,
) -> Result<std::path::PathBuf> {
    toolchain::environment(name, &["--require-hashes", "--requirement"], requirements)
}

/// The same of exactly the packages that are listed, without what they say they need.
pub(crate) fn python_without_dependencies(
    name: &str,
    requirements: &std::path::Path,
) -> Result<std::path::PathBuf> {
    toolchain::environment(name, &["--no-deps", "--requirement"], requirements)
}

/// A command that runs npm.
pub(crate) fn npm() -> Result<Command> {
    Ok(toolchain::node_programs()?.1)
}

/// Prepares the clients, runs each against one fleet and compares what they saw.
pub(crate) fn run() -> Result<()> {
    fetch::of(Set::Demo)?;
    let mut clients = [toolchain::python()?, toolchain::node()?, toolchain::cpp()?];
    process::build_workspace()?;

    let fleet = Fleet::start("clients", &["--simulate"])?;
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
    let host_and_port = address.server.rsplit('/').next().unwrap_or(&address.server);
    let study = fetch::path(demo::STUDY)?;
    client
        .command
        .arg(host_and_port)
        .arg(address.token()?)
        .arg(study)
        .args(&client.last);
    let output = client
        .command
        .output()
        .with_context(|| format!("start the {} client", client.language))?;
    ensure!(
        output.status.success(),
        "the {} client ended with {}: {}",
        client.language,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let line = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "the {} client wrote {:?}",
            client.language,
            String::from_utf8_lossy(&output.stdout)
        )
    })?;
    check(&line).with_context(|| format!("the {} client wrote {line:?}", client.language))?;
    println!(
        "clients: {:6} submitted, watched and fetched {}",
        client.language, line.job
    );
    Ok(line)
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
        assert!(
            check(&Line {
                job: String::new(),
                ..good()
            })
            .is_err()
        );
        assert!(
            check(&Line {
                state: "JOB_STATE_FAILED".to_owned(),
                ..good()
            })
            .is_err()
        );
        assert!(
            check(&Line {
                stages: Vec::new(),
                ..good()
            })
            .is_err()
        );
        assert!(
            check(&Line {
                draft: false,
                ..good()
            })
            .is_err()
        );
        assert!(
            check(&Line {
                streamed: "tex".to_owned(),
                ..good()
            })
            .is_err()
        );
    }
}
