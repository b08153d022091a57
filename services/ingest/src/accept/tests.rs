//! Accepting over a real queue, and blobs in memory.

use bytes::Bytes;
use medfleet_proto::v1::input::Source;
use medfleet_proto::v1::task::Kind;
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit::{self as kit, NatsServer};

use super::sample::acceptor;
use super::*;
use crate::config;

mod room;

/// For the model that the fleet has at first.
fn request(content: &'static [u8]) -> v1::SubmitJobRequest {
    let kind = Some(Kind::Report(v1::ReportTask::default()));
    v1::SubmitJobRequest {
        request_id: "accession-18".to_owned(),
        model: "tiny".to_owned(),
        task: Some(v1::Task { kind }),
        inputs: vec![v1::Input {
            source: Some(Source::Content(Bytes::from_static(content))),
            ..v1::Input::default()
        }],
        ..v1::SubmitJobRequest::default()
    }
}

/// Its answer was lost, and the fleet was given other models before the client came again.
#[tokio::test]
async fn a_request_that_was_accepted_is_the_same_job_whatever_the_fleet_does_by_now() {
    let server = NatsServer::start().await.expect("a server");
    let queue = kit::queue(&kit::config(&server.url())).await;
    let queue = queue.expect("a queue");
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let before = acceptor(queue, store);
    let caller = Caller::of(&kit::tenant());
    let accepted = before.accept(&caller, request(b"film")).await;
    let accepted = accepted.expect("a good request");
    assert!(!accepted.already);
    let other: Config = config::sample::of(&[
        "tokens=tokens.toml",
        "default_model=other",
        "models.other=tiny-here",
    ]);
    let now = Acceptor {
        config: Arc::new(other),
        ..before
    };
    let again = now.accept(&caller, request(b"film")).await;
    let again = again.expect("it was accepted");
    assert!(again.already && again.id == accepted.id);
    // Another under its id has to be one that this fleet does.
    let refused = now.accept(&caller, request(b"another film")).await;
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
}
