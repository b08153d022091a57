//! Deterministic simulation: the jobs of a seed go through a fleet in one process and in virtual time. At every wait a process
//! may crash, pause, or lose an answer; clocks differ and jump. A seed replays exactly, step by step.
//!
//! All decisions are made by the fleet's own pure code: core's state machine, `protocol` and `invariant`, and `unit.rs` of
//! `ingest`, `preprocess`, `encode` and `decode`. Only the loops around it, and the guarantees of nats-server and of the blob
//! store, are written here again; `docs/reliability.md` says what that leaves out.
//!
//! Reading order: `timeline` (true time), `clocks` (what each machine takes it for), `server` and `blobs` (what is promised),
//! `wire` (a process's way there), `slot` and `stages` (a worker), `desk` and `dispatcher` (`ingest`), `load` (jobs), `faults`,
//! `check`.

mod blobs;
mod check;
mod clocks;
mod desk;
mod dispatcher;
mod faults;
mod load;
mod server;
mod slot;
mod stages;
mod timeline;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use medfleet_core::{JobKey, JobRecord, PoolName};

use crate::fleet::Role;
use blobs::BlobShelf;
use clocks::WallClock;
use dispatcher::Hub;
use load::Asked;
use server::Server;
use slot::Slot;
use timeline::{Scheduler, Timeline};
use wire::{Process, Wire};

// Times in milliseconds of the timeline.
const ACK_WAIT: u64 = 2_000;
const REQUEST_TIMEOUT: u64 = 2_000;
const LEASE_TTL: u64 = 3_000;
const SWEEP_EVERY: u64 = 2_000;
/// As in `ingest`: how often it asks for the queue's time.
const ASK_TIME_EVERY: u64 = 10_000;
/// Four times the request timeout at least, as `ingest` demands.
const PENDING_AFTER: u64 = 4 * REQUEST_TIMEOUT;
/// How far behind a leader's answers may be that was cut off.
const OUTDATED_MAX: u64 = 6_000;
/// As in `ingest`: what changed meanwhile must be seen as it is.
const SWEEP_AGE: u64 = PENDING_AFTER / 2 + OUTDATED_MAX;
pub const JOBS: u64 = 40;
/// Until when jobs come and things go wrong.
const HORIZON: u64 = 60_000;
/// By when everything has come to rest, or never will.
const REST: u64 = HORIZON + 240_000;

const RETRIES_MAX: u32 = 4;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// Processes of each service, and units a worker takes at a time.
const INSTANCES: usize = 2;
const SLOTS: usize = 2;
const POOL: &str = "main";

/// A mistake around the pure code, to show that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// A record is stored whatever it was meanwhile.
    BlindStore,
    /// A unit that was refused as being there is believed to be there.
    BelievesRefusal,
    /// The tokens of a chunk are stored in the wrong order, with lists that agree.
    SwapsTokens,
    /// A fenced decode completes its job all the same.
    ForgetsFence,
    /// A worker ends a job for its time by its own clock, without asking for the queue's.
    ExpiresByOwnClock,
    /// A worker says itself until when a unit is its own, by its own clock.
    LeasesByOwnClock,
    /// Accepts are stamped by the clock of the process that makes them.
    StampsByOwnClock,
    /// A unit that cannot be read is removed, and nothing says that its job waits for it.
    ForgetsUnread,
}

/// What a seed came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    /// How many jobs ended how, by the word of the state.
    pub ends: BTreeMap<&'static str, u64>,
    /// How often what went wrong.
    pub faults: BTreeMap<&'static str, u64>,
    /// Milliseconds of virtual time.
    pub millis: u64,
    /// Made of every step: the same in every run of the seed.
    pub fingerprint: u64,
}

/// Runs a seed, with something wrong on purpose.
/// What does not hold is told with the seed and its last steps.
pub fn run(seed: u64, plant: Plant) -> Result<Report> {
    let timeline = Timeline::new(seed);
    let world = World::new(&timeline, plant)?;
    let mut scheduler = Scheduler::new(timeline.clone());
    for process in &world.processes {
        world.begin(process);
    }
    for asked in world.asked.values() {
        timeline.start(desk::client(Rc::clone(&world), asked.clone()));
    }
    timeline.start(faults::storm(Rc::clone(&world)));
    let is_done = || timeline.now() > HORIZON && check::is_at_rest(&world);
    let rests = scheduler.run(REST, is_done);
    let checked = match timeline.what_broke() {
        Some(what) => Err(anyhow::Error::msg(what)),
        None if rests => check::check(&world),
        None => Err(anyhow::Error::msg(check::unrest(&world))),
    };
    let ends = checked.with_context(|| {
        let steps = timeline.trace().join("\n");
        format!("virtual time, seed {seed}: the last steps were\n{steps}\nand then")
    })?;
    Ok(Report {
        seed,
        ends,
        faults: world.faults.take(),
        millis: timeline.now(),
        fingerprint: timeline.fingerprint(),
    })
}

struct World {
    timeline: Timeline,
    server: Rc<RefCell<Server>>,
    blobs: BlobShelf,
    processes: Vec<Rc<Process>>,
    asked: BTreeMap<JobKey, Asked>,
    /// Jobs of which a client was told.
    accepted: RefCell<BTreeSet<JobKey>>,
    /// Jobs that were stamped before the queue had told the time.
    stamped_untold: RefCell<BTreeSet<JobKey>>,
    clients_left: Cell<u64>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    pool: PoolName,
    plant: Plant,
}

impl World {
    fn new(timeline: &Timeline, plant: Plant) -> Result<Rc<Self>> {
        let jobs = load::jobs(timeline);
        if jobs.len() as u64 != JOBS {
            bail!("a tenant has a name that is none");
        }
        let roles = Role::ALL.iter().flat_map(|role| {
            (0..INSTANCES).map(move |number| {
                let clock = WallClock::new(timeline);
                Rc::new(Process::new(*role, number, clock))
            })
        });
        Ok(Rc::new(Self {
            timeline: timeline.clone(),
            server: Rc::new(RefCell::new(Server::new(plant, WallClock::new(timeline)))),
            blobs: BlobShelf::new(timeline.clone()),
            processes: roles.collect(),
            clients_left: Cell::new(JOBS),
            asked: jobs
                .into_iter()
                .map(|asked| (asked.key.clone(), asked))
                .collect(),
            accepted: RefCell::default(),
            stamped_untold: RefCell::default(),
            faults: RefCell::default(),
            pool: PoolName::new(POOL)?,
            plant,
        }))
    }

    fn latest(&self, key: &JobKey) -> Option<JobRecord> {
        let server = self.server.borrow();
        server.latest(key).map(|version| version.record.clone())
    }

    /// How often something went wrong while a job was in somebody's hands.
    fn mishaps(&self, key: &JobKey) -> u32 {
        let all = self.processes.iter();
        all.filter_map(|process| process.mishaps.borrow().get(key).copied())
            .sum()
    }

    fn wire(&self, process: &Rc<Process>) -> Wire {
        Wire {
            timeline: self.timeline.clone(),
            server: Rc::clone(&self.server),
            process: Rc::clone(process),
            plant: self.plant,
        }
    }

    fn begin(self: &Rc<Self>, process: &Rc<Process>) {
        process.is_up.set(true);
        process.drain_until.set(None);
        let Some(stage) = process.role.stage() else {
            let serving = Rc::clone(self).serve(Rc::clone(process));
            let serving = self.timeline.start(serving);
            process.tasks.borrow_mut().push(serving);
            return;
        };
        let mut tasks = process.tasks.borrow_mut();
        for _ in 0..SLOTS {
            let slot = Slot {
                world: Rc::clone(self),
                wire: self.wire(process),
                stage,
            };
            tasks.push(self.timeline.start(slot.run()));
        }
    }

    /// What a process of `ingest` does: asks for the queue's time before anything else, and again and again.
    async fn serve(self: Rc<Self>, process: Rc<Process>) {
        let wire = self.wire(&process);
        wire.ask_time().await;
        process.serves.set(true);
        let hub = Rc::new(Hub::new());
        let leading = (Rc::clone(&self), self.wire(&process));
        let tasks = [
            self.timeline.start(desk::sweep(self.wire(&process))),
            self.timeline
                .start(Rc::clone(&hub).follow(self.wire(&process))),
            self.timeline.start(dispatcher::run(leading, hub)),
        ];
        process.tasks.borrow_mut().extend(tasks);
        loop {
            wire.timeline.sleep(ASK_TIME_EVERY).await;
            wire.ask_time().await;
        }
    }

    /// Ends a process where it stands, and starts it again a while later.
    fn kill(self: &Rc<Self>, process: &Rc<Process>, away: u64) {
        if !process.is_up.replace(false) {
            return;
        }
        process.count_mishaps();
        process.at_work.borrow_mut().clear();
        process.serves.set(false);
        process.told.set(None);
        for task in process.tasks.take() {
            self.timeline.kill(task);
        }
        let (world, process) = (Rc::clone(self), Rc::clone(process));
        self.timeline.start(async move {
            world.timeline.sleep(away).await;
            world.begin(&process);
        });
    }
}
