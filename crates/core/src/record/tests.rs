//! The state machine, by example and by exhaustive walk.

use std::collections::HashSet;
use std::slice;

use super::*;
use crate::guard::tests::without;
use crate::invariant::{violated_by_step, violation};
use crate::protocol::verdict_of_final;
use crate::{FailureReason, Verdict};

/// Guards of what follows an end, and of what an edge and its hub do: the model check does not meet them, and a walk that goes
/// without any one of them must go wrong.
pub(crate) const WALKED: &[Guard] = &[
    Guard::EraseOfEnded,
    Guard::ReplayOfErased,
    Guard::LetterOfErased,
    Guard::ExpireHere,
    Guard::EndAtHub,
    Guard::FoundOfEnded,
    Guard::ErasedAtHub,
];

const NOW: UnixMillis = UnixMillis(1_000);

fn accepted() -> JobRecord {
    JobRecord::accepted(NewJob {
        pool: PoolName::new("default").expect("a valid name"),
        class: Class::Routine,
        task: TaskKind::Report,
        image_count: 1,
        body: Digest::new([1; 32]),
        study: Digest::new([2; 32]),
        pseudonyms: Pseudonyms::default(),
        accepted: NOW,
        expires: UnixMillis(10_000),
        traceparent: String::new(),
        model: String::new(),
        cost: Cost::default(),
    })
}

fn start(stage: Stage) -> Move {
    start_unit(stage, 0)
}

fn start_unit(stage: Stage, unit: u32) -> Move {
    Move::Start {
        stage,
        unit,
        retries_max: 2,
    }
}

fn walk(steps: &[Move]) -> Result<JobRecord, Refused> {
    steps
        .iter()
        .try_fold(accepted(), |record, step| record.apply(step, NOW))
}

fn frames(chunks: u32) -> Move {
    Move::Preprocessed {
        frames: Digest::new([3; 32]),
        chunks,
        frame_count: 2 * chunks,
    }
}

fn complete(attempt: u32) -> Move {
    Move::Complete {
        attempt,
        result: Digest::new([4; 32]),
    }
}

#[test]
fn the_walk_with_two_chunks() {
    let steps = [
        start(Stage::Preprocess),
        frames(2),
        start_unit(Stage::Encode, 1),
        Move::ChunkEncoded { chunk: 1 },
        start_unit(Stage::Encode, 0),
        Move::ChunkEncoded { chunk: 0 },
        start(Stage::Decode),
        complete(1),
    ];
    let record = walk(&steps).expect("the plain walk is legal");
    assert_eq!(record.state, JobState::Completed);
    assert_eq!(
        record.cost.frames, 4,
        "the cost knows the frames that there are"
    );
    assert_eq!(record.times.finished, Some(NOW));
}

#[test]
fn no_decode_before_every_chunk_is_encoded() {
    let steps = [
        start(Stage::Preprocess),
        frames(2),
        Move::ChunkEncoded { chunk: 0 },
        start(Stage::Decode),
    ];
    assert_eq!(
        walk(&steps),
        Err(Refused::Illegal {
            step: "start decode",
            state: JobState::Encoding
        })
    );
}

#[test]
fn a_job_without_images_decodes_after_preprocess() {
    let steps = [
        start(Stage::Preprocess),
        frames(0),
        start(Stage::Decode),
        complete(1),
    ];
    assert_eq!(walk(&steps).map(|r| r.state), Ok(JobState::Completed));
}

#[test]
fn an_older_attempt_cannot_complete() {
    let steps = [
        start(Stage::Preprocess),
        frames(0),
        start(Stage::Decode),
        start(Stage::Decode),
        complete(1),
    ];
    assert_eq!(
        walk(&steps),
        Err(Refused::Fenced {
            yours: 1,
            current: 2
        })
    );
}

#[test]
fn starts_are_bounded_and_hand_backs_do_not_count() {
    let mut record = walk(&[start(Stage::Preprocess), frames(0)]).expect("legal");
    for _ in 0..10 {
        record = record
            .apply(&start(Stage::Decode), NOW)
            .expect("a handed-back start does not count");
        record = record
            .apply(
                &Move::HandBack {
                    stage: Stage::Decode,
                },
                NOW,
            )
            .expect("legal");
    }
    for _ in 0..3 {
        record = record
            .apply(&start(Stage::Decode), NOW)
            .expect("within the limit");
    }
    let refused = record.apply(&start(Stage::Decode), NOW);
    assert_eq!(
        refused,
        Err(Refused::Exhausted {
            stage: Stage::Decode,
            starts: 3,
            allowed: 3
        })
    );
}

#[test]
fn final_states_stay_but_a_failure_can_be_replayed() {
    let failed = walk(&[Move::Fail(Failure::new(FailureReason::Internal, "x"))]).expect("legal");
    for step in [
        start(Stage::Preprocess),
        frames(1),
        Move::Cancel,
        Move::Expire,
        complete(0),
    ] {
        assert_eq!(
            failed.apply(&step, NOW),
            Err(Refused::Final {
                state: JobState::Failed
            })
        );
    }
    let again = failed
        .apply(
            &Move::Replay {
                expires: UnixMillis(99),
            },
            NOW,
        )
        .expect("legal");
    assert_eq!(
        (again.state, again.epoch, again.failure),
        (JobState::Accepted, 1, None)
    );
    let completed = walk(&[
        start(Stage::Preprocess),
        frames(0),
        start(Stage::Decode),
        complete(1),
    ])
    .expect("legal");
    assert!(
        completed
            .apply(
                &Move::Replay {
                    expires: UnixMillis(99)
                },
                NOW
            )
            .is_err()
    );
}

#[test]
fn only_an_ended_job_is_erased_and_then_nothing_brings_it_back() {
    let running = walk(&[start(Stage::Preprocess)]).expect("legal");
    let refused = running.apply(&Move::Erase, NOW);
    assert!(
        matches!(refused, Err(Refused::Illegal { .. })),
        "{refused:?}"
    );
    let failed = walk(&[Move::Fail(Failure::new(FailureReason::Internal, "x"))]).expect("legal");
    let erased = failed.apply(&Move::Erase, NOW).expect("legal");
    assert_eq!((erased.state, erased.erased), (JobState::Failed, Some(NOW)));
    let expires = UnixMillis(99);
    assert_eq!(
        erased.apply(&Move::Replay { expires }, NOW),
        Err(Refused::Erased)
    );
    let later = UnixMillis(NOW.0 + 1);
    assert_eq!(erased.apply(&Move::Erase, later), Ok(erased.clone()));
    let steps = [
        start(Stage::Preprocess),
        frames(0),
        start(Stage::Decode),
        complete(1),
        Move::Erase,
    ];
    let completed = walk(&steps).expect("legal");
    assert_eq!((completed.frames, completed.result), (None, None));
}

#[test]
fn encode_retries_are_counted_beyond_one_a_chunk() {
    let mut record = walk(&[start(Stage::Preprocess), frames(3)]).expect("legal");
    for _ in 0..5 {
        record = record
            .apply(&start(Stage::Encode), NOW)
            .expect("three chunks and two retries");
    }
    assert!(matches!(
        record.apply(&start(Stage::Encode), NOW),
        Err(Refused::Exhausted { .. })
    ));
}

/// The sweep may queue it once more than needed: the starts of the others are not used up by it.
#[test]
fn a_start_of_a_chunk_that_is_done_is_no_second_start() {
    let steps = [
        start(Stage::Preprocess),
        frames(2),
        start_unit(Stage::Encode, 1),
        Move::ChunkEncoded { chunk: 1 },
    ];
    let mut record = walk(&steps).expect("legal");
    assert_eq!(
        record.apply(&start_unit(Stage::Encode, 1), NOW),
        Err(Refused::Illegal {
            step: "start a chunk again",
            state: JobState::Encoding
        })
    );
    // The one that is open has its start and both retries.
    for _ in 0..3 {
        record = record
            .apply(&start_unit(Stage::Encode, 0), NOW)
            .expect("a start and two retries");
    }
    let refused = record.apply(&start_unit(Stage::Encode, 0), NOW);
    assert!(
        matches!(refused, Err(Refused::Exhausted { .. })),
        "{refused:?}"
    );
    let again = record.apply(&start_unit(Stage::Encode, 1), NOW);
    assert!(matches!(again, Err(Refused::Illegal { .. })), "{again:?}");
}

/// Every record to which these moves lead from an accepted job, in whatever order and however many; or what went wrong.
fn explore(alphabet: &[Move]) -> Result<HashSet<JobRecord>, &'static str> {
    assert_eq!(violation(&accepted()), None);
    let (mut known, mut open) = (HashSet::from([accepted()]), vec![accepted()]);
    while let Some(record) = open.pop() {
        for step in alphabet {
            let Ok(next) = record.apply(step, NOW) else {
                continue;
            };
            if let Some(wrong) = wrong(&record, step, &next) {
                return Err(wrong);
            }
            // A second replay leads to nothing new.
            if next.epoch < 2 && known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    Ok(known)
}

fn wrong(before: &JobRecord, step: &Move, after: &JobRecord) -> Option<&'static str> {
    let ends_at_hub = before.state == JobState::Forwarded && after.state.is_final();
    if ends_at_hub && after.erased.is_none() && !matches!(step, Move::End(_)) {
        return Some("a job that the hub does ended otherwise than the hub's");
    }
    if after.erased.is_some() && verdict_of_final(after) != Verdict::Done {
        return Some("an erased job has a dead letter");
    }
    violated_by_step(before, after)
}

/// What an edge does to a job, and what comes back from its hub.
fn moves_at_an_edge() -> [Move; 13] {
    [
        forward(7),
        forward(8),
        Move::Cancel,
        Move::Expire,
        Move::Erase,
        Move::ErasedAtHub,
        ended(Outcome::Completed(Digest::new([5; 32]))),
        ended(Outcome::Failed(Failure::new(FailureReason::Internal, "x"))),
        ended(Outcome::Cancelled),
        ended(Outcome::Expired),
        found(7),
        start(Stage::Preprocess),
        Move::Replay {
            expires: UnixMillis(20_000),
        },
    ]
}

#[test]
fn no_sequence_breaks_an_invariant() {
    let alphabet = [
        start(Stage::Preprocess),
        frames(2),
        start(Stage::Encode),
        Move::ChunkEncoded { chunk: 0 },
        Move::ChunkEncoded { chunk: 1 },
        start(Stage::Decode),
        complete(1),
        Move::Cancel,
        Move::Erase,
        forward(7),
        ended(Outcome::Completed(Digest::new([5; 32]))),
        Move::ErasedAtHub,
    ];
    let here = explore(&alphabet).expect("nothing is wrong");
    let is_end = |record: JobRecord| record.state == JobState::Completed && record.erased.is_some();
    assert!(
        here.into_iter().any(is_end),
        "what follows an end is not explored"
    );
    explore(&moves_at_an_edge()).expect("nothing is wrong");
}

#[test]
fn without_any_one_guard_of_the_walk_a_sequence_goes_wrong() {
    for guard in WALKED {
        let found = without(*guard, || explore(&moves_at_an_edge()));
        println!("{guard:?} {:?}", found.as_ref().err());
        assert!(found.is_err(), "{guard:?} is not missed");
    }
}

fn forward(job: u8) -> Move {
    Move::Forward {
        job: JobId::from_bytes([job; 16]),
        class: Class::Urgent,
    }
}

fn found(job: u8) -> Move {
    Move::FoundAtHub {
        job: JobId::from_bytes([job; 16]),
    }
}

fn ended(outcome: Outcome) -> Move {
    let chunks = Chunks {
        total: 1,
        done_bitmap: 1,
    };
    Move::End(Ended {
        outcome,
        attempt: 2,
        chunks,
    })
}

#[test]
fn what_the_hub_does_ends_as_the_hub_says() {
    let at_hub = walk(&[forward(7)]).expect("legal");
    assert_eq!(at_hub.state, JobState::Forwarded);
    assert_eq!(
        (at_hub.class, at_hub.class_asked),
        (Class::Urgent, Class::Routine)
    );
    assert_eq!(at_hub.apply(&forward(7), NOW), Ok(at_hub.clone()));
    for step in [forward(8), Move::Expire, start(Stage::Preprocess)] {
        let refused = at_hub.apply(&step, NOW);
        assert!(matches!(refused, Err(Refused::Illegal { .. })), "{step:?}");
    }
    let result = Digest::new([5; 32]);
    let done = at_hub
        .apply(&ended(Outcome::Completed(result)), NOW)
        .expect("legal");
    assert_eq!((done.state, done.attempt), (JobState::Completed, 2));
    assert_eq!(done.result, Some(result));
    let early = accepted().apply(&ended(Outcome::Cancelled), NOW);
    assert!(matches!(early, Err(Refused::Illegal { .. })));
}

#[test]
fn what_is_encoded_here_goes_to_the_hub_once_all_of_it_is() {
    let begun = [start(Stage::Preprocess), frames(2)];
    let chunk = |chunk| Move::ChunkEncoded { chunk };
    let one_left = [begun.as_slice(), &[chunk(1)]].concat();
    for moves in [&begun[..1], &begun[..], &one_left[..]] {
        let early = walk(moves).expect("legal").apply(&forward(7), NOW);
        assert!(matches!(early, Err(Refused::Illegal { .. })), "{moves:?}");
    }
    let encoded = [begun.as_slice(), &[chunk(1), chunk(0)]].concat();
    let writes = [encoded.as_slice(), &[start(Stage::Decode)]].concat();
    let late = walk(&writes).expect("legal").apply(&forward(7), NOW);
    assert!(
        matches!(late, Err(Refused::Illegal { .. })),
        "its text is written here"
    );
    let at_hub = walk(&[encoded.as_slice(), &[forward(7)]].concat()).expect("legal");
    assert!(at_hub.state == JobState::Forwarded && at_hub.is_encoded_here());
    for step in [chunk(0), start(Stage::Decode), start(Stage::Encode)] {
        let refused = at_hub.apply(&step, NOW);
        assert!(matches!(refused, Err(Refused::Illegal { .. })), "{step:?}");
    }
    let result = ended(Outcome::Completed(Digest::new([5; 32])));
    let done = at_hub.apply(&result, NOW).expect("legal");
    assert_eq!(done.chunks, at_hub.chunks, "they were encoded here");
    let no_images = walk(&[start(Stage::Preprocess), frames(0), forward(7)]);
    assert!(no_images.is_ok(), "there is nothing to encode");
}

#[test]
fn a_cancel_of_what_the_hub_does_is_remembered() {
    let wanted = walk(&[forward(7), Move::Cancel]).expect("legal");
    let forwarded = wanted.forwarded.clone().expect("it is at the hub");
    assert!(forwarded.is_cancel_wanted && wanted.state == JobState::Forwarded);
    assert_eq!(wanted.apply(&Move::Cancel, NOW), Ok(wanted.clone()));
    let ends = wanted.apply(&ended(Outcome::Cancelled), NOW);
    assert_eq!(ends.map(|record| record.state), Ok(JobState::Cancelled));
}

#[test]
fn an_erasure_ends_the_job_here_and_is_owed_by_the_hub() {
    let erased = walk(&[forward(7), Move::Erase]).expect("legal");
    assert_eq!(erased.state, JobState::Cancelled);
    assert!(erased.owes_erasure());
    assert!(erased.apply(&ended(Outcome::Cancelled), NOW).is_err());
    let settled = erased.apply(&Move::ErasedAtHub, NOW).expect("legal");
    assert!(!settled.owes_erasure());
    let never_there = walk(&[Move::Cancel, Move::Erase]).expect("legal");
    assert!(!never_there.owes_erasure());
    assert!(never_there.apply(&Move::ErasedAtHub, NOW).is_err());
}

#[test]
fn what_was_found_at_the_hub_after_its_end_is_owed_whenever_it_is_erased() {
    for end in [Move::Cancel, Move::Expire] {
        let ended = walk(slice::from_ref(&end)).expect("legal");
        let known = ended.apply(&found(7), NOW).expect("legal");
        assert_eq!((known.state, known.owes_erasure()), (ended.state, false));
        assert_eq!(known.apply(&found(8), NOW), Ok(known.clone()));
        for moves in [
            [end.clone(), found(7), Move::Erase],
            [end, Move::Erase, found(7)],
        ] {
            let owed = walk(&moves).expect("legal");
            assert!(owed.owes_erasure(), "{moves:?}");
            let settled = owed.apply(&Move::ErasedAtHub, NOW).expect("legal");
            assert!(!settled.owes_erasure(), "{moves:?}");
        }
    }
    assert!(accepted().apply(&found(7), NOW).is_err(), "it goes on");
    let there = walk(&[forward(7)]).expect("legal");
    assert!(there.apply(&found(7), NOW).is_err(), "it is followed");
}
