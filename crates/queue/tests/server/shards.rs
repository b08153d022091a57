//! The records in shards: each is found wherever it is, and no process counts otherwise than its fleet does.

use std::collections::BTreeSet;

use anyhow::{Context, Error, Result, bail, ensure};
use futures::StreamExt;
use medfleet_core::{JobId, Move, PseudonymHash, PseudonymKind, Pseudonyms};
use medfleet_queue::{
    AgreedShards, Applied, Created, PageStart, Queue, QueueConfig, QueueError, StreamUsage,
    is_record_stream,
};
use medfleet_testkit::{self as kit, NatsServer};
use serde_json::json;

use crate::upgrade::call;
use crate::{PATIENCE, short, start_with};

const PATIENT: PseudonymHash = PseudonymHash::new([1; 16]);
/// Eight for each of eight shards.
const JOBS: u8 = 64;

fn counting(server: &NatsServer, record_shards: u8) -> QueueConfig {
    QueueConfig {
        record_shards,
        // Where there is no stream nobody answers.
        request_timeout: short(2000),
        ..kit::config(&server.url())
    }
}

async fn connect(server: &NatsServer, record_shards: u8) -> Result<Queue> {
    let config = counting(server, record_shards);
    Ok(Queue::connect(&config, kit::clock()).await?)
}

/// It was refused because the records are in so many shards.
fn is_refused(made: Result<(), QueueError>, in_shards: u8) -> Result<()> {
    let error = made.err().context("it was not refused")?;
    let is_right = matches!(error, QueueError::RecordShards { found, .. } if found == in_shards);
    ensure!(is_right && !error.is_transient(), "{error:?}");
    let text = error.to_string();
    let advice = format!("set it to {in_shards} in every service");
    ensure!(text.contains(&advice), "{text}");
    Ok(())
}

async fn record_streams(queue: &Queue) -> Result<Vec<StreamUsage>> {
    let usage = queue.usage().await?.into_iter();
    let streams = usage.filter(|stream| is_record_stream(&stream.stream));
    Ok(streams.collect())
}

/// A queue with a job of every first byte up to [`JOBS`], and the jobs in order.
async fn eight_shards() -> Result<(NatsServer, Queue, Vec<JobId>)> {
    let (server, queue) = start_with(|config| config.record_shards = 8).await?;
    ensure!(!queue.has_records().await?);
    let mut jobs = Vec::new();
    for seed in 0..JOBS {
        let (key, mut record) = kit::record(seed, 1);
        record.pseudonyms = Pseudonyms {
            patient: Some(PATIENT),
            studies: Vec::new(),
        };
        ensure!(queue.rare_record(&key).await?.is_none());
        let Created::Created(revision) = queue.create_record(&key, &record).await? else {
            bail!("{key} is there already");
        };
        let again = queue.create_record(&key, &record).await?;
        ensure!(again == Created::Exists(record, revision), "{again:?}");
        ensure!(queue.rare_record(&key).await?.is_some());
        jobs.push(key.job);
    }
    ensure!(queue.has_records().await?);
    Ok((server, queue, jobs))
}

#[tokio::test]
async fn eight_shards_share_the_records_and_the_room_of_one() -> Result<()> {
    let (_server, queue, _) = eight_shards().await?;
    let shards = record_streams(&queue).await?;
    ensure!(shards.len() == 8, "{shards:?}");
    ensure!(shards.iter().all(|shard| shard.messages == 8), "{shards:?}");
    let room: u64 = shards.iter().filter_map(|shard| shard.bytes_max).sum();
    let of_one = QueueConfig::default().stream_bytes_max.records.get();
    ensure!(room == of_one, "{shards:?}");
    Ok(())
}

#[tokio::test]
async fn lists_searches_and_scans_go_through_every_shard() -> Result<()> {
    let (_server, queue, jobs) = eight_shards().await?;
    let tenant = kit::tenant();
    let mut listed: Vec<JobId> = Vec::new();
    loop {
        let page = queue.list_records(&tenant, listed.last(), 7, &[]).await?;
        if page.is_empty() {
            break;
        }
        listed.extend(page.into_iter().map(|(job, _)| job));
    }
    ensure!(listed == jobs, "{listed:?}");

    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let patient = (PseudonymKind::Patient, &PATIENT);
        let part = queue.find_records(&tenant, after.as_ref(), patient, 5);
        let part = part.await?;
        found.extend(part.jobs.into_iter().map(|(job, _)| job));
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    ensure!(found == jobs, "{found:?}");

    let all: BTreeSet<_> = jobs.into_iter().collect();
    let pages: Vec<_> = queue.scan_records().collect().await;
    let scanned: Vec<_> = pages.into_iter().flatten().collect();
    ensure!(scanned.len() == all.len(), "{}", scanned.len());
    let scanned: BTreeSet<_> = scanned.into_iter().map(|(key, _)| key.job).collect();
    ensure!(scanned == all);

    // Page by page, each from the text that the one before it gave.
    let (mut paged, mut token) = (BTreeSet::new(), "0".to_owned());
    loop {
        let from: PageStart = token.parse()?;
        let (page, next) = queue.record_page(from).await?;
        paged.extend(page.into_iter().map(|(key, _)| key.job));
        match next {
            Some(next) => token = next.to_string(),
            None => break,
        }
    }
    ensure!(paged == all);
    Ok(())
}

/// An ingest that starts meanwhile knows at once what there is of the others.
#[tokio::test]
async fn a_shard_that_does_not_answer_keeps_no_record_of_another_from_being_read() -> Result<()> {
    let (server, queue, jobs) = eight_shards().await?;
    let client = async_nats::connect(server.url()).await?;
    call(&client, "STREAM.DELETE.KV_JOBS_0_OF_8", &json!({})).await?;
    let others = jobs.iter().filter(|job| queue.record_shard(job) != 0);
    let others: BTreeSet<_> = others.cloned().collect();
    ensure!(others.len() < jobs.len());
    let (mut scan, mut scanned) = (queue.scan_records(), BTreeSet::new());
    while scanned.len() < others.len() {
        let page = tokio::time::timeout(PATIENCE, scan.next()).await?;
        let page = page.context("the first shard was not read")?;
        scanned.extend(page.into_iter().map(|(key, _)| key.job));
    }
    ensure!(scanned == others, "{scanned:?}");
    // It is there again, and has no records.
    queue.ensure(&[]).await?;
    let end = tokio::time::timeout(PATIENCE, scan.next()).await?;
    ensure!(end.is_none(), "{end:?}");
    Ok(())
}

/// All shards count their changes from 1, so a revision of one is that of another job in each of the others.
#[tokio::test]
async fn a_change_or_a_removal_is_of_one_shard() -> Result<()> {
    let (_server, queue, jobs) = eight_shards().await?;
    let changed = [0, 9, JOBS - 1].map(|seed| kit::record(seed, 1).0);
    for key in &changed {
        let (_, before) = queue.record(key).await?.context("a record")?;
        let now = kit::clock()();
        let moved = queue.apply(key, Some(0), &Move::Cancel, now).await?;
        let Applied::Applied { revision, .. } = moved else {
            bail!("not moved: {moved:?}");
        };
        queue.remove_record(key, before).await?;
        ensure!(queue.record(key).await?.is_some(), "it has changed since");
        queue.remove_record(key, revision).await?;
        ensure!(queue.record(key).await?.is_none());
    }
    let listed = queue.list_records(&kit::tenant(), None, 100, &[]).await?;
    let left: Vec<_> = listed.into_iter().map(|(job, _)| job).collect();
    let is_left = |job: &JobId| changed.iter().all(|key| key.job != *job);
    let expected: Vec<_> = jobs.into_iter().filter(is_left).collect();
    ensure!(left == expected, "{left:?}");
    Ok(())
}

#[tokio::test]
async fn a_number_that_nobody_can_have_is_refused() -> Result<()> {
    let server = NatsServer::start().await?;
    for wrong in [0, 33] {
        let config = counting(&server, wrong);
        let refused = Queue::connect(&config, kit::clock()).await;
        let error = Error::from(refused.err().context("it connected")?);
        let text = format!("{error:#}");
        ensure!(
            text.contains("queue.record_shards must be 1 to 32"),
            "{text}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn where_there_are_records_nobody_starts_with_another_number() -> Result<()> {
    let (server, queue, jobs) = eight_shards().await?;
    let pools = [kit::pool()];
    for other in [1, 4, 16] {
        let process = connect(&server, other).await?;
        // A worker, and ingest.
        is_refused(process.ensure_there(&pools).await, 8)?;
        is_refused(process.ensure(&pools).await, 8)?;
    }
    let same = connect(&server, 8).await?;
    same.ensure(&pools).await?;
    same.ensure_there(&pools).await?;
    let listed = queue.list_records(&kit::tenant(), None, 100, &[]).await?;
    ensure!(listed.len() == jobs.len(), "{}", listed.len());
    // And it takes new ones.
    let (key, record) = kit::record(JOBS, 1);
    queue.create_record(&key, &record).await?;

    // Not even where a server that did not sync has forgotten what was said.
    let client = async_nats::connect(server.url()).await?;
    let said = client.request("$KV.FLEET.record_shards", "1".into());
    said.await?;
    let other = connect(&server, 1).await?;
    is_refused(other.ensure_there(&pools).await, 8)?;
    is_refused(other.ensure(&pools).await, 8)?;
    same.ensure(&pools).await?;
    is_refused(other.ensure_there(&pools).await, 8)?;
    ensure!(same.record(&key).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_fleet_of_an_earlier_release_has_one_shard() -> Result<()> {
    let server = NatsServer::start().await?;
    let before = kit::queue(&counting(&server, 1)).await?;
    let (key, record) = kit::record(1, 1);
    before.create_record(&key, &record).await?;
    // Which knows of no number.
    let client = async_nats::connect(server.url()).await?;
    call(&client, "STREAM.DELETE.KV_FLEET", &json!({})).await?;
    let pools = [kit::pool()];
    is_refused(connect(&server, 8).await?.ensure(&pools).await, 1)?;
    let after = connect(&server, 1).await?;
    after.ensure(&pools).await?;
    ensure!(after.record(&key).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn whoever_asks_is_told_the_number_whatever_its_own_is() -> Result<()> {
    let server = NatsServer::start().await?;
    let asking = connect(&server, 1).await?;
    let expect = async |expected: Option<AgreedShards>| {
        let agreed = asking.agreed_shards().await?;
        ensure!(agreed == expected, "{agreed:?}, not {expected:?}");
        Ok::<_, Error>(())
    };
    expect(None).await?;
    let fleet = kit::queue(&counting(&server, 8)).await?;
    expect(Some(AgreedShards::Free(8))).await?;
    let (key, record) = kit::record(1, 1);
    fleet.create_record(&key, &record).await?;
    expect(Some(AgreedShards::Kept(8))).await?;

    let client = async_nats::connect(server.url()).await?;
    let said = client.request("$KV.FLEET.record_shards", "8>1".into());
    said.await?;
    expect(Some(AgreedShards::Changing { from: 8, to: 1 })).await?;
    // The streams know better than an entry that a server has forgotten to change.
    let said = client.request("$KV.FLEET.record_shards", "1".into());
    said.await?;
    expect(Some(AgreedShards::Kept(8))).await?;
    call(&client, "STREAM.DELETE.KV_FLEET", &json!({})).await?;
    expect(Some(AgreedShards::Kept(8))).await?;
    ensure!(
        fleet.record(&key).await?.is_some(),
        "asking changed something"
    );
    Ok(())
}

/// A process that counts otherwise and runs already must neither write a record nor take one for missing.
#[tokio::test]
async fn without_records_ingest_changes_the_number_and_who_counts_otherwise_is_cut_off()
-> Result<()> {
    let server = NatsServer::start().await?;
    let pools = [kit::pool()];
    let one = kit::queue(&counting(&server, 1)).await?;
    let eight = connect(&server, 8).await?;
    is_refused(eight.ensure_there(&pools).await, 1)?;
    let (key, record) = kit::record(3, 1);
    one.create_record(&key, &record).await?;
    let (_, revision) = one.record(&key).await?.context("a record")?;
    is_refused(eight.ensure(&pools).await, 1)?;
    one.remove_record(&key, revision).await?;

    eight.ensure(&pools).await?;
    let shards = record_streams(&eight).await?;
    ensure!(shards.len() == 8, "those of one are gone: {shards:?}");
    let written = one.create_record(&key, &record).await;
    let read = one.record(&key).await;
    let looked = one.rare_record(&key).await;
    for error in [written.err(), read.err(), looked.err()] {
        let error = error.context("it went on")?;
        ensure!(error.is_transient(), "{error:?}");
    }
    is_refused(one.ensure_there(&pools).await, 8)?;
    eight.create_record(&key, &record).await?;
    is_refused(one.ensure(&pools).await, 8)?;
    ensure!(eight.record(&key).await?.is_some());
    Ok(())
}

/// Whoever changed it has died half-way.
#[tokio::test]
async fn a_change_that_was_begun_is_ended_by_the_next_ingest() -> Result<()> {
    let server = NatsServer::start().await?;
    let pools = [kit::pool()];
    let one = kit::queue(&counting(&server, 1)).await?;
    let client = async_nats::connect(server.url()).await?;
    let begin = async || {
        let begun = client.request("$KV.FLEET.record_shards", "1>8".into());
        begun.await
    };
    begin().await?;
    is_refused(connect(&server, 8).await?.ensure_there(&pools).await, 1)?;
    is_refused(connect(&server, 1).await?.ensure_there(&pools).await, 8)?;
    connect(&server, 1).await?.ensure(&pools).await?;
    let (key, record) = kit::record(1, 1);
    one.create_record(&key, &record).await?;

    // With a record it goes back, and everything is as it was.
    begin().await?;
    is_refused(connect(&server, 8).await?.ensure(&pools).await, 1)?;
    connect(&server, 1).await?.ensure_there(&pools).await?;
    ensure!(one.record(&key).await?.is_some());
    let (other, record) = kit::record(2, 1);
    one.create_record(&other, &record).await?;
    let streams = record_streams(&one).await?;
    let [stream] = streams.as_slice() else {
        bail!("{streams:?}");
    };
    ensure!(stream.messages == 2, "{stream:?}");
    Ok(())
}

#[tokio::test]
async fn of_two_that_start_at_once_with_different_numbers_one_has_the_records() -> Result<()> {
    let server = NatsServer::start().await?;
    let pools = [kit::pool()];
    for round in 0..3 {
        let (one, eight) = (connect(&server, 1).await?, connect(&server, 8).await?);
        // Each may be refused, or cut off later.
        let _ = futures::join!(one.ensure(&pools), eight.ensure(&pools));
        let (key, record) = kit::record(round, 1);
        let mut holders = Vec::new();
        for (queue, count) in [(&one, 1), (&eight, 8)] {
            match queue.create_record(&key, &record).await {
                Ok(Created::Created(revision)) => holders.push((queue, count, revision)),
                Ok(other) => bail!("{other:?}"),
                Err(error) => ensure!(error.is_transient(), "{error:?}"),
            }
        }
        let [(holder, count, revision)] = holders.as_slice() else {
            bail!("{} of two have stored it", holders.len());
        };
        for process in [&one, &eight] {
            let started = process.ensure(&pools).await;
            match process.record(&key).await {
                Ok(found) => {
                    ensure!(found.is_some(), "it was taken for missing");
                    started?;
                }
                Err(_) => is_refused(started, *count)?,
            }
        }
        let anew = connect(&server, *count).await?;
        anew.ensure_there(&pools).await?;
        ensure!(anew.record(&key).await?.is_some());
        holder.remove_record(&key, *revision).await?;
    }
    Ok(())
}
