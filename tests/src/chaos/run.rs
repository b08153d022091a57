//! One seed: a herd, its load, its schedule of faults, and the check.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use medfleet_core::{PoolName, Stage};
use medfleet_queue::Queue;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::chaos::check::{Found, check};
use crate::chaos::disk::Kind;
use crate::chaos::herd::{Herd, HerdOptions, Id};
use crate::chaos::load::jobs;
use crate::chaos::plan::{Fault, Planned, Shape, Target, plan, power_cuts};
use crate::config::{ACK_WAIT, POOL};
use crate::fleet::{Pace, Role};

/// A run, as far as the seed does not determine it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub jobs: usize,
    /// Time over which jobs are sent and faults begin.
    pub horizon: Duration,
    /// nats-servers: 1, or 3 as a cluster.
    pub nodes: usize,
    pub instances: u16,
    /// What the files lie on: on one in memory, it is filled now and then; on an image, power cuts are the only faults.
    pub disk: Kind,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    /// Whether the power was cut, and nothing else.
    pub power: bool,
    /// Jobs accepted; every one of them completed with the right answer.
    pub completed: usize,
    /// Calls that clients made again.
    pub retried: u64,
    /// Decode attempts beyond the first.
    pub further_attempts: u64,
    /// Drains that did not end with exit code 0.
    pub late_drains: u64,
    pub seconds: f64,
    /// Faults by what happened and what it hit: how often, and how often units were at work there at that moment.
    pub faults: BTreeMap<String, (u64, u64)>,
}

/// Runs a seed.
/// Where something does not hold, the folder with the logs stays and is named.
pub async fn run(seed: u64, options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let herd = Herd::start(HerdOptions {
        nodes: options.nodes,
        instances: options.instances,
        // Every other seed has its records in several, of which some have a part more than others.
        record_shards: if seed.is_multiple_of(2) { 3 } else { 1 },
        disk: options.disk,
        pace: Pace {
            encode_millis: 40,
            prefill_millis: 10,
            step_millis: 8,
        },
        ack_wait: ACK_WAIT,
    })
    .await
    .with_context(|| format!("seed {seed}: start"))?;
    let ran = storm(&herd, seed, options).await;
    let (found, storm) = match ran {
        Ok(ran) => ran,
        Err(error) => {
            let folder = herd.keep();
            return Err(error.context(format!("seed {seed}; logs in {}", folder.display())));
        }
    };
    Ok(Report {
        seed,
        nodes: options.nodes,
        power: matches!(options.disk, Kind::Image(_)),
        completed: found.completed,
        retried: storm.retried,
        further_attempts: found.further_attempts,
        late_drains: storm.late_drains,
        seconds: begun.elapsed().as_secs_f64(),
        faults: storm.faults,
    })
}

#[derive(Default)]
struct Storm {
    retried: u64,
    late_drains: u64,
    faults: BTreeMap<String, (u64, u64)>,
}

async fn storm(herd: &Herd, seed: u64, options: &Options) -> Result<(Found, Storm)> {
    let shape = Shape {
        horizon: options.horizon,
        nodes: options.nodes,
        instances: options.instances,
        can_fill: matches!(options.disk, Kind::Memory(_)),
    };
    let schedule = match options.disk {
        Kind::Image(_) => power_cuts(seed, options.horizon),
        _ => plan(seed, &shape),
    };
    let clients = herd.clients()?;
    let queue = herd.probe().await?;
    let jobs = jobs(seed, options.jobs, options.horizon)?;
    let gates: Gates = schedule
        .iter()
        .map(|planned| (gate(planned.target), Mutex::new(())))
        .collect();
    let begun = Instant::now();
    let faults = schedule
        .iter()
        .map(|planned| inflict(herd, (&queue, &gates), planned, begun));
    let (accepted, inflicted) = tokio::join!(clients.send(jobs), join_all(faults));
    let mut storm = Storm::default();
    for (planned, inflicted) in schedule.iter().zip(inflicted) {
        let hit = inflicted.with_context(|| format!("{planned}"))?;
        let name = format!("{}, {}", planned.fault, planned.target.name());
        let counts = storm.faults.entry(name).or_default();
        counts.0 += 1;
        counts.1 += u64::from(hit.at_work);
        storm.late_drains += u64::from(hit.late_drain);
    }
    let accepted = accepted?;
    ensure!(
        accepted.len() == options.jobs,
        "{} of {} jobs were accepted",
        accepted.len(),
        options.jobs
    );
    let found = check(herd, &clients, &accepted).await?;
    storm.retried = clients.retried();
    Ok((found, storm))
}

#[derive(Debug, Clone, Copy, Default)]
struct Hit {
    at_work: bool,
    late_drain: bool,
}

/// A target's faults wait for each other, should a restart take longer than the schedule thought.
type Gates = BTreeMap<Target, Mutex<()>>;

/// All nats-servers are one target here.
const fn gate(target: Target) -> Target {
    match target {
        Target::Node(_) => Target::Cluster,
        other => other,
    }
}

async fn inflict(
    herd: &Herd,
    (queue, gates): (&Queue, &Gates),
    planned: &Planned,
    begun: Instant,
) -> Result<Hit> {
    tokio::time::sleep_until(begun + planned.at).await;
    let gate = gates.get(&gate(planned.target)).context("a gate")?;
    let _alone = gate.lock().await;
    let mut hit = Hit {
        at_work: is_at_work(queue, planned.target).await,
        late_drain: false,
    };
    let Planned { fault, lasts, .. } = *planned;
    match planned.target {
        Target::Service(role, instance) => {
            hit.late_drain = on_service(herd, (role, instance), fault, lasts).await?;
        }
        Target::Node(node) if fault == Fault::Pause => herd.pause_node(node, lasts).await?,
        Target::Node(node) => {
            herd.kill_node(node).await?;
            tokio::time::sleep(lasts).await;
            herd.restart_node(node).await?;
        }
        Target::Cluster => {
            let all = || 0..herd.node_count();
            try_join_all(all().map(|node| herd.kill_node(node))).await?;
            tokio::time::sleep(lasts).await;
            try_join_all(all().map(|node| herd.restart_node(node))).await?;
        }
        Target::Machine => herd.cut_power().await?,
        Target::Store if fault == Fault::Full => {
            herd.disk().fill()?;
            tokio::time::sleep(lasts).await;
            herd.disk().empty()?;
        }
        Target::Store => {
            herd.disk().forbid_writes()?;
            tokio::time::sleep(lasts).await;
            herd.disk().allow_writes()?;
        }
    }
    Ok(hit)
}

/// True when it was asked to stop and did not stop well.
async fn on_service(herd: &Herd, id: Id, fault: Fault, lasts: Duration) -> Result<bool> {
    let links = herd.links(id)?;
    match fault {
        Fault::Kill => {
            herd.kill9(id).await?;
            tokio::time::sleep(lasts).await;
            herd.start_service(id).await?;
            return Ok(false);
        }
        Fault::Drain => {
            let code = herd.drain(id).await?;
            tokio::time::sleep(lasts).await;
            herd.start_service(id).await?;
            return Ok(code != Some(0));
        }
        Fault::Pause => {
            herd.stop(id).await?;
            tokio::time::sleep(lasts).await;
            herd.resume(id).await?;
            return Ok(false);
        }
        Fault::Cut => links.iter().for_each(|link| link.cut()),
        Fault::Stall => links.iter().for_each(|link| link.stall()),
        Fault::LoseAnswers => links.iter().for_each(|link| link.lose_answers()),
        Fault::Slow | Fault::Unwritable | Fault::Full | Fault::PowerCut => herd.slow(id)?,
    }
    tokio::time::sleep(lasts).await;
    links.iter().for_each(|link| link.mend());
    Ok(false)
}

/// Whether a target's stage has units in workers' hands, or any stage has for what all of them need. When that cannot be
/// told because NATS is away at this moment, it counts as no.
async fn is_at_work(queue: &Queue, target: Target) -> bool {
    let Ok(pool) = PoolName::new(POOL) else {
        return false;
    };
    let stages: &[Stage] = match target {
        Target::Service(Role::Preprocess, _) => &[Stage::Preprocess],
        Target::Service(Role::Encode, _) => &[Stage::Encode],
        Target::Service(Role::Decode, _) => &[Stage::Decode],
        _ => Stage::ALL,
    };
    let look = async {
        for stage in stages {
            if queue
                .outstanding(*stage, &pool)
                .await
                .is_ok_and(|found| found.total() > 0)
            {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(Duration::from_millis(300), look)
        .await
        .unwrap_or(false)
}
