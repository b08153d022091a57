//! What is done by hand at a release: keep what it leaves behind, and replace it under load by the next one and back.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use medfleet_tests::upgrade::roll::{Load, there_and_back};
use medfleet_tests::upgrade::write::write;

pub(crate) const USAGE: &str = "usage: medfleet-trial upgrade write | medfleet-trial upgrade roll --other FOLDER [--seed S] [--jobs N] [--seconds N]";

/// Writes down what this release leaves behind, or has its processes replaced under load.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    let (command, options) = arguments.split_first().context(USAGE)?;
    match command.as_str() {
        "write" if options.is_empty() => {
            let said = runtime.block_on(write())?;
            println!("{}", said.display());
        }
        "roll" => {
            let (other, load) = read(options)?;
            let (found, retried) = runtime.block_on(there_and_back(&other, load))?;
            println!(
                "{} jobs completed over an upgrade and the way back; further attempts: {}, calls made again: {retried}",
                found.completed, found.further_attempts
            );
        }
        _ => bail!(USAGE),
    }
    Ok(())
}

/// The folder with the programs of the other release, and the load.
fn read(options: &[String]) -> Result<(PathBuf, Load)> {
    let mut other = None;
    let mut load = Load {
        seed: 1,
        jobs: 300,
        lasts: Duration::from_secs(60),
    };
    for pair in options.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("{name} {value}"))
        };
        match name.as_str() {
            "--other" => other = Some(PathBuf::from(value)),
            "--seed" => load.seed = number()?,
            "--jobs" => load.jobs = usize::try_from(number()?)?,
            "--seconds" => load.lasts = Duration::from_secs(number()?),
            _ => bail!(USAGE),
        }
    }
    Ok((other.context(USAGE)?, load))
}
