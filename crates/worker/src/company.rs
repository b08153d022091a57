//! What a worker's process is at work on, and whether one more unit may begin beside it.
//!
//! A unit that ends its process takes those beside it along. Their starts count too, and all of them come again at the same time,
//! so that the same ones would die with it until they are given up on as well. So one that was started again and again and never
//! ended begins where nothing else is at work ([`is_to_be_alone`](medfleet_core::protocol::is_to_be_alone)).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The units at work. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Company(Arc<AtomicUsize>);

/// A unit at work, until it is dropped.
#[derive(Debug)]
pub(crate) struct Member(Company);

impl Company {
    /// One more; none where it is to be alone and would not be. Of several that are to be alone one joins.
    pub(crate) fn join(&self, is_alone: bool) -> Option<Member> {
        let Self(at_work) = self;
        let has_joined = if is_alone {
            let joined = at_work.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
            joined.is_ok()
        } else {
            at_work.fetch_add(1, Ordering::SeqCst);
            true
        };
        has_joined.then(|| Member(self.clone()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Company(at_work) = &self.0;
        at_work.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_be_alone_joins_nobody_and_keeps_nobody_out() {
        let company = Company::default();
        let first = company.join(false);
        assert!(first.is_some() && company.join(true).is_none());
        drop(first);
        let alone = company.join(true);
        assert!(alone.is_some() && company.join(true).is_none());
        let beside = company.join(false);
        drop(alone);
        assert!(beside.is_some() && company.join(true).is_none());
        drop(beside);
        assert!(company.join(true).is_some());
    }
}
