//! Intake: from the beginning, then live; one entry per unit; removal by sequence; its limit.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{Class, Stage, WorkUnit};
use medfleet_queue::{IntakeEntry, Published, QueueError};
use medfleet_testkit as kit;

use crate::{PATIENCE, start, start_with};

fn unit(seed: u8) -> WorkUnit {
    kit::unit(
        &kit::record(seed, 1).0,
        Stage::Preprocess,
        Class::Routine,
        0,
    )
}

async fn next(
    entries: &mut BoxStream<'static, medfleet_queue::Result<IntakeEntry>>,
) -> Result<IntakeEntry> {
    let entry = tokio::time::timeout(PATIENCE, entries.next()).await?;
    Ok(entry.context("the feed ended")??)
}

#[tokio::test]
async fn old_entries_then_new_ones() -> Result<()> {
    let (_server, queue) = start().await?;
    let headers = vec![("traceparent".to_owned(), "00-cc-dd-01".to_owned())];
    for seed in 0..3 {
        ensure!(queue.publish_intake(&unit(seed), &headers).await? == Published::Stored);
    }
    ensure!(queue.publish_intake(&unit(1), &headers).await? == Published::AlreadyThere);
    queue.remove_intake(Stage::Preprocess, 2).await?;
    queue.remove_intake(Stage::Preprocess, 2).await?;
    let mut entries = queue.intake(Stage::Preprocess).await?;
    for seed in [0, 2] {
        let entry = next(&mut entries).await?;
        ensure!(
            entry.unit == unit(seed) && entry.headers == headers,
            "{entry:?}"
        );
        ensure!(entry.stored_at.0 > 1_735_689_600_000, "{entry:?}");
        queue
            .remove_intake(Stage::Preprocess, entry.sequence)
            .await?;
    }
    // A unit that was removed may be accepted again, as after a replay.
    for seed in [1, 3] {
        queue.publish_intake(&unit(seed), &headers).await?;
        let entry = next(&mut entries).await?;
        ensure!(entry.unit == unit(seed), "{entry:?}");
    }
    Ok(())
}

/// Otherwise the jobs under way wait for room that only they could make.
#[tokio::test]
async fn a_full_intake_says_try_later_and_leaves_room_for_what_follows() -> Result<()> {
    let (_server, queue) = start_with(|config| config.intake_messages_max = 2).await?;
    for seed in 0..2 {
        queue.publish_intake(&unit(seed), &Vec::new()).await?;
    }
    let full = queue.publish_intake(&unit(2), &Vec::new()).await;
    ensure!(matches!(full, Err(QueueError::Full { .. })), "{full:?}");
    ensure!(full.is_err_and(|error| error.is_transient()));
    // What is there already is still known to be there.
    let again = queue.publish_intake(&unit(1), &Vec::new()).await?;
    ensure!(again == Published::AlreadyThere);
    queue.remove_intake(Stage::Preprocess, 1).await?;
    queue.publish_intake(&unit(2), &Vec::new()).await?;
    let chunk = kit::unit(&kit::record(0, 1).0, Stage::Encode, Class::Routine, 0);
    ensure!(queue.publish_intake(&chunk, &Vec::new()).await? == Published::Stored);
    let mut chunks = queue.intake(Stage::Encode).await?;
    ensure!(next(&mut chunks).await?.unit == chunk);
    let decode = kit::unit(&kit::record(0, 1).0, Stage::Decode, Class::Routine, 0);
    ensure!(queue.publish_intake(&decode, &Vec::new()).await? == Published::Stored);
    Ok(())
}

/// It stays for a release that can read it, and whoever looks for it is told where it lies.
#[tokio::test]
async fn a_message_that_is_no_unit_is_said_with_its_place_and_stays() -> Result<()> {
    const GARBAGE: &[u8] = &[0x0a, 0xff];
    let (server, queue) = start().await?;
    let client = async_nats::connect(server.url()).await?;
    let job = kit::record(1, 1).0;
    let subject = format!("intake.preprocess.{}.routine.{job}.0", kit::pool());
    client.request(subject, GARBAGE.into()).await?;
    queue.publish_intake(&unit(2), &Vec::new()).await?;
    let mut entries = queue.intake(Stage::Preprocess).await?;
    let skipped = tokio::time::timeout(PATIENCE, entries.next()).await?;
    let skipped = skipped.context("the feed ended")?;
    let place = match &skipped {
        Err(QueueError::NoIntake {
            stream, sequence, ..
        }) => Some((*stream, *sequence)),
        _ => None,
    };
    ensure!(place == Some(("INTAKE_PREPROCESS", 1)), "{skipped:?}");
    ensure!(next(&mut entries).await?.sequence == 2);
    ensure!(queue.waiting_for_release(Stage::Preprocess).await? == 2);
    Ok(())
}
