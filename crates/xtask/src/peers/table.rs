//! The measurements as a Markdown table: a row for each task, program and form, with how much longer other programs took, and
//! below it where another program is faster.

use std::collections::{BTreeMap, BTreeSet};

use super::programs::Program;
use super::results::Cell;

/// The order of rows; steps follow, then whole reports.
const FIRST: [&str; 2] = ["image encoded", "prompt read"];
/// A peer that is at least this much faster is named below the table: less is noise.
const SLOWER: f64 = 0.98;

/// Program and form.
type Key<'a> = (&'a str, &'a str);

/// What all rounds measured of one work of one program in one form.
#[derive(Default)]
struct Times {
    /// By the clock, and of the processor.
    seconds: [Vec<f64>; 2],
    shares: Vec<f64>,
    /// Reports in that time, where they were queued.
    jobs: Option<u32>,
}

impl Times {
    fn medians(&self) -> [f64; 2] {
        self.seconds.each_ref().map(|all| median(all))
    }
}

/// Whether it is another program's and has figures.
pub(super) fn is_peer_with_figures(cell: &Cell) -> bool {
    cell.program != ours() && !cell.work.is_empty()
}

const fn ours() -> &'static str {
    Program::Medfleet.name()
}

/// The table, what was run, what is not won, and what is missing.
pub(super) fn markdown(cells: &[&Cell]) -> String {
    let times = times(cells);
    let mut works: Vec<&str> = times.keys().copied().collect();
    works.sort_by_key(|work| {
        let first = FIRST.iter().position(|first| first == work);
        let count = work.rsplit(' ').next().and_then(|count| count.parse().ok());
        let reports = work.contains("report");
        (
            reports,
            first.unwrap_or(FIRST.len()),
            count.unwrap_or(0_usize),
        )
    });
    let mut lines = vec![
        "A ratio is the peer's time divided by medfleet's in the same form, or in medfleet's fastest where it has no such form: above 1 medfleet is faster.".to_owned(),
        "Of the machine's limits a share of what is computed is given for images and prompts, of what is read for steps.".to_owned(),
        String::new(),
        "| work | program | form | seconds, each round | ratio | processor seconds, each round | ratio | of the limit | reports an hour |".to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let mut lost = Vec::new();
    for work in works {
        let of_work = &times[work];
        for (key, times) in of_work {
            let (program, dtype) = *key;
            let ours = compared(of_work, key);
            let ratios = ours.map(|ours| {
                let (theirs, ours) = (times.medians(), ours.medians());
                [theirs[0] / ours[0], theirs[1] / ours[1]]
            });
            if let Some([clock, _]) = ratios.filter(|[clock, _]| *clock < SLOWER) {
                lost.push(format!("{work}, {program} {dtype} ({clock:.2})"));
            }
            lines.push(row(&[work, program, dtype], times, ratios));
        }
    }
    lines.push(String::new());
    lines.extend(versions(cells));
    lines.push(String::new());
    lines.push(match &lost[..] {
        [] => "Nothing took medfleet longer than its peers.".to_owned(),
        _ => format!("**What is not won**: {}.", lost.join("; ")),
    });
    lines.extend(missing(cells));
    lines.join("\n")
}

fn row(names: &[&str; 3], times: &Times, ratios: Option<[f64; 2]>) -> String {
    let mut line = format!("| {} |", names.join(" | "));
    for (kind, seconds) in times.seconds.iter().enumerate() {
        let seconds: Vec<String> = seconds.iter().map(|each| format!("{each:.3}")).collect();
        let ratio = ratios.map_or(String::new(), |ratios| format!("{:.2}", ratios[kind]));
        line += &format!(" {} | {ratio} |", seconds.join(" / "));
    }
    let share = match &times.shares[..] {
        [] => String::new(),
        shares => format!("{:.0} %", 100.0 * median(shares)),
    };
    let an_hour = times.jobs.map_or(String::new(), |jobs| {
        format!("{:.1}", f64::from(jobs) * 3600.0 / times.medians()[0])
    });
    line + &format!(" {share} | {an_hour} |")
}

/// Work → (program, form) → times, in the order of the rounds.
fn times<'a>(cells: &[&'a Cell]) -> BTreeMap<&'a str, BTreeMap<Key<'a>, Times>> {
    let mut times: BTreeMap<&str, BTreeMap<Key, Times>> = BTreeMap::new();
    for cell in cells {
        for work in &cell.work {
            let of_work = times.entry(work.name.as_str()).or_default();
            let key = (cell.program.as_str(), cell.dtype.as_str());
            let of_program = of_work.entry(key).or_default();
            for (kind, seconds) in of_program.seconds.iter_mut().zip(work.seconds) {
                kind.push(seconds);
            }
            of_program.shares.extend(work.share);
            of_program.jobs = work.jobs;
        }
    }
    times
}

/// What another program's form is compared with: the same of ours, or our best where we have no such form.
fn compared<'a>(of_work: &'a BTreeMap<Key<'_>, Times>, key: &Key<'_>) -> Option<&'a Times> {
    let is_ours = |program: &str| program == ours();
    if is_ours(key.0) {
        return None;
    }
    let all = of_work.iter().filter(|((program, _), _)| is_ours(program));
    let mut same = all.clone().filter(|((_, form), _)| *form == key.1);
    let best = all.min_by(|(_, a), (_, b)| a.medians()[0].total_cmp(&b.medians()[0]));
    same.next().or(best).map(|(_, times)| times)
}

/// A line for each program as it was.
fn versions(cells: &[&Cell]) -> BTreeSet<String> {
    let with_figures = cells.iter().filter(|cell| !cell.work.is_empty());
    let lines = with_figures.map(|cell| {
        let mut line = format!("- {}: {}", cell.program, cell.version);
        if cell.program == ours() {
            line += &format!(", commit {}", cell.commit);
        }
        line
    });
    lines.collect()
}

/// A line for each run that did not end well.
fn missing(cells: &[&Cell]) -> Vec<String> {
    let mut lines = Vec::new();
    for cell in cells {
        let Some(why) = &cell.failed else {
            continue;
        };
        let some = if cell.work.is_empty() {
            "nothing"
        } else {
            "only a part"
        };
        // Of a path only the program's name: pages hold no machine's paths.
        let why: Vec<&str> = why
            .split(' ')
            .map(|word| word.rsplit('/').next().unwrap_or(word))
            .collect();
        lines.push(String::new());
        lines.push(format!(
            "{} in {} measured {some} in one round: {}.",
            cell.program,
            cell.dtype,
            why.join(" ")
        ));
    }
    lines
}

/// The middle one, or the mean of the two in the middle; there is at least one.
fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    let (below, above) = ((all.len() - 1) / 2, all.len() / 2);
    (all[below] + all[above]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::super::results::Work;
    use super::*;

    fn cell(program: &str, dtype: &str, seconds: f64) -> Cell {
        Cell {
            program: program.to_owned(),
            version: "1".to_owned(),
            dtype: dtype.to_owned(),
            commit: "abc".to_owned(),
            work: vec![Work {
                name: "step of 4".to_owned(),
                seconds: [seconds; 2],
                jobs: None,
                share: (program == ours()).then_some(0.5),
            }],
            ..Cell::default()
        }
    }

    #[test]
    fn others_are_compared_with_ours() {
        let mut stopped = cell("slow", "bf16", 0.2);
        stopped.work.clear();
        stopped.failed = Some("stopped after 1 s".to_owned());
        let cells = [
            cell("medfleet", "q8_0", 0.1),
            cell("medfleet", "q8_0", 0.1),
            cell("other", "q8_0", 0.25),
            cell("other", "f16", 0.05),
            stopped,
        ];
        assert!(is_peer_with_figures(&cells[2]) && !is_peer_with_figures(&cells[0]));
        let text = markdown(&cells.iter().collect::<Vec<_>>());
        for line in [
            "| step of 4 | medfleet | q8_0 | 0.100 / 0.100 |  | 0.100 / 0.100 |  | 50 % |  |",
            "| step of 4 | other | q8_0 | 0.250 | 2.50 | 0.250 | 2.50 |  |  |",
            "| step of 4 | other | f16 | 0.050 | 0.50 | 0.050 | 0.50 |  |  |",
            "- medfleet: 1, commit abc",
            "- other: 1",
            "**What is not won**: step of 4, other f16 (0.50).",
            "slow in bf16 measured nothing in one round: stopped after 1 s.",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }

    #[test]
    fn reports_come_last_with_how_many_an_hour() {
        let of = |program: &str, seconds: f64| {
            let mut cell = cell(program, "bf16", seconds);
            cell.work[0].name = "4 reports queued, 40 tokens".to_owned();
            cell.work[0].jobs = Some(4);
            cell.work[0].share = None;
            cell
        };
        let cells = [
            of("medfleet", 60.0),
            of("other", 120.0),
            cell("other", "bf16", 1.0),
        ];
        let text = markdown(&cells.iter().collect::<Vec<_>>());
        let rows = ["| step", "| 4 reports"].map(|row| text.find(row).unwrap());
        assert!(rows[0] < rows[1], "{text}");
        for line in [
            "| 4 reports queued, 40 tokens | medfleet | bf16 | 60.000 |  | 60.000 |  |  | 240.0 |",
            "| 4 reports queued, 40 tokens | other | bf16 | 120.000 | 2.00 | 120.000 | 2.00 |  | 120.0 |",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }
}
