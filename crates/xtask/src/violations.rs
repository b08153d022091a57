//! What the checks of a command found wrong: all of it is shown before the command fails.

use anyhow::{Result, bail};

/// Shows each violation as one of `command`.
pub(crate) fn none(command: &str, violations: &[String]) -> Result<()> {
    for violation in violations {
        println!("{command}: {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations", violations.len());
    }
    Ok(())
}
