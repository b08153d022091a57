//! Blobs in a real S3 server: the contract of every backend, and the walk of a job whose every blob lies there.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use medfleet_store::StoreConfig;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::fleet::{Fleet, Options, binary};
use medfleet_tests::picture;
use medfleet_tests::s3::S3Server;

/// The settings of a store there.
fn store(backend: toml::Table) -> toml::Table {
    let key = ("key".to_owned(), "0f".repeat(32).into());
    toml::Table::from_iter([key, ("backend".to_owned(), backend.into())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_walks_with_its_blobs_in_s3() -> Result<()> {
    let server = S3Server::start().await?;
    let config: StoreConfig = store(server.backend()).try_into()?;
    let backend = config.open_backend()?;
    medfleet_store::contract::run(backend.clone()).await;

    let fleet = Fleet::start(Options {
        store: Some(server.backend()),
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 1)?).await?;
    client.watch_completed(&job.name).await?;
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
    let config: StoreConfig = store(backend.clone()).try_into()?;
    let name = "st-mary/frame/a".parse().context("a name")?;
    let written = config.open_backend()?.put(&name, "x".into()).await;
    let error = written.err().context("a wrong key was taken")?;
    ensure!(!error.is_transient(), "{error}");

    // The server makes its bucket after it has begun to answer.
    let fine = async || {
        let said = doctor_of_the_store(&server.backend()).await;
        said.ok().filter(|said| said.contains("answers in"))
    };
    medfleet_testkit::wait_until(PATIENCE, "a bucket that is fine", fine).await?;
    let said = doctor_of_the_store(&backend).await?;
    ensure!(said.contains("\"fail\""), "{said}");
    Ok(())
}

/// What `medfleet doctor` says of the store, of a service that keeps its blobs there.
async fn doctor_of_the_store(backend: &toml::Table) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("service.toml");
    // Nobody is there, and what is said of it is not looked at.
    let mut service: toml::Table = "[queue]\nurls = ['nats://127.0.0.1:1']".parse()?;
    service.insert("store".into(), store(backend.clone()).into());
    std::fs::write(&file, toml::to_string(&service)?)?;
    let output = tokio::process::Command::new(binary("medfleet")?)
        .args(["doctor", "--json", "--data"])
        .arg(folder.path())
        .arg("--config")
        .arg(&file)
        .output()
        .await?;
    let said = String::from_utf8(output.stdout)?;
    let line = said.lines().find(|line| line.contains("\"store\""));
    Ok(line.context("doctor says nothing of the store")?.to_owned())
}

/// A model's files go into a bucket behind TLS and come out of it as they were, or not at all.
#[tokio::test]
async fn weights_come_from_a_bucket_with_an_authority_of_its_own() -> Result<()> {
    let server = S3Server::start_with_tls().await?;
    let folder = tempfile::tempdir()?;
    let (model, fetched) = (folder.path().join("model"), folder.path().join("fetched"));
    std::fs::create_dir_all(model.join("t"))?;
    // Longer than one piece, so that several are put together again.
    let weights: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(model.join("model.safetensors"), &weights)?;
    std::fs::write(model.join("t/tokenizer.json"), "{}")?;
    let (code, listed) = weights_command("list", &model, &[]).await?;
    ensure!(code == Some(0), "{listed}");
    let sha256 = format!("--sha256={}", listed.trim());

    let mut place = server.flags("models/m")?;
    place.push(format!("--ca={}", server.authority().display()));
    let pushed = async || {
        let pushed = weights_command("push", &model, &place).await;
        matches!(pushed, Ok((Some(0), _))).then_some(())
    };
    medfleet_testkit::wait_until(PATIENCE, "the bucket behind TLS", pushed).await?;

    let mut wrong = place.clone();
    wrong.push(format!("--sha256={}", "a1".repeat(32)));
    let (code, said) = weights_command("fetch", &fetched, &wrong).await?;
    ensure!(code == Some(1) && !fetched.exists(), "{code:?}: {said}");
    ensure!(
        said.contains("models/m/SHA256SUMS") && said.contains(listed.trim()),
        "{said}"
    );

    place.push(sha256.clone());
    let (code, said) = weights_command("fetch", &fetched, &place).await?;
    ensure!(code == Some(0), "{said}");
    ensure!(std::fs::read(fetched.join("model.safetensors"))? == weights);
    std::fs::write(fetched.join("t/tokenizer.json"), "[]")?;
    let (code, said) = weights_command("check", &fetched, &[sha256]).await?;
    ensure!(
        code == Some(1) && said.contains("t/tokenizer.json"),
        "{said}"
    );
    Ok(())
}

/// Exit code, and what it wrote.
async fn weights_command(
    what: &str,
    folder: &Path,
    flags: &[String],
) -> Result<(Option<i32>, String)> {
    let output = tokio::process::Command::new(binary("medfleet")?)
        .args(["weights", what])
        .arg(folder)
        .args(flags)
        .output()
        .await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}
