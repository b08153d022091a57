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

    /// How many times as long as another this took.
    fn over(&self, other: &Self) -> [f64; 2] {
        let (all, others) = (self.medians(), other.medians());
        [all[0] / others[0], all[1] / others[1]]
    }
}

/// Whether it is another program's and has figures.
pub(super) fn is_peer_with_figures(cell: &Cell) -> bool {
    !is_ours(&cell.program) && !cell.work.is_empty()
}

/// Whether it is this model, at whatever level.
fn is_ours(program: &str) -> bool {
    program.split(',').next() == Some(Program::Medfleet.name())
}

/// The table, what was run, what is not won, and what is missing. `ours` is what this model is called where others are compared
/// with it: at other levels it has rows of its own, and ratios below.
pub(super) fn markdown(cells: &[&Cell], ours: &str) -> String {
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
    for work in works.iter().copied() {
        let of_work = &times[work];
        for (key, times) in of_work {
            let (program, dtype) = *key;
            let ratios = compared(of_work, key, ours).map(|ours| times.over(ours));
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
        [] => format!("Nothing took {ours} longer than its peers."),
        _ => format!("**What is not won**: {}.", lost.join("; ")),
    });
    lines.extend(levels(&times, &works, ours));
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
fn compared<'a>(
    of_work: &'a BTreeMap<Key<'_>, Times>,
    key: &Key<'_>,
    ours: &str,
) -> Option<&'a Times> {
    if is_ours(key.0) {
        return None;
    }
    let all = of_work.iter();
    let all = all.filter(|((program, _), _)| *program == ours);
    let mut same = all.clone().filter(|((_, form), _)| *form == key.1);
    let best = all.min_by(|(_, a), (_, b)| a.medians()[0].total_cmp(&b.medians()[0]));
    same.next().or(best).map(|(_, times)| times)
}

/// A line for each program as it was.
fn versions(cells: &[&Cell]) -> BTreeSet<String> {
    let with_figures = cells.iter().filter(|cell| !cell.work.is_empty());
    let lines = with_figures.map(|cell| {
        let mut line = format!("- {}: {}", cell.program, cell.version);
        if is_ours(&cell.program) {
            line += &format!(", commit {}", cell.commit);
        }
        line
    });
    lines.collect()
}

/// A line for each level that was measured beside the one of the table's ratios: how much longer that one took, and others in a
/// form that was measured at it.
fn levels(
    times: &BTreeMap<&str, BTreeMap<Key<'_>, Times>>,
    works: &[&str],
    ours: &str,
) -> Vec<String> {
    let programs = times.values().flat_map(|of_work| of_work.keys());
    let programs = programs.map(|(program, _)| *program);
    let levels: BTreeSet<&str> = programs
        .filter(|program| is_ours(program) && *program != ours)
        .collect();
    let mut lines = Vec::new();
    for level in levels {
        let mut ratios = Vec::new();
        for work in works.iter().copied() {
            let of_work = &times[work];
            for ((program, dtype), times) in of_work {
                let same = of_work.get(&(level, *dtype));
                let known = of_work
                    .keys()
                    .any(|(other, form)| is_ours(other) && form == dtype);
                let than = match is_ours(program) {
                    true => same.filter(|_| *program == ours),
                    false if known => same,
                    false => compared(of_work, &(*program, *dtype), level),
                };
                if let Some(than) = than {
                    let [clock, _] = times.over(than);
                    ratios.push(format!("{work}, {program} {dtype} {clock:.2}"));
                }
            }
        }
        lines.push(String::new());
        lines.push(format!(
            "Others' time divided by that of {level}: {}.",
            ratios.join("; ")
        ));
    }
    lines
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
                share: is_ours(program).then_some(0.5),
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
        let text = markdown(&cells.iter().collect::<Vec<_>>(), "medfleet");
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
    fn other_levels_have_rows_and_ratios_of_their_own() {
        let cells = [
            cell("medfleet", "bf16", 0.2),
            cell("medfleet", "q8_0", 0.1),
            cell("medfleet, avx512-bfp", "bf16", 0.125),
            cell("other", "bf16", 0.25),
            cell("other", "q8_0", 0.15),
            cell("other", "f16", 0.5),
        ];
        assert!(!is_peer_with_figures(&cells[2]));
        let text = markdown(&cells.iter().collect::<Vec<_>>(), "medfleet");
        for line in [
            "| step of 4 | medfleet, avx512-bfp | bf16 | 0.125 |  | 0.125 |  | 50 % |  |",
            "| step of 4 | other | bf16 | 0.250 | 1.25 | 0.250 | 1.25 |  |  |",
            "| step of 4 | other | f16 | 0.500 | 5.00 | 0.500 | 5.00 |  |  |",
            "- medfleet, avx512-bfp: 1, commit abc",
            "Nothing took medfleet longer than its peers.",
            "Others' time divided by that of medfleet, avx512-bfp: step of 4, medfleet bf16 1.60; step of 4, other bf16 2.00; step of 4, other f16 4.00.",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
        // Where another is compared with that level, ratios of the table are.
        let text = markdown(
            &cells[2..4].iter().collect::<Vec<_>>(),
            "medfleet, avx512-bfp",
        );
        let line = "| step of 4 | other | bf16 | 0.250 | 2.00 | 0.250 | 2.00 |  |  |";
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(!text.contains("Others' time"), "{text}");
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
        let text = markdown(&cells.iter().collect::<Vec<_>>(), "medfleet");
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
