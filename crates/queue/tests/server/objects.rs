//! Blobs in the object store: the contract of every backend, and sizes that need many chunks.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use medfleet_queue::Replicas;
use medfleet_store::{Backend, Name};

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
    ensure!(
        matches!(refused, Err(medfleet_store::BackendError::Full)),
        "{refused:?}"
    );
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
