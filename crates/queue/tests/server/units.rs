//! Units of work: one live message, class order, verdicts, redelivery, cancellation of a pull, counts.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures::FutureExt;
use medfleet_core::{Class, Failure, FailureReason, PoolName, Stage, Verdict, WorkUnit};
use medfleet_queue::{Delivery, Published, Puller, Queue, QueueError};
use medfleet_testkit::{self as kit, wait_until};
use tokio::time::Instant;

use crate::{PATIENCE, short, start, start_with};

pub(crate) fn unit(seed: u8, class: Class) -> WorkUnit {
    kit::unit(&kit::record(seed, 1).0, Stage::Encode, class, 0)
}

pub(crate) fn traced() -> Vec<(String, String)> {
    vec![("traceparent".to_owned(), "00-aa-bb-01".to_owned())]
}

pub(crate) async fn next(puller: &mut Puller) -> Result<Delivery> {
    Ok(tokio::time::timeout(PATIENCE, puller.next()).await??)
}

/// Nothing waits, and nothing is with a worker.
pub(crate) async fn is_settled(queue: &Queue) -> Result<()> {
    let left = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!(left.total() == 0, "{left:?}");
    Ok(())
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
    is_settled(&queue).await?;
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
        is_settled(&queue).await.ok()
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
    // A consumer hears of what is stored a moment after it is.
    wait_until(PATIENCE, "all five to be there", async || {
        let counts = queue.outstanding(Stage::Encode, &kit::pool()).await.ok()?;
        (counts.total() == 5).then_some(())
    })
    .await?;
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
    let (server, queue) = start().await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut config = kit::config(&server.url());
    // Nobody answers a pull by an unknown pool; nothing is stored in this time.
    config.request_timeout = short(500);
    let hasty = Queue::connect(&config, kit::clock()).await?;
    let mut stranger = hasty.puller(Stage::Encode, PoolName::new("nobodys")?);
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

/// How long a worker may be silent.
const WAIT: Duration = Duration::from_secs(3);

/// Reports progress for twice the wait, of a unit that was taken after `since`. What another worker was given meanwhile, and how
/// long there had been no sign of life by then.
async fn taken_meanwhile(
    (held, since): (&Delivery, Instant),
    other: &mut Puller,
) -> Result<Option<(Delivery, Duration)>> {
    let (begun, heard) = (Instant::now(), Cell::new(since));
    let kept = wait_until(PATIENCE, "two acknowledge waits", async || {
        let now = Instant::now();
        if let Err(error) = held.progress().await {
            return Some(Err(error));
        }
        heard.set(now);
        (now >= begun + 2 * WAIT).then_some(Ok(()))
    });
    tokio::select! {
        // What was sent before a sign of life was heard has come before its confirmation.
        biased;
        taken = other.next() => Ok(Some((taken?, heard.get().elapsed()))),
        kept = kept => {
            kept??;
            Ok(None)
        }
    }
}

#[tokio::test]
async fn a_silent_worker_loses_its_unit_and_a_heartbeat_keeps_it() -> Result<()> {
    let (_server, queue) = start_with(|config| config.ack_wait = short(3000)).await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut first = queue.puller(Stage::Encode, kit::pool());
    let mut second = queue.puller(Stage::Encode, kit::pool());
    let mut since = Instant::now();
    let mut held = next(&mut first).await?;
    loop {
        let before = Instant::now();
        let Some((taken, silence)) = taken_meanwhile((&held, since), &mut second).await? else {
            break;
        };
        // A machine that stands still for so long loses the unit with right.
        ensure!(silence >= WAIT, "taken from a living worker: {taken:?}");
        (held, since) = (taken, before);
        std::mem::swap(&mut first, &mut second);
    }
    let again = next(&mut second).await?;
    ensure!(again.deliveries > held.deliveries, "{again:?}");
    again.settle(Verdict::Done).await?;
    Ok(())
}

/// Longer than a test waits: what its worker does not hand back comes to no other.
const LONG_MILLIS: u64 = 3_600_000;

#[tokio::test]
async fn handed_back_units_come_again_at_once_or_later() -> Result<()> {
    let (_server, queue) = start_with(|config| config.ack_wait = short(LONG_MILLIS)).await?;
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let now = Verdict::Retry {
        after: Duration::ZERO,
    };
    next(&mut puller).await?.settle(now).await?;
    let again = next(&mut puller).await?;
    ensure!(again.deliveries == 2);
    let before = Instant::now();
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

/// As many as there are places, and more, of which none can be done for long: others are taken, and no job is forgotten.
#[tokio::test]
async fn units_that_wait_for_long_do_not_take_every_place() -> Result<()> {
    let (_server, queue) = start_with(|config| config.in_flight_max = 4).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let long = Verdict::Retry {
        after: Duration::from_secs(600),
    };
    for seed in 1..=6 {
        queue
            .publish_work(&unit(seed, Class::Stat), &traced())
            .await?;
        next(&mut puller).await?.settle(long.clone()).await?;
    }
    let counts = queue.outstanding(Stage::Encode, &kit::pool()).await?;
    ensure!((counts.stat.waiting, counts.stat.in_flight) == (0, 1));
    let aside = queue.list_aside(Duration::ZERO).await?;
    let found: BTreeSet<_> = aside.into_iter().map(|(key, _)| key).collect();
    let expected: BTreeSet<_> = (2..=6).map(|seed| kit::record(seed, 1).0).collect();
    ensure!(found == expected, "{found:?}");
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
    is_settled(&queue).await?;
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
    queue
        .discard_dead(&poison.key, poison.epoch, *sequence)
        .await?;
    queue
        .discard_dead(&poison.key, poison.epoch, *sequence)
        .await?;
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
    is_settled(&queue).await?;
    Ok(())
}

#[tokio::test]
async fn closing_hands_back_what_a_cancelled_pull_brings() -> Result<()> {
    let (_server, queue) = start_with(|config| config.ack_wait = short(LONG_MILLIS)).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    queue.publish_work(&unit(1, Class::Stat), &traced()).await?;
    // The first call subscribes, which takes more than one poll.
    next(&mut puller).await?.settle(Verdict::Done).await?;
    queue.publish_work(&unit(2, Class::Stat), &traced()).await?;
    wait_until(PATIENCE, "a unit on its way to nobody", async || {
        if let Some(taken) = puller.next().now_or_never() {
            // It was there already; the next pull brings it again.
            let now = Verdict::Retry {
                after: Duration::ZERO,
            };
            taken.ok()?.settle(now).await.ok()?;
            return None;
        }
        let counts = queue.outstanding(Stage::Encode, &kit::pool()).await.ok()?;
        (counts.stat.in_flight == 1).then_some(())
    })
    .await?;
    puller.close().await?;
    let mut other = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut other).await?;
    ensure!(
        delivery.unit == unit(2, Class::Stat) && delivery.deliveries > 1,
        "{delivery:?}"
    );
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
async fn a_slot_that_is_kept_for_stat_takes_nothing_else() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut first = queue.stat_puller(Stage::Encode, kit::pool());
    let mut second = first.clone();
    for (seed, class) in [(1, Class::Urgent), (2, Class::Stat)] {
        queue.publish_work(&unit(seed, class), &traced()).await?;
    }
    let later = async {
        wait_until(PATIENCE, "a unit of STAT in flight", async || {
            let counts = queue.outstanding(Stage::Encode, &kit::pool()).await.ok()?;
            (counts.stat.in_flight == 1).then_some(())
        })
        .await?;
        queue.publish_work(&unit(3, Class::Stat), &traced()).await?;
        Ok(())
    };
    let (a, b, ()) = tokio::try_join!(next(&mut first), next(&mut second), later)?;
    for delivery in [a, b] {
        ensure!(delivery.unit.class == Class::Stat, "{:?}", delivery.unit);
        delivery.settle(Verdict::Done).await?;
    }
    let mut open = queue.puller(Stage::Encode, kit::pool());
    let left = next(&mut open).await?;
    ensure!(left.unit.class == Class::Urgent);
    left.settle(Verdict::Done).await?;
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

/// A worker stood still while another did its unit, and since then the unit was queued once more, as a sweep does.
#[tokio::test]
async fn a_late_acknowledgement_removes_nothing_that_was_queued_since() -> Result<()> {
    let (_server, queue) = start_with(|config| config.ack_wait = short(1000)).await?;
    let unit = unit(1, Class::Stat);
    queue.publish_work(&unit, &traced()).await?;
    let late = next(&mut queue.puller(Stage::Encode, kit::pool())).await?;
    let again = next(&mut queue.puller(Stage::Encode, kit::pool())).await?;
    ensure!(again.deliveries > late.deliveries, "{again:?}");
    again.settle(Verdict::Done).await?;
    is_settled(&queue).await?;
    ensure!(queue.publish_work(&unit, &traced()).await? == Published::Stored);
    // Whether the server answers to it does not matter.
    drop(late.settle(Verdict::Done).await);
    ensure!(queue.is_released(&unit).await?, "it took the new one away");
    Ok(())
}
