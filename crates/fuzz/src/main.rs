//! The `medfleet-fuzz` program: hunts for inputs that break what reads them. `cargo xtask fuzz` runs it.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool: its output is its result"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use medfleet_fuzz::hunt::{Hunt, out_default};
use medfleet_fuzz::targets::{TARGETS, Target, named};
use medfleet_fuzz::{child, targets};

#[derive(Parser)]
#[command(about = "Breaks files on purpose and looks for what does not survive it")]
struct Cli {
    /// Address space of a child, in MiB
    #[arg(long, default_value_t = 1024, global = true)]
    memory_mib: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hunts; exit code 1 if anything was found
    Run {
        /// Only these targets
        #[arg(long = "target")]
        targets: Vec<String>,
        /// Seconds in all
        #[arg(long, default_value_t = 900)]
        seconds: u64,
        /// Inputs of each target at most
        #[arg(long, default_value_t = u64::MAX)]
        runs: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// An input that takes longer hangs
        #[arg(long, default_value_t = 10)]
        hang_seconds: u64,
        /// Where findings go [default: fuzz in the build folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs one file
    One { target: String, file: PathBuf },
    #[command(hide = true)]
    Child {
        target: String,
        seed: u64,
        from: u64,
        to: u64,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let memory_bytes = cli.memory_mib << 20;
    match cli.command {
        Command::Run {
            targets,
            seconds,
            runs,
            seed,
            hang_seconds,
            out,
        } => {
            let chosen = chosen(&targets)?;
            let program = std::env::current_exe().context("find this program")?;
            let hunt = Hunt {
                out: out.unwrap_or_else(|| out_default(&program)),
                program,
                seed,
                runs,
                time: Duration::from_secs(seconds) / chosen.len() as u32,
                hang: Duration::from_secs(hang_seconds),
                memory_bytes,
            };
            run(&hunt, &chosen)
        }
        Command::One { target, file } => {
            let input = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            child::harden(memory_bytes)?;
            let whole = (one(&target)?.run)(&input);
            println!("{}", if whole { "read" } else { "refused" });
            Ok(ExitCode::SUCCESS)
        }
        Command::Child {
            target,
            seed,
            from,
            to,
        } => {
            child::harden(memory_bytes)?;
            child::run(one(&target)?, seed, from..to)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(hunt: &Hunt, chosen: &[&Target]) -> Result<ExitCode> {
    let mut faults = 0;
    for target in chosen {
        let report = hunt.target(target)?;
        faults += report.faults.len();
        println!(
            "{}: {} inputs, {} faults",
            target.name,
            report.runs,
            report.faults.len()
        );
        for (fault, file) in &report.faults {
            println!("  {}: {fault}", file.display());
        }
    }
    Ok(if faults == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn one(name: &str) -> Result<&'static Target> {
    let Some(target) = named(name) else {
        let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
        bail!(
            "no target is called {name:?}; there are {}",
            names.join(", ")
        );
    };
    Ok(target)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    names.iter().map(|name| one(name)).collect()
}
