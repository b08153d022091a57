//! The decisions, case by case.

use medfleet_core::{
    Chunks, Class, Cost, Digest, JobId, JobKey, JobState, PoolName, Starts, TaskKind, TenantId,
    Times,
};

use super::*;

fn unit(stage: Stage, unit: u32) -> WorkUnit {
    let tenant = TenantId::new("st-mary").expect("a good name");
    WorkUnit {
        key: JobKey {
            tenant,
            job: JobId::from_bytes([1; 16]),
        },
        stage,
        pool: PoolName::new("tiny").expect("a good name"),
        class: Class::Routine,
        unit,
        epoch: 2,
        expires: UnixMillis(1_000),
        cost: Cost::default(),
    }
}

fn record(state: JobState, chunks: Chunks) -> JobRecord {
    JobRecord {
        state,
        epoch: 2,
        attempt: 3,
        starts: Starts::default(),
        chunks,
        pool: PoolName::new("tiny").expect("a good name"),
        class: Class::Routine,
        class_asked: Class::Routine,
        task: TaskKind::Report,
        image_count: chunks.total,
        body: Digest::new([1; 32]),
        study: Digest::new([2; 32]),
        frames: (state > JobState::Released).then_some(Digest::new([3; 32])),
        result: None,
        failure: None,
        times: Times::default(),
        expires: UnixMillis(1_000),
        traceparent: String::new(),
        model: "tiny".to_owned(),
        cost: Cost::default(),
    }
}

fn applied(record: JobRecord) -> Applied {
    Applied::Applied {
        before: record.clone(),
        record,
        revision: Revision(1),
    }
}

fn illegal(record: JobRecord) -> Applied {
    Applied::Refused {
        reason: Refused::Illegal {
            step: "start",
            state: record.state,
        },
        record,
    }
}

const NONE: Chunks = Chunks {
    total: 0,
    done_bitmap: 0,
};
const ONE_OF_TWO: Chunks = Chunks {
    total: 2,
    done_bitmap: 0b01,
};
const BOTH: Chunks = Chunks {
    total: 2,
    done_bitmap: 0b11,
};

fn check(stage: Stage, chunk: u32, applied: Applied, expected: &Start) {
    assert_eq!(&after_start(&unit(stage, chunk), applied), expected);
}

#[test]
fn a_start_leads_to_work_or_to_what_follows() {
    let encoding = record(JobState::Encoding, ONE_OF_TWO);
    check(
        Stage::Encode,
        1,
        applied(encoding.clone()),
        &Start::Work(encoding.clone(), Revision(1)),
    );
    check(
        Stage::Encode,
        0,
        applied(encoding.clone()),
        &Start::Repeat(encoding.clone(), true),
    );

    let encoded = record(JobState::Encoding, BOTH);
    check(
        Stage::Encode,
        0,
        illegal(encoded.clone()),
        &Start::Repeat(encoded.clone(), false),
    );
    check(
        Stage::Preprocess,
        0,
        illegal(encoded.clone()),
        &Start::Repeat(encoded, false),
    );

    // A unit that overtook its own record comes again.
    check(Stage::Decode, 0, illegal(encoding), &Start::Later);
    check(
        Stage::Encode,
        0,
        illegal(record(JobState::Released, NONE)),
        &Start::Later,
    );
}

#[test]
fn what_is_over_is_announced_or_dropped() {
    let cancelled = record(JobState::Cancelled, NONE);
    let refused = Applied::Refused {
        reason: Refused::Final {
            state: cancelled.state,
        },
        record: cancelled.clone(),
    };
    check(Stage::Decode, 0, refused, &Start::Announce(cancelled));
    check(Stage::Decode, 0, Applied::Missing, &Start::Drop);
    let newer = JobRecord {
        epoch: 3,
        ..record(JobState::Accepted, NONE)
    };
    check(
        Stage::Decode,
        0,
        Applied::OtherEpoch { record: newer },
        &Start::Drop,
    );
    let older = JobRecord {
        epoch: 1,
        ..record(JobState::Failed, NONE)
    };
    check(
        Stage::Decode,
        0,
        Applied::OtherEpoch { record: older },
        &Start::Later,
    );
}

#[test]
fn exhausted_units_fail_their_job() {
    let refused = Applied::Refused {
        reason: Refused::Exhausted {
            stage: Stage::Decode,
            starts: 5,
            allowed: 5,
        },
        record: record(JobState::Encoding, BOTH),
    };
    let Start::Exhausted(failure) = after_start(&unit(Stage::Decode, 0), refused) else {
        panic!("not exhausted");
    };
    assert_eq!(failure.reason, FailureReason::AttemptsExhausted);
    assert!(matches!(verdict_of_failure(failure), Verdict::Reject(_)));
}

#[test]
fn a_newer_attempt_an_end_and_the_expiry_stop_a_worker() {
    let check = |attempt, record: &JobRecord, now, expected: Standing| {
        let found = standing(&unit(Stage::Decode, 0), attempt, record, UnixMillis(now));
        assert_eq!(found, expected);
    };
    let decoding = record(JobState::Decoding, BOTH);
    check(Some(3), &decoding, 1_000, Standing::Mine);
    check(Some(2), &decoding, 0, Standing::Superseded);
    check(None, &decoding, 0, Standing::Mine);
    check(
        Some(3),
        &JobRecord {
            epoch: 3,
            ..decoding.clone()
        },
        0,
        Standing::Superseded,
    );
    check(Some(3), &decoding, 1_001, Standing::Expired);
    let over = record(JobState::Cancelled, BOTH);
    check(
        Some(3),
        &over,
        5_000,
        Standing::Over(Box::new(over.clone())),
    );
}

#[test]
fn pauses_double_up_to_the_longest() {
    let check = |deliveries, millis| {
        let pause = backoff(
            Duration::from_millis(100),
            Duration::from_secs(30),
            deliveries,
        );
        assert_eq!(pause, Duration::from_millis(millis), "{deliveries}");
    };
    check(0, 100);
    check(1, 100);
    check(2, 200);
    check(5, 1_600);
    check(60, 30_000);
    check(u64::MAX, 30_000);
}

fn exhausted(record: JobRecord) -> Applied {
    Applied::Refused {
        reason: Refused::Exhausted {
            stage: Stage::Encode,
            starts: 6,
            allowed: 6,
        },
        record,
    }
}

#[test]
fn a_chunk_that_is_done_is_never_exhausted() {
    let half = record(JobState::Encoding, ONE_OF_TWO);
    check(
        Stage::Encode,
        0,
        exhausted(half.clone()),
        &Start::Repeat(half.clone(), false),
    );
    let other = after_start(&unit(Stage::Encode, 1), exhausted(half));
    assert!(matches!(other, Start::Exhausted(_)), "{other:?}");
}

#[test]
fn a_redelivered_unit_of_a_failed_job_is_a_dead_letter() {
    let failure = Failure::new(FailureReason::Integrity, "x");
    let failed = JobRecord {
        failure: Some(failure.clone()),
        ..record(JobState::Failed, BOTH)
    };
    assert_eq!(verdict_of_final(&failed, 2), Verdict::Reject(failure));
    assert_eq!(verdict_of_final(&failed, 1), Verdict::Done);
    let cancelled = record(JobState::Cancelled, BOTH);
    assert_eq!(verdict_of_final(&cancelled, 2), Verdict::Done);
}
