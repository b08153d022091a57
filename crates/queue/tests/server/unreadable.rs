//! Messages in the place of units that no worker here can read: left to others first, then their jobs fail.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{FutureExt, StreamExt};
use medfleet_core::{
    Class, Digest, FailureReason, JobKey, JobState, Move, Stage, UnixMillis, Verdict,
};
use medfleet_queue::{Applied, Puller, Queue, QueueError, Replicas};
use medfleet_testkit::{self as kit, NatsServer, wait_until};

use crate::units::{is_settled, next, traced, unit};
use crate::{PATIENCE, short, start, start_with};

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
        unit: 0,
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
    // Its clock says that the job's time is over.
    let hasty = hasty(&server, Replicas::One).await?;
    let mut puller = hasty.puller(Stage::Encode, kit::pool());
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

/// As many of them as there are places, and more: what can be read is taken all the same, and no job is forgotten.
#[tokio::test]
async fn units_that_cannot_be_read_do_not_take_every_place() -> Result<()> {
    let (server, queue) = start_with(|config| config.in_flight_max = 4).await?;
    let mut keys = Vec::new();
    for seed in 1..=6 {
        let (key, record) = kit::record(seed, 1);
        queue.create_record(&key, &record).await?;
        put_garbage(&server, &key.to_string(), 0).await?;
        keys.push(key);
    }
    queue.publish_work(&unit(7, Class::Stat), &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut puller).await?;
    ensure!(delivery.unit == unit(7, Class::Stat));
    delivery.settle(Verdict::Done).await?;
    // Whatever is still handed back has its message; every other job has its note.
    let left = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!(left.total() <= 1, "{left:?}");
    let aside = queue.list_aside(Duration::ZERO).await?;
    ensure!(aside.len() as u64 + left.total() == 6, "{aside:?} {left:?}");
    ensure!(aside.iter().all(|(key, _)| keys.contains(key)), "{aside:?}");
    ensure!(queue.list_pending(Duration::ZERO).await?.is_empty());
    for (key, noted) in &aside {
        let (waits, _) = queue.record(key).await?.context("a record")?;
        ensure!(waits.state == JobState::Accepted, "{waits:?}");
        queue.remove_pending(*noted, queue.losses()).await?;
    }
    ensure!(queue.list_aside(Duration::ZERO).await?.is_empty());
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    Ok(())
}

/// A server of a cluster that leads no more, and does not know it yet, has not got the latest jobs.
#[tokio::test]
async fn a_unit_that_cannot_be_read_waits_for_a_job_that_is_not_found_yet() -> Result<()> {
    let (server, queue) = start_impatient().await?;
    let (key, record) = kit::record(1, 1);
    put_garbage(&server, &key.to_string(), 0).await?;
    let mut puller = hasty(&server, Replicas::Three)
        .await?
        .puller(Stage::Encode, kit::pool());
    comes(&server, &mut puller, 2).await?;
    ensure!(queue.dead_letters(None, 0, 10).await?.is_empty());
    queue.create_record(&key, &record).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    ensure!(refused(&mut puller).await? == Some(key.clone()));
    let (failed, _) = queue.record(&key).await?.context("a record")?;
    ensure!(failed.state == JobState::Failed, "{failed:?}");
    Ok(())
}

/// A worker whose clock is ten years ahead. One server only, whose answers are taken as a cluster's if there are as many
/// replicas.
async fn hasty(server: &NatsServer, replicas: Replicas) -> Result<Queue> {
    let mut config = kit::config(&server.url());
    config.replicas = replicas;
    config.unreadable_wait = short(0);
    config.ack_wait = short(1000);
    let ahead = || UnixMillis(kit::clock()().0 + 315_360_000_000);
    Ok(Queue::connect(&config, Arc::new(ahead)).await?)
}

/// Waits until a worker is seen to ask for units of the class.
async fn asked(pulls: &mut async_nats::Subscriber, class: Class) -> Result<()> {
    let durable = format!("{}_{class}", kit::pool());
    let asks = async {
        loop {
            let pull = pulls.next().await.context("the subscription ended")?;
            if pull.subject.ends_with(&durable) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, asks).await?
}

/// What is behind it would wait out the acknowledge wait, and one that names no job would go uncounted.
#[tokio::test]
async fn closing_hands_back_units_that_cannot_be_read_and_what_is_behind_them() -> Result<()> {
    let long = 10 * u64::try_from(PATIENCE.as_millis())?;
    let (server, queue) = start_with(|config| config.ack_wait = short(long)).await?;
    let hasty = hasty(&server, Replicas::Three).await?;
    let client = async_nats::connect(server.url()).await?;
    let mut seen = client
        .subscribe("$JS.API.CONSUMER.MSG.NEXT.WORK_ENCODE.*")
        .await?;
    // The server deals with what a connection sends in its order: after this it knows of the subscription.
    consumer(&client).await?;
    let mut first = hasty.puller(Stage::Encode, kit::pool());
    let (mut second, mut third) = (first.clone(), first.clone());
    {
        let mut pulls = pin!(first.next());
        let waits = pin!(second.next());
        let waits_too = pin!(third.next());
        ensure!(pulls.as_mut().now_or_never().is_none());
        ensure!(waits.now_or_never().is_none() && waits_too.now_or_never().is_none());
        // The last class of a look, so the others were found empty. From here on it pulls only where it is told to.
        tokio::select! {
            biased;
            looked = asked(&mut seen, Class::Bulk) => looked?,
            taken = pulls.as_mut() => bail!("{taken:?}"),
        }
        let (key, _) = kit::record(1, 1);
        put_garbage(&server, &key.to_string(), 0).await?;
        put_garbage(&server, "Nobody.1", 0).await?;
        queue.publish_work(&unit(2, Class::Stat), &traced()).await?;
        // Whatever it sent or was sent before an answer to it has come: hints, and here what was seen of its pulls.
        let settle = async || {
            hasty.time().await?;
            consumer(&client).await
        };
        settle().await?;
        while seen.next().now_or_never().flatten().is_some() {}
        // Until it has asked for three units of the class in which all are, and has not seen the answer.
        wait_until(PATIENCE, "it to ask", async || {
            if let Some(taken) = pulls.as_mut().now_or_never() {
                return Some(Err(anyhow!("{taken:?}")));
            }
            if let Err(error) = settle().await {
                return Some(Err(error));
            }
            let mut pulled = std::iter::from_fn(|| seen.next().now_or_never().flatten());
            let is_asked = pulled.any(|pull| pull.subject.ends_with("_stat"));
            is_asked.then_some(Ok(()))
        })
        .await??;
        wait_until(PATIENCE, "all to be on their way", async || {
            let info = consumer(&client).await.ok()?;
            (info["num_ack_pending"].as_u64()? == 3).then_some(())
        })
        .await?;
        settle().await?;
    }
    first.close().await?;
    let mut other = queue.puller(Stage::Encode, kit::pool());
    let (mut is_taken, mut nameless) = (false, 0);
    while !is_taken || nameless == 0 {
        match tokio::time::timeout(PATIENCE, other.next()).await? {
            Err(QueueError::NoUnit { job }) => nameless += u32::from(job.is_none()),
            taken => {
                let delivery = taken?;
                ensure!(delivery.unit == unit(2, Class::Stat));
                delivery.settle(Verdict::Done).await?;
                is_taken = true;
            }
        }
    }
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
