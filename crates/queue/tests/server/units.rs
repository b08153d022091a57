//! Units of work: one live message, class order, verdicts, redelivery, cancellation of a pull, counts.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::FutureExt;
use medfleet_core::{
    Class, Digest, Failure, FailureReason, JobKey, JobState, Move, PoolName, Stage, UnixMillis,
    Verdict, WorkUnit,
};
use medfleet_queue::{Applied, Delivery, Published, Puller, Queue, QueueError, Replicas};
use medfleet_testkit::{self as kit, NatsServer, wait_until};

use crate::{PATIENCE, short, start, start_with};

fn unit(seed: u8, class: Class) -> WorkUnit {
    kit::unit(&kit::record(seed, 1).0, Stage::Encode, class, 0)
}

fn traced() -> Vec<(String, String)> {
    vec![("traceparent".to_owned(), "00-aa-bb-01".to_owned())]
}

async fn next(puller: &mut Puller) -> Result<Delivery> {
    Ok(tokio::time::timeout(PATIENCE, puller.next()).await??)
}

#[tokio::test]
async fn one_live_message_per_unit_until_it_is_done() -> Result<()> {
    let (_server, queue) = start().await?;
    let unit = unit(1, Class::Routine);
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::Stored);
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::AlreadyThere);
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut puller).await?;
    ensure!(delivery.unit == unit && delivery.deliveries == 1);
    ensure!(delivery.headers == traced(), "{:?}", delivery.headers);
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::AlreadyThere);
    delivery.progress().await?;
    let counts = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!((counts.routine.waiting, counts.routine.in_flight) == (0, 1));
    delivery.settle(Verdict::Done).await?;
    ensure!(
        queue
            .outstanding(Stage::Encode, &kit::pool())
            .await?
            .total()
            == 0
    );
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::Stored);
    Ok(())
}

#[tokio::test]
async fn a_unit_that_is_done_leaves_without_being_waited_for() -> Result<()> {
    let (_server, queue) = start().await?;
    let unit = unit(1, Class::Routine);
    queue.publish_work(&unit, &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut puller).await?;
    delivery.settle_soon(Verdict::Done).await?;
    wait_until(PATIENCE, "an empty queue", async || {
        let counts = queue.outstanding(Stage::Encode, &kit::pool()).await.ok()?;
        (counts.total() == 0).then_some(())
    })
    .await?;
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::Stored);
    Ok(())
}

#[tokio::test]
async fn classes_are_served_in_order_and_by_hint() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    for (seed, class) in [
        (1, Class::Bulk),
        (2, Class::Routine),
        (3, Class::Stat),
        (4, Class::Urgent),
        (5, Class::Stat),
    ] {
        queue.publish_work(&unit(seed, class), &traced()).await?;
    }
    let mut served = Vec::new();
    for _ in 0..5 {
        let delivery = next(&mut puller).await?;
        served.push(delivery.unit.class);
        delivery.settle(Verdict::Done).await?;
    }
    use Class::{Bulk, Routine, Stat, Urgent};
    ensure!(served == [Stat, Stat, Urgent, Routine, Bulk], "{served:?}");
    // Idle now: the next one is found by its hint.
    let waiting = next(&mut puller);
    let published = async {
        queue.publish_work(&unit(6, Class::Bulk), &traced()).await?;
        Ok::<_, anyhow::Error>(())
    };
    let (delivery, published) = futures::join!(waiting, published);
    published?;
    delivery?.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn another_pool_gets_nothing_and_an_unknown_one_is_named() -> Result<()> {
    let (_server, queue) = start_with(|config| config.request_timeout = short(500)).await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut stranger = queue.puller(Stage::Encode, PoolName::new("nobodys")?);
    let refused = tokio::time::timeout(PATIENCE, stranger.next()).await?;
    ensure!(
        matches!(refused, Err(QueueError::UnknownPool { .. })),
        "{refused:?}"
    );
    let counted = queue
        .outstanding(Stage::Encode, &PoolName::new("nobodys")?)
        .await;
    ensure!(matches!(counted, Err(QueueError::UnknownPool { .. })));
    Ok(())
}

#[tokio::test]
async fn a_silent_worker_loses_its_unit_and_a_heartbeat_keeps_it() -> Result<()> {
    let (_server, queue) = start_with(|config| config.ack_wait = short(1000)).await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut first = queue.puller(Stage::Encode, kit::pool());
    let mut second = queue.puller(Stage::Encode, kit::pool());
    let held = next(&mut first).await?;
    // Kept for three times the wait by heartbeats.
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    let kept = wait_until(PATIENCE, "three acknowledge waits", async || {
        if let Err(error) = held.progress().await {
            return Some(Err(error));
        }
        (tokio::time::Instant::now() >= until).then_some(Ok(()))
    });
    tokio::select! {
        kept = kept => kept??,
        taken = second.next() => bail!("taken from a living worker: {taken:?}"),
    }
    let again = next(&mut second).await?;
    ensure!(again.deliveries == 2, "{}", again.deliveries);
    again.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn handed_back_units_come_again_at_once_or_later() -> Result<()> {
    let (_server, queue) = start().await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let now = Verdict::Retry {
        after: Duration::ZERO,
    };
    next(&mut puller).await?.settle(now).await?;
    let again = next(&mut puller).await?;
    ensure!(again.deliveries == 2);
    let before = tokio::time::Instant::now();
    let later = Verdict::Retry {
        after: Duration::from_millis(700),
    };
    again.settle(later).await?;
    let third = next(&mut puller).await?;
    ensure!(third.deliveries == 3);
    ensure!(before.elapsed() >= Duration::from_millis(650), "too soon");
    third.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn an_aborted_unit_is_not_acknowledged() -> Result<()> {
    let (_server, queue) = start().await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    next(&mut puller).await?.settle(Verdict::Abort).await?;
    let counts = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!(counts.stat.in_flight == 1, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn a_rejected_unit_becomes_a_dead_letter() -> Result<()> {
    let (_server, queue) = start().await?;
    let poison = unit(1, Class::Stat);
    queue.publish_work(&poison, &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let failure = Failure::new(FailureReason::Integrity, "not what was declared");
    let delivery = next(&mut puller).await?;
    delivery.settle(Verdict::Reject(failure.clone())).await?;
    ensure!(
        queue
            .outstanding(Stage::Encode, &kit::pool())
            .await?
            .total()
            == 0
    );
    let letters = queue.dead_letters(None, 0, 10).await?;
    let [(sequence, letter)] = letters.as_slice() else {
        bail!("{letters:?}");
    };
    ensure!(letter.message == failure.message);
    let wire = letter.unit.as_ref().expect("a dead letter names its unit");
    ensure!(medfleet_queue::wire::unit_from_wire(wire)? == poison);
    ensure!(queue.dead_letter(*sequence).await?.as_ref() == Some(letter));
    // Rejected again after a crash between letter and acknowledgement: still one letter.
    queue.publish_dead(letter).await?;
    ensure!(queue.dead_letters(None, 0, 10).await?.len() == 1);
    queue.discard_dead(*sequence).await?;
    queue.discard_dead(*sequence).await?;
    ensure!(queue.dead_letter(*sequence).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_cancelled_pull_loses_nothing() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    for seed in 0..20 {
        queue
            .publish_work(&unit(seed, Class::Bulk), &traced())
            .await?;
    }
    // The first call subscribes, which takes more than one poll.
    next(&mut puller).await?.settle(Verdict::Done).await?;
    // From here on polls once and drops, wherever the future may be.
    let mut taken = 1;
    let all = wait_until(PATIENCE, "all units", async || {
        if let Some(delivery) = puller.next().now_or_never() {
            match delivery {
                Ok(delivery) if delivery.deliveries == 1 => {
                    delivery.settle(Verdict::Done).await.ok()?;
                    taken += 1;
                }
                other => return Some(Err(format!("{other:?}"))),
            }
        }
        (taken == 20).then_some(Ok(()))
    });
    all.await?.map_err(anyhow::Error::msg)?;
    ensure!(
        queue
            .outstanding(Stage::Encode, &kit::pool())
            .await?
            .total()
            == 0
    );
    Ok(())
}

#[tokio::test]
async fn closing_hands_back_what_a_cancelled_pull_brings() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    // Subscribes and looks once, so that the next poll sends a pull at once.
    ensure!(
        tokio::time::timeout(Duration::from_millis(300), puller.next())
            .await
            .is_err()
    );
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    ensure!(puller.next().now_or_never().is_none());
    puller.close().await?;
    let mut other = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut other).await?;
    delivery.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn the_slots_of_a_worker_pull_together() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut first = queue.puller(Stage::Encode, kit::pool());
    let (mut second, mut third) = (first.clone(), first.clone());
    let publish = async {
        for seed in 0..3 {
            let unit = unit(seed, Class::Routine);
            queue.publish_work(&unit, &traced()).await?;
        }
        Ok(())
    };
    let (a, b, c, ()) = tokio::try_join!(
        next(&mut first),
        next(&mut second),
        next(&mut third),
        publish
    )?;
    ensure!(a.unit != b.unit && b.unit != c.unit && c.unit != a.unit);
    for delivery in [a, b, c] {
        delivery.settle(Verdict::Done).await?;
    }
    // One that ends does not wait for one that has nothing to do, nor take its unit away.
    let waits = next(&mut first);
    let ends = async {
        second.close().await?;
        third.close().await?;
        queue.publish_work(&unit(4, Class::Bulk), &traced()).await?;
        Ok(())
    };
    let (last, ()) = tokio::try_join!(waits, ends)?;
    ensure!(last.deliveries == 1);
    last.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn a_replayed_jobs_unit_replaces_the_old_epochs() -> Result<()> {
    let (_server, queue) = start().await?;
    let old = unit(1, Class::Stat);
    let new = WorkUnit {
        epoch: 1,
        ..old.clone()
    };
    queue.publish_work(&old, &traced()).await?;
    ensure!(queue.publish_work(&new, &traced()).await? == Published::Stored);
    ensure!(queue.publish_work(&new, &traced()).await? == Published::AlreadyThere);
    ensure!(queue.publish_work(&old, &traced()).await? == Published::AlreadyThere);
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(next(&mut puller).await?.unit == new);
    Ok(())
}

/// Bytes that are no unit.
const GARBAGE: &[u8] = &[0x0a, 0xff];

/// Puts them where a unit of this job would be.
async fn put_garbage(server: &NatsServer, job: &str, unit: u32) -> Result<()> {
    let client = async_nats::connect(server.url()).await?;
    let subject = format!("work.encode.{}.stat.{job}.{unit}", kit::pool());
    let stored = client.request(subject, GARBAGE.into()).await?;
    let stored = String::from_utf8_lossy(&stored.payload).into_owned();
    ensure!(stored.contains("\"seq\""), "{stored}");
    Ok(())
}

async fn refused(puller: &mut Puller) -> Result<Option<JobKey>> {
    match tokio::time::timeout(PATIENCE, puller.next()).await? {
        Err(QueueError::NoUnit { job }) => Ok(job),
        taken => bail!("{taken:?}"),
    }
}

async fn is_settled(queue: &Queue) -> Result<()> {
    let left = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!(left.total() == 0, "{left:?}");
    Ok(())
}

/// A queue whose workers leave nothing that they cannot read to others; what a dropped one had comes again soon.
async fn start_impatient() -> Result<(NatsServer, Queue)> {
    start_with(|config| {
        config.unreadable_wait = short(0);
        config.ack_wait = short(1000);
    })
    .await
}

/// What the server says of the consumer that serves the garbage.
async fn consumer(client: &async_nats::Client) -> Result<serde_json::Value> {
    let info = format!("$JS.API.CONSUMER.INFO.WORK_ENCODE.{}_stat", kit::pool());
    let info = client.request(info, "".into()).await?;
    Ok(serde_json::from_slice(&info.payload)?)
}

/// Pulls, and takes nothing, until the message has come so often.
async fn comes(server: &NatsServer, puller: &mut Puller, often: u64) -> Result<()> {
    let client = async_nats::connect(server.url()).await?;
    let again = wait_until(PATIENCE, "the message to come again", async || {
        let info = consumer(&client).await.ok()?;
        (info["delivered"]["consumer_seq"].as_u64()? >= often).then_some(())
    });
    tokio::select! {
        taken = puller.next() => bail!("{taken:?}"),
        came = again => came,
    }
}

/// Workers of two releases run side by side while one takes the other's place.
#[tokio::test]
async fn a_unit_that_cannot_be_read_is_left_to_others_first() -> Result<()> {
    let (server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    put_garbage(&server, &key.to_string(), 0).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    comes(&server, &mut puller, 2).await?;
    let (waits, _) = queue.record(&key).await?.context("a record")?;
    ensure!(waits == record, "{waits:?}");
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    Ok(())
}

/// What brings a job of so many chunks to where its encode has begun.
fn encoding(chunks: u32) -> [Move; 3] {
    let start = |stage| Move::Start {
        stage,
        retries_max: 3,
    };
    let frames = Move::Preprocessed {
        frames: Digest::new([3; 32]),
        chunks,
        frame_count: chunks,
    };
    [start(Stage::Preprocess), frames, start(Stage::Encode)]
}

async fn apply(queue: &Queue, key: &JobKey, steps: &[Move]) -> Result<()> {
    for step in steps {
        let moved = queue.apply(key, Some(0), step, kit::clock()()).await?;
        ensure!(matches!(moved, Applied::Applied { .. }), "{moved:?}");
    }
    Ok(())
}

/// The other one may have read another unit of the job.
#[tokio::test]
async fn a_job_does_not_fail_for_a_unit_while_a_worker_may_be_at_work_on_it() -> Result<()> {
    let (server, queue) = start_impatient().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    apply(&queue, &key, &encoding(2)).await?;
    put_garbage(&server, &key.to_string(), 1).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    comes(&server, &mut puller, 2).await?;
    let (goes_on, _) = queue.record(&key).await?.context("a record")?;
    ensure!(goes_on.state == JobState::Encoding, "{goes_on:?}");
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    let back = Move::HandBack {
        stage: Stage::Encode,
    };
    queue.apply(&key, Some(0), &back, kit::clock()()).await?;
    ensure!(refused(&mut puller).await? == Some(key.clone()));
    let (failed, _) = queue.record(&key).await?.context("a record")?;
    ensure!(failed.state == JobState::Failed, "{failed:?}");
    Ok(())
}

/// Its job would wait for it until its time is over.
#[tokio::test]
async fn a_unit_that_cannot_be_read_fails_its_job_with_the_reason() -> Result<()> {
    let (server, queue) = start_impatient().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    put_garbage(&server, &key.to_string(), 0).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(refused(&mut puller).await? == Some(key.clone()));
    is_settled(&queue).await?;
    let (failed, _) = queue.record(&key).await?.context("a record")?;
    let failure = failed.failure.context("a reason")?;
    ensure!(
        failed.state == JobState::Failed && failure.reason == FailureReason::Internal,
        "{failure:?}"
    );
    let letters = queue.dead_letters(None, 0, 10).await?;
    let [(_, letter)] = letters.as_slice() else {
        bail!("{letters:?}");
    };
    ensure!(letter.message == failure.message);
    let wire = letter.unit.as_ref().context("its unit")?;
    let named = medfleet_queue::wire::unit_from_wire(wire)?;
    ensure!((named.key, named.expires) == (key.clone(), record.expires));
    // It comes again, as after a crash before the acknowledgement: nothing more happens, and the next unit is taken.
    put_garbage(&server, &key.to_string(), 0).await?;
    ensure!(refused(&mut puller).await? == Some(key));
    ensure!(queue.dead_letters(None, 0, 10).await?.len() == 1);
    queue.publish_work(&unit(2, Class::Stat), &traced()).await?;
    ensure!(next(&mut puller).await?.unit == unit(2, Class::Stat));
    Ok(())
}

/// A repetition of what is in the record already costs the job nothing, and queues what follows as the unit would have.
#[tokio::test]
async fn a_unit_that_cannot_be_read_and_is_done_fails_nothing() -> Result<()> {
    let (server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    apply(&queue, &key, &encoding(1)).await?;
    apply(&queue, &key, &[Move::ChunkEncoded { chunk: 0 }]).await?;
    put_garbage(&server, &key.to_string(), 0).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(refused(&mut puller).await? == Some(key.clone()));
    is_settled(&queue).await?;
    let (goes_on, _) = queue.record(&key).await?.context("a record")?;
    ensure!(goes_on.state == JobState::Encoding, "{goes_on:?}");
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    ensure!(queue.waiting_for_release(Stage::Decode).await? == 1);
    Ok(())
}

/// A server of a cluster that leads no more, and does not know it yet, has not got the latest jobs.
#[tokio::test]
async fn a_unit_that_cannot_be_read_waits_for_a_job_that_is_not_found_yet() -> Result<()> {
    let (server, queue) = start_impatient().await?;
    let (key, record) = kit::record(1, 1);
    put_garbage(&server, &key.to_string(), 0).await?;
    let mut puller = careful(&server).await?.puller(Stage::Encode, kit::pool());
    comes(&server, &mut puller, 2).await?;
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    queue.create_record(&key, &record).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(refused(&mut puller).await? == Some(key.clone()));
    let (failed, _) = queue.record(&key).await?.context("a record")?;
    ensure!(failed.state == JobState::Failed, "{failed:?}");
    Ok(())
}

/// One server only, whose answers are taken as a cluster's; and for its clock every message stays young.
async fn careful(server: &NatsServer) -> Result<Queue> {
    let mut config = kit::config(&server.url());
    config.replicas = Replicas::Three;
    Ok(Queue::connect(&config, Arc::new(|| UnixMillis(0))).await?)
}

/// What is behind it would wait out the acknowledge wait.
#[tokio::test]
async fn closing_hands_back_what_is_behind_a_unit_that_cannot_be_read() -> Result<()> {
    let long = 10 * u64::try_from(PATIENCE.as_millis())?;
    let (server, queue) = start_with(|config| config.ack_wait = short(long)).await?;
    let careful = careful(&server).await?;
    let mut first = careful.puller(Stage::Encode, kit::pool());
    let (mut second, mut third) = (first.clone(), first.clone());
    // Subscribes and looks once.
    let looked = tokio::time::timeout(Duration::from_millis(300), first.next()).await;
    ensure!(looked.is_err());
    {
        let mut pulls = pin!(first.next());
        let waits = pin!(second.next());
        let waits_too = pin!(third.next());
        ensure!(pulls.as_mut().now_or_never().is_none());
        ensure!(waits.now_or_never().is_none() && waits_too.now_or_never().is_none());
        let (key, _) = kit::record(1, 1);
        put_garbage(&server, &key.to_string(), 0).await?;
        queue.publish_work(&unit(2, Class::Stat), &traced()).await?;
        // One look in so long, so that both have come before they could be dealt with.
        let client = async_nats::connect(server.url()).await?;
        wait_until(PATIENCE, "both to be on their way", async || {
            if pulls.as_mut().now_or_never().is_some() {
                return Some(Err("one was taken"));
            }
            let arrived = async {
                loop {
                    let info = consumer(&client).await.ok()?;
                    if info["num_ack_pending"].as_u64()? == 2 {
                        return Some(Ok(()));
                    }
                }
            };
            let arrived = tokio::time::timeout(Duration::from_secs(1), arrived).await;
            arrived.ok().flatten()
        })
        .await?
        .map_err(anyhow::Error::msg)?;
    }
    first.close().await?;
    let mut other = queue.puller(Stage::Encode, kit::pool());
    let delivery = loop {
        match tokio::time::timeout(PATIENCE, other.next()).await? {
            Err(QueueError::NoUnit { .. }) => {}
            taken => break taken?,
        }
    };
    ensure!(delivery.unit == unit(2, Class::Stat));
    delivery.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_names_no_job_is_said_and_goes() -> Result<()> {
    let (server, queue) = start().await?;
    put_garbage(&server, "Nobody.1", 0).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(refused(&mut puller).await?.is_none());
    is_settled(&queue).await?;
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    Ok(())
}
