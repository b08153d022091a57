//! The jobs that moved last, for the status page. Bounded, in memory only: who restarts has seen nothing yet.

use std::collections::VecDeque;

use medfleet_core::JobKey;
use medfleet_proto::work::v1::JobEvent;

/// Jobs remembered.
const JOBS_MAX: usize = 20;

/// The last event of each of the jobs that moved last.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    jobs: VecDeque<(JobKey, JobEvent)>,
}

impl Recent {
    pub(crate) fn note(&mut self, key: &JobKey, event: &JobEvent) {
        self.jobs.retain(|(other, _)| other != key);
        if self.jobs.len() == JOBS_MAX {
            self.jobs.pop_front();
        }
        self.jobs.push_back((key.clone(), event.clone()));
    }

    pub(crate) fn latest_first(&self) -> Vec<(JobKey, JobEvent)> {
        self.jobs.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use medfleet_testkit::key;

    use super::*;

    #[test]
    fn a_job_is_there_once_and_the_oldest_goes() {
        let mut recent = Recent::default();
        for job in 0..25 {
            recent.note(&key(job), &JobEvent::default());
        }
        recent.note(&key(10), &JobEvent::default());
        let found = recent.latest_first();
        assert_eq!(found.len(), JOBS_MAX);
        assert_eq!(found[0].0, key(10));
        assert_eq!(found[1].0, key(24));
        assert_eq!(found.iter().filter(|(k, _)| *k == key(10)).count(), 1);
    }
}
