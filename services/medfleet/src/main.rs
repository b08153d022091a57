//! The `medfleet` program: reads the command line, installs the one cryptography provider, runs the command.

use std::process::ExitCode;

use clap::Parser;
use medfleet_preprocess::codecs;

fn main() -> ExitCode {
    // The preprocess role starts this program again to decode what is not memory-safe to decode.
    if codecs::is_child(std::env::args_os()) {
        return codecs::child_main(std::env::args_os());
    }
    let cli = medfleet::Cli::parse();
    // An error here means that a provider is there already, which is what is wanted.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    medfleet::run(cli)
}
