//! A seed is a whole run: its schedule and its jobs come out the same every time, and its faults do not get in each
//! other's way.

use std::time::Duration;

use medfleet_tests::chaos::load::jobs;
use medfleet_tests::chaos::plan::{Fault, Planned, Shape, Target, plan};

fn shape(nodes: usize) -> Shape {
    Shape {
        horizon: Duration::from_secs(60),
        nodes,
        instances: 2,
        can_fill: true,
    }
}

#[test]
fn a_seed_is_one_schedule() {
    let lines = |seed| {
        plan(seed, &shape(3))
            .iter()
            .map(Planned::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(7), lines(7));
    assert_ne!(lines(7), lines(8));
}

#[test]
fn a_seed_is_one_load() {
    let names = |seed| {
        let jobs = jobs(seed, 20, Duration::from_secs(1)).expect("jobs");
        jobs.iter()
            .map(|job| (job.tenant, job.expected()))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(7), names(7));
    assert_ne!(names(7), names(8));
}

#[test]
fn no_target_is_hit_twice_at_a_time_and_the_cluster_falls_last() {
    // Of a cluster, two servers at once are as many as it cannot do without.
    let is_nats = |target| matches!(target, Target::Node(_) | Target::Cluster);
    for seed in 0..50 {
        let planned = plan(seed, &shape(3));
        assert!(planned.len() > 20, "seed {seed}: {} faults", planned.len());
        for (index, one) in planned.iter().enumerate() {
            let after = &planned[index + 1..];
            let other = after.iter().find(|other| {
                other.target == one.target || is_nats(other.target) && is_nats(one.target)
            });
            assert!(
                other.is_none_or(|other| other.at > one.at + one.lasts),
                "seed {seed}: {one}"
            );
            let is_late = one.at > Duration::from_secs(40);
            assert!(
                one.target != Target::Cluster || is_late,
                "seed {seed}: {one}"
            );
        }
    }
}

#[test]
fn a_few_seeds_hit_everything() {
    let all: Vec<Planned> = (0..4).flat_map(|seed| plan(seed, &shape(1))).collect();
    let planned = Fault::ALL.iter().filter(|fault| **fault != Fault::PowerCut);
    for fault in planned {
        assert!(
            all.iter().any(|planned| planned.fault == *fault),
            "{fault:?}"
        );
    }
}
