//! What is tried by hand and at length on real processes: `medfleet-trial chaos`, `day` or `upgrade`.
//! One program for all of them: each links every service and the model, which is most of what it takes to build one.
//! Reading order: [`chaos`] (faults, seed after seed), [`day`] (a fleet that scales itself), [`upgrade`] (one release after
//! another).
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool: its output is its result"
)]

mod chaos;
mod day;
mod upgrade;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let trial = arguments.first().map_or("trial", String::as_str);
            eprintln!("{trial}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let trial = arguments
        .split_first()
        .map(|(trial, options)| (trial.as_str(), options));
    match trial {
        Some(("chaos", options)) => chaos::run(options),
        Some(("day", options)) => day::run(options),
        Some(("upgrade", options)) => upgrade::run(options),
        _ => bail!("{}\n{}\n{}", chaos::USAGE, day::USAGE, upgrade::USAGE),
    }
}
