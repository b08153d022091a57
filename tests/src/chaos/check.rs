//! What must hold after every storm: each accepted job ended once, with the one right answer, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use medfleet_core::{JobKey, PoolName, Stage};
use medfleet_proto::v1::{self, Job, JobState, result::Output};
use medfleet_queue::Queue;
use medfleet_testkit::wait_until;
use tokio::time::Instant;

use crate::chaos::herd::Herd;
use crate::chaos::load::{Accepted, Clients, TENANTS};
use crate::client::{Client, PATIENCE};
use crate::config::{POOL, job_key};

/// Jobs looked at at a time.
const LOOKS: usize = 16;
/// Jobs that do not end and are shown.
const SHOWN_MAX: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Jobs that completed with the right answer.
    pub completed: usize,
    /// Decode attempts beyond the first of all jobs together.
    pub further_attempts: u64,
}

/// Waits for every job to end and checks all that the module says.
pub async fn check(herd: &Herd, clients: &Clients, accepted: &[Accepted]) -> Result<Found> {
    let queue = herd.probe().await?;
    let jobs = all_final(clients, accepted).await?;
    let further_attempts = answers_are_right(clients, &queue, accepted, &jobs).await?;
    nothing_waits(&queue).await?;
    herd.check_alive().await?;
    nothing_left(herd, clients, accepted).await?;
    let again = all_final(clients, accepted).await?;
    ensure!(
        again == jobs,
        "a final job changed: {}",
        difference(&jobs, &again)
    );
    Ok(Found {
        completed: jobs.len(),
        further_attempts,
    })
}

fn difference(before: &BTreeMap<String, Job>, after: &BTreeMap<String, Job>) -> String {
    let changed = before
        .iter()
        .find(|(name, job)| after.get(*name) != Some(job));
    changed.map_or_else(
        || "there are more of them".to_owned(),
        |(name, job)| format!("{job:?} became {:?}", after.get(name)),
    )
}

/// Every job of every tenant by name, once all are final: exactly the accepted ones.
async fn all_final(clients: &Clients, accepted: &[Accepted]) -> Result<BTreeMap<String, Job>> {
    let mut all = BTreeMap::new();
    for tenant in TENANTS {
        let wanted: BTreeSet<String> = accepted
            .iter()
            .filter(|job| job.asked.tenant == tenant)
            .map(|job| job.name.clone())
            .collect();
        let (mut least, mut until) = (usize::MAX, Instant::now() + PATIENCE);
        let jobs = loop {
            let jobs = list(clients, tenant).await?;
            let waiting: Vec<&Job> = jobs
                .values()
                .filter(|job| job.state() < JobState::Completed)
                .collect();
            if waiting.is_empty() {
                break jobs;
            }
            // Thousands of jobs may take long on a loaded machine; while some end, none is stuck.
            if waiting.len() < least {
                least = waiting.len();
                until = Instant::now() + PATIENCE;
            }
            if Instant::now() > until {
                bail!(
                    "{} jobs of {tenant} do not end: {:?}",
                    waiting.len(),
                    &waiting[..waiting.len().min(SHOWN_MAX)]
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let found: BTreeSet<String> = jobs.keys().cloned().collect();
        let (lost, more) = (
            wanted.difference(&found).next(),
            found.difference(&wanted).next(),
        );
        ensure!(
            lost.is_none(),
            "{lost:?} of {tenant} was accepted and is lost"
        );
        ensure!(
            more.is_none(),
            "{more:?} of {tenant} is there and was never accepted"
        );
        all.extend(jobs);
    }
    Ok(all)
}

async fn list(clients: &Clients, tenant: &str) -> Result<BTreeMap<String, Job>> {
    let mut jobs = BTreeMap::new();
    let mut token = String::new();
    loop {
        let page = async |client: Client| client.list(1_000, &token).await;
        let (page, next) = clients.call(tenant, page).await?;
        jobs.extend(page.into_iter().map(|job| (job.name.clone(), job)));
        if next.is_empty() {
            return Ok(jobs);
        }
        token = next;
    }
}

async fn answers_are_right(
    clients: &Clients,
    queue: &Queue,
    accepted: &[Accepted],
    jobs: &BTreeMap<String, Job>,
) -> Result<u64> {
    let checks = futures::stream::iter(accepted).map(async |accepted| {
        let job = jobs.get(&accepted.name).context("it was listed")?;
        ensure!(
            job.state() == JobState::Completed,
            "it should have completed: {job:?}"
        );
        answer_is_right(clients, accepted).await?;
        ended_once(queue, accepted).await
    });
    let attempts: Vec<u64> = checks.buffer_unordered(LOOKS).try_collect().await?;
    Ok(attempts.iter().sum())
}

/// Checks the result of a job against the text worked out from what was sent.
pub async fn answer_is_right(clients: &Clients, accepted: &Accepted) -> Result<()> {
    let Accepted { name, asked } = accepted;
    let get = async |client: Client| client.result(name).await;
    let result = clients.call(asked.tenant, get).await?;
    // Over an upgrade, either release may have written it.
    let provenance = result.provenance.as_ref().context("its provenance")?;
    let expected = asked.expected_by(&provenance.prompt_version);
    let found = text(&result)?;
    ensure!(
        found == expected,
        "{name} of {}: the answer is about other images, another prompt or another seed: {found:?} for {expected:?}",
        asked.tenant
    );
    ensure!(
        result.job == *name,
        "the result of {name} says {}",
        result.job
    );
    let (used, sent) = (result.frames.len(), asked.images.len());
    ensure!(used == sent, "{name} used {used} images of {sent}");
    Ok(())
}

fn text(result: &v1::Result) -> Result<&str> {
    match &result.output {
        Some(Output::Report(report)) => Ok(&report.text),
        Some(Output::Answer(answer)) => Ok(&answer.text),
        other => bail!("no text: {other:?}"),
    }
}

/// Reads all durable events of a job: exactly one says that it is final. Gives the attempts beyond the first.
///
/// An event of a fenced worker may be stored late, behind the final one; a watch has ended by then.
async fn ended_once(queue: &Queue, accepted: &Accepted) -> Result<u64> {
    let key = key(accepted)?;
    let (mut after, mut finals) = (0, 0);
    while let Some((sequence, event)) = queue.next_event(&key, after).await? {
        after = sequence;
        finals += u32::from(event.state() as i32 >= JobState::Completed as i32);
    }
    ensure!(finals == 1, "{} has {finals} final events", accepted.name);
    let record = queue.record(&key).await?;
    let (record, _) = record.context("a record of a job that is listed")?;
    if let Some(broken) = medfleet_core::invariant::violation(&record) {
        bail!("the record of {}: {broken}", accepted.name);
    }
    Ok(u64::from(record.attempt.saturating_sub(1)))
}

fn key(accepted: &Accepted) -> Result<JobKey> {
    job_key(accepted.asked.tenant, &accepted.name)
}

/// Nothing is queued, held, half accepted, or set aside.
async fn nothing_waits(queue: &Queue) -> Result<()> {
    let pool = PoolName::new(POOL)?;
    for stage in Stage::ALL {
        let empty = wait_until(PATIENCE, "the queues to be empty", async || {
            let outstanding = queue.outstanding(*stage, &pool).await.ok()?.total();
            let waiting = queue.waiting_for_release(*stage).await.ok()?;
            (outstanding + waiting == 0).then_some(())
        });
        empty.await.with_context(|| format!("{stage}"))?;
    }
    wait_until(PATIENCE, "no accept to be pending", async || {
        let pending = queue.list_pending(Duration::ZERO).await.ok()?;
        pending.is_empty().then_some(())
    })
    .await?;
    wait_until(PATIENCE, "no job to be noted as set aside", async || {
        let aside = queue.list_aside(Duration::ZERO).await.ok()?;
        aside.is_empty().then_some(())
    })
    .await
}

/// No dead letter, and no reference to a blob but those of accepted jobs, of which each has some: what nobody refers to is collected.
async fn nothing_left(herd: &Herd, clients: &Clients, accepted: &[Accepted]) -> Result<()> {
    for tenant in TENANTS {
        let letters = async |client: Client| client.dead_letters(10, "").await;
        let (letters, _) = clients.call(tenant, letters).await?;
        ensure!(letters.is_empty(), "{tenant} has dead letters: {letters:?}");
        let of_tenant = accepted.iter().filter(|job| job.asked.tenant == tenant);
        let mut known = BTreeSet::new();
        for job in of_tenant {
            known.insert(key(job)?.job.to_string());
        }
        if known.is_empty() {
            continue;
        }
        let referenced = herd.referenced_jobs(tenant)?;
        let stranger = referenced.difference(&known).next();
        ensure!(
            stranger.is_none(),
            "{tenant}: {stranger:?} holds blobs and is no job"
        );
        let unheld = known.difference(&referenced).next();
        ensure!(
            unheld.is_none(),
            "{tenant}: {unheld:?} holds none of its blobs"
        );
    }
    Ok(())
}
