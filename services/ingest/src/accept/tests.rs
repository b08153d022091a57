//! Accepting over a real queue, and blobs in memory.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use medfleet_core::setting::ByteSize;
use medfleet_proto::v1::input::Source;
use medfleet_proto::v1::task::Kind;
use medfleet_proto::v1::upload_input_request::Content;
use medfleet_runtime::Shutdown;
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit as kit;

use super::sample::acceptor;
use super::*;
use crate::config::{self, Quota, QuotasConfig};
use crate::convert;
use crate::places::Places;
use crate::upload::Uploads;

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
    let (_server, queue) = kit::start().await.expect("a queue");
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

/// Uploads a file whole. Gives what a job names it by.
async fn uploaded(acceptor: &Acceptor, content: &'static [u8]) -> v1::Input {
    let uploads = Uploads {
        config: acceptor.config.clone(),
        queue: acceptor.queue.clone(),
        blobs: acceptor.blobs.clone(),
        clock: acceptor.clock.clone(),
        random: acceptor.random.clone(),
        figures: acceptor.figures.clone(),
        quotas: acceptor.quotas.clone(),
        shutdown: Shutdown::new(Duration::ZERO),
        places: Places::new(1),
    };
    let start = v1::UploadStart {
        total_bytes: content.len() as u64,
        ..v1::UploadStart::default()
    };
    let contents = [
        Content::Start(start),
        Content::Chunk(Bytes::from_static(content)),
    ];
    let messages = contents.map(|content| {
        Ok(v1::UploadInputRequest {
            content: Some(content),
        })
    });
    let sent = uploads.take(kit::tenant(), stream::iter(messages)).await;
    v1::Input {
        source: Some(Source::Upload(sent.expect("there is room").name)),
        ..v1::Input::default()
    }
}

/// Its file fills the quota to the last byte. Who brings another one finds no room.
#[tokio::test]
async fn a_job_of_what_was_uploaded_is_not_refused_for_what_is_stored() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let mut acceptor = acceptor(queue, BlobStore::in_memory(FleetKey::new([1; 32])));
    let quotas = QuotasConfig {
        default: Quota {
            stored_bytes_max: Some(ByteSize::from_bytes(4)),
            ..Quota::default()
        },
        ..QuotasConfig::default()
    };
    acceptor.quotas = Quotas::new(quotas, Duration::ZERO, acceptor.clock.clone());
    let caller = Caller::of(&kit::tenant());
    let film = uploaded(&acceptor, b"film").await;

    let alone = request(b"x");
    let mut beside = alone.clone();
    beside.inputs.push(film.clone());
    for brings in [alone, beside] {
        let refused = acceptor.accept(&caller, brings).await;
        assert!(
            matches!(refused, Err(Refusal::Stored { .. })),
            "{refused:?}"
        );
    }
    let sent = v1::SubmitJobRequest {
        inputs: vec![film],
        ..request(b"")
    };
    let accepted = acceptor.accept(&caller, sent).await;
    assert!(!accepted.expect("its file is there").already);
}

/// Of three hundred slices nobody wants to send all again.
#[tokio::test]
async fn the_upload_that_is_gone_is_named() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let acceptor = acceptor(queue, store);
    let mut sent = request(b"film");
    sent.inputs.push(v1::Input {
        source: Some(Source::Upload(format!("uploads/{}", "0".repeat(32)))),
        ..v1::Input::default()
    });
    let caller = Caller::of(&kit::tenant());
    let refused = acceptor.accept(&caller, sent).await;
    let refused = crate::error::status(&refused.expect_err("one is not there"));
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused:?}");
    let message = refused.message();
    assert!(message.starts_with("inputs[1].upload: "), "{message}");
}

/// Its handle lives on, and with each job more would be stored.
#[tokio::test]
async fn beyond_the_quota_an_upload_is_good_for_one_job_and_its_repeats() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let mut acceptor = acceptor(queue, BlobStore::in_memory(FleetKey::new([1; 32])));
    let quota = |bytes| {
        let default = Quota {
            stored_bytes_max: Some(ByteSize::from_bytes(bytes)),
            ..Quota::default()
        };
        QuotasConfig {
            default,
            ..QuotasConfig::default()
        }
    };
    let clock = acceptor.clock.clone();
    acceptor.quotas = Quotas::new(quota(8), Duration::ZERO, clock);
    let caller = Caller::of(&kit::tenant());
    let first = uploaded(&acceptor, b"film").await;
    let second = uploaded(&acceptor, b"more").await;
    let of = |request_id: &str, inputs: &[&v1::Input]| v1::SubmitJobRequest {
        request_id: request_id.to_owned(),
        inputs: inputs.iter().copied().cloned().collect(),
        ..request(b"")
    };
    // Calls that break off right after this, before there is a record.
    let key = JobKey::new(kit::tenant(), acceptor.keys.job_id(&kit::tenant(), "a"));
    let Some(Source::Upload(name)) = &first.source else {
        panic!("it is an upload");
    };
    let id = convert::upload_id("upload", name).expect("a name");
    for _ in 0..2 {
        let let_in = acceptor.let_in_beyond(&key, std::slice::from_ref(&id), UPLOAD_GONE);
        let_in.await.expect("it has let in no other");
    }
    let let_in = async |request_id: &str, inputs: &[&v1::Input]| match acceptor
        .accept(&caller, of(request_id, inputs))
        .await
    {
        Ok(accepted) => Some(accepted.already),
        Err(Refusal::Stored { .. }) => None,
        Err(refusal) => panic!("{refusal:?}"),
    };
    assert_eq!(let_in("a", &[&first]).await, Some(false));
    assert_eq!(let_in("a", &[&first]).await, Some(true));
    for request_id in ["b", ""] {
        assert_eq!(let_in(request_id, &[&first]).await, None, "{request_id}");
    }
    // With another file that has its room, as for a comparison.
    assert_eq!(let_in("c", &[&first, &second]).await, Some(false));
    assert_eq!(let_in("d", &[&second]).await, None);
    let roomy = Acceptor {
        quotas: Quotas::new(quota(1 << 20), Duration::ZERO, acceptor.clock.clone()),
        ..acceptor.clone()
    };
    let accepted = roomy.accept(&caller, of("d", &[&second])).await;
    assert!(!accepted.expect("there is room").already);
}

/// Its routine work fills the quota.
#[tokio::test]
async fn stat_within_its_budget_is_let_in_beyond_the_quota_of_open_jobs() {
    let (_server, queue) = kit::start().await.expect("a queue");
    let mut acceptor = acceptor(queue, BlobStore::in_memory(FleetKey::new([1; 32])));
    let quotas = QuotasConfig {
        default: Quota {
            open_jobs_max: Some(1),
            stat_per_minute: Some(1),
            ..Quota::default()
        },
        ..QuotasConfig::default()
    };
    acceptor.quotas = Quotas::new(quotas, Duration::ZERO, acceptor.clock.clone());
    let (key, record) = kit::record(1, 1);
    acceptor.open.take_record(&key, &record);
    let caller = Caller::of(&key.tenant);
    let class_of = async |request_id: &str, class: v1::Class| {
        let submit = v1::SubmitJobRequest {
            request_id: request_id.to_owned(),
            class: class.into(),
            ..request(b"film")
        };
        match acceptor.accept(&caller, submit).await {
            Ok(accepted) => Some(accepted.record.class),
            Err(Refusal::Quota {
                what: "open jobs", ..
            }) => None,
            Err(refusal) => panic!("{refusal:?}"),
        }
    };
    assert_eq!(class_of("a", v1::Class::Routine).await, None);
    assert_eq!(class_of("b", v1::Class::Stat).await, Some(Class::Stat));
    // It would be an urgent one.
    assert_eq!(class_of("c", v1::Class::Stat).await, None);
}
