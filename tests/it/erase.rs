//! An erased job leaves a record that says so and nothing else: no blob, no text, no way to start it over.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_testkit::wait_until;
use medfleet_tests::client::{PATIENCE, inline, report, uploaded};
use medfleet_tests::fleet::{Fleet, Model, Options, Pace};
use medfleet_tests::picture;
use tonic::Code;

/// What is stored for a tenant besides tombstones, lists of references, and the lists of tokens by chunk, which name nothing
/// that is left and no job.
fn contents(fleet: &Fleet) -> Result<Vec<String>> {
    let stored = fleet.stored("st-mary")?.into_iter();
    let is_content = |name: &String| {
        !["erased/", "refs/", "chunk/"]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    Ok(stored.filter(is_content).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_erased_job_is_left_and_its_neighbour_keeps_what_they_share() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let (shared, own) = (picture::png(64, 1)?, picture::png(64, 2)?);
    let both = vec![inline(shared.clone()), inline(own)];
    let job = client.submit(report(both)).await?;
    let neighbour = client.submit(report(vec![inline(shared)])).await?;
    for job in [&job, &neighbour] {
        let done = client.wait_final(&job.name).await?;
        ensure!(done.state() == JobState::Completed, "{done:?}");
    }
    let before = contents(&fleet)?.len();

    let erased = client.erase(&job.name).await?;
    let record = erased.job.context("the job is in the answer")?;
    ensure!(record.state() == JobState::Completed && record.erase_time.is_some());
    ensure!(erased.objects_removed > 0 && erased.objects_shared > 0);
    ensure!(contents(&fleet)?.len() < before);
    let gone = client.result(&job.name).await.expect_err("it was erased");
    ensure!(gone.code() == Code::FailedPrecondition, "{gone:?}");
    client.result(&neighbour.name).await?;

    // Again is fine; another tenant's jobs do not exist.
    client.erase(&job.name).await?;
    let other = fleet.client("st-john").await?;
    let refused = other.erase(&neighbour.name).await.expect_err("not theirs");
    ensure!(refused.code() == Code::NotFound, "{refused:?}");

    client.erase(&neighbour.name).await?;
    let left = contents(&fleet)?;
    ensure!(left.is_empty(), "{left:?}");
    fleet.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_decoded_is_cancelled_and_leaves_nothing() -> Result<()> {
    let fleet = Fleet::start(Options {
        model: Model::Simulated(Pace {
            step_millis: 200,
            ..Pace::default()
        }),
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let job = client
        .submit(report(vec![inline(picture::png(64, 1)?)]))
        .await?;
    client
        .wait_for(&job.name, |job| job.state() == JobState::Decoding)
        .await?;
    let erased = client.erase(&job.name).await?;
    let record = erased.job.context("the job is in the answer")?;
    ensure!(record.state() == JobState::Cancelled && record.erase_time.is_some());
    fleet.wait_idle().await?;
    let left = contents(&fleet)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// The files before and after the one that is refused have frames, and no manifest ever names them.
#[tokio::test(flavor = "multi_thread")]
async fn a_study_that_is_refused_half_way_leaves_no_frames() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let deadly = picture::deadly();
    let inputs = vec![
        inline(picture::png(64, 1)?),
        uploaded(&client.upload(&deadly).await?),
        inline(picture::png(64, 2)?),
        inline(picture::png(64, 3)?),
    ];
    let job = client.submit(report(inputs)).await?;
    let refused = client.wait_final(&job.name).await?;
    ensure!(refused.state() == JobState::Failed, "{refused:?}");
    fleet.wait_idle().await?;
    client.erase(&job.name).await?;
    // What was on its way to the store when the file was refused sees there that the job was erased.
    let gone = wait_until(PATIENCE, "only the tombstone to be left", async || {
        let stored = fleet.stored("st-mary").ok()?;
        stored
            .iter()
            .all(|name| name.starts_with("erased/"))
            .then_some(())
    });
    gone.await
        .with_context(|| format!("{:?}", fleet.stored("st-mary")))
}
