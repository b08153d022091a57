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
