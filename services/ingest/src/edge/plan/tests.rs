//! The decisions, case by case.

use medfleet_core::{Class, WorkUnit};
use medfleet_testkit as kit;
use tonic_types::ErrorDetails;

use super::*;
use crate::error;

fn by_hub(refusal: &Refusal) -> Trouble {
    trouble(&error::status(refusal))
}

#[test]
fn only_what_medfleet_refuses_fails_a_job() {
    let invalid = by_hub(&Refusal::invalid("model", "one of the fleet's"));
    assert!(matches!(invalid, Trouble::Refused(why) if why.contains("model: one of")));
    let too_large = Refusal::TooLarge {
        what: "the inputs",
        allowed: "1MiB".to_owned(),
    };
    assert!(matches!(by_hub(&too_large), Trouble::Refused(_)));
    for code in [Code::InvalidArgument, Code::Unimplemented, Code::NotFound] {
        let by_proxy = Status::new(code, "not medfleet");
        assert!(matches!(trouble(&by_proxy), Trouble::Later(_, None)));
    }
    let details = ErrorDetails::with_error_info("X", "another.org", [] as [(String, String); 0]);
    let other = Status::with_error_details(Code::InvalidArgument, "no", details);
    assert!(matches!(trouble(&other), Trouble::Later(_, None)));
}

#[test]
fn only_for_the_bytes_within_its_request_is_a_job_sent_again_as_uploads() {
    let check = |field: &str, allowed: &str, expected: bool| {
        let Trouble::Refused(why) = by_hub(&Refusal::invalid(field, allowed)) else {
            panic!("a hub refuses it");
        };
        assert_eq!(is_to_upload(&why), expected, "{why}");
    };
    // As every release says it.
    let too_many = "at most 1B of content in one request; upload larger files";
    check("inputs", too_many, true);
    check("inputs", "compare takes exactly 2 images; found 1", false);
    check("model", "one of tiny", false);
}

#[test]
fn what_passes_is_waited_for_as_long_as_the_hub_says() {
    let delay = Duration::from_secs(7);
    let busy = Refusal::Busy {
        what: "full",
        retry_after: delay,
    };
    assert!(matches!(by_hub(&busy), Trouble::Later(_, Some(asked)) if asked == delay));
    assert!(matches!(
        by_hub(&Refusal::Stopping),
        Trouble::Later(_, Some(_))
    ));
    // Sent by the hub itself, though an earlier stream was faster.
    let moved = by_hub(&Refusal::Moved);
    assert!(matches!(moved, Trouble::Later(why, Some(_)) if why.contains("an upload")));
    let timed_out = Status::deadline_exceeded("late");
    assert!(matches!(trouble(&timed_out), Trouble::Later(_, None)));
    let away = Status::unavailable("connection refused");
    assert!(matches!(trouble(&away), Trouble::Later(_, None)));
    assert!(!is_answer(&away) && is_answer(&error::status(&Refusal::Stopping)));
}

#[test]
fn the_rest_has_its_own_meaning() {
    assert!(matches!(by_hub(&Refusal::WrongToken), Trouble::Token));
    let bare = Status::unauthenticated("no");
    assert!(matches!(trouble(&bare), Trouble::Token));
    let gone = Refusal::NotFound { what: "job" };
    assert!(matches!(by_hub(&gone), Trouble::NotThere));
    assert!(matches!(by_hub(&Refusal::OtherBody), Trouble::Taken));
    let state = JobState::Completed;
    let wanted = "only one that has not ended can be cancelled";
    let ended = by_hub(&Refusal::WrongState { state, wanted });
    assert!(matches!(ended, Trouble::OtherState));
    let unreadable = Refusal::Queue(QueueError::Malformed {
        what: "a job record",
        reason: "its state",
    });
    assert!(matches!(by_hub(&unreadable), Trouble::Defect));
    let by_proxy = Status::internal("no");
    assert!(matches!(trouble(&by_proxy), Trouble::Later(_, None)));
    let erased = Refusal::Store(medfleet_store::StoreError::JobErased);
    assert!(matches!(by_hub(&erased), Trouble::Refused(_)));
}

#[test]
fn pauses_grow_to_the_most_and_never_fall_short_of_what_was_asked() {
    let range = (Duration::from_secs(1), Duration::from_secs(60));
    let of = |tries, asked, random| pause(range, tries, asked, random);
    assert_eq!(of(0, None, 0), Duration::from_millis(500));
    assert_eq!(of(3, None, 0), Duration::from_secs(4));
    assert_eq!(of(99, None, 0), Duration::from_secs(30));
    assert!((0..2048).all(|random| of(99, None, random) <= range.1));
    let asked = Duration::from_secs(100);
    assert!((0..2048).all(|random| of(0, Some(asked), random) >= asked));
}

#[test]
fn what_is_on_the_line_has_the_time_that_a_slow_one_takes() {
    let answer = Duration::from_secs(30);
    assert_eq!(patience(answer, 0), answer);
    // 4 MiB at 0.5 Mbit/s take 67 s.
    let buffered = patience(answer, BUFFERED_BYTES_MAX);
    assert!(buffered > answer + Duration::from_secs(67), "{buffered:?}");
    assert!(buffered < Duration::from_secs(180), "{buffered:?}");
    assert!(patience(answer, u64::MAX) > buffered);
}

#[test]
fn a_record_that_cannot_be_read_is_its_jobs_own_trouble() {
    let check = |error: QueueError, expected| {
        let told = format!("{error:?}");
        assert_eq!(is_of_job(&Trouble::from(error)), expected, "{told}");
    };
    let malformed = QueueError::Malformed {
        what: "a job record",
        reason: "its state",
    };
    check(malformed, true);
    check(QueueError::unavailable("read"), false);
    check(QueueError::Closed, false);
    assert!(!is_of_job(&Trouble::Token));
}

#[test]
fn what_this_site_has_begun_it_has_to_go_on_with() {
    let (_, record) = kit::record(1, 1);
    let begun = JobState::ALL.iter().filter(|state| {
        let state = **state;
        is_begun_here(&JobRecord {
            state,
            ..record.clone()
        })
    });
    let begun: Vec<_> = begun.collect();
    let stages = [
        &JobState::Released,
        &JobState::Preprocessed,
        &JobState::Encoding,
        &JobState::Decoding,
    ];
    assert_eq!(begun, stages);
}

#[test]
fn what_was_set_aside_before_its_first_stage_is_done_is_released_again() {
    let (_, record) = kit::record(1, 1);
    let check = |stage, state, frames, expected| {
        let record = JobRecord {
            state,
            frames,
            ..record.clone()
        };
        assert_eq!(is_to_release(stage, &record), expected, "{record:?}");
    };
    let frames = Some(medfleet_core::Digest::new([3; 32]));
    check(Stage::Preprocess, JobState::Released, None, true);
    check(Stage::Preprocess, JobState::Encoding, frames, false);
    check(Stage::Decode, JobState::Encoding, frames, false);
    // It can be handed on as it is.
    check(Stage::Preprocess, JobState::Accepted, None, false);
    check(Stage::Preprocess, JobState::Cancelled, None, false);
}

#[test]
fn a_job_has_one_request_id_at_the_hub_and_one_that_means_something_else_another() {
    let (key, record) = kit::record(1, 1);
    let id = |body: [u8; 32], epoch| {
        let record = JobRecord {
            body: medfleet_core::Digest::new(body),
            epoch,
            ..record.clone()
        };
        request_id(&key.job, &record)
    };
    let mut sent_again = [1; 32];
    sent_again[..16].fill(2);
    let mut other = [1; 32];
    other[16..].fill(2);
    assert_eq!(id([1; 32], 0), id(sent_again, 0));
    assert_ne!(id([1; 32], 0), id(other, 0));
    assert_ne!(id([1; 32], 0), id([1; 32], 1));
    assert!(id([1; 32], u32::MAX).len() <= 128, "the public contract");
}

#[test]
fn a_job_has_what_is_left_of_its_time_and_never_more_than_it_was_given() {
    let (_, mut record) = medfleet_testkit::record(1, 1);
    (record.times.accepted, record.expires) = (UnixMillis(10_000), UnixMillis(70_000));
    let check = |now, seconds| {
        let left = time_left(&record, UnixMillis(now));
        assert_eq!(left, Duration::from_secs(seconds), "at {now}");
    };
    check(10_000, 60);
    check(30_000, 40);
    check(90_000, 1);
    // Of a clock that is behind the one of the accept.
    check(9_990, 60);
    check(0, 60);
}

#[test]
fn what_is_told_of_another_job_is_not_taken() {
    let [mine, other] = [1, 2].map(|byte| JobId::from_bytes([byte; 16]));
    assert!(is_of(&format!("jobs/{mine}"), &mine).is_ok());
    for name in [format!("jobs/{other}"), mine.to_string(), String::new()] {
        let refused = is_of(&name, &mine);
        assert!(matches!(refused, Err(Trouble::Later(..))), "{name}");
    }
}

#[test]
fn what_was_handed_on_just_now_is_not_taken_for_lost() {
    let (_, record) = kit::record(1, 1);
    let at = UnixMillis(1_000_000);
    let forward = medfleet_core::Move::Forward {
        job: JobId::from_bytes([1; 16]),
        class: Class::Routine,
    };
    let there = record.apply(&forward, at).expect("it is accepted");
    let after = |millis| Some(UnixMillis(at.0 + millis));
    assert!(is_new_there(&there, after(0)));
    assert!(is_new_there(&there, after(59_000)));
    assert!(!is_new_there(&there, after(60_000)));
    assert!(!is_new_there(&record, after(0)), "nobody has it");
    // The queue has not told the time yet.
    assert!(is_new_there(&there, None));
    assert!(!is_new_there(&record, None), "nobody has it");
}

#[test]
fn of_what_ended_just_now_the_hub_is_asked_again() {
    let (_, open) = medfleet_testkit::record(1, 1);
    let at = UnixMillis(1_000_000);
    let ended = open.apply(&medfleet_core::Move::Cancel, at).expect("ends");
    let after = |millis| Some(UnixMillis(at.0 + millis));
    assert!(has_just_ended(&ended, after(0)));
    assert!(has_just_ended(&ended, after(59_000)));
    assert!(!has_just_ended(&ended, after(60_000)));
    assert!(has_just_ended(&ended, None), "the time is not known yet");
    assert!(!has_just_ended(&open, after(0)), "it goes on");
    assert!(is_of_job(&Trouble::Unsure), "others would wait for it");
}

#[test]
fn parts_that_the_hub_has_are_not_read_again() {
    assert_eq!(after(Some(&10), 25), Some(15));
    assert_eq!(after(Some(&10), 10), Some(0));
    assert_eq!(after(Some(&10), 9), None, "the rest of it is missing");
    assert_eq!(after(None, 25), None, "nobody has read it yet");
}

#[test]
fn a_hub_job_ends_as_it_says() {
    let job = v1::Job {
        state: v1::JobState::Failed.into(),
        chunks_total: 32,
        chunks_done: 32,
        attempt: 2,
        failure: Some(v1::Failure {
            reason: v1::FailureReason::PromptTooLong.into(),
            message: "too long".to_owned(),
        }),
        ..v1::Job::default()
    };
    let ended = ended(&job, || Outcome::Cancelled).expect("it has ended");
    let failure = Failure::new(FailureReason::PromptTooLong, "too long");
    assert_eq!(ended.outcome, Outcome::Failed(failure));
    assert_eq!((ended.attempt, ended.chunks.done_bitmap), (2, u32::MAX));
    let open = v1::Job {
        state: v1::JobState::Decoding.into(),
        ..job
    };
    assert_eq!(super::ended(&open, || Outcome::Cancelled), None);
}

#[test]
fn a_long_file_on_a_flapping_line_is_not_begun_again_while_it_grows() {
    let mut tries = 0;
    for cut in 0..1_000_u64 {
        // Nothing comes through, then nothing, then a part.
        let (before, now) = (cut / 3, (cut + 1) / 3);
        tries = fruitless(tries, before, now);
        assert!(tries < 3, "after {cut} cuts");
    }
    // What the hub has lost is no progress.
    assert_eq!(fruitless(5, 10, 4), 6);
    assert_eq!(fruitless(5, 10, 10), 6);
}

#[test]
fn a_record_that_is_not_there_yet_is_waited_for_and_one_that_is_gone_is_not() {
    let entry = IntakeEntry {
        unit: WorkUnit {
            epoch: 2,
            ..kit::unit(&kit::key(1), Stage::Preprocess, Class::Routine, 0)
        },
        sequence: 1,
        headers: Vec::new(),
        stored_at: UnixMillis(5_000),
    };
    let check = |found, now, outdated_max, expected| {
        let as_of = (now, Duration::from_millis(outdated_max));
        let found = is_behind(found, &entry, as_of);
        assert_eq!(found, expected, "at {now:?} of {outdated_max}");
    };
    let at = |millis| Some(UnixMillis(millis));
    for behind in [None, Some(1)] {
        check(behind, at(5_999), 1_000, true);
        check(behind, at(6_000), 1_000, false);
        // The queue has not told the time yet, and a machine's own could say anything.
        check(behind, None, 1_000, true);
        // Of a single server, which is always right.
        check(behind, at(5_000), 0, false);
        check(behind, None, 0, false);
        // The queue's was set back.
        check(behind, at(4_000), 1_000, true);
    }
    // Nor is a file of the job known to be missing before.
    let second = Duration::from_secs(1);
    assert!(is_new_here(&entry, (at(5_999), second)));
    assert!(!is_new_here(&entry, (at(6_000), second)));
    for ahead in [Some(2), Some(3)] {
        check(ahead, at(5_000), 1_000, false);
        check(ahead, None, 1_000, false);
    }
}
