//! The simulation against the formulas, and against itself.

use super::*;
use crate::{JobKind, predict};

const RUN: Run = Run {
    jobs: 200_000,
    warm_up: 20_000,
    seed: 7,
};

fn load(jobs_per_second: f64, chunks: u32, variation: f64) -> Load {
    let service = |mean_seconds| Service {
        mean_seconds,
        variation,
    };
    Load {
        jobs_per_second,
        kinds: vec![JobKind {
            class: 2,
            share: 1.0,
            chunks,
        }],
        encode: service(0.2),
        decode: service(2.0),
        other_seconds: 0.0,
    }
}

fn check(load: &Load, fleet: Fleet, tolerances: (f64, f64)) {
    let (found, expected) = (simulate(load, fleet, RUN), predict(load, fleet));
    let check = |stage, found: f64, expected: f64, tolerance| {
        let error = (found - expected).abs() / expected;
        println!("{stage}: simulated {found:.4} s, formula {expected:.4} s, {error:.3} apart");
        assert!(error <= tolerance, "{stage}: {found} {expected}");
    };
    check(
        "encode",
        found.encode_wait_seconds,
        expected.encode_wait_seconds,
        tolerances.0,
    );
    check(
        "decode",
        found.decode_wait_seconds,
        expected.decode_wait_seconds,
        tolerances.1,
    );
}

#[test]
fn one_worker_a_stage_waits_as_the_formula_says() {
    // Exact for M/G/1 in encode; what reaches decode is no longer quite Poisson.
    let mut slow = load(0.35, 1, 1.0);
    slow.encode.mean_seconds = 2.0;
    slow.decode.variation = 0.0;
    let fleet = Fleet {
        encoders: 1,
        decode_slots: 1,
    };
    let found = simulate(&slow, fleet, RUN).encode_wait_seconds;
    let expected = predict(&slow, fleet).encode_wait_seconds;
    assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
}

#[test]
fn many_workers_wait_as_the_formula_says() {
    let fleet = Fleet {
        encoders: 4,
        decode_slots: 36,
    };
    check(&load(16.0, 1, 1.0), fleet, (0.10, 0.10));
    // Constant times leave the encoders evenly, more so than the formula's Poisson process: it errs on the safe side.
    check(&load(16.0, 1, 0.0), fleet, (0.10, 0.20));
}

#[test]
fn chunks_of_a_job_wait_for_each_other() {
    let fleet = Fleet {
        encoders: 5,
        decode_slots: 16,
    };
    // Nine tenths busy: the formula for batches is one for heavy traffic.
    let load = load(5.6, 4, 0.0);
    let (found, expected) = (simulate(&load, fleet, RUN), predict(&load, fleet));
    let error = found.encode_wait_seconds / expected.encode_wait_seconds - 1.0;
    assert!(error.abs() < 0.25, "{found:?} {expected:?}");
}

#[test]
fn an_idle_fleet_takes_the_time_of_its_stages() {
    let fleet = Fleet {
        encoders: 64,
        decode_slots: 64,
    };
    let found = simulate(&load(0.1, 3, 0.0), fleet, RUN).all;
    assert!((found.p50_seconds - 2.2).abs() < 1e-6, "{found:?}");
    assert_eq!(found.jobs, RUN.jobs);
}

#[test]
fn the_first_class_is_served_first_and_a_seed_repeats() {
    let mut mixed = load(16.0, 1, 1.0);
    mixed.kinds = vec![
        JobKind {
            class: 0,
            share: 0.1,
            chunks: 1,
        },
        JobKind {
            class: 3,
            share: 0.9,
            chunks: 1,
        },
    ];
    let fleet = Fleet {
        encoders: 4,
        decode_slots: 34,
    };
    let found = simulate(&mixed, fleet, RUN);
    assert!(found.classes[0].p95_seconds < found.classes[3].p95_seconds);
    assert_eq!(found, simulate(&mixed, fleet, RUN));
}

#[test]
fn a_batch_takes_what_its_slowest_stage_takes() {
    let check = |(encoders, decode_slots), jobs, expected: f64| {
        let fleet = Fleet {
            encoders,
            decode_slots,
        };
        let found = batch_seconds(&load(1.0, 1, 0.0), fleet, jobs, 7);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    };
    // One after the other: the first encode, then every decode.
    check((1, 1), 8, 0.2 + 8.0 * 2.0);
    check((64, 4), 8, 0.2 + 2.0 * 2.0);
    // Encoders are the narrow place: the last decode begins after the last encode.
    check((1, 64), 8, 8.0 * 0.2 + 2.0);
}
