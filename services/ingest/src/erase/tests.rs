//! Erasing over a real queue, and blobs in memory.

use std::time::Duration;

use bytes::Bytes;
use medfleet_core::BlobKind;
use medfleet_core::setting::ByteSize;
use medfleet_queue::QueueError;
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit as kit;

use super::*;
use crate::accept::sample::acceptor;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// After the erasure there would be nothing left to write it down for.
#[tokio::test]
async fn nothing_goes_before_the_audit_says_who_wanted_it() {
    let started = kit::start_with(|config| {
        config.stream_bytes_max.audit = ByteSize::from_bytes(1024);
        config.audit_lines_max = Some(0);
    });
    let (_server, queue) = started.await.expect("a queue");
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let (key, record) = kit::record(1, 1);
    let film = vec![(BlobKind::Input, Bytes::from_static(b"film"))];
    let kept = store.keep(&key, film, &[], std::future::ready(Ok(())));
    let film = kept.await.expect("stores")[0];
    let created = queue.create_record(&key, &record).await;
    created.expect("stores");
    let acceptor = acceptor(queue.clone(), store.clone());
    let full = loop {
        if let Err(full) = acceptor.audit(&key, "watch", "somebody").await {
            break full;
        }
    };
    assert!(matches!(full, QueueError::Full { .. }), "{full:?}");

    let caller = Caller::of(&key.tenant);
    let mut relied = Relied::default();
    let refused = acceptor.erase(&caller, &key, &mut relied).await;
    assert!(
        matches!(refused, Err(Refusal::Queue(QueueError::Full { .. }))),
        "{refused:?}"
    );
    let there = store.exists(&key.tenant, BlobKind::Input, &film).await;
    assert!(there.expect("answers"));
    let found = queue.record(&key).await.expect("answers").expect("a job").0;
    assert_eq!((found.state, found.erased), (record.state, None));
}

/// The keeper finds it by what its job relies on.
#[tokio::test]
async fn an_erasure_lets_go_of_what_its_job_relies_on_when_all_else_is_gone() {
    let (mut server, queue) = kit::start().await.expect("a queue");
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let (key, record) = kit::record(1, 1);
    let film = vec![(BlobKind::Input, Bytes::from_static(b"film"))];
    let kept = store.keep(&key, film, &[], std::future::ready(Ok(())));
    kept.await.expect("stores");
    let created = queue.create_record(&key, &record).await;
    created.expect("stores");
    // Nothing can be removed from a stream that is gone.
    server.kill9().await.expect("ends");
    let letters = server.store().join("jetstream/$G/streams/DEAD");
    std::fs::remove_dir_all(letters).expect("it was there");
    server.restart().await.expect("starts");
    let found = kit::wait_until(PATIENCE, "an answer", async || {
        queue.record(&key).await.ok()
    });
    assert!(found.await.expect("answers").is_some());

    let acceptor = acceptor(queue.clone(), store.clone());
    let caller = Caller::of(&key.tenant);
    let mut relied = Relied::default();
    let broken = acceptor.erase(&caller, &key, &mut relied).await;
    assert!(matches!(broken, Err(Refusal::Queue(_))), "{broken:?}");
    let holders = store.holders(&key.tenant).await.expect("lists");
    assert!(holders.contains_key(&key.job));
    queue.ensure(&[]).await.expect("makes it anew");
    let again = acceptor.erase(&caller, &key, &mut relied).await;
    again.expect("erases");
    let holders = store.holders(&key.tenant).await.expect("lists");
    assert!(holders.is_empty());
}
