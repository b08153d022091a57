//! How many units the workers of each (stage, pool) take at a time, from what each of them said last. Pure.

use std::collections::{BTreeMap, HashMap};

use medfleet_core::UnixMillis;
use medfleet_queue::{SLOTS_FOR, Slots};

use super::LaneKey;

/// The latest word of every worker.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lanes: BTreeMap<LaneKey, HashMap<String, (u32, UnixMillis)>>,
}

impl Tally {
    /// Takes what a worker says.
    pub(crate) fn take(&mut self, said: Slots, now: UnixMillis) -> LaneKey {
        let lane = (said.stage, said.pool);
        let workers = self.lanes.entry(lane.clone()).or_default();
        workers.insert(said.worker, (said.slots, now));
        lane
    }

    /// All slots of a (stage, pool); workers that fell silent are forgotten.
    pub(crate) fn live(&mut self, lane: &LaneKey, now: UnixMillis) -> u64 {
        let Some(workers) = self.lanes.get_mut(lane) else {
            return 0;
        };
        let longest = i64::try_from(SLOTS_FOR.as_millis()).unwrap_or(i64::MAX);
        workers.retain(|_, (_, at)| now.0.saturating_sub(at.0) <= longest);
        workers.values().map(|(slots, _)| u64::from(*slots)).sum()
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::{PoolName, Stage};

    use super::*;

    #[test]
    fn the_latest_word_of_each_worker_counts_for_a_while() {
        let pool = PoolName::new("p").expect("a pool");
        let lane = (Stage::Encode, pool.clone());
        let mut tally = Tally::default();
        let say = |tally: &mut Tally, worker: &str, slots, at| {
            let said = Slots {
                stage: Stage::Encode,
                pool: pool.clone(),
                worker: worker.to_owned(),
                slots,
            };
            assert_eq!(tally.take(said, UnixMillis(at)), lane);
        };
        say(&mut tally, "a", 4, 0);
        say(&mut tally, "b", 8, 2_000);
        say(&mut tally, "a", 2, 3_000);
        assert_eq!(tally.live(&lane, UnixMillis(3_000)), 10);
        assert_eq!(tally.live(&lane, UnixMillis(7_500)), 2);
        say(&mut tally, "a", 0, 8_000);
        assert_eq!(tally.live(&lane, UnixMillis(8_000)), 0);
        assert_eq!(tally.live(&(Stage::Decode, pool.clone()), UnixMillis(0)), 0);
    }
}
