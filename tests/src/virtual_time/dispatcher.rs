//! The dispatcher: one leader by lease, the others ready to take over. What it releases next, what it forgets and what is due
//! is decided by `ingest`'s own index and ledger (`unit.rs`); its loop is written here again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;

use futures::future::select;
use medfleet_core::{JobKey, Move, Stage, UnixMillis, protocol};
use medfleet_ingest::unit::ledger::{Ledger, Sighting};
use medfleet_ingest::unit::{Held, InFlightMax, Index, Place, Rules, Weights};
use medfleet_queue::{Applied, QueueError};

use super::server::{Event, Stream};
use super::wire::Wire;
use super::{LEASE_TTL, SLOTS, World};

const RECOUNT_EVERY: u64 = 1_000;
const EXPIRE_EVERY: u64 = 2_000;
const RELEASES_MAX: usize = 16;
/// A unit that waited longer than this is released only after a look at its job, in milliseconds.
const LOOK_AFTER: i64 = 2_000;

/// What one process of `ingest` knows of open jobs, and what its dispatcher has not heard yet.
pub(super) struct Hub {
    ledger: RefCell<Ledger>,
    unheard: RefCell<Vec<Event>>,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            ledger: RefCell::default(),
            unheard: RefCell::default(),
        }
    }

    /// Follows the events from now on, and reads all records once: what happened before is found there.
    pub(super) async fn follow(self: Rc<Self>, wire: Wire) {
        let mut heard = wire.server.borrow().events.len();
        while self.scan(&wire).await.is_err() {
            wire.timeline.sleep(250).await;
        }
        loop {
            let from = heard;
            let news = wire.ask("read events", |server, _| {
                server.events.get(from..).unwrap_or_default().to_vec()
            });
            if let Ok(news) = news.await {
                heard += news.len();
                for event in &news {
                    let sighting = Sighting::from(&event.record);
                    self.ledger.borrow_mut().take(&event.key, sighting);
                }
                self.unheard.borrow_mut().extend(news);
            }
            wire.timeline.sleep(20).await;
        }
    }

    async fn scan(&self, wire: &Wire) -> Result<(), QueueError> {
        self.ledger.borrow_mut().begin_scan();
        let all = wire.records().await?;
        let mut ledger = self.ledger.borrow_mut();
        for (key, record) in &all {
            ledger.take(key, Sighting::from(record));
        }
        ledger.end_scan();
        Ok(())
    }

    fn due(&self, now: UnixMillis) -> Vec<(JobKey, u32)> {
        let mut due = self.ledger.borrow().due(now);
        // In an order that the seed alone decides.
        due.sort();
        due
    }
}

/// What a session of one leader works with.
struct Session<'a> {
    wire: &'a Wire,
    world: &'a World,
    hub: &'a Hub,
    index: Index,
    /// The latest intake message taken.
    read: u64,
    leftovers: BTreeSet<Place>,
}

/// Leads whenever the lease is free.
pub(super) async fn run((world, wire): (Rc<World>, Wire), hub: Rc<Hub>) {
    let holder = wire.process.name();
    loop {
        let lease = wire
            .ask("ask for the lease", |server, now| {
                server.lead(&holder, false, now)
            })
            .await;
        if matches!(lease, Ok(true)) {
            wire.timeline.note(&format!("{holder} leads"));
            let held = pin!(hold(&wire, &holder));
            let session = pin!(lead(&world, &wire, &hub));
            // A session ends with its lease only.
            let _ended = select(held, session).await;
            wire.timeline.note(&format!("{holder} leads no more"));
        }
        wire.timeline.sleep(RECOUNT_EVERY).await;
    }
}

/// Renews the lease; returns when it is lost, or may be.
async fn hold(wire: &Wire, holder: &str) {
    let mut ends = wire.timeline.now() + LEASE_TTL;
    loop {
        wire.timeline.sleep(LEASE_TTL / 3).await;
        let asked = wire.timeline.now();
        let renewed = wire.ask("renew the lease", |server, now| {
            server.lead(holder, true, now)
        });
        match renewed.await {
            Ok(true) => ends = asked + LEASE_TTL,
            Ok(false) => return,
            Err(_) if wire.timeline.now() >= ends => return,
            Err(_) => {}
        }
    }
}

async fn lead(world: &World, wire: &Wire, hub: &Hub) {
    let mut session = Session {
        wire,
        world,
        hub,
        index: Index::new(rules()),
        read: 0,
        leftovers: BTreeSet::new(),
    };
    hub.unheard.borrow_mut().clear();
    let (mut recount_at, mut expire_at) = (0, 0);
    loop {
        let now = wire.timeline.now();
        if now >= recount_at {
            recount_at = now + RECOUNT_EVERY;
            session.recount().await;
            session.remove_leftovers().await;
        }
        if now >= expire_at {
            expire_at = now + EXPIRE_EVERY;
            session.expire().await;
        }
        session.hear().await;
        session.release().await;
        wire.timeline.sleep(20).await;
    }
}

fn rules() -> Rules {
    Rules {
        weights: Weights::new(),
        ahead_millis: 2_000,
        released_units_max: 64,
        age_millis: 20_000,
        aged_every: 8,
        decode_reserved: [1, 0, 0],
        in_flight_max: InFlightMax {
            default: Some(8),
            tenants: BTreeMap::new(),
        },
    }
}

impl Session<'_> {
    /// Takes the units that wait and the ends of jobs.
    async fn hear(&mut self) {
        let read = self.read;
        let entries = self
            .wire
            .ask("read the intake", |server, _| server.intake_after(read))
            .await;
        for entry in entries.unwrap_or_default() {
            self.read = self.read.max(entry.sequence);
            self.index.insert(Held::from(entry));
        }
        let news = self.hub.unheard.take();
        for Event { key, record } in news {
            if record.state.is_final() {
                let places = self.index.remove_job(&key, record.epoch);
                self.leftovers.extend(places);
            }
        }
    }

    async fn recount(&mut self) {
        for stage in Stage::ALL {
            let all = self.world.processes.iter();
            let up =
                all.filter(|process| process.role.stage() == Some(*stage) && process.is_up.get());
            let lane = (*stage, self.world.pool.clone());
            self.index.set_slots(&lane, (up.count() * SLOTS) as u64);
            let counted = self
                .wire
                .ask("count released units", |server, now| {
                    server.outstanding(*stage, now)
                })
                .await;
            // Otherwise the old count stands: nothing is released beyond it.
            if let Ok(counted) = counted {
                self.index.recount(&lane, &counted);
            }
        }
    }

    async fn remove_leftovers(&mut self) {
        let some: Vec<Place> = self.leftovers.iter().copied().collect();
        for place in some {
            let removed = self.wire.delete(Stream::Intake, place.sequence).await;
            if removed.is_ok() {
                self.leftovers.remove(&place);
            }
        }
    }

    /// Performs every release that the index decides.
    async fn release(&mut self) {
        loop {
            let open = {
                let ledger = self.hub.ledger.borrow();
                let tenants = ledger.tenants();
                tenants
                    .map(|(tenant, count)| (tenant.clone(), count))
                    .collect()
            };
            self.index.set_open_jobs(open);
            let batch = self.index.take(RELEASES_MAX, self.wire.clock());
            if batch.is_empty() {
                return;
            }
            for held in batch {
                let place = held.place();
                match self.try_release(&held).await {
                    Ok(true) => {
                        if self
                            .wire
                            .delete(Stream::Intake, place.sequence)
                            .await
                            .is_err()
                        {
                            self.leftovers.insert(place);
                        }
                    }
                    Ok(false) => {
                        self.index.uncount(&held);
                        self.leftovers.insert(place);
                    }
                    Err(_) => self.index.put_back(held),
                }
            }
        }
    }

    /// True when the unit is with the workers, false when its job needs it no more.
    async fn try_release(&self, held: &Held) -> Result<bool, QueueError> {
        let (unit, now) = (&held.unit, self.wire.clock());
        if unit.expires <= now {
            let now = self.wire.time().await?;
            if unit.expires <= now {
                self.expire_job(&unit.key, unit.epoch, now).await?;
                return Ok(false);
            }
        }
        if now.0 - held.stored_at.0 > LOOK_AFTER
            && let Some((record, _)) = self.wire.record(&unit.key).await?
            && !protocol::is_wanted(unit, &record)
        {
            return Ok(false);
        }
        self.wire.publish(Stream::Work, unit).await?;
        Ok(true)
    }

    /// `now` by the queue's clock.
    async fn expire_job(
        &self,
        key: &JobKey,
        epoch: u32,
        now: UnixMillis,
    ) -> Result<(), QueueError> {
        let expired = self
            .wire
            .apply_and_say(key, Some(epoch), &Move::Expire, now)
            .await?;
        match expired {
            Applied::Applied { .. } => {
                self.wire.timeline.note(&format!("{key} is expired"));
                Ok(())
            }
            Applied::Refused { record, .. } => self.wire.say(key, &record).await,
            // It was replayed.
            Applied::OtherEpoch { record } if record.epoch > epoch => Ok(()),
            // What it read is behind: records are not forgotten here.
            Applied::OtherEpoch { .. } | Applied::Missing => {
                Err(QueueError::unavailable("end a job whose time is over"))
            }
        }
    }

    /// Ends jobs whose time is over by the queue's clock, wherever they stand.
    async fn expire(&mut self) {
        let Ok(now) = self.wire.time().await else {
            return;
        };
        for (key, epoch) in self.hub.due(now) {
            if self.expire_job(&key, epoch, now).await.is_ok() {
                self.hub.ledger.borrow_mut().end(&key, epoch);
                let places = self.index.remove_job(&key, epoch);
                self.leftovers.extend(places);
            }
        }
    }
}
