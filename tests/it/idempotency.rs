//! The same request is the same job, however often and however concurrently it is sent.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use medfleet_proto::v1::{JobState, SubmitJobRequest};
use medfleet_testkit::{FaultyLink, wait_until};
use medfleet_tests::client::{PATIENCE, pictures, refused};
use medfleet_tests::fleet::{Fleet, Options};
use medfleet_tests::picture;
use tonic::Code;

fn with_id(id: &str, seed: u32) -> Result<SubmitJobRequest> {
    Ok(SubmitJobRequest {
        request_id: id.into(),
        ..pictures(&[seed])?
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_id_is_one_job() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let request = with_id("accession-17", 1)?;
    let answers = try_join_all((0..20).map(|_| client.submit_full(request.clone()))).await?;
    let name = &answers[0].0.name;
    ensure!(
        answers.iter().all(|(job, _)| job.name == *name),
        "one request id made several jobs"
    );
    ensure!(
        answers.iter().filter(|(_, already)| !already).count() == 1,
        "exactly one answer is the first"
    );
    ensure!(
        !name.contains("accession"),
        "the request id shows in the job's name"
    );
    client.watch_to_end(name).await?;

    let (job, already) = client.submit_full(request).await?;
    ensure!(already && job.state() == JobState::Completed, "{job:?}");
    let another = client.submit(with_id("accession-17", 2)?).await;
    refused(another, Code::AlreadyExists)?;
    let (jobs, _) = client.list(100, "").await?;
    ensure!(jobs.len() == 1, "{jobs:?}");
    Ok(())
}

/// The job is accepted and its answer is lost with the connection: the command line asks again, under the same request id, which it
/// chose itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_one_job_though_an_answer_is_lost() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let link = FaultyLink::to(fleet.api()).await?;
    let server = link.nats_url().replace("nats://", "http://");
    let folder = tempfile::tempdir()?;
    // Little enough to be sent whole to a server that says nothing.
    let film = picture::noise(200, 1)?;
    let path = folder.path().join("film.png");
    std::fs::write(&path, film)?;
    let path = path.display().to_string();
    let arguments = [
        "submit",
        &path,
        "--task",
        "report",
        "--no-wait",
        "--server",
        &server,
    ];
    let client = fleet.client("st-mary").await?;
    link.lose_answers();
    let submitted = fleet.command("st-mary", &arguments);
    let lost = wait_until(PATIENCE, "the job to be there", async || {
        let (jobs, _) = client.list(100, "").await.ok()?;
        (!jobs.is_empty()).then(|| link.mend())
    });
    let (submitted, lost) = tokio::join!(submitted, lost);
    lost?;
    let submitted = submitted?;
    ensure!(submitted.status.success(), "{submitted:?}");
    let (jobs, _) = client.list(100, "").await?;
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    let printed = String::from_utf8(submitted.stdout)?;
    ensure!(names == [printed.trim()], "{names:?} for {printed:?}");
    client.wait_completed(printed.trim()).await?;
    Ok(())
}

/// Two tenants may use the same request id.
#[tokio::test(flavor = "multi_thread")]
async fn request_ids_belong_to_a_tenant() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let (one, two) = fleet.two_clients().await?;
    let first = one.submit(with_id("study-1", 1)?).await?;
    let second = two.submit(with_id("study-1", 2)?).await?;
    ensure!(first.name != second.name, "two tenants share a job");
    Ok(())
}
