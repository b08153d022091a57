//! What was measured, as a table: a row for each work and form, a column for each program, and how much longer others took.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

/// This model's name in the table.
const OURS: &str = "medfleet";
/// The order of rows; steps follow.
const FIRST: [&str; 2] = ["image encoded", "prompt read"];

/// One program's run in one form.
pub(super) struct Run {
    program: String,
    version: String,
    dtype: String,
    /// Seconds by the clock, and of the processor.
    work: Vec<(String, [f64; 2])>,
}

impl Run {
    /// From the JSON that programs print.
    pub(super) fn new(program: &str, version: &str, dtype: &str, run: &Value) -> Result<Self> {
        let all = run["work"].as_array().context("no list of work")?;
        let work = all.iter().map(|of| {
            let name = of["work"].as_str().context("work without a name")?;
            let median = |kind: &str| {
                let millis = of[kind]["median_ms"].as_f64();
                millis.map(|millis| millis / 1000.0).context("no median")
            };
            Ok((name.to_owned(), [median("clock")?, median("processor")?]))
        });
        Ok(Self {
            program: program.to_owned(),
            version: version.to_owned(),
            dtype: dtype.to_owned(),
            work: work.collect::<Result<_>>()?,
        })
    }
}

/// All runs.
#[derive(Default)]
pub(super) struct Table {
    runs: Vec<Run>,
}

type Key<'a> = (&'a str, &'a str);

impl Table {
    pub(super) fn add(&mut self, run: Run) {
        for (work, [clock, processor]) in &run.work {
            let (program, dtype) = (&run.program, &run.dtype);
            eprintln!(
                "{program:<10} {dtype:<7} {work:<14} {clock:9.3} s, processor {processor:9.3} s"
            );
        }
        self.runs.push(run);
    }

    /// Median over the rounds: work → (program, form) → both times.
    fn medians(&self) -> BTreeMap<&str, BTreeMap<Key<'_>, [f64; 2]>> {
        let mut times: BTreeMap<&str, BTreeMap<Key, [Vec<f64>; 2]>> = BTreeMap::new();
        for run in &self.runs {
            for (work, seconds) in &run.work {
                let key = (run.program.as_str(), run.dtype.as_str());
                let of_work = times.entry(work).or_default();
                let kinds = of_work.entry(key).or_default();
                for (kind, seconds) in kinds.iter_mut().zip(seconds) {
                    kind.push(*seconds);
                }
            }
        }
        let mut medians: BTreeMap<&str, BTreeMap<Key, [f64; 2]>> = BTreeMap::new();
        for (work, of_work) in times {
            let of_work = of_work.into_iter();
            let of_work = of_work.map(|(key, kinds)| (key, kinds.map(median)));
            medians.insert(work, of_work.collect());
        }
        medians
    }

    /// The table, and what was run.
    pub(super) fn markdown(&self) -> String {
        let medians = self.medians();
        let mut works: Vec<&str> = medians.keys().copied().collect();
        works.sort_by_key(|work| {
            let first = FIRST.iter().position(|first| first == work);
            let count = work.rsplit(' ').next().and_then(|count| count.parse().ok());
            (first.unwrap_or(FIRST.len()), count.unwrap_or(0_usize))
        });
        let mut lines = vec![
            "| work | program | form | seconds | of medfleet's | processor seconds | of medfleet's |".to_owned(),
            "|---|---|---|---|---|---|---|".to_owned(),
        ];
        for work in works {
            let of_work = &medians[work];
            for ((program, dtype), times) in of_work {
                let ours = compared(of_work, dtype);
                let mut line = format!("| {work} | {program} | {dtype} |");
                for (kind, seconds) in times.iter().enumerate() {
                    let ratio = ours
                        .filter(|_| *program != OURS)
                        .map(|ours| seconds / ours[kind]);
                    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
                    line += &format!(" {seconds:.3} | {ratio} |");
                }
                lines.push(line);
            }
        }
        let versions: BTreeSet<String> = self
            .runs
            .iter()
            .map(|run| format!("- {}: {}", run.program, run.version))
            .collect();
        lines.push(String::new());
        lines.extend(versions);
        lines.join("\n")
    }
}

/// What another program's form is compared with: the same of ours, or our best where we have no such form.
fn compared<'a>(of_work: &'a BTreeMap<Key<'_>, [f64; 2]>, dtype: &str) -> Option<&'a [f64; 2]> {
    let same = of_work
        .iter()
        .find(|((program, form), _)| *program == OURS && *form == dtype);
    same.map(|(_, times)| times).or_else(|| {
        let ours = of_work.iter().filter(|((program, _), _)| *program == OURS);
        ours.map(|(_, times)| times)
            .min_by(|a, b| a[0].total_cmp(&b[0]))
    })
}

/// The middle one, or the mean of the two in the middle; there is at least one.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let (below, above) = ((all.len() - 1) / 2, all.len() / 2);
    (all[below] + all[above]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_compared_with_ours() {
        let run = |program: &str, dtype: &str, millis: f64| {
            let time = serde_json::json!({"median_ms": millis});
            let work = serde_json::json!({"work": [{"work": "step of 4", "clock": time, "processor": time}]});
            Run::new(program, "1", dtype, &work).unwrap()
        };
        let mut table = Table::default();
        table.add(run(OURS, "q8_0", 100.0));
        table.add(run("other", "q8_0", 250.0));
        table.add(run("other", "f16", 50.0));
        let text = table.markdown();
        for line in [
            "| step of 4 | medfleet | q8_0 | 0.100 |  | 0.100 |  |",
            "| step of 4 | other | q8_0 | 0.250 | 2.50 | 0.250 | 2.50 |",
            "| step of 4 | other | f16 | 0.050 | 0.50 | 0.050 | 0.50 |",
            "- other: 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }
}
