//! A running fleet whose programs are replaced, one process after the other: a restart, an upgrade, or the way back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::chaos::check::{Found, check};
use crate::chaos::disk::Kind;
use crate::chaos::herd::{Herd, HerdOptions, Id};
use crate::chaos::load::jobs;
use crate::fleet::{Pace, Role};

/// What the order of docs/how-to/upgrade.md is: workers from the last stage to the first, then ingest.
pub const UPGRADE: [Role; 4] = [Role::Decode, Role::Encode, Role::Preprocess, Role::Ingest];
/// The way back: ingest first.
pub const ROLLBACK: [Role; 4] = Role::ALL;

/// A load over two releases.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What its jobs follow from.
    pub seed: u64,
    pub jobs: usize,
    /// Over how long they are sent.
    pub lasts: Duration,
}

/// How the herds of these runs are set up: two processes of each service on one nats-server.
pub fn two_of_each() -> HerdOptions {
    HerdOptions {
        nodes: 1,
        instances: 2,
        record_shards: 1,
        disk: Kind::Plain,
        pace: Pace {
            encode_millis: 40,
            prefill_millis: 10,
            step_millis: 8,
        },
        // Nobody dies, so that each further attempt at a job would be one for a drain.
        ack_wait: "30s",
    }
}

/// Drains the processes of each role in this order, one at a time, and starts each again as the programs in a folder, or as
/// the workspace's own.
pub async fn roll(herd: &Herd, roles: [Role; 4], programs: Option<&Path>) -> Result<()> {
    for role in roles {
        let all: Vec<Id> = herd.ids().filter(|(of, _)| *of == role).collect();
        for id in all {
            let code = herd.drain(id).await?;
            ensure!(code == Some(0), "{id:?} ended with {code:?}");
            herd.set_release(id, programs).await?;
            herd.start_service(id).await?;
        }
    }
    Ok(())
}

/// Starts a herd of another release, and under load replaces it by this one and puts it back. Every job that was accepted
/// completes, once, with the right answer, and no client sees an error; also the calls that clients made again.
/// Where something does not hold, the folder with the logs stays and is named.
pub async fn there_and_back(other: &Path, load: Load) -> Result<(Found, u64)> {
    let herd = Herd::start_release(two_of_each(), Some(other)).await?;
    let ran = under_load(&herd, other, load).await;
    ran.map_err(|error| {
        let folder = herd.keep();
        error.context(format!("seed {}; logs in {}", load.seed, folder.display()))
    })
}

async fn under_load(herd: &Herd, other: &Path, load: Load) -> Result<(Found, u64)> {
    let clients = herd.clients()?;
    let jobs = jobs(load.seed, load.jobs, load.lasts)?;
    let rolled = async {
        roll(herd, UPGRADE, None).await.context("the upgrade")?;
        let back = roll(herd, ROLLBACK, Some(other)).await;
        back.context("the way back")
    };
    let (accepted, rolled) = tokio::join!(clients.send(jobs), rolled);
    rolled?;
    let accepted = accepted.context("a client saw an error")?;
    let found = check(herd, &clients, &accepted).await?;
    ensure!(
        found.completed == load.jobs,
        "{} of {} jobs: {found:?}",
        found.completed,
        load.jobs
    );
    Ok((found, clients.retried()))
}
