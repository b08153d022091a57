//! A day of jobs on real processes, which start and stop as the chart's autoscalers would have it: from no worker to several
//! and back. The day and everything about it are faster than in production, the rules and the times of the model
//! [`FASTER`] times, the day as its length says.
//!
//! What must hold is checked here: every job completes and is there once, every worker ends in order, none is left. How long
//! jobs took and what the workers cost are figures, for a machine that has nothing else to do.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_plan::{Arrival, JobKind, Load, Rules, Service, arrivals, oracle, units};
use medfleet_proto::v1::{Job, JobState, SubmitJobRequest};
use medfleet_testkit::wait_until;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use toml::toml;

use crate::autoscale::{BACKLOG, Scaler, backlog};
use crate::client::{Client, PATIENCE, inline, is_final, report};
use crate::fleet::{Fleet, Model, Options, Pace, Role};
use crate::picture;

/// The chart's rules run so many times as fast: a cooldown of 15 s, a look at the backlog every 750 ms.
pub const FASTER: f64 = 20.0;
/// Longest time from accept to result that counts as in time: five minutes, so many times as fast.
const TARGET_SECONDS: f64 = 300.0 / FASTER;
const ENCODE_SLOTS: u32 = 1;
const DECODE_SLOTS: u32 = 2;
/// Most workers of a stage: processes of one machine.
const WORKERS_MAX: u32 = 6;
/// Slot time of a picture: six seconds, so many times as fast.
const ENCODE_SECONDS: f64 = 0.3;
/// Slot time of a text: a prefill of 20 ms and 17 passes of 30 ms.
const DECODE_SECONDS: f64 = 0.53;
/// The tenant that sends everything.
const TENANT: &str = "st-mary";
/// Jobs of a page of the list.
const PAGE: i32 = 1000;

/// A day, as far as the seed does not determine it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Its length. With 4,320 it is in proportion to the rules; a shorter one is steeper than any real day.
    pub seconds: f64,
    /// Jobs a second when there are most.
    pub jobs_per_second: f64,
    /// The seed of when which job comes.
    pub seed: u64,
}

impl Default for Shape {
    /// A minute, as the gate has it.
    fn default() -> Self {
        Self {
            seconds: 60.0,
            jobs_per_second: 6.0,
            seed: 1,
        }
    }
}

/// What a day came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub day_seconds: f64,
    pub seed: u64,
    /// Jobs accepted; every one of them completed.
    pub jobs: usize,
    /// Part of all jobs that took no longer than the target.
    pub in_time: f64,
    pub target_seconds: f64,
    /// Half of the jobs took no longer.
    pub p50_seconds: f64,
    /// 99 of 100 jobs took no longer.
    pub p99_seconds: f64,
    pub encode: PoolReport,
    pub decode: PoolReport,
}

/// What the workers of a stage did.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PoolReport {
    /// From the start of a process until it was ready, measured before the day.
    pub start_seconds: f64,
    pub worker_seconds: f64,
    pub oracle_seconds: f64,
    /// One divided by the other.
    pub ratio: f64,
    pub most: usize,
    pub starts: usize,
}

pub async fn run(shape: Shape) -> Result<Report> {
    let load = load(shape.jobs_per_second);
    let jobs = jobs(&load, shape);
    let fleet = Fleet::start(options()).await?;
    let starts = [
        start_seconds(&fleet, Role::Encode).await?,
        start_seconds(&fleet, Role::Decode).await?,
    ];
    // What scales from zero must be told at zero.
    wait_until(PATIENCE, BACKLOG, async || {
        backlog(&fleet, Role::Encode).await.ok()?;
        backlog(&fleet, Role::Decode).await.ok()
    })
    .await?;
    let client = fleet.client(TENANT).await?;
    let mut scalers = [
        Scaler::new(Role::Encode, ENCODE_SLOTS, rules(ENCODE_SLOTS)),
        Scaler::new(Role::Decode, DECODE_SLOTS, rules(DECODE_SLOTS)),
    ];
    let is_sent = AtomicBool::new(false);
    let sending = send(&client, &jobs, &is_sent);
    let following = follow(&fleet, &client, &mut scalers, &is_sent);
    let longest = Duration::from_secs_f64(shape.seconds) + 2 * PATIENCE;
    let both = async { tokio::try_join!(sending, following) };
    let (names, ()) = tokio::time::timeout(longest, both)
        .await
        .context("the fleet never came to rest")??;
    for scaler in &mut scalers {
        scaler.all_left().await?;
    }
    let took = took(&client, &names).await?;
    let [of_encode, of_decode] = units(&load, &jobs);
    let [encode, decode] = &scalers;
    let in_time = took.iter().filter(|took| **took <= TARGET_SECONDS).count();
    Ok(Report {
        day_seconds: shape.seconds,
        seed: shape.seed,
        jobs: took.len(),
        in_time: in_time as f64 / took.len().max(1) as f64,
        target_seconds: TARGET_SECONDS,
        p50_seconds: part(&took, 0.5),
        p99_seconds: part(&took, 0.99),
        encode: pool(encode, ENCODE_SLOTS, starts[0], &of_encode),
        decode: pool(decode, DECODE_SLOTS, starts[1], &of_decode),
    })
}

/// The jobs of the day, and whatever the seed a STAT film in the night, an hour and a quarter after midnight.
fn jobs(load: &Load, shape: Shape) -> Vec<Arrival> {
    let mut jobs = arrivals(load, shape.seconds, shape.seed);
    jobs.push(Arrival {
        at_seconds: shape.seconds * 1.25 / 24.0,
        class: 0,
        encode_seconds: vec![ENCODE_SECONDS],
        decode_seconds: DECODE_SECONDS,
    });
    jobs.sort_by(|a, b| a.at_seconds.total_cmp(&b.at_seconds));
    jobs
}

fn rules(slots: u32) -> Rules {
    Rules::chart(slots, WORKERS_MAX).faster(FASTER)
}

/// Films, a few of them STAT, and some studies of two pictures.
fn load(jobs_per_second: f64) -> Load {
    let kind = |class, share, chunks| JobKind {
        class,
        share,
        chunks,
    };
    let service = |mean_seconds| Service {
        mean_seconds,
        variation: 0.0,
    };
    Load {
        jobs_per_second,
        kinds: vec![kind(0, 0.1, 1), kind(2, 0.8, 1), kind(2, 0.1, 2)],
        encode: service(ENCODE_SECONDS),
        decode: service(DECODE_SECONDS),
        other_seconds: 0.0,
    }
}

/// A fleet whose model takes these times, and whose ingest knows them.
fn options() -> Options {
    let ingest = toml! {
        [cost.rates]
        preprocess_per_file = "20ms"
        encode_per_frame = "300ms"
        decode_per_frame = "20ms"
        decode_per_token = "30ms"
        [cost.tokens]
        report = 17
    };
    Options {
        model: Model::Simulated(Pace {
            encode_millis: 300,
            prefill_millis: 20,
            step_millis: 30,
        }),
        ingest,
        ..Options::default()
    }
}

/// How long a worker takes from its start until it is ready; leaves none of its role.
async fn start_seconds(fleet: &Fleet, role: Role) -> Result<f64> {
    fleet.stop_role(role).await?;
    let begun = Instant::now();
    fleet.start_role(role).await?;
    let took = begun.elapsed().as_secs_f64();
    fleet.stop_role(role).await?;
    Ok(took)
}

/// Sends every job when it is due, or as soon after as the machine manages; returns their names.
async fn send(client: &Client, jobs: &[Arrival], is_sent: &AtomicBool) -> Result<BTreeSet<String>> {
    let begun = Instant::now();
    let mut names = BTreeSet::new();
    let mut picture = 0;
    for job in jobs {
        sleep_until(begun + Duration::from_secs_f64(job.at_seconds)).await;
        let mut inputs = Vec::new();
        for _ in &job.encode_seconds {
            picture += 1;
            inputs.push(inline(picture::png(64, picture)?));
        }
        let request = SubmitJobRequest {
            // The contract's classes begin with 1.
            class: i32::try_from(job.class)? + 1,
            ..report(inputs)
        };
        names.insert(client.submit(request).await?.name);
    }
    is_sent.store(true, Ordering::Relaxed);
    Ok(names)
}

/// Starts and stops workers until all is sent, all has ended and nobody is left.
async fn follow(
    fleet: &Fleet,
    client: &Client,
    scalers: &mut [Scaler; 2],
    is_sent: &AtomicBool,
) -> Result<()> {
    let mut turns = interval(scalers[0].pause());
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let mut is_idle = is_sent.load(Ordering::Relaxed);
        for scaler in scalers.iter_mut() {
            let backlog = scaler.turn(fleet).await?;
            is_idle &= backlog <= 0.0 && scaler.running() == 0;
        }
        // What was sent a moment ago is not in the backlog yet.
        if is_idle && all(client).await?.iter().all(|job| is_final(job.state())) {
            return Ok(());
        }
    }
}

/// Every job of the tenant.
async fn all(client: &Client) -> Result<Vec<Job>> {
    let (mut jobs, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = client.list(PAGE, &token).await?;
        jobs.extend(page);
        if next.is_empty() {
            return Ok(jobs);
        }
        token = next;
    }
}

/// How long each job took, in seconds, in ascending order; each is there once and has completed.
async fn took(client: &Client, names: &BTreeSet<String>) -> Result<Vec<f64>> {
    let jobs = all(client).await?;
    let listed: BTreeSet<String> = jobs.iter().map(|job| job.name.clone()).collect();
    ensure!(
        jobs.len() == names.len() && listed == *names,
        "{} jobs were accepted, {} are listed",
        names.len(),
        jobs.len()
    );
    let mut took = Vec::new();
    for job in &jobs {
        ensure!(job.state() == JobState::Completed, "{job:?}");
        let (Some(from), Some(to)) = (&job.create_time, &job.update_time) else {
            anyhow::bail!("a job without its times: {job:?}");
        };
        let whole = (to.seconds - from.seconds) as f64;
        took.push(whole + f64::from(to.nanos - from.nanos) / 1e9);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// What such a part of all took no longer than.
fn part(took: &[f64], part: f64) -> f64 {
    let place = (took.len() as f64 * part) as usize;
    let last = took.len().saturating_sub(1);
    took.get(place.min(last)).copied().unwrap_or(0.0)
}

fn pool(scaler: &Scaler, slots: u32, start_seconds: f64, units: &[(f64, f64)]) -> PoolReport {
    let figures = scaler.figures;
    let least = rules(slots).cooldown_seconds;
    let oracle_seconds = oracle(units, slots, start_seconds, least);
    PoolReport {
        start_seconds,
        worker_seconds: figures.worker_seconds,
        oracle_seconds,
        ratio: figures.worker_seconds / oracle_seconds,
        most: figures.most,
        starts: figures.starts,
    }
}
