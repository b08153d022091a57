//! Blobs in the object store: the contract of every backend, and sizes that need many chunks.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use medfleet_core::{BlobKind, TenantId};
use medfleet_queue::Replicas;
use medfleet_store::{Backend, BackendError, BlobStore, FleetKey, Limits, Name, StoreError};

use crate::start;

#[tokio::test]
async fn keeps_the_contract_of_every_backend() -> Result<()> {
    let (_server, queue) = start().await?;
    let objects = queue.objects("blobs", Replicas::One);
    medfleet_store::contract::run(Arc::new(objects)).await;
    Ok(())
}

#[tokio::test]
async fn twenty_mebibytes_come_back_and_a_rewrite_leaves_no_waste() -> Result<()> {
    let (_server, queue) = start().await?;
    let objects = queue.objects("blobs", Replicas::One);
    let name: Name = "t/input/big".parse()?;
    let big: Bytes = (0..20_usize << 20).map(|i| ((i * 31) >> 7) as u8).collect();
    for _ in 0..3 {
        objects.put(&name, big.clone()).await?;
    }
    let read = objects.get(&name, u64::MAX).await?.context("it is there")?;
    ensure!(read == big, "the bytes changed");
    let used = objects.used_bytes().await?.context("it is known")?;
    ensure!(used < 21 << 20, "{used} bytes are used for 20 MiB");
    ensure!(objects.delete(&name).await?);
    let entries: Vec<_> = objects.list("").try_collect().await?;
    ensure!(entries.is_empty());
    ensure!(objects.used_bytes().await?.unwrap_or(u64::MAX) < 1 << 20);
    Ok(())
}

#[tokio::test]
async fn the_cap_says_full() -> Result<()> {
    let (_server, queue) = crate::start_with(|config| {
        config.stream_bytes_max.objects = medfleet_core::setting::ByteSize::from_mib(2);
    })
    .await?;
    let objects = queue.objects("small", Replicas::One);
    let name: Name = "t/input/a".parse()?;
    objects.put(&name, Bytes::from(vec![1; 1 << 20])).await?;
    let refused = objects
        .put(&"t/input/b".parse()?, Bytes::from(vec![2; 2 << 20]))
        .await;
    ensure!(matches!(refused, Err(BackendError::Full)), "{refused:?}");
    // Nothing of the refused one stays, and what was there is whole.
    objects
        .put(&"t/input/c".parse()?, Bytes::from(vec![3; 1 << 19]))
        .await?;
    ensure!(objects.get(&name, u64::MAX).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn what_a_dropped_put_left_is_reclaimed_and_nothing_else() -> Result<()> {
    let (_server, queue) = start().await?;
    let objects = queue.objects("blobs", Replicas::One);
    let kept: Name = "t/input/kept".parse()?;
    objects.put(&kept, Bytes::from(vec![7; 3 << 20])).await?;
    let used = async || anyhow::Ok(objects.used_bytes().await?.context("it is known")?);
    let before = used().await?;
    // A put that is under way is dropped. One that was faster than we looked proves nothing, and is removed again.
    let big = Bytes::from(vec![1; 32 << 20]);
    let name: Name = "t/input/dropped".parse()?;
    loop {
        let begun = async {
            while used().await? == before {}
            anyhow::Ok(())
        };
        tokio::select! {
            biased;
            begun = begun => break begun?,
            put = objects.put(&name, big.clone()) => put?,
        }
        objects.delete(&name).await?;
    }
    ensure!(objects.head(&name).await?.is_none());
    let age = |millis: i64| medfleet_core::UnixMillis(medfleet_testkit::clock()().0 + millis);
    ensure!(objects.reclaim(age(-3_600_000)).await? == 0, "it is young");
    // Chunks that were on their way when the put was dropped may still arrive.
    let limit = std::time::Duration::from_secs(60);
    let free = medfleet_testkit::wait_until(limit, "the room to be free again", async || {
        objects.reclaim(age(1_000)).await.ok()?;
        (used().await.ok()? == before).then_some(())
    });
    free.await?;
    let read = objects.get(&kept, u64::MAX).await?.context("it is there")?;
    ensure!(read == vec![7; 3 << 20], "the bytes changed");
    Ok(())
}

/// Bytes that changed, and bytes that are missing: the next put of the same content makes it whole, whether or not somebody has
/// read it before.
#[tokio::test]
async fn a_damaged_object_is_made_whole_by_the_next_put() -> Result<()> {
    let (server, queue) = start().await?;
    let objects = Arc::new(queue.objects("blobs", Replicas::One));
    let limits = Limits {
        blob_bytes_max: 1 << 20,
        capacity_bytes: None,
    };
    let store = BlobStore::new(objects.clone(), FleetKey::new([7; 32]), limits);
    let client = async_nats::connect(server.url()).await?;
    let tenant = TenantId::new("st-mary")?;
    let content = Bytes::from(vec![7; 600 << 10]);
    let damage = async |put_instead: Option<Bytes>| {
        let info = "$JS.API.STREAM.INFO.OBJ_blobs";
        let filter = r#"{"subjects_filter":"$O.blobs.C.>"}"#;
        let info = client.request(info, filter.into()).await?;
        let info: serde_json::Value = serde_json::from_slice(&info.payload)?;
        let subjects = info["state"]["subjects"].as_object();
        let subject = subjects.and_then(|subjects| subjects.keys().next());
        let subject = subject.context("the chunks have a subject")?.clone();
        let purge = serde_json::json!({ "filter": subject }).to_string();
        let method = "$JS.API.STREAM.PURGE.OBJ_blobs";
        client.request(method, purge.into()).await?;
        if let Some(bytes) = put_instead {
            client.request(subject, bytes).await?;
        }
        anyhow::Ok(())
    };
    for instead in [None, Some(Bytes::from(vec![8; 600 << 10]))] {
        let digest = store.put(&tenant, BlobKind::Input, content.clone()).await?;
        damage(instead).await?;
        let name: Name = format!("{tenant}/{}/{digest}", BlobKind::Input).parse()?;
        let found = objects.get(&name, u64::MAX).await;
        ensure!(matches!(found, Err(BackendError::Damaged)), "{found:?}");
        let found = store.get(&tenant, BlobKind::Input, &digest).await;
        ensure!(
            matches!(found, Err(StoreError::Corrupt { .. })),
            "{found:?}"
        );
        let again = store.put(&tenant, BlobKind::Input, content.clone()).await?;
        ensure!(again == digest);
        ensure!(store.get(&tenant, BlobKind::Input, &digest).await? == content);
    }
    for instead in [None, Some(Bytes::from(vec![8; 600 << 10]))] {
        damage(instead).await?;
        let digest = store.put(&tenant, BlobKind::Input, content.clone()).await?;
        ensure!(store.get(&tenant, BlobKind::Input, &digest).await? == content);
    }
    Ok(())
}
