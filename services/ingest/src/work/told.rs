//! What a leader cannot do for the moment, said once and not at each try for as long as it lasts.

use std::collections::HashSet;

/// What is tried again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Task {
    /// Reading what operators hold back.
    ReadPauses,
    /// Counting released units.
    Count,
    /// Asking for the queue's time.
    AskTime,
    /// Ending jobs past their time.
    End,
    Release,
}

/// What failed when it was tried last.
#[derive(Debug, Default)]
pub(super) struct Told(HashSet<Task>);

impl Told {
    /// It failed. Whether that is to be said: it has not failed since it last went well.
    pub(super) fn is_news(&mut self, failed: Task) -> bool {
        self.0.insert(failed)
    }

    pub(super) fn went_well(&mut self, task: Task) {
        self.0.remove(&task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_and_again_when_it_comes_back() {
        let mut told = Told::default();
        assert!(told.is_news(Task::Count));
        assert!(!told.is_news(Task::Count));
        assert!(told.is_news(Task::Release), "this is another");
        told.went_well(Task::Count);
        assert!(told.is_news(Task::Count));
        assert!(!told.is_news(Task::Release));
    }
}
