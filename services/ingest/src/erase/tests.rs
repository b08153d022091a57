//! Erasing over a real queue, and blobs in memory.

use bytes::Bytes;
use medfleet_core::BlobKind;
use medfleet_core::setting::ByteSize;
use medfleet_queue::QueueError;
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit as kit;

use super::*;
use crate::accept::sample::acceptor;

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
