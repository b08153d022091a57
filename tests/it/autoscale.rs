//! From no worker to several and back to none, by the metric that the chart's triggers read, and no job is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_testkit::wait_until;
use medfleet_tests::autoscale::{BACKLOG, Rules, Scaler, backlog, oracle};
use medfleet_tests::client::{PATIENCE, inline, report};
use medfleet_tests::fleet::{Fleet, Model, Options, Pace, Role};
use medfleet_tests::picture;
use tokio::time::{Instant, MissedTickBehavior, interval};

const JOBS: u32 = 40;
const TURN: Duration = Duration::from_millis(250);

fn rules(max: usize) -> Rules {
    Rules {
        threshold: 2.0,
        max,
        cooldown: Duration::from_secs(2),
        stabilisation: Duration::from_secs(2),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_from_none_and_go_to_none_and_no_job_is_lost() -> Result<()> {
    let pace = Pace {
        encode_millis: 150,
        prefill_millis: 50,
        step_millis: 5,
    };
    let options = Options {
        model: Model::Simulated(pace),
        ..Options::default()
    };
    let fleet = Fleet::start(options).await?;
    for role in [Role::Encode, Role::Decode] {
        fleet.stop_role(role).await?;
    }
    // What scales from zero must be told at zero.
    wait_until(PATIENCE, BACKLOG, async || {
        backlog(&fleet, Role::Encode).await.ok()?;
        backlog(&fleet, Role::Decode).await.ok()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let mut jobs = Vec::new();
    for seed in 0..JOBS {
        let picture = picture::png(64, seed)?;
        jobs.push(client.submit(report(vec![inline(picture)])).await?.name);
    }
    let mut scalers = [
        Scaler::new(Role::Encode, rules(3)),
        Scaler::new(Role::Decode, rules(2)),
    ];
    let deadline = Instant::now() + PATIENCE;
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        ensure!(Instant::now() < deadline, "never back to none: {scalers:?}");
        let mut is_idle = true;
        for scaler in &mut scalers {
            scaler.turn(&fleet).await?;
            is_idle &= scaler.running() == 0 && scaler.figures.starts > 0;
        }
        if is_idle {
            break;
        }
    }
    for scaler in &mut scalers {
        ensure!(scaler.figures.most >= 2, "it never grew: {scaler:?}");
        scaler.all_left().await?;
    }
    for job in &jobs {
        let job = client.get(job).await?;
        ensure!(job.state() == JobState::Completed, "{job:?}");
    }
    Ok(())
}

#[test]
fn the_arithmetic_is_that_of_an_average_value() {
    let rules = rules(3);
    let wishes = [0.0, 0.5, 2.0, 2.1, 5.0, 600.0].map(|backlog| rules.wish(backlog));
    assert_eq!(wishes, [0, 1, 1, 2, 3, 3]);
}

#[test]
fn an_oracle_has_as_many_workers_as_are_full() {
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
    // One unit of ten seconds, one worker, started a second early.
    near(oracle(&[(0.0, 10.0)], 2, 1.0, 5.0), 11.0);
    // Three at a time do not fit into one worker of two slots; the second lives as long as it must.
    let three = [(0.0, 10.0), (0.0, 10.0), (4.0, 5.0)];
    near(oracle(&three, 2, 1.0, 5.0), 11.0 + 5.0);
    // Two bursts close together are one life.
    near(oracle(&[(0.0, 1.0), (2.0, 3.0)], 1, 1.0, 4.0), 6.0);
}
