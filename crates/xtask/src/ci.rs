//! The gate: the steps in their order, stopped at the first failure, with minutes per step at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::derived::Mode;
use crate::{chart, clients, containers, fetch, observe, process, proto, sbom, tidy};

struct Step {
    name: &'static str,
    action: fn() -> Result<()>,
}

/// Cheap checks first; one build that tests, clients and demo share; documentation late (it reuses clippy's metadata).
const STEPS: &[Step] = &[
    Step {
        name: "fetch",
        action: fetch::all,
    },
    Step {
        name: "fmt",
        action: || process::cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        name: "tidy",
        action: tidy::run,
    },
    Step {
        name: "proto",
        action: || proto::run(proto::Mode::Check),
    },
    Step {
        name: "clippy",
        action: || {
            process::cargo(&[
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
        },
    },
    Step {
        name: "build",
        action: build,
    },
    Step {
        name: "chart",
        action: || chart::run(Mode::Check),
    },
    Step {
        name: "containers",
        action: containers::run,
    },
    Step {
        name: "observe",
        action: || observe::run(Mode::Check),
    },
    Step {
        name: "sbom",
        action: || sbom::run(None),
    },
    Step {
        name: "test",
        action: test,
    },
    Step {
        name: "clients",
        action: clients::run,
    },
    Step {
        name: "docs",
        action: || process::cargo(&["doc", "--locked", "--workspace", "--no-deps"]),
    },
];

/// Without `--tests` cargo links every example once more, which clippy has compiled, and looks in each library for examples in
/// its documentation, of which there are none (checked by `tidy`).
const TEST: [&str; 4] = ["test", "--locked", "--workspace", "--tests"];

/// Runs every step; the error names the step that failed.
pub(crate) fn run() -> Result<()> {
    let mut spent = Vec::with_capacity(STEPS.len());
    let mut outcome = Ok(());
    for step in STEPS {
        println!("\n=== {} ===", step.name);
        let start = Instant::now();
        let result = (step.action)();
        spent.push((step.name, start.elapsed()));
        if let Err(error) = result {
            outcome = Err(error).with_context(|| format!("step {} failed", step.name));
            break;
        }
    }
    println!("\n{}", table(&spent));
    outcome
}

/// Binaries and test programs in one profile: the test step then only runs them, and the demo finds them built.
fn build() -> Result<()> {
    process::build_workspace()?;
    process::cargo(&[&TEST[..], &["--no-run"]].concat())
}

/// Tests wait for processes half of the time: with two tests at a time on two cores, one core was idle, and the whole took half
/// as long again.
fn test() -> Result<()> {
    let arguments = [&TEST[..], &["--no-fail-fast"]].concat();
    let cores = std::thread::available_parallelism().context("count the cores")?;
    let mut tests = process::with_open_files("cargo", &arguments);
    tests.env("RUST_TEST_THREADS", (2 * cores.get()).to_string());
    // All that tests talk to is on this machine: a proxy that the environment names knows nothing of it.
    tests.envs([("NO_PROXY", "*"), ("no_proxy", "*")]);
    process::run(&mut tests)
}

fn table(spent: &[(&str, Duration)]) -> String {
    let mut text = String::from("minutes  step\n");
    let mut total = Duration::ZERO;
    for (name, time) in spent {
        total += *time;
        text.push_str(&format!("{:7.2}  {name}\n", time.as_secs_f64() / 60.0));
    }
    text.push_str(&format!("{:7.2}  all", total.as_secs_f64() / 60.0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_per_step_and_a_sum() {
        let text = table(&[
            ("fmt", Duration::from_secs(30)),
            ("test", Duration::from_secs(60)),
        ]);
        assert_eq!(
            text,
            "minutes  step\n   0.50  fmt\n   1.00  test\n   1.50  all"
        );
    }
}
