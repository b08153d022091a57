//! The order of release: floods of one tenant, paused work, budgets of tenants, and the backlog metric meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{Class, Job, JobState, SubmitJobRequest};
use medfleet_testkit::wait_until;
use medfleet_tests::alerts::told;
use medfleet_tests::client::{Client, PATIENCE, is_encoded, pictures, refused};
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Pace, Role, http_get};
use medfleet_tests::picture;
use toml::toml;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn job(class: Class) -> Result<SubmitJobRequest> {
    Ok(SubmitJobRequest {
        class: class.into(),
        ..pictures(&[1])?
    })
}

/// Seconds of backlog at a stage, all classes together.
async fn backlog(fleet: &Fleet, stage: &str) -> Result<f64> {
    let (_, page) = http_get(fleet.admin(Role::Ingest), "/metrics").await?;
    let of_stage = format!("medfleet_backlog_seconds{{stage=\"{stage}\",");
    let lines: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with(&of_stage))
        .collect();
    ensure!(
        lines.len() == Class::Bulk as usize,
        "a figure for every class: {lines:?}"
    );
    let seconds = lines.iter().map(|line| {
        let text = line.rsplit(' ').next().context("a value")?;
        text.parse::<f64>().context("a number")
    });
    seconds.sum()
}

async fn wait_for_no_backlog(fleet: &Fleet) -> Result<()> {
    wait_until(PATIENCE, "an empty backlog", async || {
        for stage in ["preprocess", "encode", "decode"] {
            (backlog(fleet, stage).await.ok()? == 0.0).then_some(())?;
        }
        Some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_waits_through_a_change_of_the_leader_and_then_goes_on() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let operator = fleet.client(OPERATOR).await?;
    let held = fleet.client("st-mary").await?;
    let no_operator = held.pause("st-john", Class::Unspecified).await;
    refused(no_operator, Code::PermissionDenied)?;
    let empty = operator.pause("", Class::Unspecified).await;
    refused(empty, Code::InvalidArgument)?;
    wait_for_no_backlog(&fleet).await?;

    let pause = operator.pause("st-mary", Class::Unspecified).await?;
    let again = operator.pause("st-mary", Class::Unspecified).await?;
    ensure!(again == pause, "it was paused before: {again:?}");
    ensure!(operator.pauses().await? == [pause.clone()] && pause.tenant == "st-mary");
    // The leader looks once a second; by the time that it leads anew it has looked.
    fleet.kill9(Role::Ingest).await?;
    fleet.start_role(Role::Ingest).await?;
    let operator = fleet.client(OPERATOR).await?;
    let (held, free) = fleet.two_clients().await?;
    let waiting = held.submit(job(Class::Routine)?).await?;
    let other = free.submit(job(Class::Routine)?).await?;
    free.wait_completed(&other.name).await?;
    ensure!(held.get(&waiting.name).await?.state() == JobState::Accepted);
    wait_until(
        PATIENCE,
        "the work that is held back in the backlog",
        async || {
            // What it will be at the stages that it has not come to counts too.
            for stage in ["preprocess", "encode", "decode"] {
                (backlog(&fleet, stage).await.ok()? > 0.0).then_some(())?;
            }
            Some(())
        },
    )
    .await?;

    operator.resume("st-mary", Class::Bulk).await?;
    ensure!(
        operator.pauses().await? == [pause],
        "another pause than that"
    );
    operator.resume("st-mary", Class::Unspecified).await?;
    ensure!(operator.pauses().await?.is_empty());
    held.wait_completed(&waiting.name).await?;
    wait_for_no_backlog(&fleet).await
}

/// Every tenant's work of a class, by the command line.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_is_held_back_and_the_others_go_on() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let pause = ["pause", "--class", "bulk", "--json"];
    let refused = fleet.command("st-mary", &pause).await?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    let nothing = fleet.command(OPERATOR, &["pause"]).await?;
    ensure!(nothing.status.code() == Some(2), "{nothing:?}");
    let paused = fleet.command_json(OPERATOR, &pause).await?;
    let listed = fleet.command_json(OPERATOR, &["pauses", "--json"]).await?;
    ensure!(listed == paused, "{listed:?} is not {paused:?}");
    ensure!(
        paused.len() == 1 && paused[0]["class"] == "BULK" && paused[0]["tenant"].is_null(),
        "{paused:?}"
    );
    // The leader looks once a second; by the time that it leads anew it has looked.
    fleet.kill9(Role::Ingest).await?;
    fleet.start_role(Role::Ingest).await?;
    let (mary, john) = fleet.two_clients().await?;
    let held = [
        (&mary, mary.submit(job(Class::Bulk)?).await?),
        (&john, john.submit(job(Class::Bulk)?).await?),
    ];
    for client in [&mary, &john] {
        let free = client.submit(job(Class::Routine)?).await?;
        client.wait_completed(&free.name).await?;
    }
    for (client, job) in &held {
        ensure!(client.get(&job.name).await?.state() == JobState::Accepted);
    }
    let other = fleet
        .command(OPERATOR, &["resume", "--class", "routine"])
        .await?;
    let told = String::from_utf8_lossy(&other.stderr);
    ensure!(
        other.status.success() && told.contains("still paused") && told.contains("BULK"),
        "{other:?}"
    );
    let resume = ["resume", "--class", "bulk", "--json"];
    fleet.command_json(OPERATOR, &resume).await?;
    for (client, job) in &held {
        client.wait_completed(&job.name).await?;
    }
    Ok(())
}

/// Its time is over before anybody encodes: it ends then, and no worker takes it up later.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_time_is_over_is_expired_and_not_worked_on() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    fleet.stop_role(Role::Encode).await?;
    let time_to_live = Some(prost_types::Duration {
        seconds: 1,
        nanos: 0,
    });
    let late = client
        .submit(SubmitJobRequest {
            time_to_live,
            ..job(Class::Stat)?
        })
        .await?;
    let watched = client.watch_to_end(&late.name).await?;
    let told_last = watched.last.context("a final job")?;
    let last = client.get(&late.name).await?;
    ensure!(
        (told_last.state(), last.state()) == (JobState::Expired, JobState::Expired),
        "{told_last:?} {last:?}"
    );
    refused(client.result(&late.name).await, Code::FailedPrecondition)?;
    let shown = fleet.command("st-mary", &["watch", &late.name]).await?;
    let said = String::from_utf8_lossy(&shown.stderr);
    ensure!(
        shown.status.code() == Some(1) && said.contains("ended EXPIRED"),
        "{shown:?}"
    );

    fleet.start_role(Role::Encode).await?;
    let other = client.submit_picture(picture::png(64, 2)?).await?;
    client.wait_completed(&other.name).await?;
    fleet.wait_idle().await?;
    let encoded = told(fleet.admin(Role::Encode), "medfleet_encode_frames_total").await?;
    ensure!(encoded == 1, "{encoded} frames were encoded");
    ensure!(client.get(&late.name).await? == last, "a final job changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_budget_of_stat_jobs_and_of_open_jobs() -> Result<()> {
    let ingest = toml! {
        [quotas.tenants.st-mary]
        stat_per_minute = 1
        open_jobs_max = 2
    };
    let fleet = Fleet::with_ingest(ingest).await?;
    let client = fleet.client("st-mary").await?;
    fleet.stop_role(Role::Decode).await?;
    let first = client.submit(job(Class::Stat)?).await?;
    let second = client.submit(job(Class::Stat)?).await?;
    let classes = |job: &Job| (job.class(), job.class_asked());
    ensure!(classes(&first) == (Class::Stat, Class::Stat), "{first:?}");
    ensure!(
        classes(&second) == (Class::Urgent, Class::Stat),
        "{second:?}"
    );
    ensure!(classes(&client.get(&second.name).await?) == (Class::Urgent, Class::Stat));
    let refused = wait_until(PATIENCE, "the quota of open jobs", async || {
        // Ingest counts a job when its event comes, right after the answer.
        client.submit(job(Class::Routine).ok()?).await.err()
    })
    .await?;
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    ensure!(retry_delay(&refused).is_some(), "{refused:?}");
    let other = fleet.client("st-john").await?;
    other.submit(job(Class::Stat)?).await?;

    fleet.start_role(Role::Decode).await?;
    for name in [&first.name, &second.name] {
        client.wait_completed(name).await?;
    }
    let result = client.result(&second.name).await?;
    ensure!((result.class(), result.class_asked()) == (Class::Urgent, Class::Stat));
    wait_until(PATIENCE, "room for another job", async || {
        client.submit(job(Class::Routine).ok()?).await.ok()
    })
    .await?;
    Ok(())
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_lets_a_neighbours_film_pass() -> Result<()> {
    const FLOOD: usize = 40;
    let fleet = Fleet::paced(Pace::writing(5)).await?;
    let (flood, film) = fleet.two_clients().await?;
    // Everything waits for the decoder before it comes: nothing of this depends on how fast the machine is.
    fleet.stop_role(Role::Decode).await?;
    for _ in 0..FLOOD {
        flood.submit(job(Class::Routine)?).await?;
    }
    let film_job = film.submit(job(Class::Routine)?).await?;
    wait_until(PATIENCE, "the flood at the decoder's door", async || {
        let (jobs, _) = flood.list(1000, "").await.ok()?;
        jobs.iter().all(is_encoded).then_some(())
    })
    .await?;
    film.wait_for(&film_job.name, is_encoded).await?;
    fleet.start_role(Role::Decode).await?;
    let film_job = film.wait_completed(&film_job.name).await?;
    // Before the flood that was accepted ahead of it: only what was with the workers went first.
    let ended = ended_before(&film_job, &flood).await?;
    ensure!(
        ended < FLOOD / 2,
        "{ended} of {FLOOD} jobs of the flood ended first"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stat_job_is_decoded_though_every_slot_has_a_text() -> Result<()> {
    let fleet = Fleet::paced(Pace::writing(3_000)).await?;
    let client = fleet.client("st-mary").await?;
    fleet.stop_role(Role::Decode).await?;
    let _decoder = fleet.another(Role::Decode, 1)?;
    let is_decoded = |job: &Job| job.state() == JobState::Decoding;
    let routine = client.submit(job(Class::Routine)?).await?;
    client.wait_for(&routine.name, is_decoded).await?;
    let stat = client.submit(job(Class::Stat)?).await?;
    client.wait_for(&stat.name, is_decoded).await?;
    let other = client.get(&routine.name).await?;
    ensure!(is_decoded(&other), "the slot was free: {other:?}");
    Ok(())
}

/// By what their records say: until somebody looks, more of them end.
async fn ended_before(last: &Job, client: &Client) -> Result<usize> {
    let time = |job: &Job| job.update_time.map(|time| (time.seconds, time.nanos));
    let until = time(last).context("when it ended")?;
    let (jobs, _) = client.list(1000, "").await?;
    let ended = jobs
        .iter()
        .filter(|job| job.state() == JobState::Completed && time(job) <= Some(until));
    Ok(ended.count())
}
