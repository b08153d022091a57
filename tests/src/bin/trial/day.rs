//! A day on an autoscaled fleet, as long as is asked for; and the rules that it goes by, for the check of the chart.

use anyhow::{Context, Result, bail};
use medfleet_plan::{ADDED_MAX, Rules, TARGET_SECONDS};
use medfleet_tests::autoscale::BACKLOG;
use medfleet_tests::autoscale::day::{Shape, run as live};

pub(crate) const USAGE: &str = "usage: medfleet-trial day [--seconds 4320] [--jobs-per-second 6] [--seed 1] | medfleet-trial day --rules";

/// Prints what became of a day, or the rules.
pub(crate) fn run(options: &[String]) -> Result<()> {
    if options == ["--rules"] {
        println!("{}", rules());
        return Ok(());
    }
    let shape = read(options)?;
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    let report = runtime.block_on(live(shape))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
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
