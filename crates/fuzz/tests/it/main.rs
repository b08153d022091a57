//! The corpus is read, what was found stays mended, a short hunt finds nothing, and the hunt sees every kind of fault.

#![allow(
    clippy::unwrap_used,
    reason = "a test helper fails its test by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use medfleet_fuzz::corpus;
use medfleet_fuzz::hunt::{Hunt, Report};
use medfleet_fuzz::targets::{TARGETS, named};

/// Enough for a fault that one input in a hundred has; a long hunt is `cargo xtask fuzz`.
const RUNS: u64 = 1_500;
const SEED: u64 = 4;
const CORPUS_BYTES_MAX: u64 = 300_000;

fn hunt(out: &Path, runs: u64, hang: Duration) -> Hunt {
    Hunt {
        program: PathBuf::from(env!("CARGO_BIN_EXE_medfleet-fuzz")),
        out: out.to_owned(),
        seed: SEED,
        runs,
        time: Duration::from_secs(600),
        hang,
        memory_bytes: 1 << 30,
    }
}

/// A target whose corpus is refused at the door tests the door only.
#[test]
fn every_seed_is_read_to_its_end() {
    for target in TARGETS {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            assert!((target.run)(seed), "{} {number} is refused", target.name);
        }
    }
}

#[test]
fn what_was_found_stays_mended() {
    let folder = tempfile::tempdir().unwrap();
    for (target, input) in corpus::found() {
        let target = named(&target).unwrap();
        let file = folder.path().join("input");
        std::fs::write(&file, input).unwrap();
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_medfleet-fuzz"))
            .args(["one", target.name])
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{}", target.name);
    }
}

#[test]
fn a_short_hunt_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for target in TARGETS {
        let report = hunt(folder.path(), RUNS, Duration::from_secs(120))
            .target(target)
            .unwrap();
        assert!(
            report.faults.is_empty(),
            "{}: {:?}",
            target.name,
            report.faults
        );
        assert_eq!(report.runs, RUNS, "{}", target.name);
    }
}

fn planted(name: &str, hang: Duration) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let report = hunt(folder.path(), 4, hang)
        .target(named(name).unwrap())
        .unwrap();
    for file in report.faults.values() {
        assert!(
            std::fs::read(file).unwrap().len() < 16,
            "{name} was not made small"
        );
    }
    report
}

#[test]
fn every_kind_of_fault_is_seen_and_made_small() {
    let patient = Duration::from_secs(120);
    let check = |name: &str, hang, word: &str| {
        let faults: BTreeSet<String> = planted(name, hang).faults.into_keys().collect();
        assert_eq!(faults.len(), 1, "{name}: {faults:?}");
        assert!(faults.first().unwrap().contains(word), "{name}: {faults:?}");
    };
    check("planted-panic", patient, "panicked at");
    check("planted-abort", patient, "signal: 6");
    check("planted-stack", patient, "overflowed its stack");
    check("planted-memory", patient, "memory allocation");
    check("planted-hang", Duration::from_secs(1), "hang");
}

#[test]
fn the_corpus_is_small() {
    let mut bytes = 0;
    for folder in ["seeds", "seeds/found"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().metadata().unwrap();
            bytes += if entry.is_file() { entry.len() } else { 0 };
        }
    }
    assert!(bytes < CORPUS_BYTES_MAX, "{bytes}");
}
