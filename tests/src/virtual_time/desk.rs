//! What `ingest` does for a client, step by step as its `accept`, `dead` and `sweep` do: a process may die between any two.
//! Clients know nothing of a job but what they are told, and ask again until they are told something.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use medfleet_core::{
    FailureReason, JobKey, JobRecord, JobState, Move, UnixMillis, WorkUnit, protocol,
};
use medfleet_queue::{Applied, QueueError};
use medfleet_worker::Ending;

use super::load::{Asked, Fate};
use super::server::{Stream, name_of};
use super::stages::store_study;
use super::timeline::after;
use super::wire::Wire;
use super::{PENDING_AFTER, REQUEST_TIMEOUT, Role, SWEEP_EVERY, World};

/// How long a client waits for one answer.
const PATIENCE: u64 = 4 * REQUEST_TIMEOUT;
/// How long a replayed job may take.
const TIME_TO_LIVE: u64 = 1_200_000;

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
enum Call {
    Submit,
    Cancel,
    Replay,
}

/// A call of a client that was not answered with success.
struct Broken;

impl From<QueueError> for Broken {
    fn from(_: QueueError) -> Self {
        Self
    }
}

impl From<Ending> for Broken {
    fn from(_: Ending) -> Self {
        Self
    }
}

/// A client with one job, from its arrival to its end.
pub(super) async fn client(world: Rc<World>, asked: Asked) {
    let timeline = world.timeline.clone();
    timeline.sleep(asked.arrives).await;
    if asked.is_doubled {
        // The same again, at the same time; nobody waits for the answer.
        ask(&world, &asked, Call::Submit, timeline.between(1, 400)).await;
    }
    until_answered(&world, &asked, Call::Submit).await;
    timeline.note(&format!("{} is accepted", asked.key));
    world.accepted.borrow_mut().insert(asked.key.clone());
    match asked.fate {
        Fate::Cancelled => {
            timeline.sleep(timeline.between(0, 5_000)).await;
            until_answered(&world, &asked, Call::Cancel).await;
        }
        Fate::Kills(_) => {
            while !is_over(&world, &asked.key) {
                timeline.sleep(1_000).await;
            }
            if has_letter(&world, &asked.key) {
                until_answered(&world, &asked, Call::Replay).await;
            }
        }
        Fate::Answered | Fate::Refused | Fate::Hurried => {}
    }
    world.clients_left.set(world.clients_left.get() - 1);
}

/// Whether there is a letter to replay.
fn has_letter(world: &World, key: &JobKey) -> bool {
    let server = world.server.borrow();
    server.letters.contains_key(&(key.clone(), 0))
}

/// Whether the job has ended, with its letter if it needs one.
fn is_over(world: &World, key: &JobKey) -> bool {
    let record = world.latest(key);
    record.is_some_and(|record| record.state.is_final() && record.state != JobState::Failed)
        || has_letter(world, key)
}

async fn until_answered(world: &Rc<World>, asked: &Asked, call: Call) {
    while !ask(world, asked, call, PATIENCE).await {
        world.timeline.sleep(world.timeline.between(50, 500)).await;
    }
}

/// Asks one process of `ingest`, and waits so long for its answer. The call goes on when nobody waits any more.
async fn ask(world: &Rc<World>, asked: &Asked, call: Call, patience: u64) -> bool {
    let timeline = &world.timeline;
    let all = world.processes.iter();
    let desks: Vec<_> = all.filter(|process| process.role == Role::Ingest).collect();
    let chosen = timeline.between(0, desks.len() as u64 - 1) as usize;
    let process = Rc::clone(desks[chosen]);
    if !process.serves.get() {
        return false;
    }
    let answered = Rc::new(Cell::new(false));
    let wire = world.wire(&process);
    let task = timeline.start(answer(
        (Rc::clone(world), wire),
        asked.clone(),
        call,
        Rc::clone(&answered),
    ));
    process.tasks.borrow_mut().push(task);
    let end = timeline.now() + patience;
    while !answered.get() && timeline.now() < end {
        timeline.sleep(20).await;
    }
    answered.get()
}

async fn answer(
    (world, wire): (Rc<World>, Wire),
    asked: Asked,
    call: Call,
    answered: Rc<Cell<bool>>,
) {
    let done = match call {
        Call::Submit => accept(&world, &wire, &asked).await,
        Call::Cancel => cancel(&wire, &asked.key).await,
        Call::Replay => replay(&world, &wire, &asked.key).await,
    };
    // A call that broke is made again by its client.
    if let Ok(noted) = done {
        answered.set(true);
        if let Some(noted) = noted {
            // The sweep removes it otherwise.
            drop(forget(&wire, noted).await);
        }
    }
}

/// Accepts a job; the note to be removed when the client was told.
async fn accept(world: &World, wire: &Wire, asked: &Asked) -> Result<Option<u64>, Broken> {
    if let Some((known, _)) = wire.record(&asked.key).await? {
        announce(wire, &asked.key, &known).await?;
        return Ok(None);
    }
    let begun = wire.timeline.now();
    store_study(&world.blobs, asked).await?;
    let mut noted = note(wire, &asked.key).await?;
    let record = asked.record(&world.pool, stamp(world, wire, &asked.key));
    let found = wire.create(&asked.key, &record).await?;
    if wire.timeline.now() - begun > PENDING_AFTER / 2 {
        // So late that the sweep may have dropped the entry of an accept it took for abandoned.
        noted = note(wire, &asked.key).await?;
    }
    announce(wire, &asked.key, found.as_ref().unwrap_or(&record)).await?;
    Ok(Some(noted))
}

/// The time that a job is stamped with, which is the process's own until the queue has told it one.
fn stamp(world: &World, wire: &Wire, key: &JobKey) -> UnixMillis {
    if wire.process.told.get().is_none() {
        world.stamped_untold.borrow_mut().insert(key.clone());
    }
    wire.clock()
}

/// Sends what makes an accepted job go on. The event first, so that no later one can be stored ahead of it.
async fn announce(wire: &Wire, key: &JobKey, record: &JobRecord) -> Result<(), QueueError> {
    let Some(unit) = protocol::first(key, record) else {
        return Ok(());
    };
    wire.say(key, record).await?;
    wire.publish(Stream::Intake, &unit).await
}

async fn note(wire: &Wire, key: &JobKey) -> Result<u64, QueueError> {
    wire.ask("note an accept", |server, now| server.note(key, now))
        .await
}

async fn forget(wire: &Wire, noted: u64) -> Result<(), QueueError> {
    wire.ask("forget an accept", |server, _| server.forget(noted))
        .await
}

async fn cancel(wire: &Wire, key: &JobKey) -> Result<Option<u64>, Broken> {
    let now = wire.clock();
    match wire.apply_and_say(key, None, &Move::Cancel, now).await? {
        Applied::Refused { record, .. } => wire.say(key, &record).await?,
        // What it read is behind: the client asks again.
        Applied::Missing => return Err(Broken),
        Applied::Applied { .. } | Applied::OtherEpoch { .. } => {}
    }
    Ok(None)
}

/// Starts a job over whose first epoch failed. In time, or not at all.
async fn replay(world: &World, wire: &Wire, key: &JobKey) -> Result<Option<u64>, Broken> {
    let noted = note(wire, key).await?;
    let now = stamp(world, wire, key);
    let step = Move::Replay {
        expires: after(now, TIME_TO_LIVE),
    };
    let tried = {
        let moving = pin!(wire.apply_and_say(key, Some(0), &step, now));
        let late = pin!(wire.timeline.sleep(PENDING_AFTER / 2));
        match select(moving, late).await {
            Either::Left((tried, _)) => tried?,
            Either::Right(_) => return Err(Broken),
        }
    };
    match tried {
        Applied::Applied { record, .. } => announce(wire, key, &record).await?,
        Applied::Refused { record, .. } | Applied::OtherEpoch { record } if record.epoch > 0 => {
            announce(wire, key, &record).await?;
        }
        // What it read is behind: the client asks again.
        Applied::Refused { .. } | Applied::OtherEpoch { .. } | Applied::Missing => {
            forget(wire, noted).await?;
            return Err(Broken);
        }
    }
    wire.ask("discard a dead letter", |server, _| {
        server.letters.remove(&(key.clone(), 0));
    })
    .await?;
    Ok(Some(noted))
}

/// Finishes accepts whose process died between the record and the intake message, and queues again the jobs that were set
/// aside, for as long as the process runs.
pub(super) async fn sweep(wire: Wire) {
    loop {
        wire.timeline.sleep(SWEEP_EVERY).await;
        // What could not be done is done at the next pass.
        drop(sweep_once(&wire).await);
    }
}

async fn sweep_once(wire: &Wire) -> Result<(), QueueError> {
    let accepts = wire
        .ask("list the accepts", |server, now| {
            server.old_notes(&server.pending, now)
        })
        .await?;
    for (key, noted) in accepts {
        if let Some((record, _)) = wire.record(&key).await?
            && record.state == JobState::Accepted
        {
            announce(wire, &key, &record).await?;
        }
        forget(wire, noted).await?;
    }
    let aside = wire
        .ask("list the jobs that were set aside", |server, now| {
            server.old_notes(&server.aside, now)
        })
        .await?;
    for (key, noted) in aside {
        if let Some((record, _)) = wire.record(&key).await? {
            wire.say(&key, &record).await?;
            let mut is_out = false;
            for unit in protocol::outstanding(&key, &record) {
                if is_released(wire, &unit).await? {
                    is_out = true;
                } else {
                    wire.publish(Stream::Intake, &unit).await?;
                }
            }
            if !is_out {
                forget(wire, noted).await?;
            }
        }
    }
    Ok(())
}

/// Whether a unit of this name is with the workers.
async fn is_released(wire: &Wire, unit: &WorkUnit) -> Result<bool, QueueError> {
    let name = name_of(unit);
    wire.ask("look for a released unit", |server, _| {
        server.live(Stream::Work, &name).is_some()
    })
    .await
}

/// Whether a failure is what this fate means.
pub(super) fn is_meant(fate: Fate, reason: FailureReason) -> bool {
    match fate {
        Fate::Refused => reason == FailureReason::InputRefused,
        Fate::Kills(_) => reason == FailureReason::AttemptsExhausted,
        Fate::Answered | Fate::Cancelled | Fate::Hurried => false,
    }
}
