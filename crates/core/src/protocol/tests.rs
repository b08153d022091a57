//! The decisions, case by case.

use crate::{
    Chunks, Class, Cost, Digest, JobId, JobState, PoolName, Pseudonyms, Starts, TaskKind, TenantId,
    Times,
};

use super::*;

fn unit(stage: Stage, unit: u32) -> WorkUnit {
    let tenant = TenantId::new("st-mary").expect("a good name");
    WorkUnit {
        key: JobKey::new(tenant, JobId::from_bytes([1; 16])),
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
        pseudonyms: Pseudonyms::default(),
        frames: (state > JobState::Released).then_some(Digest::new([3; 32])),
        result: None,
        failure: None,
        times: Times::default(),
        expires: UnixMillis(1_000),
        traceparent: String::new(),
        model: "tiny".to_owned(),
        erased: None,
        cost: Cost::default(),
        forwarded: None,
    }
}

fn illegal(record: JobRecord) -> Tried {
    Tried::Refused {
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

fn check(stage: Stage, chunk: u32, tried: Tried, expected: &Start) {
    assert_eq!(&after_start(&unit(stage, chunk), tried), expected);
}

#[test]
fn a_start_leads_to_work_or_to_what_follows() {
    let encoding = record(JobState::Encoding, ONE_OF_TWO);
    check(
        Stage::Encode,
        1,
        Tried::Moved(encoding.clone()),
        &Start::Work(encoding.clone()),
    );
    check(
        Stage::Encode,
        0,
        illegal(encoding.clone()),
        &Start::Repeat(encoding.clone()),
    );

    let encoded = record(JobState::Encoding, BOTH);
    check(
        Stage::Encode,
        0,
        illegal(encoded.clone()),
        &Start::Repeat(encoded.clone()),
    );
    check(
        Stage::Preprocess,
        0,
        illegal(encoded.clone()),
        &Start::Repeat(encoded),
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
    let refused = Tried::Refused {
        reason: Refused::Final {
            state: cancelled.state,
        },
        record: cancelled.clone(),
    };
    check(Stage::Decode, 0, refused, &Start::Announce(cancelled));
    check(Stage::Decode, 0, Tried::Missing, &Start::Later);
    let newer = JobRecord {
        epoch: 3,
        ..record(JobState::Accepted, NONE)
    };
    check(
        Stage::Decode,
        0,
        Tried::OtherEpoch { record: newer },
        &Start::Drop,
    );
    let older = JobRecord {
        epoch: 1,
        ..record(JobState::Failed, NONE)
    };
    check(
        Stage::Decode,
        0,
        Tried::OtherEpoch { record: older },
        &Start::Later,
    );
}

#[test]
fn exhausted_units_fail_their_job() {
    let refused = Tried::Refused {
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
fn a_chunk_that_is_done_is_never_exhausted() {
    let mut half = record(JobState::Encoding, ONE_OF_TWO);
    half.starts.encode = 3;
    let start = |chunk| {
        let step = Move::Start {
            stage: Stage::Encode,
            unit: chunk,
            retries_max: 1,
        };
        let tried = propose(&half, Some(2), &step, UnixMillis(0));
        after_start(&unit(Stage::Encode, chunk), tried)
    };
    assert_eq!(start(0), Start::Repeat(half.clone()));
    let other = start(1);
    assert!(matches!(other, Start::Exhausted(_)), "{other:?}");
}

/// As many workers were at work on its chunks as it has when the queue went away.
#[test]
fn an_outage_that_stops_all_chunks_of_a_job_at_once_fails_it_no_sooner_than_one() {
    let chunks = Chunks {
        total: 8,
        done_bitmap: 0,
    };
    let mut job = record(JobState::Preprocessed, chunks);
    let begin = |job: &JobRecord, chunk: u32, deliveries: u64| {
        let unit = unit(Stage::Encode, chunk);
        let step = Move::Start {
            stage: Stage::Encode,
            unit: chunk,
            retries_max: retries_of_all(&unit, job, 4, deliveries),
        };
        after_start(&unit, propose(job, Some(2), &step, UnixMillis(0)))
    };
    for deliveries in 1..=5 {
        for chunk in 0..chunks.total {
            match begin(&job, chunk, deliveries) {
                Start::Work(record) => job = record,
                other => panic!("{chunk}, {deliveries}: {other:?}"),
            }
        }
    }
    for deliveries in [1, 6] {
        let again = begin(&job, 0, deliveries);
        assert!(matches!(again, Start::Exhausted(_)), "{again:?}");
    }
    // Of one chunk that ends whoever has it, no more starts than before.
    job.starts.encode = chunks.total + 4;
    assert!(matches!(begin(&job, 0, 5), Start::Work(_)));
    let given_up = begin(&job, 0, 6);
    assert!(matches!(given_up, Start::Exhausted(_)), "{given_up:?}");
    let decode = retries_of_all(&unit(Stage::Decode, 0), &job, 4, 1);
    assert_eq!(decode, 4);
}

#[test]
fn few_starts_are_left_to_what_came_to_nothing_before() {
    let check = |stage, retries_max, chunks, few: &[u32]| {
        let mut record = record(JobState::Encoding, chunks);
        for starts in 0..8 {
            record.starts.encode = starts;
            record.starts.decode = starts;
            let found = has_few_starts(&unit(stage, 1), &record, retries_max);
            assert_eq!(found, few.contains(&starts), "{stage}, {starts}");
        }
    };
    check(Stage::Decode, 4, BOTH, &[3, 4]);
    check(Stage::Decode, 2, BOTH, &[1, 2]);
    check(Stage::Decode, 1, BOTH, &[1]);
    check(Stage::Decode, 0, BOTH, &[]);
    // Each chunk has its own start.
    check(Stage::Encode, 4, ONE_OF_TWO, &[4, 5]);
    check(Stage::Encode, 1, ONE_OF_TWO, &[2]);
    check(Stage::Encode, 4, BOTH, &[]);
    let ended = record(JobState::Cancelled, BOTH);
    let ended = JobRecord {
        starts: Starts {
            decode: 4,
            ..Starts::default()
        },
        ..ended
    };
    assert!(!has_few_starts(&unit(Stage::Decode, 0), &ended, 4));
}

#[test]
fn any_unit_of_a_failed_job_brings_its_dead_letter() {
    let failure = Failure::new(FailureReason::Integrity, "x");
    let failed = JobRecord {
        failure: Some(failure.clone()),
        ..record(JobState::Failed, BOTH)
    };
    assert_eq!(verdict_of_final(&failed), Verdict::Reject(failure));
    let cancelled = record(JobState::Cancelled, BOTH);
    assert_eq!(verdict_of_final(&cancelled), Verdict::Done);
    let erased = JobRecord {
        erased: Some(UnixMillis(1)),
        ..failed
    };
    assert_eq!(verdict_of_final(&erased), Verdict::Done);
}

#[test]
fn a_unit_that_another_has_finished_fails_no_job() {
    let half = record(JobState::Encoding, ONE_OF_TWO);
    let fail = Move::Fail(Failure::new(FailureReason::Integrity, "x"));
    let change = |chunk, step: &Move| {
        propose_change(
            &half,
            &unit(Stage::Encode, chunk),
            None,
            step,
            UnixMillis(0),
        )
    };
    assert_eq!(change(0, &fail), Change::Done);
    assert!(matches!(change(1, &fail), Change::Store(_)));
    let hand_back = Move::HandBack {
        stage: Stage::Encode,
    };
    assert!(matches!(change(0, &hand_back), Change::Store(_)));
    let standing = standing(&unit(Stage::Encode, 0), None, &half, UnixMillis(0));
    assert_eq!(standing, Standing::Done(Box::new(half)));
}

fn check_next(stage: Stage, chunks: Chunks, expected: &[(Stage, u32)]) {
    let record = JobRecord {
        frames: Some(Digest::new([3; 32])),
        ..record(JobState::Preprocessed, chunks)
    };
    let found = next(&unit(stage, 0), &record).into_iter();
    let found = found.map(|unit| (unit.stage, unit.unit));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn open_chunks_are_queued_again_and_a_job_without_images_goes_on() {
    let decode = [(Stage::Decode, 0)];
    let open = Chunks {
        total: 2,
        done_bitmap: 0,
    };
    check_next(Stage::Preprocess, NONE, &decode);
    check_next(
        Stage::Preprocess,
        open,
        &[(Stage::Encode, 0), (Stage::Encode, 1)],
    );
    check_next(Stage::Preprocess, ONE_OF_TWO, &[(Stage::Encode, 1)]);
    check_next(Stage::Preprocess, BOTH, &decode);
    check_next(Stage::Encode, ONE_OF_TWO, &[]);
    check_next(Stage::Encode, BOTH, &decode);
    check_next(Stage::Decode, BOTH, &[]);
}

#[test]
fn a_record_alone_says_what_its_job_waits_for() {
    let check = |state, chunks, expected: &[(Stage, u32)]| {
        let found = outstanding(&unit(Stage::Preprocess, 0).key, &record(state, chunks));
        assert!(found.iter().all(|unit| unit.epoch == 2), "of its own epoch");
        let found: Vec<_> = found.iter().map(|unit| (unit.stage, unit.unit)).collect();
        assert_eq!(found, expected, "{state:?}");
    };
    check(JobState::Accepted, NONE, &[(Stage::Preprocess, 0)]);
    check(JobState::Released, NONE, &[(Stage::Preprocess, 0)]);
    check(JobState::Encoding, ONE_OF_TWO, &[(Stage::Encode, 1)]);
    check(JobState::Encoding, BOTH, &[(Stage::Decode, 0)]);
    check(JobState::Decoding, BOTH, &[(Stage::Decode, 0)]);
    check(JobState::Completed, BOTH, &[]);
    check(JobState::Cancelled, NONE, &[]);
}
