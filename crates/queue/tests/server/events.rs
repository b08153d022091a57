//! Events exactly once and resumable; text and cancel hints.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use medfleet_core::{Class, Failure, FailureReason, JobRecord, JobState, Move, Stage, WorkUnit};
use medfleet_proto::work::v1::TextChunk;
use medfleet_queue::dead_letter;
use medfleet_testkit as kit;

use crate::{PATIENCE, start};

#[tokio::test]
async fn one_reader_sees_every_job_from_now_on() -> Result<()> {
    let (_server, queue) = start().await?;
    let (early, record) = kit::record(1, 1);
    queue.publish_event(&early, &record).await?;
    let mut events = queue.events().await?;
    let (key, record) = kit::record(2, 1);
    queue.create_record(&key, &record).await?;
    queue.publish_event(&key, &record).await?;
    queue.publish_event(&key, &record).await?;
    queue
        .apply(&key, Some(0), &Move::Cancel, kit::clock()())
        .await?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await?;
        let (job, sequence, event) = event.context("the feed ended")??;
        ensure!(job == key);
        seen.push((sequence, event));
    }
    let wire = |state| medfleet_queue::wire::state_to_wire(state) as i32;
    ensure!(seen[0].1.state == wire(JobState::Accepted));
    ensure!(seen[1].1.state == wire(JobState::Cancelled));
    let more = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
    ensure!(more.is_err(), "an event came twice: {more:?}");
    // The same by direct reads, from the beginning and from the middle.
    ensure!(queue.next_event(&key, 0).await? == Some(seen[0].clone()));
    ensure!(queue.next_event(&key, seen[0].0).await? == Some(seen[1].clone()));
    ensure!(queue.next_event(&key, seen[1].0).await?.is_none());
    ensure!(queue.next_event(&key, u64::MAX).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn events_outlive_a_record_that_is_lost_and_tell_its_epoch() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    ensure!(queue.last_epoch(&key).await?.is_none() && !queue.may_be_told(&key).await);
    queue.create_record(&key, &record).await?;
    queue.publish_event(&key, &record).await?;
    ensure!(queue.last_epoch(&key).await? == Some((0, 0)) && queue.may_be_told(&key).await);
    let again = JobRecord {
        epoch: 3,
        attempt: 2,
        ..record
    };
    queue.publish_event(&key, &again).await?;
    let (_, revision) = queue.record(&key).await?.context("its record")?;
    queue.remove_record(&key, revision).await?;
    ensure!(queue.last_epoch(&key).await? == Some((3, 2)));
    let (other, _) = kit::record(2, 1);
    ensure!(queue.last_epoch(&other).await?.is_none());
    Ok(())
}

/// A job was replayed just before its first events went by their age.
#[tokio::test]
async fn an_epoch_is_known_without_the_accept_that_it_began_with() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    let replayed = JobRecord {
        epoch: 1,
        attempt: 4,
        ..record
    };
    queue.publish_event(&key, &replayed).await?;
    ensure!(queue.last_epoch(&key).await? == Some((1, 4)));
    // Letters are kept longer than events, and of a later epoch here.
    let unit = WorkUnit {
        epoch: 2,
        ..kit::unit(&key, Stage::Decode, Class::Routine, 0)
    };
    let failure = Failure::new(FailureReason::Integrity, "tokens are damaged");
    let letter = dead_letter(&unit, &failure, kit::clock()().0);
    queue.publish_dead(&letter).await?;
    ensure!(queue.last_epoch(&key).await? == Some((2, 4)));
    let (other, _) = kit::record(2, 1);
    let of_other = WorkUnit {
        key: other.clone(),
        ..unit
    };
    let letter = dead_letter(&of_other, &failure, kit::clock()().0);
    ensure!(!queue.may_be_told(&other).await);
    queue.publish_dead(&letter).await?;
    ensure!(queue.last_epoch(&other).await? == Some((2, 0)) && queue.may_be_told(&other).await);
    Ok(())
}

#[tokio::test]
async fn text_and_cancel_hints_reach_who_listens() -> Result<()> {
    let (_server, queue) = start().await?;
    let (mut texts, mut cancels) = (queue.texts().await?, queue.cancels().await?);
    let (key, _) = kit::record(1, 1);
    let text = TextChunk {
        attempt: 1,
        offset_bytes: 3,
        text: "no".to_owned(),
        epoch: 0,
    };
    queue.publish_text(&key, &text).await?;
    queue.publish_cancel(&key).await?;
    let heard = tokio::time::timeout(PATIENCE, texts.next()).await?;
    ensure!(heard == Some((key.clone(), text)), "{heard:?}");
    let heard = tokio::time::timeout(PATIENCE, cancels.next()).await?;
    ensure!(heard == Some(key), "{heard:?}");
    Ok(())
}
