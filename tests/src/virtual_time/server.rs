//! The guarantees of nats-server, in memory: records by compare-and-set with their history, one live message per unit, redelivery
//! after the acknowledge wait, acknowledgements that name a message and not its holder, and events and dead letters that are
//! stored once. Its waits and leases are over when its own clock says so, as nats-server's are. Every change of a record is
//! looked at here, whoever made it: what may never be stored ends the run.

use std::collections::{BTreeMap, BTreeSet};

use medfleet_core::{Class, Failure, JobKey, JobRecord, Stage, UnixMillis, WorkUnit, invariant};
use medfleet_queue::{Backlog, IntakeEntry, Outstanding, event_token};

use super::clocks::WallClock;
use super::timeline::after;
use super::{LEASE_TTL, Plant, SWEEP_AGE};

/// Jobs that somebody has to look at, each with its note's revision and time.
pub(super) type Notes = BTreeMap<JobKey, (u64, UnixMillis)>;

pub(super) type Name = (Stage, JobKey, u32);

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Intake,
    Work,
}

/// A record as it was stored.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) at: u64,
    pub(super) revision: u64,
    pub(super) record: JobRecord,
}

#[derive(Debug, Clone)]
struct Message {
    sequence: u64,
    unit: WorkUnit,
    stored_at: UnixMillis,
    deliveries: u64,
    /// Until when it is its worker's.
    out_until: Option<UnixMillis>,
    /// When it may be delivered.
    not_before: UnixMillis,
}

/// A message in a worker's hands.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) unit: WorkUnit,
    pub(super) sequence: u64,
    pub(super) deliveries: u64,
}

/// What was said of a job.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) key: JobKey,
    pub(super) record: JobRecord,
}

#[derive(Debug, Clone)]
struct Lease {
    holder: String,
    until: UnixMillis,
}

/// The server. Times in milliseconds are those of the timeline, times of day those of its clock.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) plant: Plant,
    pub(super) clock: WallClock,
    /// Nobody answers until then.
    pub(super) down_until: u64,
    /// Until the first time, a leader that was cut off may answer with a state as old as the second.
    pub(super) outdated: (u64, u64),
    pub(super) records: BTreeMap<JobKey, Vec<Version>>,
    pub(super) events: Vec<Event>,
    pub(super) letters: BTreeMap<(JobKey, u32), Failure>,
    pub(super) pending: Notes,
    /// Jobs of which a unit was removed.
    pub(super) aside: Notes,
    /// The first thing that may never be stored.
    pub(super) broken: Option<String>,
    streams: BTreeMap<(Stream, Name), Message>,
    event_names: BTreeSet<(JobKey, String)>,
    /// Subjects whose leader has promised a message that will be lost, and until when it refuses another one.
    promised: BTreeMap<(Stream, Name), u64>,
    lease: Option<Lease>,
    serial: u64,
}

/// The subject of a unit.
pub(super) fn name_of(unit: &WorkUnit) -> Name {
    (unit.stage, unit.key.clone(), unit.unit)
}

impl Server {
    pub(super) fn new(plant: Plant, clock: WallClock) -> Self {
        Self {
            plant,
            clock,
            down_until: 0,
            outdated: (0, 0),
            records: BTreeMap::new(),
            events: Vec::new(),
            letters: BTreeMap::new(),
            pending: Notes::new(),
            aside: Notes::new(),
            broken: None,
            streams: BTreeMap::new(),
            event_names: BTreeSet::new(),
            promised: BTreeMap::new(),
            lease: None,
            serial: 0,
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The record as it is.
    pub(super) fn latest(&self, key: &JobKey) -> Option<&Version> {
        self.records.get(key)?.last()
    }

    /// The record as it was at a time, and not before the revision that the reader wrote itself.
    pub(super) fn read(&self, key: &JobKey, at: u64, own: u64) -> Option<Version> {
        let mut versions = self.records.get(key)?.iter();
        let seen = versions.rfind(|version| version.at <= at || version.revision <= own);
        seen.cloned()
    }

    /// Stores a record that is not there yet. None when it is.
    pub(super) fn create(&mut self, key: &JobKey, record: JobRecord, now: u64) -> Option<u64> {
        if self.records.contains_key(key) {
            return None;
        }
        if let Some(wrong) = invariant::violation(&record) {
            self.note_broken(key, wrong);
        }
        let revision = self.next_serial();
        let version = Version {
            at: now,
            revision,
            record,
        };
        self.records.insert(key.clone(), vec![version]);
        Some(revision)
    }

    /// Stores a record if the latest is of this revision. None when it is not.
    pub(super) fn update(
        &mut self,
        key: &JobKey,
        record: JobRecord,
        revision: u64,
        now: u64,
    ) -> Option<u64> {
        let before = self.latest(key)?;
        if before.revision != revision && self.plant != Plant::BlindStore {
            return None;
        }
        if let Some(wrong) = wrong_step(&before.record, &record) {
            self.note_broken(key, wrong);
        }
        let revision = self.next_serial();
        let version = Version {
            at: now,
            revision,
            record,
        };
        self.records.entry(key.clone()).or_default().push(version);
        Some(revision)
    }

    fn note_broken(&mut self, key: &JobKey, wrong: &str) {
        self.broken.get_or_insert(format!("{key}: {wrong}"));
    }

    /// Stores a unit. False when there is one under its subject, or was said to be.
    pub(super) fn publish(&mut self, stream: Stream, unit: &WorkUnit, now: u64) -> bool {
        let subject = (stream, name_of(unit));
        let is_promised = self
            .promised
            .get(&subject)
            .is_some_and(|until| *until > now);
        if is_promised || self.streams.contains_key(&subject) {
            return false;
        }
        let message = Message {
            sequence: self.next_serial(),
            unit: unit.clone(),
            stored_at: self.clock.time(now),
            deliveries: 0,
            out_until: None,
            not_before: UnixMillis(0),
        };
        self.streams.insert(subject, message);
        true
    }

    /// A leader proposes a unit and dies with its proposal: nothing is stored, and others are refused meanwhile.
    pub(super) fn promise(&mut self, stream: Stream, unit: &WorkUnit, until: u64) {
        let subject = (stream, name_of(unit));
        if !self.streams.contains_key(&subject) {
            self.promised.insert(subject, until);
        }
    }

    /// What is under a subject.
    pub(super) fn live(&self, stream: Stream, name: &Name) -> Option<(u64, WorkUnit)> {
        let message = self.streams.get(&(stream, name.clone()))?;
        Some((message.sequence, message.unit.clone()))
    }

    pub(super) fn delete(&mut self, stream: Stream, sequence: u64) {
        self.streams
            .retain(|(place, _), message| *place != stream || message.sequence != sequence);
    }

    /// The units that wait for release behind a sequence, oldest first.
    pub(super) fn intake_after(&self, sequence: u64) -> Vec<IntakeEntry> {
        let all = self.streams.iter();
        let waiting = all.filter(|((stream, _), message)| {
            *stream == Stream::Intake && message.sequence > sequence
        });
        let mut entries: Vec<IntakeEntry> = waiting
            .map(|(_, message)| IntakeEntry {
                unit: message.unit.clone(),
                sequence: message.sequence,
                headers: Vec::new(),
                stored_at: message.stored_at,
            })
            .collect();
        entries.sort_by_key(|entry| entry.sequence);
        entries
    }

    /// Gives the most urgent unit of a stage to a worker, whose it is until then.
    pub(super) fn pull(&mut self, stage: Stage, now: u64, until: UnixMillis) -> Option<Delivery> {
        let time = self.clock.time(now);
        let all = self.streams.iter_mut();
        let free = all.filter(|((stream, name), message)| {
            *stream == Stream::Work
                && name.0 == stage
                && message.not_before <= time
                && message.out_until.is_none_or(|until| until <= time)
        });
        let (_, message) =
            free.min_by_key(|(_, message)| (message.unit.class, message.sequence))?;
        message.out_until = Some(until);
        message.deliveries += 1;
        Some(Delivery {
            unit: message.unit.clone(),
            sequence: message.sequence,
            deliveries: message.deliveries,
        })
    }

    /// Begins the acknowledge wait anew, whoever asks.
    pub(super) fn progress(&mut self, sequence: u64, until: UnixMillis) {
        if let Some(message) = self.work_of(sequence)
            && message.out_until.is_some()
        {
            message.out_until = Some(until);
        }
    }

    /// Takes a message from whoever has it, to be delivered again later.
    pub(super) fn hand_back(&mut self, sequence: u64, millis: u64, now: u64) {
        let not_before = after(self.clock.time(now), millis);
        if let Some(message) = self.work_of(sequence)
            && message.out_until.take().is_some()
        {
            message.not_before = not_before;
        }
    }

    fn work_of(&mut self, sequence: u64) -> Option<&mut Message> {
        let mut all = self.streams.iter_mut();
        all.find(|((stream, _), message)| *stream == Stream::Work && message.sequence == sequence)
            .map(|(_, message)| message)
    }

    /// Released, unfinished units of a stage.
    pub(super) fn outstanding(&self, stage: Stage, now: u64) -> Outstanding {
        let time = self.clock.time(now);
        let of = |class: Class| {
            let all = self.streams.iter();
            let units = all.filter(|((stream, name), message)| {
                *stream == Stream::Work && name.0 == stage && message.unit.class == class
            });
            let mut backlog = Backlog::default();
            for (_, message) in units {
                if message.out_until.is_some_and(|until| until > time) {
                    backlog.in_flight += 1;
                } else {
                    backlog.waiting += 1;
                }
            }
            backlog
        };
        Outstanding {
            stat: of(Class::Stat),
            urgent: of(Class::Urgent),
            routine: of(Class::Routine),
            bulk: of(Class::Bulk),
        }
    }

    /// Every unit that waits or is held, for the check.
    pub(super) fn left(&self) -> Vec<String> {
        let left = self.streams.iter().map(|((stream, name), message)| {
            let (stage, key, unit) = name;
            format!(
                "{stream:?} {stage} {key} {unit} epoch {}",
                message.unit.epoch
            )
        });
        left.collect()
    }

    /// Stores the event of where a record stands; the same event once.
    pub(super) fn say(&mut self, key: &JobKey, record: &JobRecord) {
        if self.event_names.insert((key.clone(), event_token(record))) {
            self.events.push(Event {
                key: key.clone(),
                record: record.clone(),
            });
        }
    }

    /// Stores a dead letter; of a job's epoch the first.
    pub(super) fn bury(&mut self, unit: &WorkUnit, failure: &Failure) {
        self.letters
            .entry((unit.key.clone(), unit.epoch))
            .or_insert_with(|| failure.clone());
    }

    /// Notes an accept that may break.
    pub(super) fn note(&mut self, key: &JobKey, now: u64) -> u64 {
        let revision = self.next_serial();
        let time = self.clock.time(now);
        self.pending.insert(key.clone(), (revision, time));
        revision
    }

    /// Notes that a unit of the job is about to be removed.
    pub(super) fn set_aside(&mut self, key: &JobKey, now: u64) {
        let note = (self.next_serial(), self.clock.time(now));
        self.aside.insert(key.clone(), note);
    }

    /// The notes that are old enough for the sweep.
    pub(super) fn old_notes(&self, notes: &Notes, now: u64) -> Vec<(JobKey, u64)> {
        let time = self.clock.time(now);
        let old = notes
            .iter()
            .filter(|(_, (_, at))| after(*at, SWEEP_AGE) <= time);
        old.map(|(key, (noted, _))| (key.clone(), *noted)).collect()
    }

    pub(super) fn forget(&mut self, revision: u64) {
        self.pending.retain(|_, (noted, _)| *noted != revision);
        self.aside.retain(|_, (noted, _)| *noted != revision);
    }

    /// Takes the dispatcher's lease if it is free, or makes one's own last longer.
    pub(super) fn lead(&mut self, holder: &str, is_renewal: bool, now: u64) -> bool {
        let time = self.clock.time(now);
        let found = self.lease.as_ref().filter(|lease| lease.until > time);
        let is_ours = match found {
            Some(lease) => is_renewal && lease.holder == holder,
            None => !is_renewal,
        };
        if is_ours {
            self.lease = Some(Lease {
                holder: holder.to_owned(),
                until: after(time, LEASE_TTL),
            });
        }
        is_ours
    }
}

/// What a change of a record may not do: what is forbidden everywhere, and to open a chunk again.
fn wrong_step(before: &JobRecord, after: &JobRecord) -> Option<&'static str> {
    let opened = before.chunks.done_bitmap & !after.chunks.done_bitmap;
    if before.epoch == after.epoch && opened != 0 {
        return Some("a chunk that was encoded is open again");
    }
    invariant::violated_by_step(before, after)
}
