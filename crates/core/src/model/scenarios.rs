//! What is explored: a few small settings that together meet every guard, and for each guard the one that misses it.

use super::check::{Checked, check};
use super::world::{Budget, Flaw, Planted, Role, Scenario};
use crate::CHUNKS_MAX;
use crate::guard::Guard;
use crate::guard::tests::without;
use crate::record::tests::WALKED;

const QUIET: Budget = Budget {
    crashes: 0,
    stalls: 0,
    drains: 0,
    wrongs: 0,
    fails: 0,
    cancels: 0,
    ends: 0,
    replays: 0,
    submits: 0,
    unreads: 0,
    asides: 0,
};

const PLAIN: Scenario = Scenario {
    name: "one worker, nothing goes wrong",
    chunks: 1,
    workers: 1,
    desks: &[],
    budget: QUIET,
    retries_max: 1,
    is_split: false,
    is_slow: false,
    planted: None,
    flaw: None,
};

/// Chunks in any order, deaths and pauses at any point.
const CHUNKS: Scenario = Scenario {
    name: "two chunks, a worker dies, one pauses",
    chunks: 2,
    workers: 2,
    budget: Budget {
        crashes: 1,
        stalls: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Reading and comparing are apart, so that two changes meet.
const RACES: Scenario = Scenario {
    name: "two chunks, reads and writes apart",
    chunks: 2,
    workers: 2,
    is_split: true,
    budget: Budget {
        crashes: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Failures of every kind around a decode.
const DECODES: Scenario = Scenario {
    name: "no images; deaths, pauses, failures, a cancel",
    chunks: 0,
    workers: 2,
    budget: Budget {
        crashes: 1,
        stalls: 1,
        fails: 1,
        cancels: 1,
        ..QUIET
    },
    ..PLAIN
};

/// A worker that is paused, and then hands back or goes wrong.
const ZOMBIES: Scenario = Scenario {
    name: "no images; a worker pauses, drains, goes wrong",
    chunks: 0,
    workers: 2,
    budget: Budget {
        stalls: 1,
        drains: 1,
        wrongs: 1,
        fails: 1,
        ..QUIET
    },
    ..PLAIN
};

/// A unit that kills whoever takes it, until it is given up on.
const POISON: Scenario = Scenario {
    name: "a unit that keeps killing, hand-backs between",
    retries_max: 0,
    budget: Budget {
        crashes: 2,
        stalls: 0,
        drains: 2,
        ..QUIET
    },
    ..PLAIN
};

/// As often as a worker likes.
const DRAINS: Scenario = Scenario {
    name: "hand-backs alone give up on nothing",
    chunks: 2,
    workers: 2,
    budget: Budget { drains: 4, ..QUIET },
    ..PLAIN
};

/// The job's time runs out anywhere.
const TIME: Scenario = Scenario {
    name: "time runs out while a unit fails",
    workers: 2,
    budget: Budget {
        crashes: 1,
        stalls: 1,
        fails: 1,
        ends: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Failed work is replayed while old work is still about.
const REPLAYS: Scenario = Scenario {
    name: "a failed job is replayed, old workers go on",
    workers: 2,
    desks: &[Role::Call],
    budget: Budget {
        stalls: 1,
        drains: 1,
        fails: 1,
        replays: 1,
        submits: 1,
        ..QUIET
    },
    ..PLAIN
};

/// A dispatcher that is late while another leads.
const LATE: Scenario = Scenario {
    name: "a replay, slow publishers, two dispatchers",
    chunks: 0,
    workers: 1,
    desks: &[Role::Call, Role::Release, Role::Release],
    is_slow: true,
    budget: Budget {
        fails: 1,
        replays: 1,
        submits: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Two replays, so that an older publisher meets a newer unit.
const LATER: Scenario = Scenario {
    name: "two replays, slow publishers",
    budget: Budget {
        fails: 2,
        replays: 2,
        submits: 1,
        ..QUIET
    },
    ..LATE
};

/// Two calls, the sweep, a death at any of their steps.
const ACCEPTS: Scenario = Scenario {
    name: "two submits, the sweep, a death",
    chunks: 0,
    desks: &[Role::Call, Role::Call, Role::Sweep],
    budget: Budget {
        crashes: 1,
        submits: 2,
        ..QUIET
    },
    ..PLAIN
};

/// A replay while the submit's own entry is not yet gone.
const SWEEPS: Scenario = Scenario {
    name: "a submit, a replay, the sweep, a death",
    budget: Budget {
        crashes: 1,
        fails: 1,
        replays: 1,
        submits: 1,
        ..QUIET
    },
    ..ACCEPTS
};

/// An edge whose images stay: its own stages up to the tokens, and then the hub.
const EDGE: Scenario = Scenario {
    name: "an edge encodes; deaths, a pause, a cancel",
    workers: 2,
    desks: &[Role::Edge],
    budget: Budget {
        crashes: 1,
        stalls: 1,
        cancels: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Late workers of other chunks, while the edge hands on.
const EDGE_CHUNKS: Scenario = Scenario {
    name: "an edge encodes two chunks, a worker pauses",
    chunks: 2,
    workers: 2,
    desks: &[Role::Edge],
    budget: Budget { stalls: 1, ..QUIET },
    ..PLAIN
};

/// Work of before the replay is still about when the edge hands on.
const EDGE_REPLAYS: Scenario = Scenario {
    name: "an edge encodes; a failure, a replay",
    chunks: 1,
    desks: &[Role::Call, Role::Edge],
    budget: Budget {
        stalls: 1,
        fails: 1,
        replays: 1,
        submits: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Units that cannot be read give up their places, and the sweep queues their job again.
const ASIDE: Scenario = Scenario {
    name: "a unit is set aside twice; a death, a pause",
    workers: 2,
    desks: &[Role::Sweep],
    budget: Budget {
        crashes: 1,
        stalls: 1,
        unreads: 2,
        ..QUIET
    },
    ..PLAIN
};

/// The sweep reads the record while other chunks come further. What it queues once more than needed uses up no start: nothing
/// goes wrong, so that not a single retry is needed.
const ASIDE_CHUNKS: Scenario = Scenario {
    name: "two chunks; one is set aside twice",
    chunks: 2,
    workers: 2,
    retries_max: 0,
    desks: &[Role::Sweep],
    budget: Budget {
        unreads: 2,
        ..QUIET
    },
    ..PLAIN
};

/// Units that are handed back for later give up their places.
const ASIDE_WRONG: Scenario = Scenario {
    name: "no images; what goes wrong is set aside",
    chunks: 0,
    workers: 2,
    desks: &[Role::Sweep],
    budget: Budget {
        crashes: 1,
        stalls: 1,
        wrongs: 1,
        asides: 1,
        ..QUIET
    },
    ..PLAIN
};

/// Work of before the replay is set aside.
const ASIDE_REPLAYS: Scenario = Scenario {
    name: "a replay while a unit is set aside",
    chunks: 0,
    desks: &[Role::Call, Role::Sweep],
    budget: Budget {
        crashes: 1,
        fails: 1,
        replays: 1,
        submits: 1,
        unreads: 1,
        ..QUIET
    },
    ..PLAIN
};

/// What a job of an edge waits for may be the hub.
const ASIDE_EDGE: Scenario = Scenario {
    name: "an edge encodes; a unit is set aside, a pause",
    workers: 2,
    desks: &[Role::Edge, Role::Sweep],
    budget: Budget {
        stalls: 1,
        unreads: 1,
        ..QUIET
    },
    ..PLAIN
};

const EDGE_EARLY: Scenario = Scenario {
    name: "an edge that sees a decode too early",
    desks: &[Role::Edge],
    planted: Some(Planted::EarlyDecode),
    ..PLAIN
};

const EARLY: Scenario = Scenario {
    name: "a decode that came too early",
    planted: Some(Planted::EarlyDecode),
    ..PLAIN
};

const FOREIGN: Scenario = Scenario {
    name: "a chunk that the job does not have",
    planted: Some(Planted::ForeignChunk),
    ..PLAIN
};

const STRAY_LETTER: Scenario = Scenario {
    name: "a dead letter of a job that goes on",
    chunks: 0,
    desks: &[Role::Call],
    planted: Some(Planted::Letter),
    budget: Budget {
        replays: 1,
        submits: 1,
        ..QUIET
    },
    ..PLAIN
};

const TOO_MANY: Scenario = Scenario {
    name: "more chunks than a record can tell apart",
    chunks: CHUNKS_MAX + 1,
    ..PLAIN
};

const ALL: &[Scenario] = &[
    PLAIN,
    CHUNKS,
    RACES,
    DECODES,
    ZOMBIES,
    POISON,
    DRAINS,
    TIME,
    REPLAYS,
    LATE,
    LATER,
    ACCEPTS,
    SWEEPS,
    EDGE,
    EDGE_CHUNKS,
    EDGE_REPLAYS,
    ASIDE,
    ASIDE_CHUNKS,
    ASIDE_WRONG,
    ASIDE_REPLAYS,
    ASIDE_EDGE,
    EDGE_EARLY,
    EARLY,
    FOREIGN,
    STRAY_LETTER,
    TOO_MANY,
];

/// Every guard, and the setting in which its absence shows.
const GUARDS: &[(Guard, Scenario)] = &[
    (Guard::Final, DECODES),
    (Guard::PreprocessStart, CHUNKS),
    (Guard::EncodeStart, CHUNKS),
    (Guard::ChunkOpen, ASIDE_CHUNKS),
    (Guard::DecodeStart, EARLY),
    (Guard::Starts, POISON),
    (Guard::Fence, ZOMBIES),
    (Guard::FramesOnce, CHUNKS),
    (Guard::ChunkCount, TOO_MANY),
    (Guard::ChunkNumber, FOREIGN),
    (Guard::ChunkBeforeDecode, CHUNKS),
    (Guard::Forward, EDGE_EARLY),
    (Guard::ReplayOfFailed, STRAY_LETTER),
    (Guard::EpochOfMove, REPLAYS),
    (Guard::EpochOfChange, REPLAYS),
    (Guard::AttemptOfChange, ZOMBIES),
    (Guard::DoneIsNoFailure, TIME),
    (Guard::StopOther, ZOMBIES),
    (Guard::StopOver, DECODES),
    (Guard::StopDone, CHUNKS),
    (Guard::StopExpired, TIME),
    (Guard::RepeatWhatFollows, CHUNKS),
    (Guard::LetterAgain, DECODES),
    (Guard::OlderGivesWay, REPLAYS),
];

/// Mistakes outside this crate, and the setting in which each shows.
const FLAWS: &[(Flaw, Scenario)] = &[
    (Flaw::BlindStore, RACES),
    (Flaw::AcknowledgeFirst, CHUNKS),
    (Flaw::RecordFirst, PLAIN),
    (Flaw::PendingByKey, SWEEPS),
    (Flaw::ReplaceByName, LATER),
    (Flaw::OverIsDone, DECODES),
    (Flaw::FencedAcknowledges, ZOMBIES),
    (Flaw::AsideUnnoted, ASIDE),
    (Flaw::AsideForgotten, ASIDE),
    (Flaw::AsideByKey, ASIDE),
];

fn describe(checked: &Checked) -> String {
    let size = format!("{:>8} worlds {:>9} steps", checked.worlds, checked.steps);
    match &checked.counterexample {
        None => size,
        Some(found) => format!("{size}  {}\n    {}", found.wrong, found.run.join("\n    ")),
    }
}

#[test]
fn no_run_goes_wrong() {
    let mut wrong = 0;
    for scenario in ALL {
        let checked = check(*scenario);
        println!("{:<50} {}", scenario.name, describe(&checked));
        wrong += usize::from(checked.counterexample.is_some());
    }
    assert_eq!(wrong, 0, "settings with a counterexample, printed above");
}

#[test]
fn without_any_one_guard_a_run_goes_wrong() {
    let mut needless = Vec::new();
    for (guard, scenario) in GUARDS {
        let checked = without(*guard, || check(*scenario));
        println!("{guard:?} {}", describe(&checked));
        if checked.counterexample.is_none() {
            needless.push(guard);
        }
    }
    assert!(needless.is_empty(), "not missed: {needless:?}");
}

#[test]
fn every_guard_is_tried() {
    for guard in Guard::ALL {
        let tried = GUARDS.iter().any(|(tried, _)| tried == guard);
        let walked = WALKED.contains(guard);
        assert!(tried || walked, "{guard:?} has no setting that misses it");
    }
}

#[test]
fn with_any_one_mistake_around_them_a_run_goes_wrong() {
    let mut harmless = Vec::new();
    for (flaw, scenario) in FLAWS {
        let checked = check(Scenario {
            flaw: Some(*flaw),
            ..*scenario
        });
        println!("{flaw:?} {}", describe(&checked));
        if checked.counterexample.is_none() {
            harmless.push(flaw);
        }
    }
    assert!(harmless.is_empty(), "made no difference: {harmless:?}");
}
