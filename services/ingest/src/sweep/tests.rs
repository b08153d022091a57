//! A sweep over a real server: whose intake of one stage is full, of which one shard of the records does not answer, and which
//! has lost a unit.

use std::fs;

use medfleet_core::{Class, Digest, JobId, Move, Stage, Verdict};
use medfleet_queue::{AUDIT_STREAM, Applied, Queue, Seen};
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit::{self as kit, NatsServer, wait_until};

use super::*;
use crate::accept::sample;

/// Longer than a unit keeps its place where places are few.
const LATER: Duration = Duration::from_secs(600);
/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn acceptor(queue: Queue) -> Acceptor {
    sample::acceptor(queue, BlobStore::in_memory(FleetKey::new([1; 32])))
}

/// A job that has come so far.
async fn job(queue: &Queue, seed: u8, steps: &[Move]) -> JobKey {
    let (key, record) = kit::record(seed, 1);
    queue.create_record(&key, &record).await.expect("stores");
    for step in steps {
        let moved = queue.apply(&key, Some(0), step, kit::clock()()).await;
        assert!(matches!(moved, Ok(Applied::Applied { .. })), "{moved:?}");
    }
    key
}

/// What a job has behind it that waits for its only image to be encoded.
fn until_encode() -> [Move; 2] {
    let start = Move::Start {
        stage: Stage::Preprocess,
        unit: 0,
        retries_max: 3,
    };
    let frames = Move::Preprocessed {
        frames: Digest::new([3; 32]),
        chunks: 1,
        frame_count: 1,
    };
    [start, frames]
}

/// A job that has come so far, of which a worker has set a unit aside.
async fn set_aside(queue: &Queue, seed: u8, stage: Stage, steps: &[Move]) -> JobKey {
    let key = job(queue, seed, steps).await;
    let unit = kit::unit(&key, stage, Class::Routine, 0);
    let put = queue.publish_work(&unit, &Vec::new()).await;
    put.expect("stores");
    let taken = queue.puller(stage, kit::pool()).next().await;
    let later = Verdict::Retry { after: LATER };
    let settled = taken.expect("a unit").settle(later).await;
    settled.expect("it is set aside");
    key
}

#[tokio::test]
async fn what_has_come_further_does_not_wait_for_a_full_intake_of_accepted_jobs() {
    let started = kit::start_with(|config| {
        config.in_flight_max = 1;
        config.intake_messages_max = 1;
    });
    let (_server, queue) = started.await.expect("a queue");
    // In order of their names the first of these waits for the stage without room.
    let first = set_aside(&queue, 1, Stage::Preprocess, &[]).await;
    let second = set_aside(&queue, 2, Stage::Encode, &until_encode()).await;
    let other = kit::unit(&kit::record(3, 1).0, Stage::Preprocess, Class::Routine, 0);
    let filled = queue.publish_intake(&other, &Vec::new()).await;
    filled.expect("there is room for one");
    let (accepted, record) = kit::record(4, 1);
    queue.put_pending(&accepted).await.expect("notes");
    let created = queue.create_record(&accepted, &record).await;
    created.expect("stores");

    let swept = acceptor(queue.clone())
        .sweep_once(Duration::ZERO, &mut Told::new())
        .await;
    assert!(matches!(swept, Err(QueueError::Full { .. })), "{swept:?}");
    let waiting = queue.waiting_for_release(Stage::Encode).await;
    assert_eq!(waiting.expect("counts"), 1, "{second:?} is not queued");
    let aside = queue.list_aside(Duration::ZERO).await.expect("lists");
    let aside: Vec<_> = aside.into_iter().map(|(key, _)| key).collect();
    assert_eq!(aside, [first]);
    let pending = queue.list_pending(Duration::ZERO).await.expect("lists");
    assert_eq!(pending.len(), 1, "the accept waits");
}

#[tokio::test]
async fn an_accept_that_waits_for_room_has_one_line_in_the_audit_however_often_it_is_swept() {
    let started = kit::start_with(|config| config.intake_messages_max = 1);
    let (_server, queue) = started.await.expect("a queue");
    let other = kit::unit(&kit::record(3, 1).0, Stage::Preprocess, Class::Routine, 0);
    let filled = queue.publish_intake(&other, &Vec::new()).await;
    filled.expect("there is room for one");
    let (accepted, record) = kit::record(4, 1);
    queue.put_pending(&accepted).await.expect("notes");
    let created = queue.create_record(&accepted, &record).await;
    created.expect("stores");
    let (acceptor, mut told) = (acceptor(queue.clone()), Told::new());
    for _ in 0..3 {
        let swept = acceptor.sweep_once(Duration::ZERO, &mut told).await;
        assert!(matches!(swept, Err(QueueError::Full { .. })), "{swept:?}");
    }
    let usage = queue.usage().await.expect("lists");
    let audit = usage.iter().find(|stream| stream.stream == AUDIT_STREAM);
    assert_eq!(audit.expect("it is there").messages, 1);

    let removed = queue.remove_intake(Stage::Preprocess, 1).await;
    removed.expect("it goes");
    let swept = acceptor.sweep_once(Duration::ZERO, &mut told).await;
    swept.expect("there is room");
    let pending = queue.list_pending(Duration::ZERO).await.expect("lists");
    assert!(pending.is_empty(), "{pending:?}");
}

/// Who is told that there is no room, and of the job that is noted all the same, may cancel it before there is some.
#[tokio::test]
async fn an_accept_that_was_cancelled_meanwhile_is_not_begun() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let key = job(&queue, 1, &[Move::Cancel]).await;
    queue.put_pending(&key).await.expect("notes");
    let swept = acceptor(queue.clone())
        .sweep_once(Duration::ZERO, &mut Told::new())
        .await;
    swept.expect("there is room");
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 0, "a cancelled job is begun");
    let usage = queue.usage().await.expect("lists");
    let audit = usage.iter().find(|stream| stream.stream == AUDIT_STREAM);
    assert_eq!(audit.expect("it is there").messages, 0, "nobody submits it");
    let pending = queue.list_pending(Duration::ZERO).await.expect("lists");
    assert!(pending.is_empty(), "{pending:?}");
}

/// A queue whose records are in two shards.
async fn in_two_shards() -> (NatsServer, Queue) {
    let started = kit::start_with(|config| {
        config.in_flight_max = 1;
        config.record_shards = 2;
    });
    started.await.expect("a queue")
}

/// Has the second shard's records be gone; `other` is a job of the first.
async fn lose_a_shard(server: &mut NatsServer, queue: &Queue, other: &JobKey) {
    server.kill9().await.expect("ends");
    let shard = server.store().join("jetstream/$G/streams/KV_JOBS_1_OF_2");
    fs::remove_dir_all(shard).expect("it was there");
    server.restart().await.expect("starts");
    let found = wait_until(PATIENCE, "the other shard", async || {
        queue.record(other).await.ok()
    });
    assert!(found.await.expect("answers").is_some());
}

#[tokio::test]
async fn a_shard_that_does_not_answer_holds_up_no_other() {
    let (mut server, queue) = in_two_shards().await;
    let first = set_aside(&queue, 1, Stage::Preprocess, &[]).await;
    let second = set_aside(&queue, 2, Stage::Preprocess, &[]).await;
    let shards = [&first, &second].map(|key| queue.record_shard(&key.job));
    assert_eq!(shards, [1, 0]);
    lose_a_shard(&mut server, &queue, &second).await;

    let swept = acceptor(queue.clone())
        .sweep_once(Duration::ZERO, &mut Told::new())
        .await;
    assert!(swept.is_err_and(|error| error.is_transient()));
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 1, "{second:?} is not queued");
    let aside = queue.list_aside(Duration::ZERO).await.expect("lists");
    let aside: Vec<_> = aside.into_iter().map(|(key, _)| key).collect();
    assert_eq!(aside, [first]);
}

#[tokio::test]
async fn of_one_that_has_ended_without_a_word_the_end_is_said() {
    let started = kit::start_with(|config| config.in_flight_max = 1);
    let (_server, queue) = started.await.expect("a queue");
    let key = set_aside(&queue, 1, Stage::Preprocess, &[]).await;
    let ended = queue.apply_without_event(&key, Seen::Epoch(0), &Move::Cancel, kit::clock()());
    let ended = ended.await.expect("stores");
    assert!(matches!(ended, Applied::Applied { .. }), "{ended:?}");
    let said = queue.next_event(&key, 0).await.expect("answers");
    assert!(said.is_none(), "{said:?}");

    let swept = acceptor(queue.clone())
        .sweep_once(Duration::ZERO, &mut Told::new())
        .await;
    swept.expect("there is room");
    assert!(queue.next_event(&key, 0).await.expect("answers").is_some());
    let aside = queue.list_aside(Duration::ZERO).await.expect("lists");
    assert!(aside.is_empty(), "{aside:?}");
}

#[tokio::test]
async fn a_note_stays_while_the_unit_is_with_workers() {
    let started = kit::start_with(|config| config.in_flight_max = 1);
    let (_server, queue) = started.await.expect("a queue");
    let key = set_aside(&queue, 1, Stage::Preprocess, &[]).await;
    // As it is when whoever sets it aside stands still before it removes the unit.
    let unit = kit::unit(&key, Stage::Preprocess, Class::Routine, 0);
    let put = queue.publish_work(&unit, &Vec::new()).await;
    put.expect("stores");
    let acceptor = acceptor(queue.clone());
    let swept = acceptor.sweep_once(Duration::ZERO, &mut Told::new()).await;
    swept.expect("there is room");
    let aside = queue.list_aside(Duration::ZERO).await.expect("lists");
    assert_eq!(aside.len(), 1, "the unit may still be removed");
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 0, "it is there");

    let taken = queue.puller(Stage::Preprocess, kit::pool()).next().await;
    let settled = taken.expect("a unit").settle(Verdict::Done).await;
    settled.expect("it is removed");
    let swept = acceptor.sweep_once(Duration::ZERO, &mut Told::new()).await;
    swept.expect("there is room");
    let aside = queue.list_aside(Duration::ZERO).await.expect("lists");
    assert!(aside.is_empty(), "{aside:?}");
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 1, "it is queued again");
}

/// A job whose unit is in no queue, as after a server has lost it; and the acceptor of a process that is the dispatcher, or not.
async fn without_a_unit(is_leader: bool) -> (NatsServer, Queue, Acceptor) {
    let (server, queue) = kit::start().await.expect("a queue");
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await.expect("stores");
    let acceptor = acceptor(queue.clone());
    acceptor.open.take_record(&key, &record);
    acceptor.figures.leader.set(i64::from(is_leader));
    (server, queue, acceptor)
}

async fn waiting_after_a_round(queue: &Queue, acceptor: &Acceptor) -> u64 {
    acceptor.sweep_still(&mut None).await.expect("looks");
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    waiting.expect("counts")
}

#[tokio::test]
async fn a_lost_unit_is_queued_again_once_its_job_has_stood_still_for_a_round() {
    let (_server, queue, acceptor) = without_a_unit(true).await;
    let waiting = waiting_after_a_round(&queue, &acceptor).await;
    assert_eq!(waiting, 0, "it may be on its way");
    assert_eq!(waiting_after_a_round(&queue, &acceptor).await, 1);
    assert_eq!(waiting_after_a_round(&queue, &acceptor).await, 1);
    // Taken by a worker, it is in no intake, and not lost.
    let unit = kit::unit(&kit::record(1, 1).0, Stage::Preprocess, Class::Routine, 0);
    queue
        .publish_work(&unit, &Vec::new())
        .await
        .expect("stores");
    queue
        .remove_intake(Stage::Preprocess, 1)
        .await
        .expect("goes");
    let taken = queue.puller(Stage::Preprocess, kit::pool()).next().await;
    let _delivery = taken.expect("a unit");
    assert_eq!(waiting_after_a_round(&queue, &acceptor).await, 0);
}

/// Who moved it queues what follows, after the record and perhaps not yet.
#[tokio::test]
async fn a_job_that_has_just_come_further_is_left_to_who_moved_it() {
    let (_server, queue, acceptor) = without_a_unit(true).await;
    let (key, _) = kit::record(1, 1);
    acceptor.open.next_round();
    assert_eq!(acceptor.open.next_round(), std::slice::from_ref(&key));
    let start = Move::Start {
        stage: Stage::Preprocess,
        unit: 0,
        retries_max: 3,
    };
    let moved = queue.apply(&key, Some(0), &start, kit::clock()()).await;
    assert!(matches!(moved, Ok(Applied::Applied { .. })), "{moved:?}");
    let look = async || {
        let mut trouble = Trouble::default();
        acceptor.look_after(&key, &mut trouble).await;
        trouble.end().expect("looks");
    };
    look().await;
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 0);
    acceptor.open.next_round();
    look().await;
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 1, "it stands still since");
}

/// In whichever order the jobs come.
#[tokio::test]
async fn jobs_of_a_shard_that_answers_are_looked_after_while_another_does_not() {
    let (mut server, queue) = in_two_shards().await;
    let acceptor = acceptor(queue.clone());
    acceptor.figures.leader.set(1);
    let (mut here, mut there) = (Vec::new(), 0);
    for seed in 1..=8 {
        let (key, record) = kit::record(seed, 1);
        queue.create_record(&key, &record).await.expect("stores");
        acceptor.open.take_record(&key, &record);
        match queue.record_shard(&key.job) {
            0 => here.push(key),
            _ => there += 1,
        }
    }
    assert!(!here.is_empty() && there > 0);
    lose_a_shard(&mut server, &queue, &here[0]).await;
    acceptor.open.next_round();
    let looked = acceptor.sweep_still(&mut None).await;
    assert!(looked.is_err_and(|error| error.is_transient()));
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), here.len() as u64);
}

/// In whichever order the jobs come: most of them wait for the stage without room.
#[tokio::test]
async fn a_job_that_lost_its_unit_does_not_wait_for_a_full_intake_of_another_stage() {
    let started = kit::start_with(|config| config.intake_messages_max = 1);
    let (_server, queue) = started.await.expect("a queue");
    let acceptor = acceptor(queue.clone());
    acceptor.figures.leader.set(1);
    let mut keys = Vec::new();
    for seed in 1..=8 {
        keys.push(job(&queue, seed, &[]).await);
    }
    keys.push(job(&queue, 9, &until_encode()).await);
    for key in &keys {
        let record = queue.record(key).await.expect("reads");
        acceptor.open.take_record(key, &record.expect("a job").0);
    }
    let other = kit::unit(&kit::record(10, 1).0, Stage::Preprocess, Class::Routine, 0);
    let filled = queue.publish_intake(&other, &Vec::new()).await;
    filled.expect("there is room for one");
    acceptor.open.next_round();

    let looked = acceptor.sweep_still(&mut None).await;
    assert!(matches!(looked, Err(QueueError::Full { .. })), "{looked:?}");
    let waiting = queue.waiting_for_release(Stage::Encode).await;
    assert_eq!(waiting.expect("counts"), 1, "it is not queued");
}

#[test]
fn whoever_comes_and_goes_between_two_rounds_nobody_is_passed_over() {
    let key = |number: usize| {
        JobKey::new(
            kit::tenant(),
            JobId::from_bytes((number as u128).to_be_bytes()),
        )
    };
    let still = (0..STILL_MAX + 2).rev().map(key).collect();
    let first = in_turn(still, None);
    assert_eq!(first.len(), STILL_MAX);
    assert_eq!(first[0], key(0));
    // Those that were looked after have come further, but for one.
    let still = vec![key(STILL_MAX + 1), key(5), key(STILL_MAX)];
    let second = in_turn(still, first.last());
    assert_eq!(second, [key(STILL_MAX), key(STILL_MAX + 1), key(5)]);
    // The last of all is followed by the first.
    let third = in_turn(vec![key(7), key(6)], Some(&key(STILL_MAX + 1)));
    assert_eq!(third, [key(6), key(7)]);
}

#[tokio::test]
async fn who_is_not_the_dispatcher_looks_after_nobody() {
    let (_server, queue, acceptor) = without_a_unit(false).await;
    for _ in 0..3 {
        assert_eq!(waiting_after_a_round(&queue, &acceptor).await, 0);
    }
}

#[tokio::test]
async fn a_job_that_was_set_aside_is_not_taken_for_one_that_lost_its_unit() {
    let started = kit::start_with(|config| config.in_flight_max = 1);
    let (_server, queue) = started.await.expect("a queue");
    let key = set_aside(&queue, 1, Stage::Preprocess, &[]).await;
    let acceptor = acceptor(queue.clone());
    acceptor.figures.leader.set(1);
    let record = queue.record(&key).await.expect("reads");
    acceptor.open.take_record(&key, &record.expect("a job").0);
    for _ in 0..3 {
        assert_eq!(waiting_after_a_round(&queue, &acceptor).await, 0);
    }
    let swept = acceptor.sweep_once(Duration::ZERO, &mut Told::new()).await;
    swept.expect("there is room");
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    assert_eq!(waiting.expect("counts"), 1, "its own sweep queues it");
}
