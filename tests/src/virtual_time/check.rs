//! What must hold when a seed has come to rest, besides what the queue looked at with every change.

use anyhow::{Context, Result, bail, ensure};
use medfleet_core::protocol::verdict_of_failure;
use medfleet_core::{BlobKind, FailureReason, JobRecord, JobState, Verdict};

use super::desk::is_meant;
use super::load::{Asked, Fate};
use super::stages::{RESULT_HEAD, answer};
use super::{RETRIES_MAX, World};

/// How many jobs ended how.
pub(super) type Ends = std::collections::BTreeMap<&'static str, u64>;

/// Whether every job has ended and nothing of it is left in the queue.
pub(super) fn is_at_rest(world: &World) -> bool {
    if world.clients_left.get() > 0 {
        return false;
    }
    let server = world.server.borrow();
    let mut latest = server
        .records
        .values()
        .filter_map(|versions| versions.last());
    latest.all(|version| version.record.state.is_final())
        && server.pending.is_empty()
        && server.aside.is_empty()
        && server.left().is_empty()
}

/// Why a run is not at rest.
pub(super) fn unrest(world: &World) -> String {
    let server = world.server.borrow();
    let mut open = Vec::new();
    for (key, versions) in &server.records {
        if let Some(version) = versions.last()
            && !version.record.state.is_final()
        {
            open.push(format!("{key} is {}", version.record.state));
        }
    }
    format!(
        "{} clients wait; open: {open:?}; queued: {:?}; noted: {}, set aside: {}",
        world.clients_left.get(),
        server.left(),
        server.pending.len(),
        server.aside.len()
    )
}

/// Looks at every job that was sent.
pub(super) fn check(world: &World) -> Result<Ends> {
    let mut ends = Ends::new();
    let accepted = world.accepted.borrow().len();
    let records = world.server.borrow().records.len();
    ensure!(
        (accepted, records) == (world.asked.len(), world.asked.len()),
        "{} jobs were sent, {accepted} accepted, and there are {records} records",
        world.asked.len()
    );
    for (key, asked) in &world.asked {
        let record = world
            .latest(key)
            .with_context(|| format!("{key} has no record"))?;
        job(world, asked, &record).with_context(|| format!("{key}, {:?}", asked.fate))?;
        *ends.entry(record.state.as_str()).or_default() += 1;
    }
    Ok(ends)
}

fn job(world: &World, asked: &Asked, record: &JobRecord) -> Result<()> {
    let server = world.server.borrow();
    let finals = server.events.iter().filter(|event| {
        let said = &event.record;
        event.key == asked.key && said.state.is_final() && said.epoch == record.epoch
    });
    let finals: Vec<JobState> = finals.map(|event| event.record.state).collect();
    ensure!(
        finals == [record.state],
        "it is {}, and its final events are {finals:?}",
        record.state
    );
    stamped(world, asked, record.epoch)?;
    let letter = server.letters.get(&(asked.key.clone(), record.epoch));
    match record.state {
        JobState::Completed => completed(world, asked, record)?,
        JobState::Failed => {
            let failure = record.failure.clone().context("no reason")?;
            let is_excused = failure.reason == FailureReason::AttemptsExhausted
                && world.mishaps(&asked.key) >= RETRIES_MAX;
            ensure!(
                is_meant(asked.fate, failure.reason) || is_excused,
                "it failed: {failure}"
            );
            let is_kept = matches!(verdict_of_failure(failure), Verdict::Reject(_));
            ensure!(is_kept == letter.is_some(), "its dead letter is {letter:?}");
        }
        JobState::Cancelled => ensure!(asked.fate == Fate::Cancelled, "nobody cancelled it"),
        JobState::Expired => {
            let last = server.latest(&asked.key).context("no record")?;
            ensure!(
                server.clock.time_at_most(last.at) >= record.expires,
                "it was given up before its time was over by the queue's clock"
            );
        }
        open => bail!("it is {open}"),
    }
    let is_failed = record.state == JobState::Failed;
    ensure!(
        is_failed || letter.is_none(),
        "a letter of a job that has not failed"
    );
    Ok(())
}

/// Whoever stamps a job goes by the queue's clock, as it was told of it.
fn stamped(world: &World, asked: &Asked, epoch: u32) -> Result<()> {
    /// An answer on its way, and a process that stands still between the stamp and the store: in milliseconds.
    const LATE_MAX: i64 = 20_000;
    if world.stamped_untold.borrow().contains(&asked.key) {
        return Ok(());
    }
    let server = world.server.borrow();
    let versions = server.records.get(&asked.key).context("no record")?;
    let first = versions
        .iter()
        .find(|version| version.record.epoch == epoch);
    let first = first.context("no record of its epoch")?;
    let time = first.record.times.accepted;
    ensure!(
        server.clock.may_have_shown(time, first.at, LATE_MAX),
        "it was stamped {time:?} by another clock than the queue's"
    );
    Ok(())
}

fn completed(world: &World, asked: &Asked, record: &JobRecord) -> Result<()> {
    ensure!(asked.fate != Fate::Refused, "nobody can read its files");
    let result = record.result.context("no result")?;
    let stored = world
        .blobs
        .peek(&asked.key.tenant, BlobKind::Result, result.as_bytes())
        .context("its result is not stored")?;
    let (attempt, text) = stored
        .split_at_checked(RESULT_HEAD)
        .context("a short result")?;
    ensure!(
        attempt == record.attempt.to_le_bytes(),
        "attempt {} completed it with the result of attempt {attempt:?}",
        record.attempt
    );
    ensure!(text == answer(asked), "its answer is not the right one");
    Ok(())
}
