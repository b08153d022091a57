//! The long hunt: builds the fuzzer as everything else is built, and lets it run.

use anyhow::{Context, Result, bail};

use crate::{places, process};

const MINUTES: u64 = 60;
const SEED: u64 = 1;

/// `--minutes N`, `--seed S`, in any order.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    let (minutes, seed) = read(options)?;
    process::cargo(&["build", "--locked", "--workspace", "--bin", "medfleet-fuzz"])?;
    let seconds = (minutes * 60).to_string();
    let seed = seed.to_string();
    let fuzzer = places::built("medfleet-fuzz");
    process::run(process::in_root(&fuzzer.to_string_lossy()).args([
        "run",
        "--seconds",
        &seconds,
        "--seed",
        &seed,
    ]))
}

fn read(options: &[&str]) -> Result<(u64, u64)> {
    let (mut minutes, mut seed) = (MINUTES, SEED);
    for pair in options.chunks(2) {
        let &[name, value] = pair else {
            bail!("{} needs a number", pair.join(" "));
        };
        let number = value
            .parse()
            .with_context(|| format!("{name} takes a number, not {value:?}"))?;
        match name {
            "--minutes" => minutes = number,
            "--seed" => seed = number,
            _ => bail!("fuzz knows --minutes and --seed, not {name}"),
        }
    }
    Ok((minutes, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_in_any_order_and_nothing_else_does() {
        assert_eq!(read(&[]).unwrap(), (MINUTES, SEED));
        assert_eq!(read(&["--seed", "3", "--minutes", "2"]).unwrap(), (2, 3));
        for wrong in [&["--seed"][..], &["--seed", "x"], &["--hours", "1"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
