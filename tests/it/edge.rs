//! A hospital's edge with real processes: it accepts while the hub is away, hands on in order and once, and answers from its
//! own records whatever happens above it.

use anyhow::{Context, Result, ensure};
use medfleet_core::TenantId;
use medfleet_proto::v1::{self, JobState};
use medfleet_queue::Pause;
use medfleet_testkit::{clock, wait_until};
use medfleet_tests::client::{Client, PATIENCE, Seen, inline, pictures, refused, report, uploaded};
use medfleet_tests::edge::Edge;
use medfleet_tests::fleet::{Fleet, Options, Pace, Role};
use medfleet_tests::picture;
use tonic::Code;

/// A file of 5 MiB, so large that it is uploaded at the hub as well, in several pieces.
pub(crate) fn large(seed: u32) -> Result<Vec<u8>> {
    picture::noise(2_300, seed)
}

/// The hub's job of a job of the edge.
pub(crate) async fn at_hub(site: &Edge, hub: &Client, job: &str) -> Result<v1::Job> {
    let id = site.request_id_at_hub(job).await?;
    Ok(hub.get_by_request_id(&id).await?)
}

/// Every job of the tenant at the hub.
pub(crate) async fn all_at_hub(hub: &Client) -> Result<Vec<v1::Job>> {
    Ok(hub.list(1000, "").await?.0)
}

/// What the edge has of a completed job is what the hub has.
pub(crate) async fn is_same(site: &Edge, edge: &Client, hub: &Client, job: &str) -> Result<()> {
    let (ours, theirs) = (edge.get(job).await?, at_hub(site, hub, job).await?);
    ensure!(ours.state() == JobState::Completed, "{ours:?}");
    ensure!(
        (
            ours.chunks_total,
            ours.chunks_done,
            ours.attempt,
            &ours.trace_id
        ) == (
            theirs.chunks_total,
            theirs.chunks_done,
            theirs.attempt,
            &theirs.trace_id
        ),
        "{ours:?} is not {theirs:?}"
    );
    let mut here = edge.result(job).await?;
    let there = hub.result(&theirs.name).await?;
    ensure!(here.job == job, "the edge's result names another job");
    here.job.clone_from(&there.job);
    ensure!(here == there, "{here:?} is not {there:?}");
    Ok(())
}

/// Kills the edge each time that so many jobs have arrived at the hub, and starts it again.
pub(crate) async fn kill_as_they_arrive(site: &Edge, hub: &Client, counts: &[usize]) -> Result<()> {
    for count in counts {
        wait_until(PATIENCE, "some jobs to arrive", async || {
            let arrived = all_at_hub(hub).await.ok()?.len();
            (arrived >= *count).then_some(())
        })
        .await?;
        site.kill9().await?;
        site.start_again().await?;
    }
    Ok(())
}

/// Each of the jobs completes by these stages, is the same at the hub, and no other is there.
pub(crate) async fn each_is_done_once(
    site: &Edge,
    hub: &Client,
    jobs: &[String],
    stages: &[JobState],
) -> Result<()> {
    let edge = site.client("st-mary").await?;
    for job in jobs {
        edge.wait_final(job).await?;
        is_same(site, &edge, hub, job).await?;
        let seen = edge.watch_to_end(job).await?;
        ensure!(states(&seen) == stages, "{:?}", states(&seen));
    }
    let there = all_at_hub(hub).await?;
    ensure!(there.len() == jobs.len(), "a job was doubled: {there:?}");
    Ok(())
}

/// The hub has accepted the jobs in this order.
async fn are_in_order(site: &Edge, hub: &Client, jobs: &[String]) -> Result<()> {
    let mut times = Vec::new();
    for job in jobs {
        let time = at_hub(site, hub, job)
            .await?
            .create_time
            .context("a time")?;
        times.push((time.seconds, time.nanos));
    }
    ensure!(times.is_sorted(), "not in order: {times:?}");
    Ok(())
}

pub(crate) fn states(seen: &Seen) -> Vec<JobState> {
    let mut states: Vec<_> = seen.progress.iter().map(|(_, state, _)| *state).collect();
    states.dedup();
    states
}

pub(crate) const EVERY_STAGE: [JobState; 6] = [
    JobState::Accepted,
    JobState::Forwarded,
    JobState::Released,
    JobState::Preprocessed,
    JobState::Encoding,
    JobState::Decoding,
];

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_while_the_hub_was_away_is_done_once_and_in_order() -> Result<()> {
    let hub = Fleet::paced(Pace::writing(10)).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    hub.kill9(Role::Ingest).await?;
    let edge = site.client("st-mary").await?;
    let (mut jobs, mut watches) = (Vec::new(), Vec::new());
    for seed in 0..10 {
        let input = match seed {
            3 => uploaded(&edge.upload(&large(seed)?).await?),
            _ => inline(picture::png(64, seed)?),
        };
        let job = edge.submit(report(vec![input])).await?;
        ensure!(job.state() == JobState::Accepted, "{job:?}");
        let (watcher, name) = (edge.clone(), job.name.clone());
        watches.push(medfleet_tests::beside(async move {
            watcher.watch_to_end(&name).await
        }));
        jobs.push(job.name);
    }
    for job in &jobs {
        ensure!(edge.get(job).await?.state() == JobState::Accepted);
    }
    site.wait_waiting(10).await?;
    let silence = "medfleet_ingest_edge_hub_silence_seconds";
    site.wait_metric(silence, |silent| silent > 1.0).await?;
    hub.start_role(Role::Ingest).await?;

    let above = hub.client("st-mary").await?;
    for (job, watch) in jobs.iter().zip(watches) {
        let seen = watch.await??;
        let last = seen.last.as_ref().context("the end was seen")?;
        ensure!(last.state() == JobState::Completed, "{last:?}");
        ensure!(states(&seen) == EVERY_STAGE, "{:?}", states(&seen));
        is_same(&site, &edge, &above, job).await?;
        let theirs = above
            .watch_to_end(&at_hub(&site, &above, job).await?.name)
            .await?;
        ensure!(
            seen.text == theirs.text && !seen.text.is_empty(),
            "another text"
        );
        // Who comes late is told the same.
        let late = edge.watch_to_end(job).await?;
        ensure!((&late.text, states(&late)) == (&seen.text, states(&seen)));
    }
    ensure!(
        all_at_hub(&above).await?.len() == jobs.len(),
        "a job was doubled"
    );
    are_in_order(&site, &above, &jobs).await?;
    site.wait_waiting(0).await?;
    site.wait_metric("medfleet_ingest_edge_jobs_at_hub", |count| count == 0.0)
        .await?;
    hub.wait_idle().await
}

fn stat(seed: u32) -> Result<v1::SubmitJobRequest> {
    Ok(v1::SubmitJobRequest {
        class: v1::Class::Stat.into(),
        ..pictures(&[seed])?
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stat_job_that_comes_while_the_hub_is_away_is_the_first_there() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    hub.kill9(Role::Ingest).await?;
    let edge = site.client("st-mary").await?;
    let mut jobs = Vec::new();
    for seed in 0..3 {
        let input = uploaded(&edge.upload(&large(seed)?).await?);
        jobs.push(edge.submit(report(vec![input])).await?.name);
    }
    jobs.insert(0, edge.submit(stat(9)?).await?.name);
    // Whoever hands them on has read all four before the hub takes any.
    site.wait_waiting(4).await?;
    hub.start_role(Role::Ingest).await?;
    let above = hub.client("st-mary").await?;
    for job in &jobs {
        edge.wait_final(job).await?;
        is_same(&site, &edge, &above, job).await?;
    }
    ensure!(at_hub(&site, &above, &jobs[0]).await?.class() == v1::Class::Stat);
    are_in_order(&site, &above, &jobs).await?;
    ensure!(
        all_at_hub(&above).await?.len() == jobs.len(),
        "a job was doubled"
    );
    Ok(())
}

/// The hub's answer to a routine job is lost, and a STAT job goes before it is asked for: it stays in doubt meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_answer_was_lost_gives_way_and_is_not_doubled() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    let (edge, above) = (site.client("st-mary").await?, hub.client("st-mary").await?);
    site.link().lose_answers();
    let routine = edge.submit_picture(picture::png(64, 1)?).await?.name;
    wait_until(PATIENCE, "the job at the hub", async || {
        at_hub(&site, &above, &routine).await.ok()
    })
    .await?;
    ensure!(edge.get(&routine).await?.state() == JobState::Accepted);
    let stat = edge.submit(stat(2)?).await?.name;
    site.wait_waiting(2).await?;
    site.link().mend();
    for job in [&stat, &routine] {
        edge.wait_final(job).await?;
        is_same(&site, &edge, &above, job).await?;
    }
    ensure!(all_at_hub(&above).await?.len() == 2, "a job was doubled");
    Ok(())
}

/// By an operator of the site; the hub knows nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_here_is_not_handed_on_and_what_has_ended_passes() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    let (edge, other) = (site.client("st-mary").await?, site.client("st-john").await?);
    let above = hub.client("st-mary").await?;
    site.link().lose_answers();
    let there = edge.submit_picture(picture::png(64, 1)?).await?.name;
    wait_until(PATIENCE, "the job at the hub", async || {
        at_hub(&site, &above, &there).await.ok()
    })
    .await?;
    let (queue, tenant) = (site.queue().await?, TenantId::new("st-mary")?);
    let pause = Pause {
        tenant: Some(tenant.clone()),
        class: None,
        actor: "night".to_owned(),
        at: clock()(),
    };
    queue.put_pause(&pause).await?;
    site.wait_metric("medfleet_ingest_dispatcher_pauses", |count| count == 1.0)
        .await?;
    let waits = edge.submit_picture(picture::png(64, 2)?).await?.name;
    let ended = edge.submit_picture(picture::png(64, 3)?).await?.name;
    site.wait_waiting(3).await?;
    site.link().mend();
    edge.wait_completed(&there).await?;
    ensure!(edge.cancel(&ended).await?.state() == JobState::Cancelled);
    site.wait_waiting(1).await?;
    let neighbour = other.submit_picture(picture::png(64, 4)?).await?.name;
    other.wait_completed(&neighbour).await?;
    ensure!(edge.get(&waits).await?.state() == JobState::Accepted);
    ensure!(all_at_hub(&above).await?.len() == 1, "it was handed on");
    queue.remove_pause(Some(&tenant), None).await?;
    edge.wait_completed(&waits).await?;
    ensure!(all_at_hub(&above).await?.len() == 2, "an ended job left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_killed_while_it_hands_on_doubles_nothing() -> Result<()> {
    const JOBS: u32 = 24;
    let hub = Fleet::paced(Pace::writing(10)).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    site.link().cut();
    let edge = site.client("st-mary").await?;
    let mut jobs = Vec::new();
    for seed in 0..JOBS {
        jobs.push(edge.submit(pictures(&[seed])?).await?.name);
    }
    let above = hub.client("st-mary").await?;
    site.link().mend();
    kill_as_they_arrive(&site, &above, &[1, 4, 9, 15, 20]).await?;
    each_is_done_once(&site, &above, &jobs, &EVERY_STAGE).await
}

/// A hub that does not come to the end of a text before a test is over, and an edge.
async fn slow() -> Result<(Fleet, Edge)> {
    let hub = Fleet::paced(Pace::writing(600_000)).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    Ok((hub, site))
}

/// Submits a job and waits until the edge has heard that the hub writes its text.
async fn decoding(edge: &Client, seed: u32) -> Result<String> {
    let job = edge.submit_picture(picture::png(64, seed)?).await?.name;
    edge.watch_until(&job, &mut Seen::default(), decodes)
        .await?;
    Ok(job)
}

fn decodes(seen: &Seen) -> bool {
    states(seen).contains(&JobState::Decoding)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_a_job_at_the_hub_is_passed_on() -> Result<()> {
    let (hub, site) = slow().await?;
    let edge = site.client("st-mary").await?;
    let job = decoding(&edge, 1).await?;
    let cancelled = edge.cancel(&job).await?;
    ensure!(
        cancelled.state() == JobState::Forwarded && cancelled.cancel_wanted,
        "{cancelled:?}"
    );
    let ended = edge.wait_final(&job).await?;
    ensure!(
        ended.state() == JobState::Cancelled && !ended.cancel_wanted,
        "{ended:?}"
    );
    let above = hub.client("st-mary").await?;
    ensure!(at_hub(&site, &above, &job).await?.state() == JobState::Cancelled);
    ensure!(edge.cancel(&job).await?.state() == JobState::Cancelled);
    hub.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_the_hub_is_away_is_remembered_and_watched() -> Result<()> {
    let (hub, site) = slow().await?;
    let edge = site.client("st-mary").await?;
    let above = hub.client("st-mary").await?;
    let job = decoding(&edge, 2).await?;
    site.link().cut();
    let got = edge.get(&job).await?;
    ensure!(
        got.state() == JobState::Forwarded && !got.cancel_wanted,
        "{got:?}"
    );
    let cancelled = edge.cancel(&job).await?;
    ensure!(
        cancelled.state() == JobState::Forwarded && cancelled.cancel_wanted,
        "{cancelled:?}"
    );
    site.kill9().await?;
    site.start_again().await?;
    let edge = site.client("st-mary").await?;
    ensure!(edge.get(&job).await?.cancel_wanted);
    edge.watch_until(&job, &mut Seen::default(), decodes)
        .await?;
    ensure!(at_hub(&site, &above, &job).await?.state() == JobState::Decoding);
    site.link().mend();
    ensure!(edge.wait_final(&job).await?.state() == JobState::Cancelled);
    ensure!(at_hub(&site, &above, &job).await?.state() == JobState::Cancelled);
    hub.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_while_it_waits_is_not_done_by_the_hub() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    // Long enough for the offer that stalls to be still open when the link passes everything again.
    let patient = toml::Table::from_iter([("answer_max".to_owned(), "60s".into())]);
    let site = Edge::start(&hub, patient).await?;
    site.link().stall();
    let edge = site.client("st-mary").await?;
    let first = edge.submit_picture(picture::png(64, 3)?).await?.name;
    ensure!(edge.get(&first).await?.state() == JobState::Accepted);
    ensure!(edge.cancel(&first).await?.state() == JobState::Cancelled);
    ensure!(edge.cancel(&first).await?.state() == JobState::Cancelled);
    let watched = edge.watch_to_end(&first).await?.last;
    ensure!(watched.is_some_and(|job| job.state() == JobState::Cancelled));
    let short = v1::SubmitJobRequest {
        time_to_live: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..pictures(&[4])?
    };
    let second = edge.submit(short).await?.name;
    ensure!(edge.wait_final(&second).await?.state() == JobState::Expired);
    // Nothing is written there before the edge has had its say about what was on the line: the last is handed on after that.
    hub.kill9(Role::Decode).await?;
    site.link().mend();
    let last = edge.submit_picture(picture::png(64, 5)?).await?.name;
    let above = hub.client("st-mary").await?;
    wait_until(PATIENCE, "the last job at the hub", async || {
        at_hub(&site, &above, &last).await.ok()
    })
    .await?;
    hub.start_role(Role::Decode).await?;
    edge.wait_completed(&last).await?;
    // One that ended in the moment of its way to the hub may have come there, and is cancelled there too.
    let last = at_hub(&site, &above, &last).await?.name;
    let others = all_at_hub(&above).await?.into_iter();
    let others: Vec<_> = others.filter(|job| job.name != last).collect();
    ensure!(
        others.iter().all(|job| job.state() == JobState::Cancelled),
        "an ended job was handed on: {others:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_job_is_answered_in_full_with_the_hub_away() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let request = v1::SubmitJobRequest {
        request_id: "study 7".into(),
        ..pictures(&[1])?
    };
    let job = edge.submit(request.clone()).await?.name;
    let seen = edge.watch_to_end(&job).await?;
    site.link().cut();
    ensure!(edge.get(&job).await?.state() == JobState::Completed);
    ensure!(edge.result(&job).await?.job == job);
    ensure!(edge.watch_to_end(&job).await?.text == seen.text);
    ensure!(edge.list(0, "").await?.0.len() == 1);
    let (again, already) = edge.submit_full(request).await?;
    ensure!(already && again.name == job);
    refused(edge.cancel(&job).await, Code::FailedPrecondition)?;

    // Erased here at once, and at the hub as soon as it hears of it.
    edge.erase(&job).await?;
    refused(edge.result(&job).await, Code::FailedPrecondition)?;
    let above = hub.client("st-mary").await?;
    let theirs = at_hub(&site, &above, &job).await?;
    above.result(&theirs.name).await?;
    site.kill9().await?;
    site.start_again().await?;
    site.link().mend();
    above
        .wait_for(&theirs.name, |job| job.erase_time.is_some())
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_its_own_and_a_wrong_token_waits_and_says_so() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    let mary = ("st-mary", hub.token("st-mary"));
    site.know(&[mary.clone(), ("st-john", "mf_of_nobody".to_owned())])?;
    let strangers = "medfleet_ingest_edge_unknown_tokens";
    site.wait_metric(strangers, |count| count == 1.0).await?;
    let (owner, other) = (site.client("st-mary").await?, site.client("st-john").await?);
    let waits = other.submit_picture(picture::png(64, 1)?).await?.name;
    let job = owner.submit_picture(picture::png(64, 2)?).await?.name;
    let done = owner.wait_completed(&job).await;
    done.context("a neighbour was held up")?;
    ensure!(other.get(&waits).await?.state() == JobState::Accepted);
    let log = site.log()?;
    ensure!(log.contains("does not know this tenant's token"), "{log}");
    ensure!(!log.contains("mf_"), "a token is in the log");

    let theirs = at_hub(&site, &hub.client("st-mary").await?, &job)
        .await?
        .name;
    let neighbour = hub.client("st-john").await?;
    refused(other.get(&job).await, Code::NotFound)?;
    refused(other.cancel(&job).await, Code::NotFound)?;
    refused(other.result(&job).await, Code::NotFound)?;
    refused(other.erase(&job).await, Code::NotFound)?;
    refused(neighbour.get(&theirs).await, Code::NotFound)?;
    site.know(&[mary, ("st-john", hub.token("st-john"))])?;
    other.wait_completed(&waits).await?;
    site.wait_metric(strangers, |count| count == 0.0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_refuses_fails_with_its_reason() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let request = v1::SubmitJobRequest {
        model: "unknown".into(),
        ..pictures(&[1])?
    };
    let job = edge.submit(request).await?.name;
    let reason = v1::FailureReason::InputRefused;
    let failure = edge.wait_failed(&job, reason).await?;
    ensure!(failure.message.contains("model"), "{failure:?}");
    let next = edge.submit_picture(picture::png(64, 1)?).await?.name;
    edge.wait_completed(&next).await?;
    Ok(())
}
