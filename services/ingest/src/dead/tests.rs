//! Starting a job over, over a real queue: where only its reserve is left, and after an erasure that broke.

use medfleet_core::{Class, Failure, FailureReason, Stage};
use medfleet_queue::{JOBS_STREAM, Queue};
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit as kit;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;
use crate::accept::sample::acceptor;

/// A job that has failed, with its dead letter; gives the letter's name.
async fn failed(queue: &Queue, key: &JobKey, record: &JobRecord) -> String {
    let failure = Failure::new(FailureReason::InputRefused, "x");
    let created = queue.create_record(key, record).await;
    created.expect("stores");
    let step = Move::Fail(failure.clone());
    let moved = queue.apply(key, Some(0), &step, kit::clock()()).await;
    assert!(matches!(moved, Ok(Applied::Applied { .. })), "{moved:?}");
    let unit = kit::unit(key, Stage::Decode, Class::Routine, 0);
    let letter = medfleet_queue::dead_letter(&unit, &failure, 1);
    queue.publish_dead(&letter).await.expect("stores");
    convert::dead_letter(1, &letter).name
}

fn letters(queue: Queue) -> DeadLetters {
    let acceptor = acceptor(queue, BlobStore::in_memory(FleetKey::new([1; 32])));
    DeadLetters {
        calls: Calls {
            figures: acceptor.figures.clone(),
        },
        acceptor,
    }
}

async fn replay(letters: &DeadLetters, name: &str) -> Result<v1::Job, Status> {
    let mut request = Request::new(v1::ReplayDeadLetterRequest {
        name: name.to_owned(),
    });
    request.extensions_mut().insert(Caller::of(&kit::tenant()));
    let response = letters.replay_dead_letter(request).await?;
    Ok(response.into_inner().job.expect("a job"))
}

/// Its first call broke after the record had changed, or before the letter was gone.
#[tokio::test]
async fn who_asks_again_is_told_what_was_done_where_only_the_reserve_is_left() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let letters = letters(queue.clone());
    let (key, record) = kit::record(1, 1);
    let name = failed(&queue, &key, &record).await;
    let mut usage = queue.usage().await.expect("lists");
    let mut streams = usage.iter_mut();
    let records = streams.find(|stream| stream.stream == JOBS_STREAM);
    let records = records.expect("it is there");
    records.bytes = records.bytes_max.expect("a limit");
    letters.acceptor.room.look(&usage);

    let refused = replay(&letters, &name).await.expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let found = queue.record(&key).await.expect("answers").expect("a job").0;
    assert_eq!((found.state, found.epoch), (JobState::Failed, 0));

    let expires = record.expires;
    let step = Move::Replay { expires };
    let moved = queue.apply(&key, Some(0), &step, kit::clock()()).await;
    assert!(matches!(moved, Ok(Applied::Applied { .. })), "{moved:?}");
    // While its letter is there, and when it is gone.
    for _ in 0..2 {
        let job = replay(&letters, &name).await.expect("it was started over");
        assert_eq!(job.name, convert::job_name(&key.job));
        assert_eq!(job.state(), v1::JobState::Accepted);
        let letter = queue.dead_letter_of(&key, 0).await.expect("answers");
        assert!(letter.is_none(), "{letter:?}");
    }
}

/// Its erasure broke before the letter was gone: "failed" is what a job has to be to be started over.
#[tokio::test]
async fn a_job_that_was_erased_is_refused_for_that() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let letters = letters(queue.clone());
    let (key, record) = kit::record(1, 1);
    let name = failed(&queue, &key, &record).await;
    let step = Move::Erase;
    let moved = queue.apply(&key, Some(0), &step, kit::clock()()).await;
    assert!(matches!(moved, Ok(Applied::Applied { .. })), "{moved:?}");
    let refused = replay(&letters, &name).await.expect_err("it was erased");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let details = refused.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    assert_eq!(reason, Some("JOB_ERASED"));
}
