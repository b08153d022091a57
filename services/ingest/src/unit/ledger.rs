//! Every job that has not ended, as events and records tell: how many each tenant has, when they expire, and how much work
//! they still are at each stage, also at stages they have not come to. Pure; every replica has its own and all say the same.

use std::collections::{BTreeMap, HashMap};

use medfleet_core::{
    Class, Cost, JobKey, JobRecord, JobState, PoolName, Stage, TenantId, UnixMillis,
};

/// What an event or a record says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its epoch.
    pub epoch: u32,
    /// Where it stands.
    pub state: JobState,
    /// Encode chunks in all.
    pub chunks_total: u32,
    /// Those that are encoded.
    pub chunks_done: u32,
    /// Whose workers serve it.
    pub pool: PoolName,
    /// The class it is served in.
    pub class: Class,
    /// What it is expected to take.
    pub cost: Cost,
    /// When it becomes expired.
    pub expires: UnixMillis,
}

impl From<&JobRecord> for Sighting {
    fn from(record: &JobRecord) -> Self {
        Self {
            epoch: record.epoch,
            state: record.state,
            chunks_total: record.chunks.total,
            chunks_done: record.chunks.done(),
            pool: record.pool.clone(),
            class: record.class,
            cost: record.cost,
            expires: record.expires,
        }
    }
}

impl Sighting {
    /// How far it is; a job never goes back.
    fn progress(&self) -> (u32, JobState, u32) {
        (self.epoch, self.state, self.chunks_done)
    }

    /// Whether all its images are encoded and no text is begun.
    fn is_encoded(&self) -> bool {
        let state = match self.chunks_total {
            0 => JobState::Preprocessed,
            _ => JobState::Encoding,
        };
        self.state == state && self.chunks_done >= self.chunks_total
    }

    /// What it adds to its tenant's jobs.
    fn counts(&self) -> Open {
        Open {
            all: 1,
            encoded: u64::from(self.is_encoded()),
            at_hub: u64::from(self.state == JobState::Forwarded),
        }
    }

    /// What is left of its work at a stage, in milliseconds of a slot.
    fn remaining(&self, stage: Stage) -> u64 {
        if self.state == JobState::Forwarded {
            // The hub's work.
            return 0;
        }
        let whole = self.cost.at(stage);
        match stage {
            Stage::Preprocess if self.state < JobState::Preprocessed => whole,
            Stage::Encode if self.state < JobState::Preprocessed => whole,
            Stage::Encode if self.state <= JobState::Encoding => {
                let open = self.chunks_total.saturating_sub(self.chunks_done);
                whole * u64::from(open) / u64::from(self.chunks_total.max(1))
            }
            Stage::Decode => whole,
            Stage::Preprocess | Stage::Encode => 0,
        }
    }
}

/// A tenant's jobs that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Open {
    /// All of them.
    pub all: u64,
    /// Of these, those whose images are all encoded and of which no text is begun: at a hospital's edge they wait for the hub.
    pub encoded: u64,
    /// Of these, those that the hub does.
    pub at_hub: u64,
}

impl Open {
    fn add(&mut self, more: Self) {
        self.all += more.all;
        self.encoded += more.encoded;
        self.at_hub += more.at_hub;
    }

    fn take(&mut self, less: Self) {
        self.all -= less.all;
        self.encoded -= less.encoded;
        self.at_hub -= less.at_hub;
    }
}

/// Ended jobs that are remembered, at the least: several minutes' worth of a busy fleet, in a few MiB.
const ENDED_MIN: usize = 16_384;

/// The epochs in which the latest jobs ended: no word that comes later, of an event that was overtaken or of a page of
/// records that was read before, may bring them back.
#[derive(Debug, Default)]
struct Ended {
    latest: HashMap<JobKey, u32>,
    before: HashMap<JobKey, u32>,
}

impl Ended {
    fn note(&mut self, key: &JobKey, epoch: u32) {
        let known = self.latest.entry(key.clone()).or_default();
        *known = epoch.max(*known);
    }

    /// Forgets the oldest, if there are many.
    fn shrink(&mut self) {
        if self.latest.len() >= ENDED_MIN {
            self.before = std::mem::take(&mut self.latest);
        }
    }

    fn holds(&self, key: &JobKey, epoch: u32) -> bool {
        let has = |ended: &HashMap<JobKey, u32>| ended.get(key).is_some_and(|last| *last >= epoch);
        has(&self.latest) || has(&self.before)
    }
}

/// What is known of a job that has not ended.
#[derive(Debug)]
struct Known {
    sighting: Sighting,
    /// The latest scan in which it was seen.
    seen: u32,
    /// The round in which it came further.
    moved: u32,
}

/// The jobs that have not ended.
#[derive(Debug, Default)]
pub struct Ledger {
    open: HashMap<JobKey, Known>,
    of_tenant: HashMap<TenantId, Open>,
    /// The scan under way, or the last one.
    scan: u32,
    is_scanning: bool,
    /// The round under way.
    round: u32,
    ended: Ended,
}

impl Ledger {
    /// A reading of all records begins.
    pub fn begin_scan(&mut self) {
        self.scan += 1;
        self.is_scanning = true;
    }

    /// What was known before the scan under way and has not been seen since it began.
    pub fn unseen(&self) -> Vec<JobKey> {
        let unseen = self.open.iter();
        let unseen = unseen.filter(|(_, known)| known.seen < self.scan);
        unseen.map(|(key, _)| key.clone()).collect()
    }

    /// What could not be asked for stays as it is known.
    pub fn keep(&mut self, key: &JobKey) {
        if let Some(known) = self.open.get_mut(key) {
            known.seen = self.scan;
        }
    }

    /// Ends a round and begins the next. Gives the jobs that have not come further in the one that ends, and were known before
    /// it.
    pub fn next_round(&mut self) -> Vec<JobKey> {
        let ends = self.round;
        self.round += 1;
        let still = self.open.iter().filter(|(_, known)| known.moved < ends);
        still.map(|(key, _)| key.clone()).collect()
    }

    /// Whether a job has come no further in the round under way either.
    pub fn stands_still(&self, key: &JobKey) -> bool {
        self.open
            .get(key)
            .is_some_and(|known| known.moved < self.round)
    }

    /// It has ended: what was seen neither in a record nor in an event since its beginning is gone.
    pub fn end_scan(&mut self) {
        self.is_scanning = false;
        for key in self.unseen() {
            self.remove(&key);
        }
    }

    /// Takes what is said of a job.
    pub fn take(&mut self, key: &JobKey, sighting: Sighting) {
        if sighting.state.is_final() {
            return self.end(key, sighting.epoch);
        }
        if self.ended.holds(key, sighting.epoch) {
            return;
        }
        let (seen, moved) = (self.scan, self.round);
        match self.open.get_mut(key) {
            Some(known) => {
                known.seen = seen;
                if known.sighting.progress() < sighting.progress() {
                    known.moved = moved;
                }
                if known.sighting.progress() <= sighting.progress() {
                    let counts = self.of_tenant.entry(key.tenant.clone()).or_default();
                    counts.add(sighting.counts());
                    counts.take(known.sighting.counts());
                    known.sighting = sighting;
                }
            }
            None => {
                let counts = self.of_tenant.entry(key.tenant.clone()).or_default();
                counts.add(sighting.counts());
                let known = Known {
                    sighting,
                    seen,
                    moved,
                };
                self.open.insert(key.clone(), known);
            }
        }
    }

    /// A job has ended in this epoch; one that was started over since goes on.
    pub fn end(&mut self, key: &JobKey, epoch: u32) {
        self.ended.note(key, epoch);
        // A scan of any length needs all that ended during it.
        if !self.is_scanning {
            self.ended.shrink();
        }
        if self.epoch(key).is_some_and(|known| known <= epoch) {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &JobKey) {
        if let Some(known) = self.open.remove(key)
            && let Some(counts) = self.of_tenant.get_mut(&key.tenant)
        {
            counts.take(known.sighting.counts());
            if counts.all == 0 {
                self.of_tenant.remove(&key.tenant);
            }
        }
    }

    /// The epoch of a job that has not ended.
    fn epoch(&self, key: &JobKey) -> Option<u32> {
        self.open.get(key).map(|known| known.sighting.epoch)
    }

    /// How many jobs of a tenant have not ended.
    pub fn open_jobs(&self, tenant: &TenantId) -> u64 {
        self.of_tenant.get(tenant).map_or(0, |counts| counts.all)
    }

    /// Whether a tenant has no more of the open jobs than its part, were there one tenant more than there is.
    #[must_use]
    pub fn has_few(&self, tenant: &TenantId) -> bool {
        let parts = self.of_tenant.len() as u64 + 1;
        let all: u64 = self.of_tenant.values().map(|counts| counts.all).sum();
        self.open_jobs(tenant).saturating_mul(parts) <= all
    }

    /// Every tenant with open jobs, and how many it has.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, u64)> {
        self.of_tenant
            .iter()
            .map(|(tenant, counts)| (tenant, counts.all))
    }

    /// As [`Ledger::tenants`], and how far their jobs are.
    pub fn counts(&self) -> impl Iterator<Item = (&TenantId, Open)> {
        self.of_tenant
            .iter()
            .map(|(tenant, counts)| (tenant, *counts))
    }

    /// Jobs whose time is over.
    pub fn due(&self, now: UnixMillis) -> Vec<(JobKey, u32)> {
        let due = self
            .open
            .iter()
            .filter(|(_, known)| known.sighting.expires <= now);
        due.map(|(key, known)| (key.clone(), known.sighting.epoch))
            .collect()
    }

    /// Slot time that the open jobs still are, in milliseconds; of the named pools also where there is nothing.
    pub fn backlog(&self, pools: &[PoolName]) -> BTreeMap<(Stage, PoolName, Class), u64> {
        let mut all = BTreeMap::new();
        for stage in Stage::ALL {
            for class in Class::ALL {
                for pool in pools {
                    all.insert((*stage, pool.clone(), *class), 0);
                }
            }
            for Known {
                sighting: known, ..
            } in self.open.values()
            {
                let key = (*stage, known.pool.clone(), known.class);
                *all.entry(key).or_default() += known.remaining(*stage);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests;
