//! A sweep over a real server's records and blobs in memory, at a time that the test sets.

use bytes::Bytes;
use medfleet_core::setting::DurationText;
use medfleet_core::{BlobKind, Class, Digest, Failure, FailureReason, JobState, Move, Stage};
use medfleet_queue::{Applied, Created};
use medfleet_runtime::{ManualClock, Metrics};
use medfleet_store::{BlobStore, FleetKey, StoreError};
use medfleet_testkit::NatsServer;

use super::*;
use crate::config::{QuotasConfig, RetentionConfig};
use crate::quota::Quotas;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Setup {
    _server: NatsServer,
    keeper: Keeper,
    store: BlobStore,
    clock: Arc<ManualClock>,
}

impl Setup {
    async fn new() -> Self {
        let (server, queue) = medfleet_testkit::start().await.expect("a queue");
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let clock = Arc::new(ManualClock::at(medfleet_testkit::clock()()));
        let counting = Counting {
            quotas: Quotas::new(QuotasConfig::default(), Duration::ZERO, clock.clone()),
            blobs: Blobs::new(store.clone()),
            figures: Figures::new(&Metrics::new()),
        };
        let keeper = Keeper {
            config: RetentionConfig::default(),
            time_to_live_max: Duration::from_secs(7 * 24 * 60 * 60),
            queue,
            blobs: Blobs::new(store.clone()),
            clock: clock.clone(),
            figures: counting.figures.clone(),
            counting,
            shutdown: Shutdown::new(Duration::ZERO),
            holder: "test".to_owned(),
        };
        Self {
            _server: server,
            keeper,
            store,
            clock,
        }
    }

    /// A job with one input, accepted now.
    async fn job(&self, seed: u8) -> (JobKey, Digest) {
        let (key, record) = medfleet_testkit::record(seed, 1);
        let input = Bytes::from(vec![seed; 100]);
        let digests = self
            .store
            .keep(
                &key,
                vec![(BlobKind::Input, input)],
                &[],
                std::future::ready(Ok(())),
            )
            .await
            .expect("stores");
        let created = self.keeper.queue.create_record(&key, &record).await;
        assert!(matches!(created, Ok(Created::Created(_))), "{created:?}");
        (key, digests[0])
    }

    async fn fail(&self, key: &JobKey) {
        let step = Move::Fail(Failure::new(FailureReason::Internal, "for a test"));
        let now = self.clock.now();
        let failed = self.keeper.queue.apply(key, None, &step, now).await;
        failed.expect("applies");
    }

    async fn has(&self, key: &JobKey, digest: &Digest) -> bool {
        let there = self
            .store
            .exists(&key.tenant, BlobKind::Input, digest)
            .await;
        there.expect("works")
    }

    async fn state(&self, key: &JobKey) -> Option<JobState> {
        let record = self.keeper.queue.record(key).await.expect("reads");
        record.map(|(record, _)| record.state)
    }

    /// Sweeps as if `days` had passed since the sweep before.
    async fn sweep_after(&self, days: u32) {
        self.clock.advance(DAY * days);
        self.keeper.sweep().await.expect("sweeps");
    }
}

#[tokio::test]
async fn an_ended_job_is_forgotten_when_its_time_is_over_and_an_open_one_never() {
    let setup = Setup::new().await;
    let (ended, of_ended) = setup.job(1).await;
    let (open, of_open) = setup.job(2).await;
    setup.fail(&ended).await;
    setup.sweep_after(29).await;
    assert!(setup.has(&ended, &of_ended).await);
    assert_eq!(setup.state(&ended).await, Some(JobState::Failed));
    setup.sweep_after(2).await;
    assert_eq!(setup.state(&ended).await, None);
    assert!(!setup.has(&ended, &of_ended).await);
    assert!(setup.has(&open, &of_open).await);
    assert_eq!(setup.state(&open).await, Some(JobState::Accepted));
}

#[tokio::test]
async fn a_class_may_be_kept_for_less_than_the_others() {
    let mut setup = Setup::new().await;
    let three_days = DurationText::from_secs(3 * DAY.as_secs());
    // That of the jobs here.
    let classes = &mut setup.keeper.config.classes;
    classes.insert(Class::Routine.to_string(), three_days);
    let (ended, of_ended) = setup.job(1).await;
    setup.fail(&ended).await;
    setup.sweep_after(2).await;
    assert_eq!(setup.state(&ended).await, Some(JobState::Failed));
    setup.sweep_after(2).await;
    assert_eq!(setup.state(&ended).await, None);
    // A blob stays for as long as a job may be open.
    assert!(setup.has(&ended, &of_ended).await);
    setup.sweep_after(4).await;
    assert!(!setup.has(&ended, &of_ended).await);
}

/// Where no tenant has a quota of stored bytes nobody else does.
#[tokio::test]
async fn a_sweep_tells_what_tenants_have_stored_until_another_process_sweeps() {
    let setup = Setup::new().await;
    let (key, _) = setup.job(1).await;
    let counting = &setup.keeper.counting;
    let stored = || counting.quotas.stored().all();
    assert_eq!(stored(), None);
    setup.sweep_after(0).await;
    let bytes = stored().and_then(|all| all.get(&key.tenant).copied());
    assert!(bytes >= Some(100), "{bytes:?}");
    counting.leave_to_others();
    assert_eq!(stored(), None);
}

#[tokio::test]
async fn clocks_that_are_wrong_delete_nothing() {
    let setup = Setup::new().await;
    let (key, input) = setup.job(1).await;
    // By a worker whose clock begins in 1970.
    let step = Move::Fail(Failure::new(FailureReason::Internal, "for a test"));
    let queue = &setup.keeper.queue;
    let failed = queue.apply(&key, None, &step, UnixMillis(0)).await;
    failed.expect("applies");
    setup.sweep_after(0).await;
    assert_eq!(setup.state(&key).await, Some(JobState::Failed));
    // By a keeper whose clock is ahead.
    setup.clock.advance(DAY * 60);
    setup.keeper.sweep_in_time().await.expect("looks");
    assert_eq!(setup.state(&key).await, Some(JobState::Failed));
    assert!(setup.has(&key, &input).await);
    assert_eq!(setup.keeper.figures.keeper.failures.get(), 1);
    setup.keeper.sweep().await.expect("sweeps");
    assert_eq!(setup.state(&key).await, None);
}

/// Or nobody would be told that nothing is deleted any more.
#[tokio::test]
async fn a_sweep_that_cannot_finish_is_counted() {
    let setup = Setup::new().await;
    let keeper = &setup.keeper;
    let counted = || {
        let figures = &keeper.figures;
        (figures.keeper.sweeps.get(), figures.keeper.failures.get())
    };
    keeper.sweep_in_turn().await;
    assert_eq!(counted(), (1, 0));
    // Its lease is lost before it has ended.
    keeper.sweep_while(std::future::ready(())).await;
    assert_eq!(counted(), (1, 1));
    keeper.queue.drain().await;
    keeper.sweep_or_tell().await;
    assert_eq!(counted(), (1, 2));
    // Or it has not even begun.
    keeper.sweep_in_turn().await;
    assert_eq!(counted(), (1, 3));
}

/// Who waits for another's sweep has not swept.
#[tokio::test]
async fn a_sweep_of_another_process_is_its_own() {
    let setup = Setup::new().await;
    let keeper = &setup.keeper;
    let other = keeper.queue.try_lease(LEASE, "another").await;
    assert!(matches!(other, Ok(Some(_))), "{other:?}");
    keeper.sweep_in_turn().await;
    assert_eq!(keeper.figures.keeper.sweeps.get(), 0);
    assert_eq!(keeper.figures.keeper.failures.get(), 0);
}

#[tokio::test]
async fn what_was_never_submitted_goes_with_the_longest_life_of_a_job() {
    let setup = Setup::new().await;
    let tenant = medfleet_testkit::tenant();
    let loose = Bytes::from_static(b"uploaded, and then nothing");
    let loose = setup.store.put(&tenant, BlobKind::Input, loose).await;
    let loose = loose.expect("stores");
    let (key, _) = medfleet_testkit::record(9, 1);
    setup.sweep_after(6).await;
    assert!(setup.has(&key, &loose).await);
    setup.sweep_after(2).await;
    assert!(!setup.has(&key, &loose).await);
}

#[tokio::test]
async fn references_without_a_record_are_let_go() {
    let setup = Setup::new().await;
    let (key, _) = medfleet_testkit::record(3, 1);
    let content = vec![(
        BlobKind::Input,
        Bytes::from_static(b"its record has expired"),
    )];
    let nothing = std::future::ready(Ok(()));
    let kept = setup.store.keep(&key, content, &[], nothing).await;
    let digest = kept.expect("stores")[0];
    // Perhaps it is being accepted at this moment.
    setup.sweep_after(0).await;
    let holders = setup.store.holders(&key.tenant).await.expect("lists");
    assert_eq!(holders.len(), 1);
    setup.sweep_after(8).await;
    assert!(!setup.has(&key, &digest).await);
}

/// Its keeper died, or the answer to the removal of its record was lost.
#[tokio::test]
async fn of_a_job_that_was_half_forgotten_the_dead_letter_goes_too() {
    let setup = Setup::new().await;
    let (key, input) = setup.job(5).await;
    setup.fail(&key).await;
    let queue = &setup.keeper.queue;
    let unit = medfleet_testkit::unit(&key, Stage::Decode, Class::Routine, 0);
    let failure = Failure::new(FailureReason::Internal, "for a test");
    let letter = medfleet_queue::dead_letter(&unit, &failure, setup.clock.now().0);
    queue.publish_dead(&letter).await.expect("stores");
    let found = queue.record(&key).await.expect("reads");
    let (_, revision) = found.expect("it is there");
    let removed = queue.remove_record(&key, revision).await;
    removed.expect("removes");
    setup.sweep_after(8).await;
    let left = queue.dead_letters(Some(&key.tenant), 0, 10).await;
    assert!(left.expect("lists").is_empty());
    assert!(!setup.has(&key, &input).await);
}

#[tokio::test]
async fn an_erasure_that_broke_is_finished_and_its_tombstone_goes_with_the_record() {
    let setup = Setup::new().await;
    let (key, digest) = setup.job(4).await;
    setup.fail(&key).await;
    setup
        .store
        .bury(&key.tenant, &key.job)
        .await
        .expect("buries");
    setup.sweep_after(0).await;
    assert!(!setup.has(&key, &digest).await);
    let found = setup.keeper.queue.record(&key).await.expect("reads");
    assert!(found.is_some_and(|(record, _)| record.erased.is_some()));
    let blobs = [(BlobKind::Input, digest)];
    let refused = setup.store.reference(&key.tenant, &key.job, &blobs).await;
    assert!(matches!(refused, Err(StoreError::JobErased)), "{refused:?}");
    let tombstones = async || {
        let found = setup.store.tombstones(&key.tenant).await;
        found.expect("lists").len()
    };
    assert_eq!(tombstones().await, 1);
    let (_, revision) = setup
        .keeper
        .queue
        .record(&key)
        .await
        .expect("reads")
        .expect("it is there");
    let removed = setup.keeper.queue.remove_record(&key, revision).await;
    removed.expect("removes");
    setup.sweep_after(6).await;
    assert_eq!(tombstones().await, 1, "its work may still be under way");
    setup.sweep_after(2).await;
    assert_eq!(tombstones().await, 0);
}

/// At a hospital's edge whose hub has been away for long.
#[tokio::test]
async fn what_a_hub_still_has_to_erase_is_not_forgotten() {
    let setup = Setup::new().await;
    let (key, _) = setup.job(1).await;
    let job = JobId::from_bytes([9; 16]);
    let class = Class::Routine;
    let steps = [Move::Forward { job, class }, Move::Erase, Move::ErasedAtHub];
    let take = async |step: &Move| {
        let now = setup.clock.now();
        let taken = setup.keeper.queue.apply(&key, None, step, now).await;
        assert!(matches!(taken, Ok(Applied::Applied { .. })), "{taken:?}");
    };
    take(&steps[0]).await;
    take(&steps[1]).await;
    setup.sweep_after(31).await;
    assert_eq!(setup.state(&key).await, Some(JobState::Cancelled));
    take(&steps[2]).await;
    setup.sweep_after(0).await;
    assert_eq!(setup.state(&key).await, None);
}
