//! One unit of work of one stage: what a queue message says, and no more.

use std::time::Duration;

use crate::splitmix::{STEP, mixed};
use crate::{Class, Cost, JobKey, PoolName, Stage, UnixMillis, doubled, spread};

/// A unit of work. Bytes, prompts and lists are blobs that the job's record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkUnit {
    pub key: JobKey,
    pub stage: Stage,
    /// Whose workers may do it.
    pub pool: PoolName,
    /// How soon it matters.
    pub class: Class,
    /// The chunk for encode, otherwise 0.
    pub unit: u32,
    /// Replay epoch it was made in; an older one than the record's is dropped.
    pub epoch: u32,
    /// When the job becomes expired.
    pub expires: UnixMillis,
    /// What it is expected to take; the rates of its job, and the frames of this unit.
    pub cost: Cost,
}

impl WorkUnit {
    /// The unit of the same job at another stage, with what it is expected to take.
    #[must_use]
    pub fn at(&self, stage: Stage, unit: u32, cost: Cost) -> Self {
        Self {
            stage,
            unit,
            cost,
            ..self.clone()
        }
    }

    /// How long it waits after trouble until it is delivered again: from `first` on doubled with each delivery up to `longest`, less a
    /// part that is another for each unit and delivery. Whatever stopped them all, as a store that is away, they do not come back
    /// together.
    #[must_use]
    pub fn pause(&self, first: Duration, longest: Duration, deliveries: u64) -> Duration {
        let times = deliveries.saturating_sub(1);
        let number = self.key.job.number() ^ u64::from(self.unit);
        let number = mixed(number.wrapping_add(times.wrapping_mul(STEP)));
        spread(doubled(first, longest, times), number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{JobId, TenantId};

    fn unit(job: u8, unit: u32) -> WorkUnit {
        let tenant = TenantId::new("st-mary").expect("a good name");
        WorkUnit {
            key: JobKey::new(tenant, JobId::from_bytes([job; 16])),
            stage: Stage::Encode,
            pool: PoolName::new("tiny").expect("a good name"),
            class: Class::Routine,
            unit,
            epoch: 0,
            expires: UnixMillis(0),
            cost: Cost::default(),
        }
    }

    #[test]
    fn units_that_failed_together_come_back_one_by_one() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut pauses = HashSet::new();
        for job in 0..8 {
            for chunk in 0..8 {
                for deliveries in 1..=12 {
                    let pause = unit(job, chunk).pause(first, longest, deliveries);
                    let whole = doubled(first, longest, deliveries - 1);
                    assert!(pause >= whole / 2 && pause < whole, "{pause:?}");
                    if deliveries == 12 {
                        pauses.insert(pause);
                    }
                }
            }
        }
        // Of 64 numbers below 1024 hardly two are the same.
        assert!(pauses.len() > 48, "{}", pauses.len());
        let again = || unit(1, 1).pause(first, longest, 3);
        assert_eq!(again(), again());
    }
}
