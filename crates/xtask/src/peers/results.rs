//! What was measured, in one file that is written after each program, so that what happens later takes nothing away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::programs::Task;

/// Behind a commit beside which something was not committed.
pub(super) const DIRTY: &str = "-dirty";

/// One program's run in one form.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) program: String,
    /// Its version and what it was built with.
    pub(super) version: String,
    pub(super) dtype: String,
    /// The commit of this repository.
    pub(super) commit: String,
    pub(super) work: Vec<Work>,
    /// Why that is not all.
    pub(super) failed: Option<String>,
    /// It was stopped because it took too long.
    pub(super) late: bool,
    /// How long all of it took, loading included.
    pub(super) seconds: f64,
}

/// One work of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) name: String,
    /// By the clock, and of the processor: medians.
    pub(super) seconds: [f64; 2],
    /// Reports that were written in it, where they were asked for at once.
    pub(super) jobs: Option<u32>,
    /// Of what the machine could do at most, where that is known.
    pub(super) share: Option<f64>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    processor: String,
    /// By round and task.
    cells: BTreeMap<String, Cell>,
}

/// All runs until now.
#[derive(Debug)]
pub(super) struct Results {
    path: PathBuf,
    kept: Kept,
}

impl Results {
    /// What the file has, if it was measured on such a processor.
    pub(super) fn open(path: PathBuf, processor: &str) -> Result<Self> {
        let mut kept = Kept::default();
        if path.is_file() {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            kept = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not what we wrote: remove it", path.display()))?;
        }
        if kept.processor != processor {
            kept = Kept {
                processor: processor.to_owned(),
                cells: BTreeMap::new(),
            };
        }
        Ok(Self { path, kept })
    }

    /// Where they are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Those of these rounds and tasks, round by round; of ours those of this commit.
    pub(super) fn cells(&self, rounds: usize, tasks: &[Task], commit: &str) -> Vec<&Cell> {
        let all = (1..=rounds).flat_map(|round| tasks.iter().map(move |task| (round, task)));
        all.filter_map(|(round, task)| {
            let cell = self.kept.cells.get(&key(round, task))?;
            (!task.program.is_ours() || cell.commit == commit).then_some(cell)
        })
        .collect()
    }

    /// Whether this is measured, as far as it can be in the time. Of another commit only peers count, which do not change
    /// with it.
    pub(super) fn has(&self, round: usize, task: &Task, commit: &str) -> bool {
        let cell = self.kept.cells.get(&key(round, task));
        cell.is_some_and(|cell| {
            // What is not committed may be anything.
            let same = cell.commit == commit && !commit.ends_with(DIRTY);
            let same = same || !task.program.is_ours();
            same && (cell.failed.is_none() || cell.late)
        })
    }

    /// Whether an earlier round had to stop it.
    pub(super) fn was_late(&self, round: usize, task: &Task) -> bool {
        (1..round).any(|earlier| {
            let cell = self.kept.cells.get(&key(earlier, task));
            cell.is_some_and(|cell| cell.late)
        })
    }

    /// Shows it, and keeps it.
    pub(super) fn add(&mut self, round: usize, task: &Task, cell: Cell) -> Result<()> {
        for work in &cell.work {
            let ([clock, processor], name) = (work.seconds, &work.name);
            eprintln!("{task:<30} {name:<28} {clock:9.3} s, processor {processor:9.3} s");
        }
        if let Some(failed) = &cell.failed {
            eprintln!("{task:<30} {failed}");
        }
        self.kept.cells.insert(key(round, task), cell);
        let unfinished = self.path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec_pretty(&self.kept)?)
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .with_context(|| format!("write {}", self.path.display()))
    }
}

/// Sorts by round.
fn key(round: usize, task: &Task) -> String {
    format!("round {round:03}: {task}")
}

#[cfg(test)]
mod tests {
    use super::super::programs::Program;
    use super::*;

    fn task(program: Program) -> Task {
        Task {
            program,
            dtype: "q8_0".to_owned(),
            device: String::new(),
        }
    }

    fn cell(commit: &str) -> Cell {
        Cell {
            commit: commit.to_owned(),
            work: vec![Work {
                name: "step of 1".to_owned(),
                seconds: [1.0, 2.0],
                jobs: None,
                share: None,
            }],
            ..Cell::default()
        }
    }

    #[test]
    fn a_run_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let (ours, peer) = (task(Program::Medfleet), task(Program::LlamaText));
        let mut results = Results::open(path.clone(), "fast").unwrap();
        for task in [&ours, &peer] {
            assert!(!results.has(1, task, "a"));
            results.add(1, task, cell("a")).unwrap();
        }
        let again = Results::open(path.clone(), "fast").unwrap();
        assert!(again.has(1, &ours, "a") && again.has(1, &peer, "a"));
        assert!(!again.has(2, &ours, "a"));
        assert!(!again.has(1, &ours, "b"), "our code has changed");
        assert!(again.has(1, &peer, "b"), "the peer has not");
        let tasks = [ours.clone(), peer.clone()];
        assert_eq!(again.cells(1, &tasks, "a").len(), 2);
        assert_eq!(again.cells(1, &tasks, "b").len(), 1, "ours is of another");
        assert!(again.cells(1, &[], "a").is_empty());
        let changed = format!("a{DIRTY}");
        results.add(1, &ours, cell(&changed)).unwrap();
        assert!(
            !results.has(1, &ours, &changed),
            "it may have changed since"
        );
        let elsewhere = Results::open(path, "slow").unwrap();
        assert!(!elsewhere.has(1, &ours, "a"), "another machine");
    }

    #[test]
    fn what_failed_is_tried_again_and_what_was_late_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let mut results = Results::open(path, "fast").unwrap();
        let (failing, slow) = (task(Program::LlamaText), task(Program::Torch));
        let failed = Cell {
            failed: Some("it crashed".to_owned()),
            ..cell("a")
        };
        let late = Cell {
            late: true,
            ..failed.clone()
        };
        results.add(1, &failing, failed).unwrap();
        results.add(1, &slow, late).unwrap();
        assert!(!results.has(1, &failing, "a") && !results.was_late(2, &failing));
        assert!(results.was_late(2, &slow) && !results.was_late(1, &slow));
        assert!(results.has(1, &slow, "a"), "what it had measured counts");
    }
}
