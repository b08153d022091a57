//! `medfleet bench frames`: from a file in memory to model-ready frames, as the preprocess role goes that way, the processes
//! that decode JPEG 2000 included; without the queue and the store.
//!
//! Each case has a process of its own, so that its memory is its own. `tests/reference/make_bench_frames.py` packs the film
//! and the series that `--write` makes in every codec; `tests/reference/time_frames.py` measures pydicom beside us.

mod case;
pub(in crate::command) mod film;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::exit::{CommandResult, Exit};
use crate::show::{self, bytes};

/// Flags of `bench frames`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Files, and folders that each are one study [default: a chest film of 3.6 megapixels and a CT of 85 slices, made up]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only write the film and the CT that are made up to this folder, to have them packed by others
    #[arg(long, value_name = "DIR", conflicts_with = "paths")]
    write: Option<PathBuf>,
    /// How often each case is done; the median is told
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Threads that make the frames of one file, where the wall time is taken
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Measure the one path in this process
    #[arg(long, hide = true)]
    case: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    if let Some(folder) = &args.write {
        film::write(folder)?;
        return Ok(Exit::Done);
    }
    if let (true, [path]) = (args.case, args.paths.as_slice()) {
        show::print_json(&case::measure(path, args.runs, args.threads)?)?;
        return Ok(Exit::Done);
    }
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let paths = if args.paths.is_empty() {
        film::write(folder.path())?
    } else {
        args.paths.clone()
    };
    let mut cases = Vec::with_capacity(paths.len());
    for path in &paths {
        let figures = in_a_process(path, &args)
            .with_context(|| format!("cannot measure {}", path.display()))?;
        if !args.json {
            if cases.is_empty() {
                show::print(&head())?;
            }
            show::print(&row(path, &figures))?;
        }
        cases.push(figures);
    }
    if args.json {
        show::print_json(&json!({"bench": "frames", "cases": cases}))?;
    }
    Ok(Exit::Done)
}

fn in_a_process(path: &Path, args: &Args) -> Result<Value> {
    let output = Command::new("/proc/self/exe")
        .args(["bench", "frames", "--case", "--runs"])
        .arg(args.runs.to_string())
        .arg("--threads")
        .arg(args.threads.to_string())
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start this program again")?;
    if !output.status.success() {
        bail!("its process ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("its process did not answer in JSON")
}

/// The columns of the table: their titles, and the figures below them.
const COLUMNS: [(&str, &str); 6] = [
    ("frames", "frames"),
    ("wall", "wall"),
    ("processor", "processor_ms"),
    ("all cores", "per_second_all_cores"),
    ("memory", "memory_bytes_peak"),
    ("decoders", "decoders_bytes_peak"),
];

fn head() -> String {
    let cells = COLUMNS.map(|(title, _)| format!("{title:>12}"));
    format!("{:<28}{}", "", cells.concat())
}

fn row(path: &Path, figures: &Value) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy();
    if let Some(reason) = figures["refused"].as_str() {
        return format!("{name:<28}refused: {reason}");
    }
    let cells = COLUMNS.map(|(_, field)| {
        let figure = &figures[field];
        let number = figure.as_f64().unwrap_or_default();
        let cell = match field {
            "wall" => milliseconds(figure["median_ms"].as_f64().unwrap_or_default()),
            "processor_ms" => milliseconds(number),
            "per_second_all_cores" => format!("{number:.2} /s"),
            "frames" => format!("{number:.0}"),
            _ => bytes(figure.as_u64().unwrap_or_default()),
        };
        format!("{cell:>12}")
    });
    format!("{name:<28}{}", cells.concat())
}

fn milliseconds(millis: f64) -> String {
    if millis < 10_000.0 {
        format!("{millis:.1} ms")
    } else {
        format!("{:.1} s", millis / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stands_below_the_head() {
        let figures = json!({"frames": 1, "wall": {"median_ms": 31.25}, "processor_ms": 30.0,
            "per_second_all_cores": 60.5, "memory_bytes_peak": 3 << 20, "decoders_bytes_peak": 0});
        let row = row(Path::new("/somewhere/film-raw.dcm"), &figures);
        assert_eq!(row.chars().count(), head().chars().count());
        assert!(
            row.starts_with("film-raw.dcm") && row.contains("31.2 ms") && row.contains("3.0 MiB")
        );
    }
}
