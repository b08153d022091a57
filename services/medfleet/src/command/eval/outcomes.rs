//! The answers of an evaluation in a file, a line each.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use medfleet_score::outcome::{answered, read_outcomes};
use medfleet_score::{Outcome, Task};

use super::ask::Asked;

/// What there is, and where the next goes.
pub(super) struct Log {
    file: File,
    outcomes: Vec<Outcome>,
    answered: BTreeSet<(String, Task, Option<usize>)>,
}

impl Log {
    /// Opens the file of a task, and goes on after its last whole line. `asked_of` says which set and model the answers are
    /// of; those of another are refused.
    pub(super) fn open(folder: &Path, task: Task, asked_of: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        same_run(&folder.join(format!("{}.run", task.name())), asked_of)?;
        let path = folder.join(format!("{}.jsonl", task.name()));
        let unusable = || format!("cannot use {}", path.display());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(unusable)?;
        let read = read_outcomes(BufReader::new(&file)).with_context(unusable)?;
        file.set_len(read.whole_bytes).with_context(unusable)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(unusable)?;
        Ok(Self {
            file,
            answered: answered(&read.outcomes),
            outcomes: read.outcomes,
        })
    }

    /// Whether this is still to be asked.
    pub(super) fn lacks(&self, asked: &Asked) -> bool {
        !self
            .answered
            .contains(&(asked.id.clone(), asked.task, asked.item))
    }

    /// Writes an answer down.
    pub(super) fn add(&mut self, outcome: Outcome) -> Result<()> {
        let line = outcome.line().context("an answer as JSON")?;
        self.file
            .write_all(line.as_bytes())
            .context("cannot write an answer down")?;
        self.outcomes.push(outcome);
        Ok(())
    }

    pub(super) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }
}

fn same_run(path: &Path, asked_of: &str) -> Result<()> {
    match std::fs::read_to_string(path) {
        Ok(found) if found == asked_of => Ok(()),
        Ok(found) => bail!(
            "{} is of another run ({}); give another --out, or remove that folder",
            path.display(),
            found.trim()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(path, asked_of)
                .with_context(|| format!("cannot write {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
