//! Many short seeds in virtual time: what must hold holds, a seed replays to the step, and a mistake that is planted around
//! the fleet's pure code is found. Longer runs by `make chaos`.

use anyhow::{Result, ensure};
use medfleet_tests::virtual_time::{JOBS, Plant, run};

#[test]
fn every_job_of_forty_seeds_ends_once_and_rightly() -> Result<()> {
    let mut jumps = 0;
    for seed in 1..=40 {
        let report = run(seed, Plant::Nothing)?;
        let ended: u64 = report.ends.values().sum();
        ensure!(ended == JOBS, "{report:?}");
        ensure!(report.faults.values().sum::<u64>() > 20, "{report:?}");
        let of_clocks = report
            .faults
            .iter()
            .filter(|(name, _)| name.contains("clock"));
        jumps += of_clocks.map(|(_, times)| times).sum::<u64>();
    }
    ensure!(jumps > 40, "clocks jumped {jumps} times");
    Ok(())
}

#[test]
fn a_seed_replays_to_the_step() -> Result<()> {
    let first = run(3, Plant::Nothing)?;
    assert_eq!(first, run(3, Plant::Nothing)?);
    assert_ne!(first.fingerprint, run(4, Plant::Nothing)?.fingerprint);
    Ok(())
}

/// A seed finds the mistake by this word, and says how to see it again, and its steps.
fn is_found(plant: Plant, word: &str) {
    let found = (1..=60).find_map(|seed| {
        let error = run(seed, plant).err()?;
        let text = format!("{error:#}");
        text.contains(word).then_some(text)
    });
    let text = found.unwrap_or_else(|| panic!("{plant:?} was not found by {word:?}"));
    assert!(text.contains("seed ") && text.contains(" ms  "), "{text}");
}

#[test]
fn a_store_that_does_not_compare_is_found() {
    is_found(Plant::BlindStore, "BROKEN");
}

#[test]
fn a_refusal_that_is_believed_is_found() {
    is_found(Plant::BelievesRefusal, "open: [\"");
}

#[test]
fn swapped_tokens_are_found() {
    is_found(Plant::SwapsTokens, "its answer is not the right one");
}

#[test]
fn a_forgotten_fence_is_found() {
    is_found(Plant::ForgetsFence, "with the result of attempt");
}

#[test]
fn a_job_that_a_workers_clock_ends_too_early_is_found() {
    is_found(
        Plant::ExpiresByOwnClock,
        "before its time was over by the queue's clock",
    );
}

#[test]
fn a_lease_by_a_workers_clock_is_found() {
    is_found(Plant::LeasesByOwnClock, "open: [\"");
}

#[test]
fn an_accept_by_the_clock_of_its_process_is_found() {
    is_found(Plant::StampsByOwnClock, "by another clock than the queue's");
}

#[test]
fn a_unit_that_is_removed_unread_without_a_note_is_found() {
    is_found(Plant::ForgetsUnread, "open: [\"");
}
