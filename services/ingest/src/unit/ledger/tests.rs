//! What is open, whatever order it is heard in.

use medfleet_core::JobId;

use super::*;

fn key(tenant: &str, job: u8) -> JobKey {
    JobKey::new(
        TenantId::new(tenant).expect("a name"),
        JobId::from_bytes([job; 16]),
    )
}

fn pool() -> PoolName {
    PoolName::new("p").expect("a pool")
}

fn at(epoch: u32, state: JobState, (done, total): (u32, u32)) -> Sighting {
    Sighting {
        epoch,
        state,
        chunks_total: total,
        chunks_done: done,
        pool: pool(),
        class: Class::Routine,
        cost: Cost {
            preprocess_millis: 10,
            frames: 4,
            encode_millis_per_frame: 100,
            decode_millis_per_frame: 5,
            decode_millis: 80,
        },
        expires: UnixMillis(1_000),
    }
}

fn millis(ledger: &Ledger) -> [u64; 3] {
    let all = ledger.backlog(&[pool()]);
    assert_eq!(
        all.len(),
        12,
        "a figure for every stage and class, also where it is 0"
    );
    [Stage::Preprocess, Stage::Encode, Stage::Decode]
        .map(|stage| all[&(stage, pool(), Class::Routine)])
}

#[test]
fn work_is_predicted_from_upstream_and_gets_less() {
    let mut ledger = Ledger::default();
    let key = key("a", 1);
    let mut check = |sighting: Sighting, expected: [u64; 3]| {
        ledger.take(&key, sighting);
        assert_eq!(millis(&ledger), expected);
    };
    check(at(0, JobState::Accepted, (0, 0)), [10, 400, 100]);
    check(at(0, JobState::Released, (0, 0)), [10, 400, 100]);
    check(at(0, JobState::Preprocessed, (0, 2)), [0, 400, 100]);
    check(at(0, JobState::Encoding, (1, 2)), [0, 200, 100]);
    // An older word changes nothing.
    check(at(0, JobState::Preprocessed, (0, 2)), [0, 200, 100]);
    check(at(0, JobState::Encoding, (2, 2)), [0, 0, 100]);
    check(at(0, JobState::Decoding, (2, 2)), [0, 0, 100]);
    check(at(0, JobState::Completed, (2, 2)), [0, 0, 0]);
}

#[test]
fn jobs_are_counted_by_whom_they_wait_for() {
    let mut ledger = Ledger::default();
    let mut check = |sighting: Sighting, expected: (u64, u64, u64)| {
        ledger.take(&key("a", 1), sighting);
        let counts: Vec<_> = ledger.counts().map(|(_, open)| open).collect();
        let (all, encoded, at_hub) = expected;
        let expected = Open {
            all,
            encoded,
            at_hub,
        };
        assert_eq!(counts, [expected]);
    };
    check(at(0, JobState::Accepted, (0, 0)), (1, 0, 0));
    check(at(0, JobState::Preprocessed, (0, 2)), (1, 0, 0));
    check(at(0, JobState::Encoding, (1, 2)), (1, 0, 0));
    check(at(0, JobState::Encoding, (2, 2)), (1, 1, 0));
    // An older word changes nothing.
    check(at(0, JobState::Encoding, (1, 2)), (1, 1, 0));
    check(at(0, JobState::Forwarded, (2, 2)), (1, 0, 1));
    // It was started over.
    check(at(1, JobState::Preprocessed, (0, 0)), (1, 1, 0));
    ledger.end(&key("a", 1), 1);
    assert_eq!(ledger.counts().count(), 0);
}

#[test]
fn tenants_are_counted_and_what_is_over_time_is_due() {
    let mut ledger = Ledger::default();
    for job in 1..=3 {
        ledger.take(&key("a", job), at(0, JobState::Accepted, (0, 0)));
    }
    ledger.take(&key("b", 1), at(0, JobState::Accepted, (0, 0)));
    let of = |ledger: &Ledger, tenant| ledger.open_jobs(&key(tenant, 0).tenant);
    assert_eq!((of(&ledger, "a"), of(&ledger, "b")), (3, 1));
    ledger.end(&key("a", 2), 0);
    ledger.end(&key("a", 2), 0);
    assert_eq!(of(&ledger, "a"), 2);
    assert!(ledger.due(UnixMillis(999)).is_empty());
    assert_eq!(ledger.due(UnixMillis(1_000)).len(), 3);
}

#[test]
fn a_late_end_of_an_older_epoch_ends_nothing() {
    let mut ledger = Ledger::default();
    let key = key("a", 1);
    ledger.take(&key, at(1, JobState::Accepted, (0, 0)));
    ledger.take(&key, at(0, JobState::Failed, (0, 0)));
    assert_eq!(ledger.epoch(&key), Some(1));
}

#[test]
fn a_scan_brings_in_what_was_missed_and_drops_what_is_gone() {
    let mut ledger = Ledger::default();
    ledger.take(&key("a", 1), at(0, JobState::Accepted, (0, 0)));
    ledger.take(&key("a", 2), at(0, JobState::Accepted, (0, 0)));
    ledger.take(&key("a", 5), at(0, JobState::Accepted, (0, 0)));
    ledger.take(&key("a", 6), at(0, JobState::Accepted, (0, 0)));
    ledger.begin_scan();
    // Its final event comes between the reading of its page and the page.
    ledger.take(&key("a", 3), at(0, JobState::Cancelled, (0, 0)));
    ledger.take(&key("a", 3), at(0, JobState::Accepted, (0, 0)));
    // Read as it is stored.
    ledger.take(&key("a", 2), at(0, JobState::Released, (0, 0)));
    // New while the scan goes on.
    ledger.take(&key("a", 4), at(0, JobState::Accepted, (0, 0)));
    let mut unseen = ledger.unseen();
    unseen.sort();
    assert_eq!(unseen, [key("a", 1), key("a", 5), key("a", 6)]);
    // It cannot be asked for now.
    ledger.keep(&key("a", 6));
    // The server that was scanned is behind: asked for it, the leader has it.
    ledger.take(&key("a", 5), at(0, JobState::Accepted, (0, 0)));
    ledger.end_scan();
    let open: Vec<_> = (1..=6)
        .filter(|job| ledger.epoch(&key("a", *job)).is_some())
        .collect();
    assert_eq!(open, [2, 4, 5, 6]);
    assert_eq!(ledger.open_jobs(&key("a", 0).tenant), 4);
}

#[test]
fn an_overtaken_word_does_not_bring_an_ended_job_back() {
    let mut ledger = Ledger::default();
    let key = key("a", 1);
    ledger.take(&key, at(0, JobState::Decoding, (1, 1)));
    ledger.take(&key, at(0, JobState::Completed, (1, 1)));
    ledger.take(&key, at(0, JobState::Decoding, (1, 1)));
    assert_eq!(ledger.epoch(&key), None);
    // Started over, it is open again.
    ledger.take(&key, at(1, JobState::Accepted, (0, 0)));
    assert_eq!(ledger.epoch(&key), Some(1));
}

#[test]
fn what_ended_long_ago_is_forgotten_but_not_during_a_scan() {
    let numbered = |job: usize| JobKey {
        job: JobId::from_bytes((job as u128).to_be_bytes()),
        ..key("a", 0)
    };
    let mut ledger = Ledger::default();
    ledger.begin_scan();
    for job in 0..3 * ENDED_MIN {
        ledger.end(&numbered(job), 0);
    }
    assert!((0..3 * ENDED_MIN).all(|job| ledger.ended.holds(&numbered(job), 0)));
    ledger.end_scan();
    for job in 0..3 * ENDED_MIN {
        ledger.end(&numbered(job + 3 * ENDED_MIN), 0);
    }
    assert!(!ledger.ended.holds(&numbered(0), 0));
    assert!(ledger.ended.holds(&numbered(6 * ENDED_MIN - 1), 0));
    assert!(ledger.ended.latest.len() + ledger.ended.before.len() <= 2 * ENDED_MIN);
}

#[test]
fn a_part_is_left_for_one_tenant_more() {
    let mut ledger = Ledger::default();
    let few = |ledger: &Ledger| {
        let names = ["a", "b", "c"].map(|name| TenantId::new(name).expect("a name"));
        names.map(|tenant| ledger.has_few(&tenant))
    };
    assert_eq!(few(&ledger), [true; 3]);
    for job in 0..9 {
        ledger.take(&key("a", job), at(0, JobState::Accepted, (0, 0)));
    }
    assert_eq!(few(&ledger), [false, true, true]);
    for job in 0..4 {
        ledger.take(&key("b", job), at(0, JobState::Accepted, (0, 0)));
    }
    assert_eq!(few(&ledger), [false, true, true], "4 of 13");
    ledger.take(&key("b", 4), at(0, JobState::Accepted, (0, 0)));
    assert_eq!(few(&ledger), [false, false, true], "5 of 14");
}

#[test]
fn who_comes_no_further_in_a_whole_round_stands_still() {
    let mut ledger = Ledger::default();
    let (first, second) = (key("a", 1), key("a", 2));
    ledger.take(&first, at(0, JobState::Encoding, (1, 2)));
    assert_eq!(ledger.next_round(), [], "nobody was known before it");
    ledger.take(&second, at(0, JobState::Accepted, (0, 0)));
    // The same word again is no step.
    ledger.take(&first, at(0, JobState::Encoding, (1, 2)));
    assert_eq!(ledger.next_round(), std::slice::from_ref(&first));
    ledger.take(&first, at(0, JobState::Encoding, (2, 2)));
    assert_eq!(ledger.next_round(), std::slice::from_ref(&second));
    ledger.end(&second, 0);
    assert_eq!(ledger.next_round(), [first]);
}
