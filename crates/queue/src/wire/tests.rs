//! Every field survives the wire, and the largest record fits.

use medfleet_core::{Move, STUDIES_MAX, invariant};

use super::*;

fn full() -> JobRecord {
    JobRecord {
        state: JobState::Failed,
        epoch: 3,
        attempt: 2,
        starts: Starts {
            preprocess: 1,
            encode: 33,
            decode: 2,
        },
        chunks: Chunks {
            total: 32,
            done_bitmap: u32::MAX,
        },
        pool: PoolName::new("p".repeat(32)).expect("a name"),
        class: Class::Urgent,
        class_asked: Class::Stat,
        task: TaskKind::ZeroShot,
        image_count: 9_999,
        pseudonyms: Pseudonyms {
            patient: Some(PseudonymHash::new([5; 16])),
            studies: vec![PseudonymHash::new([6; 16]); STUDIES_MAX],
        },
        frames: Some(Digest::new([3; 32])),
        result: Some(Digest::new([4; 32])),
        failure: Some(Failure::new(FailureReason::Integrity, "x".repeat(400))),
        times: Times {
            accepted: UnixMillis(1_800_000_000_001),
            released: Some(UnixMillis(1_800_000_000_002)),
            preprocessed: Some(UnixMillis(1_800_000_000_003)),
            encoded: Some(UnixMillis(1_800_000_000_004)),
            decoding: Some(UnixMillis(1_800_000_000_005)),
            finished: Some(UnixMillis(1_800_000_000_006)),
        },
        expires: UnixMillis(1_800_000_900_000),
        model: "m".repeat(64),
        cost: Cost {
            preprocess_millis: u32::MAX,
            frames: u32::MAX,
            encode_millis_per_frame: u32::MAX,
            decode_millis_per_frame: u32::MAX,
            decode_millis: u32::MAX,
        },
        forwarded: Some(Forwarded {
            job: JobId::from_bytes([7; 16]),
            at: UnixMillis(1_800_000_000_007),
            is_cancel_wanted: true,
            is_erased: true,
        }),
        ..samples::record()
    }
}

#[test]
fn records_survive_the_wire_and_fit() {
    for record in [samples::record(), full()] {
        let bytes = encode_record(&record, &Later::default()).expect("within the limit");
        assert!(later_of_record(&bytes).expect("whole fields").is_empty());
        assert_eq!(decode_record(bytes).expect("our own encoding"), record);
    }
}

/// A record that has ended and says no time of it would be refused every further step, its erasure too.
#[test]
fn what_ended_by_a_clock_before_1970_has_ended() {
    let begun = UnixMillis(0);
    let ended = samples::record().apply(&Move::Cancel, begun);
    let ended = ended.expect("it is open");
    let bytes = encode_record(&ended, &Later::default()).expect("within the limit");
    let read = decode_record(bytes).expect("our own encoding");
    assert_eq!(read.times.finished, Some(UnixMillis(1)));
    let erased = read.apply(&Move::Erase, begun).expect("it has ended");
    assert_eq!(invariant::violated_by_step(&read, &erased), None);
    let bytes = encode_record(&erased, &Later::default()).expect("within the limit");
    assert!(decode_record(bytes).expect("ours").erased.is_some());
}

#[test]
fn a_record_over_the_limit_is_refused() {
    let record = JobRecord {
        model: "m".repeat(1024),
        ..samples::record()
    };
    assert!(matches!(
        encode_record(&record, &Later::default()),
        Err(QueueError::TooLarge { .. })
    ));
}

#[test]
fn every_state_task_and_reason_reads_back() {
    for state in JobState::ALL {
        assert_eq!(state_from_wire(state_to_wire(*state) as i32), Some(*state));
    }
    for task in TaskKind::ALL {
        assert_eq!(task_from_wire(task_to_wire(*task) as i32), Some(*task));
    }
    assert_eq!(state_from_wire(0), None);
    assert_eq!(reason_from_wire(0), None);
    let failure = full().failure.expect("set");
    assert_eq!(
        reason_from_wire(reason_to_wire(failure.reason) as i32),
        Some(failure.reason)
    );
}

#[test]
fn units_survive_the_wire() {
    let unit = samples::unit(Stage::Encode, 7);
    let wire = unit_to_wire(&unit);
    assert_eq!(unit_from_wire(&wire).expect("our own encoding"), unit);
    let bad = work::WorkUnit {
        tenant: "A B".to_owned(),
        ..wire
    };
    let error = unit_from_wire(&bad).expect_err("not a tenant");
    assert_eq!(error.to_string(), "a work unit cannot be read: tenant");
}
