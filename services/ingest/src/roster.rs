//! Who works: what each worker last said of itself, until it has been silent for too long.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use medfleet_core::{PoolName, Stage};
use medfleet_proto::work::v1::WorkerPresence;
use medfleet_queue::Queue;
use medfleet_runtime::Shutdown;
use medfleet_worker::PRESENCE_EVERY;
use tokio::time::Instant;

/// Silence after which a worker is gone.
const SILENCE_MAX: Duration = PRESENCE_EVERY.saturating_mul(5);
/// Pause before a broken subscription is made again.
const AGAIN: Duration = Duration::from_millis(250);
/// Workers that are remembered; a fleet has far fewer, and a flood must not fill memory.
const WORKERS_MAX: usize = 10_000;
/// Bytes of a worker's name; ours have 22.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) stage: Stage,
    pub(crate) pool: PoolName,
    pub(crate) slots: u32,
    pub(crate) stat_slots: u32,
    pub(crate) busy: u32,
    pub(crate) version: String,
    pub(crate) is_draining: bool,
    heard: Instant,
}

/// The workers of one (stage, pool) together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Crew {
    pub(crate) workers: u64,
    pub(crate) slots: u64,
    /// For units of STAT alone, beside the others.
    pub(crate) stat_slots: u64,
    pub(crate) busy: u64,
}

/// All workers by their name. All clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roster {
    members: Arc<Mutex<HashMap<String, Member>>>,
}

impl Roster {
    /// Listens until the shutdown.
    pub(crate) async fn listen(self, queue: Queue, shutdown: Shutdown) {
        let listen = async {
            loop {
                match queue.presences().await {
                    Ok(mut presences) => {
                        while let Some(presence) = presences.next().await {
                            self.note(&presence, Instant::now());
                        }
                    }
                    Err(error) => tracing::debug!(
                        error = medfleet_core::chain(&error),
                        "workers cannot be heard"
                    ),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = listen => {}
            () = shutdown.begun() => {}
        }
    }

    /// What does not name a stage and a pool, or has a name that none of ours has, is no worker of this version.
    fn note(&self, presence: &WorkerPresence, now: Instant) {
        if presence.worker.len() > NAME_BYTES_MAX {
            return;
        }
        let stage = Stage::ALL
            .iter()
            .find(|stage| stage.as_str() == presence.stage);
        let (Some(stage), Ok(pool)) = (stage, PoolName::new(presence.pool.as_str())) else {
            return;
        };
        let member = Member {
            stage: *stage,
            pool,
            slots: presence.slots,
            stat_slots: presence.stat_slots,
            busy: presence.busy,
            version: presence.version.chars().take(32).collect(),
            is_draining: presence.draining,
            heard: now,
        };
        let mut members = self.lock();
        if members.len() < WORKERS_MAX || members.contains_key(&presence.worker) {
            members.insert(presence.worker.clone(), member);
        }
    }

    /// Who is there, by name.
    pub(crate) fn members(&self, now: Instant) -> BTreeMap<String, Member> {
        let mut members = self.lock();
        members.retain(|_, member| now.saturating_duration_since(member.heard) <= SILENCE_MAX);
        let all = members.iter();
        all.map(|(name, member)| (name.clone(), member.clone()))
            .collect()
    }

    /// The crews of every stage and pool, also where nobody is. Who drains takes nothing new and does not count.
    pub(crate) fn crews(
        &self,
        pools: &[PoolName],
        now: Instant,
    ) -> BTreeMap<(Stage, PoolName), Crew> {
        let mut crews: BTreeMap<_, Crew> = Stage::ALL
            .iter()
            .flat_map(|stage| pools.iter().map(|pool| (*stage, pool.clone())))
            .map(|key| (key, Crew::default()))
            .collect();
        for member in self.members(now).into_values() {
            // A pool that is not configured gets no label: who speaks must not make new ones.
            if let Some(crew) = crews.get_mut(&(member.stage, member.pool))
                && !member.is_draining
            {
                crew.workers += 1;
                crew.slots += u64::from(member.slots);
                crew.stat_slots += u64::from(member.stat_slots);
                crew.busy += u64::from(member.busy);
            }
        }
        crews
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        // A map changed in single steps: whole after a panic elsewhere.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(worker: &str, stage: &str, pool: &str) -> WorkerPresence {
        WorkerPresence {
            worker: worker.to_owned(),
            stage: stage.to_owned(),
            pool: pool.to_owned(),
            slots: 4,
            busy: 3,
            stat_slots: 1,
            ..WorkerPresence::default()
        }
    }

    #[test]
    fn who_is_silent_is_gone() {
        let (roster, pool) = (Roster::default(), PoolName::new("main").expect("a pool"));
        let begin = Instant::now();
        let key = (Stage::Encode, pool.clone());
        let crew = |after: Duration| {
            let crews = roster.crews(std::slice::from_ref(&pool), begin + after);
            crews
                .get(&key)
                .copied()
                .expect("configured pools are shown")
        };
        assert_eq!(crew(Duration::ZERO), Crew::default());
        roster.note(&presence("a", "encode", "main"), begin);
        roster.note(&presence("b", "encode", "main"), begin + PRESENCE_EVERY);
        let two = Crew {
            workers: 2,
            slots: 8,
            stat_slots: 2,
            busy: 6,
        };
        assert_eq!(crew(SILENCE_MAX), two);
        assert_eq!(crew(SILENCE_MAX + PRESENCE_EVERY).workers, 1);
        assert_eq!(crew(SILENCE_MAX * 2).workers, 0);
    }

    #[test]
    fn what_is_no_worker_of_ours_counts_nowhere() {
        let (roster, pool) = (Roster::default(), PoolName::new("main").expect("a pool"));
        let now = Instant::now();
        for (stage, pool) in [
            ("dance", "main"),
            ("encode", "no pool <b>"),
            ("encode", "other"),
        ] {
            roster.note(&presence(stage, stage, pool), now);
        }
        let name = "x".repeat(NAME_BYTES_MAX + 1);
        roster.note(&presence(&name, "encode", "main"), now);
        let mut leaving = presence("leaving", "encode", "main");
        leaving.draining = true;
        roster.note(&leaving, now);
        let crews = roster.crews(&[pool], now);
        assert_eq!(crews.len(), 3);
        assert!(crews.values().all(|crew| *crew == Crew::default()));
        assert_eq!(roster.members(now).len(), 2, "the page shows them");
    }
}
