//! Running other programs: inherit their output, or capture it, and turn a failure into an error that names the command.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::places;

/// Runs a command in the root of the repository with its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it wrote to stdout; its stderr goes where ours goes.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{line}: output is not UTF-8"))
}

/// Whether a command starts and succeeds, with its output dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `cargo <args>` in the root of the repository.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    run(in_root("cargo").args(args))
}

/// Builds libraries and binaries of the whole workspace.
///
/// Always all of it: cargo chooses features for what is selected, so another selection would compile some dependencies
/// a second time and link the binaries anew.
pub(crate) fn build_workspace() -> Result<()> {
    cargo(&["build", "--locked", "--workspace"])
}

/// What cargo tells a program about its own package, as far as the build script of ring looks at it.
const OF_OUR_PACKAGE: [&str; 7] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// A command that starts in the root of the repository, with the environment of a shell. With the variables that cargo sets for
/// this program, a `cargo build` below `cargo xtask` would compile ring and everything that depends on it again, and so would the
/// next build from a shell.
pub(crate) fn in_root(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(places::root());
    for name in OF_OUR_PACKAGE {
        command.env_remove(name);
    }
    command
}

/// `program <args>` with as many open files allowed as the machine permits: thousands of watchers need them.
pub(crate) fn with_open_files(program: &str, args: &[&str]) -> Command {
    let mut command = in_root("sh");
    command
        .args([
            "-c",
            "ulimit -n \"$(ulimit -Hn)\" || true; exec \"$@\"",
            "sh",
            program,
        ])
        .args(args);
    command
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
