//! The `medfleet` program: reads the command line, installs the one cryptography provider, runs the command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = medfleet::Cli::parse();
    // An error here means that a provider is there already, which is what is wanted.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    medfleet::run(cli)
}
