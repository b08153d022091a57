//! The process that runs inputs. It says on stdout which input comes next, so that the one that ended it is known.

use std::io::{self, Write};
use std::panic;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, setrlimit};

use crate::mutate::Inputs;
use crate::targets::Target;

/// A panic in code below these folders is ours, caught or not; libraries' panics are theirs as long as they are caught.
const OURS: &[&str] = &["crates/"];

/// Limits this process, and makes every panic of our own code end it.
pub fn harden(memory_bytes: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_AS, memory_bytes, memory_bytes).context("limit the memory")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("forbid core files")?;
    panic::set_hook(Box::new(|info| {
        let file = info.location().map_or("", panic::Location::file);
        if OURS.iter().any(|folder| file.starts_with(folder)) {
            eprintln!("{info}");
            std::process::abort();
        }
    }));
    Ok(())
}

/// Runs the inputs of these numbers.
pub fn run(target: &Target, seed: u64, numbers: std::ops::Range<u64>) -> Result<()> {
    let inputs = Inputs::new(target, seed);
    let mut out = io::stdout().lock();
    for number in numbers {
        out.write_all(&number.to_le_bytes())
            .context("say what is next")?;
        out.flush().context("say what is next")?;
        let _read = (target.run)(&inputs.get(number));
    }
    Ok(())
}
