//! Blobs in a real S3 server: the contract of every backend, and the walk of a job whose every blob lies there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use medfleet_proto::v1::JobState;
use medfleet_store::StoreConfig;
use medfleet_tests::client::{inline, report};
use medfleet_tests::fleet::{Fleet, Options};
use medfleet_tests::picture;
use medfleet_tests::s3::S3Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_walks_with_its_blobs_in_s3() -> Result<()> {
    let server = S3Server::start().await?;
    let mut file = toml::Table::new();
    file.insert("key".into(), "0f".repeat(32).into());
    file.insert("backend".into(), server.backend().into());
    let config: StoreConfig = file.try_into().context("the server's settings")?;
    let backend = config.open_backend()?;
    medfleet_store::contract::run(backend.clone()).await;

    let fleet = Fleet::start(Options {
        store: Some(server.backend()),
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let job = client
        .submit(report(vec![inline(picture::png(64, 1)?)]))
        .await?;
    let seen = client.watch_to_end(&job.name).await?;
    let last = seen.last.context("a watch ends with the job")?;
    ensure!(last.state() == JobState::Completed, "{last:?}");
    ensure!(client.result(&job.name).await?.draft);
    let entries: Vec<_> = backend.list("st-mary").try_collect().await?;
    let kinds: BTreeSet<_> = entries
        .iter()
        .filter_map(|entry| entry.name.as_str().split('/').nth(1))
        .collect();
    for kind in ["input", "study", "frame", "frames", "tokens", "result"] {
        ensure!(kinds.contains(kind), "no {kind} blob in S3: {kinds:?}");
    }
    Ok(())
}

/// A wrong key is the operator's mistake: it must be said, not waited out.
#[tokio::test]
async fn a_wrong_key_is_refused_at_once() -> Result<()> {
    let server = S3Server::start().await?;
    let mut backend = server.backend();
    backend.insert("secret_access_key".into(), "another".into());
    let mut file = toml::Table::new();
    file.insert("key".into(), "0f".repeat(32).into());
    file.insert("backend".into(), backend.into());
    let config: StoreConfig = file.try_into().context("the server's settings")?;
    let name = "st-mary/frame/a".parse().context("a name")?;
    let written = config.open_backend()?.put(&name, "x".into()).await;
    let error = written.err().context("a wrong key was taken")?;
    ensure!(!error.is_transient(), "{error}");
    Ok(())
}
