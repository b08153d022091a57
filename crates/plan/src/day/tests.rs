//! What the chart's default rules do with a day, and what others would.

use super::fleet::{Day, DayRun, Pool, simulate_day};
use super::*;
use crate::{JobKind, Rules, Service};

const HOUR: f64 = 3600.0;
/// Longest time from accept to result that was promised: five minutes.
const TARGET_SECONDS: f64 = 300.0;

/// Films and small series of a network of hospitals, on workers with weights to load.
fn day(jobs_per_second: f64, seed: u64) -> Day {
    let kind = |class, share, chunks| JobKind {
        class,
        share,
        chunks,
    };
    let service = |mean_seconds| Service {
        mean_seconds,
        variation: 0.5,
    };
    let pool = |slots, start_seconds| Pool {
        slots,
        start_seconds,
        rules: Rules::chart(slots, 40),
    };
    Day {
        load: Load {
            jobs_per_second,
            kinds: vec![
                kind(0, 0.05, 1),
                kind(1, 0.15, 1),
                kind(2, 0.7, 2),
                kind(3, 0.1, 4),
            ],
            encode: service(0.8),
            decode: service(10.0),
            other_seconds: 1.0,
        },
        seconds: 24.0 * HOUR,
        encode: pool(1, 60.0),
        decode: pool(4, 90.0),
        drain_seconds: 20.0,
        target_seconds: TARGET_SECONDS,
        seed,
    }
}

fn run(day: &Day) -> DayRun {
    let run = simulate_day(day);
    println!("{run:?}");
    assert_eq!(run.completed, run.jobs, "a job was lost");
    run
}

fn check(day: &Day) -> DayRun {
    let run = run(day);
    assert!(run.in_time >= 0.99, "in time: {}", run.in_time);
    for pool in [run.encode, run.decode] {
        assert!(pool.ratio() <= 1.5, "{} of the oracle", pool.ratio());
    }
    run
}

#[test]
fn the_charts_rules_follow_a_day_in_time_and_for_little_more_than_an_oracle() {
    for seed in 1..=3 {
        let run = check(&day(2.0, seed));
        // It was a day that needs many workers, and more than one start of each.
        assert!(run.encode.most >= 4 && run.decode.most >= 8, "{run:?}");
        assert!(run.decode.handed_back > 0, "nobody had to hand back");
    }
}

#[test]
fn a_small_site_has_one_worker_of_each_while_there_is_work() {
    let run = check(&day(0.2, 1));
    assert_eq!((run.encode.most, run.decode.most), (1, 1));
    assert!(run.encode.worker_seconds < 20.0 * HOUR, "none at night");
}

/// What docs/scaling.md says of `targetSeconds`: more than what a job takes anyway, and a tenth of what it may take.
#[test]
fn longer_targets_are_late_and_shorter_ones_dear() {
    let mut late = day(2.0, 1);
    late.decode.rules.threshold_seconds *= 2.0;
    assert!(run(&late).in_time < 0.99);

    let mut dear = day(2.0, 1);
    dear.decode.rules.threshold_seconds /= 3.0;
    assert!(run(&dear).decode.ratio() > 1.5);
}

#[test]
fn without_the_pause_before_going_no_job_is_lost_either() {
    let mut hasty = day(0.5, 1);
    for pool in [&mut hasty.encode, &mut hasty.decode] {
        pool.rules.cooldown_seconds = 15.0;
        pool.rules.stabilisation_seconds = 15.0;
        pool.rules.step_seconds = 15.0;
    }
    hasty.drain_seconds = 1.0;
    assert!(run(&hasty).decode.handed_back > 0);
}

#[test]
fn most_jobs_come_by_day_and_some_at_night() {
    let jobs = arrivals(&day(2.0, 1).load, 24.0 * HOUR, 1);
    let hours = |begin: f64, end: f64| {
        let within = |job: &&Arrival| (begin * HOUR..end * HOUR).contains(&job.at_seconds);
        jobs.iter().filter(within).count()
    };
    let (night, noon) = (hours(0.0, 6.0), hours(11.0, 12.0));
    assert!((20..200).contains(&night), "{night}");
    assert!((6_000..7_200).contains(&noon), "{noon}");
    assert!(jobs.is_sorted_by(|a, b| a.at_seconds <= b.at_seconds));
}

#[test]
fn a_faster_day_is_the_same_day() {
    let mut fast = day(2.0 * 20.0, 1);
    for service in [&mut fast.load.encode, &mut fast.load.decode] {
        service.mean_seconds /= 20.0;
    }
    fast.load.other_seconds /= 20.0;
    fast.seconds /= 20.0;
    for pool in [&mut fast.encode, &mut fast.decode] {
        pool.start_seconds /= 20.0;
        pool.rules = pool.rules.faster(20.0);
    }
    fast.drain_seconds /= 20.0;
    fast.target_seconds /= 20.0;
    let (fast, slow) = (run(&fast), run(&day(2.0, 1)));
    assert_eq!(fast.jobs, slow.jobs);
    let near = fast.decode.worker_seconds * 20.0 / slow.decode.worker_seconds;
    assert!((0.9..1.1).contains(&near), "{near}");
}
