//! A day on an autoscaled fleet, as long as is asked for; and the rules that it goes by, for the check of the chart.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool: its output is its result"
)]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use medfleet_plan::{ADDED_MAX, Rules, TARGET_SECONDS};
use medfleet_tests::autoscale::BACKLOG;
use medfleet_tests::autoscale::day::{Shape, run};

const USAGE: &str =
    "usage: medfleet-day [--seconds 4320] [--jobs-per-second 6] [--seed 1] | medfleet-day --rules";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match answer(&arguments) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("day: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: &[String]) -> Result<String> {
    if arguments == ["--rules"] {
        return Ok(rules().to_string());
    }
    let shape = read(arguments)?;
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    let report = runtime.block_on(run(shape))?;
    Ok(serde_json::to_string(&report)?)
}

fn read(arguments: &[String]) -> Result<Shape> {
    // In proportion to the rules.
    let mut shape = Shape {
        seconds: 4_320.0,
        ..Shape::default()
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        let positive = || -> Result<f64> {
            let number: f64 = value.parse().with_context(|| format!("{name} {value}"))?;
            let is_good = number.is_finite() && number > 0.0;
            is_good
                .then_some(number)
                .with_context(|| format!("{name} must be a positive number"))
        };
        match name.as_str() {
            "--seconds" => shape.seconds = positive()?,
            "--jobs-per-second" => shape.jobs_per_second = positive()?,
            "--seed" => shape.seed = value.parse().with_context(|| format!("{name} {value}"))?,
            _ => bail!(USAGE),
        }
    }
    Ok(shape)
}

/// The rules for a worker of one slot, as fast as in production.
fn rules() -> serde_json::Value {
    let rules = Rules::chart(1, 1);
    serde_json::json!({
        "metric": BACKLOG,
        "target_seconds": TARGET_SECONDS,
        "turn_seconds": rules.turn_seconds,
        "window_seconds": rules.window_seconds,
        "cooldown_seconds": rules.cooldown_seconds,
        "stabilisation_seconds": rules.stabilisation_seconds,
        "step_seconds": rules.step_seconds,
        "added_max": ADDED_MAX,
    })
}
