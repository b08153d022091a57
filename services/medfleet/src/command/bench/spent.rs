//! The processor time of a process and all its descendants, from `/proc`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::usage::{fields, time};

/// What `/proc/ID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Of its threads, and of the children that it has waited for.
    ticks: u64,
}

/// The processor time of a process and of all below it until now.
pub(super) fn spent(root: u32) -> Result<Duration> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry.context("cannot read /proc")?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has ended meanwhile has no file; its time is in its parent's.
        let text = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(stat) = read(&text) {
            all.insert(id, stat);
        }
    }
    ensure!(all.contains_key(&root), "the process has ended");
    let ours = all.iter().filter(|(id, _)| is_below(**id, root, &all));
    Ok(time(ours.map(|(_, stat)| stat.ticks).sum()))
}

fn read(text: &str) -> Option<Stat> {
    let fields = fields(text)?;
    let ticks = (11..15).map(|at| fields.get(at)?.parse::<u64>().ok());
    let ticks: Option<Vec<u64>> = ticks.collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: ticks?.iter().sum(),
    })
}

/// Whether a process is this one, or below it.
fn is_below(mut id: u32, root: u32, all: &BTreeMap<u32, Stat>) -> bool {
    // Ids may be reused while this reads them, so the walk is bounded by the number of processes.
    for _ in 0..=all.len() {
        if id == root {
            return true;
        }
        match all.get(&id) {
            Some(stat) => id = stat.parent,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        let expected = Stat {
            parent: 3,
            ticks: 127,
        };
        assert_eq!(read(text), Some(expected));
        assert_eq!(read(""), None);
    }

    #[test]
    fn children_of_children_count() {
        let stat = |parent: u32| Stat { parent, ticks: 1 };
        let all = BTreeMap::from([(1, stat(0)), (5, stat(1)), (6, stat(5)), (7, stat(1))]);
        let below: Vec<u32> = all
            .keys()
            .copied()
            .filter(|id| is_below(*id, 5, &all))
            .collect();
        assert_eq!(below, [5, 6]);
    }

    #[test]
    fn this_process_is_found() {
        assert!(spent(std::process::id()).is_ok());
    }
}
