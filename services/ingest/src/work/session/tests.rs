//! A session over a real queue, step by step.

use std::sync::Arc;

use medfleet_core::{JobId, JobState, Move, TenantId, UnixMillis};
use medfleet_queue::Queue;
use medfleet_runtime::{ManualClock, Metrics, Shutdown, SystemClock};
use medfleet_testkit::{self as kit, NatsServer, wait_until};

use super::super::Scope;
use super::*;
use crate::config::DispatcherConfig;
use crate::fanout::Fanout;
use crate::metrics::Figures;
use crate::open::OpenJobs;
use crate::roster::Roster;
use crate::unit::{InFlightMax, Reserved, Rules, Weights};

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that did not sync may have given the place of what was read to another's job.
#[tokio::test]
async fn nothing_is_removed_by_what_was_read_before_a_loss() {
    let mut server = NatsServer::start().await.expect("starts");
    let queue = kit::queue(&kit::config(&server.url())).await;
    let queue = queue.expect("connects");
    let unit = kit::unit(&kit::record(1, 1).0, Stage::Encode, Class::Routine, 0);
    let waits = queue.publish_intake(&unit, &Vec::new()).await;
    waits.expect("waits");
    let read_at = queue.losses();
    server.restart().await.expect("restarts");
    wait_until(PATIENCE, "the connection to be back", async || {
        (queue.losses() > read_at && queue.is_connected()).then_some(())
    })
    .await
    .expect("reconnects");
    for removal in [Removal::One(1), Removal::Below(2)] {
        let removed = remove(&queue, read_at, (Stage::Encode, removal)).await;
        assert!(removed.is_err(), "{removal:?}");
    }
    let waiting = wait_until(PATIENCE, "an answer", async || {
        queue.waiting_for_release(Stage::Encode).await.ok()
    });
    assert_eq!(waiting.await.expect("answers"), 1);
    for removal in [Removal::One(1), Removal::Below(2)] {
        let removed = remove(&queue, queue.losses(), (Stage::Encode, removal)).await;
        removed.expect("it was read since");
    }
    assert_eq!(queue.waiting_for_release(Stage::Encode).await.ok(), Some(0));
}

fn dispatcher(queue: Queue) -> Dispatcher {
    let open = OpenJobs::default();
    Dispatcher {
        config: DispatcherConfig::default(),
        scope: Scope::Fleet,
        queue,
        fanout: Fanout::new(1, open.clone()),
        roster: Roster::default(),
        open,
        pools: vec![kit::pool()],
        rules: Rules {
            weights: Weights::new(),
            ahead_millis: 1_000,
            released_units_max: 10,
            age_millis: 60_000,
            aged_every: 4,
            decode_reserved: Reserved::default(),
            in_flight_max: InFlightMax::default(),
        },
        clock: Arc::new(SystemClock),
        figures: Figures::new(&Metrics::new()),
        shutdown: Shutdown::new(Duration::ZERO),
        holder: "test".to_owned(),
    }
}

/// Takes what is heard until so many units wait.
async fn read(session: &mut Session<'_>, units: u64) {
    loop {
        let backlog = session.index.backlog();
        if backlog.iter().map(|one| one.units).sum::<u64>() >= units {
            return;
        }
        let step = session.next().await;
        session.take(step).await.expect("takes");
    }
}

/// There is room for one unit, and that of the shard came first.
#[tokio::test]
async fn a_unit_whose_shard_is_away_lets_others_pass() {
    let started = kit::start_with(|config| config.record_shards = 2).await;
    let (_server, queue) = started.expect("a queue");
    let [first, second] = [1, 2].map(|seed| kit::record(seed, 1).0);
    let shard = queue.record_shard(&first.job);
    assert_ne!(shard, queue.record_shard(&second.job));
    for key in [&first, &second] {
        let unit = kit::unit(key, Stage::Preprocess, Class::Routine, 0);
        let waits = queue.publish_intake(&unit, &Vec::new()).await;
        waits.expect("waits");
    }
    let dispatcher = dispatcher(queue.clone());
    let mut session = Session::begin(&dispatcher).await.expect("begins");
    read(&mut session, 2).await;
    let long_ago = Instant::now().checked_sub(Duration::from_secs(10));
    for asked in [long_ago.expect("a time"), Instant::now()] {
        session.silent.note(shard, true, asked);
    }
    session.release().await;
    let taken = queue.puller(Stage::Preprocess, kit::pool()).next().await;
    assert_eq!(taken.expect("a unit").unit.key, second);
    let out = queue.outstanding(Stage::Preprocess, &kit::pool()).await;
    assert_eq!(out.expect("counts").total(), 1, "the first one waits");
}

/// A job with so much time left, and its first unit, which waits.
async fn waiting_job(queue: &Queue, left_millis: i64) -> (JobKey, WorkUnit) {
    let (key, mut record) = kit::record(1, 1);
    let now = kit::clock()();
    record.times.accepted = UnixMillis(now.0 - 100_000);
    record.expires = UnixMillis(now.0 + left_millis);
    queue.create_record(&key, &record).await.expect("stores");
    let unit = WorkUnit {
        expires: record.expires,
        ..kit::unit(&key, Stage::Preprocess, Class::Routine, 0)
    };
    let waits = queue.publish_intake(&unit, &Vec::new()).await;
    waits.expect("waits");
    (key, unit)
}

/// Whether it is released by a dispatcher whose clock shows this time, and its job's state then.
async fn released(
    queue: &Queue,
    (key, unit): (JobKey, WorkUnit),
    now: UnixMillis,
) -> (bool, JobState) {
    let dispatcher = Dispatcher {
        clock: Arc::new(ManualClock::at(now)),
        ..dispatcher(queue.clone())
    };
    let mut session = Session::begin(&dispatcher).await.expect("begins");
    read(&mut session, 1).await;
    session.release().await;
    let is_released = queue.is_released(&unit).await.expect("answers");
    let record = queue.record(&key).await.expect("answers");
    (is_released, record.expect("a record").0.state)
}

const HOUR_MILLIS: i64 = 3_600_000;

#[tokio::test]
async fn a_dispatcher_whose_clock_is_ahead_releases_what_has_time_left() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let job = waiting_job(&queue, HOUR_MILLIS).await;
    let ahead = UnixMillis(job.1.expires.0 + 1);
    let found = released(&queue, job, ahead).await;
    assert_eq!(found, (true, JobState::Accepted));
}

#[tokio::test]
async fn a_job_whose_time_is_over_is_ended_in_the_place_of_its_release() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let job = waiting_job(&queue, -1).await;
    let found = released(&queue, job, kit::clock()()).await;
    assert_eq!(found, (false, JobState::Expired));
}

#[tokio::test]
async fn a_unit_whose_job_ended_while_nobody_led_is_not_released() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let job = waiting_job(&queue, HOUR_MILLIS).await;
    let now = kit::clock()();
    let cancelled = queue.apply(&job.0, Some(0), &Move::Cancel, now).await;
    cancelled.expect("is stored");
    // It has waited for long.
    let later = UnixMillis(now.0 + HOUR_MILLIS / 2);
    let found = released(&queue, job, later).await;
    assert_eq!(found, (false, JobState::Cancelled));
}

#[test]
fn jobs_that_cannot_be_ended_take_no_others_place() {
    let job = |number: usize| {
        let key = JobKey {
            tenant: TenantId::new("st-mary").expect("a name"),
            job: JobId::from_bytes((number as u128).to_be_bytes()),
        };
        (key, 0)
    };
    let most = 4;
    let due: Vec<_> = (0..most + 1).map(job).collect();
    let first = in_turn(due.clone(), &HashSet::new(), most);
    assert_eq!(first, due[..most]);
    let not_ended: HashSet<_> = first.into_iter().collect();
    let second = in_turn(due.clone(), &not_ended, most);
    assert_eq!(second[0], due[most]);
    assert_eq!(second.len(), most);
}

/// Who has held something back sees when the dispatcher goes by it.
#[tokio::test]
async fn the_pauses_that_the_dispatcher_goes_by_are_shown() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let pause = Pause {
        tenant: Some(kit::tenant()),
        class: None,
        actor: "night".to_owned(),
        at: kit::clock()(),
    };
    let dispatcher = dispatcher(queue.clone());
    let figures = &dispatcher.figures;
    let mut session = Session::begin(&dispatcher).await.expect("begins");
    assert_eq!(figures.pauses.get(), 0);
    queue.put_pause(&pause).await.expect("is held back");
    assert_eq!(figures.pauses.get(), 0, "it has not looked since");
    session.recount_all().await;
    assert_eq!(figures.pauses.get(), 1);
    Session::begin(&dispatcher).await.expect("begins");
    assert_eq!(figures.pauses.get(), 1, "whoever leads next reads it too");
    let resumed = queue.remove_pause(pause.tenant.as_ref(), None).await;
    resumed.expect("goes on");
    session.recount_all().await;
    assert_eq!(figures.pauses.get(), 0);
}
