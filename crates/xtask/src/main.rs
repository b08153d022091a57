//! Every automation of the repository, as `cargo xtask <command>`.
//!
//! What each command does lives in the module of its name; this file only picks one.
//! Reading order: `ci` (the gate as a list of steps), `fetch`, `tidy`, `proto`, `chart`, `containers`,
//! `observe`, `sbom`, `clients`, `demo`.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool: its output is its result"
)]

mod chaos;
mod chart;
mod ci;
mod clients;
mod containers;
mod cuda;
mod demo;
mod derived;
mod eval;
mod fetch;
mod fleet;
mod fuzz;
mod interpreters;
mod observe;
mod options;
mod peers;
mod places;
mod process;
mod proto;
mod rebuild;
mod sbom;
mod tidy;
mod violations;

use std::process::ExitCode;

use crate::derived::Mode;

const USAGE: &str = "\
usage: cargo xtask <command>

  ci                     everything that CI runs (= make test)
  fetch [NAME…]          the pinned tools and test data, into the cache; by name only what is named: nats-server, or
                         demo for all that `make demo` needs; another word lists the names
  tidy                   the repository's own rules: arrows, owners, sizes, licences, the architecture page
  proto [--bless]        lint the contract, refuse breaking changes, check the API reference; --bless accepts additions
        [--bless-breaking]   … and accepts a breaking change (only before a release)
  bench-peers [--layers 2] [--rounds 2] [--threads N] [--dtypes q8_0,q4_k_m,bf16,f32]
        [--repeat 3] [--steps 16] [--minutes 20] [--python PATH] [--dir DIR]
        [--what models,reports] [--jobs 32] [--tokens 150] [--slots 16] [--device cpu,cpu:LEVEL]
        [--image-size 896|448]
                         this model, llama.cpp and PyTorch in turns on this machine; installs both, never in the gate
  chaos [--seeds 30] [--jobs 2000] [--first-seed 1] [--nodes 1|3] [--seconds S] [--power yes] [--virtual-seeds 500]
                         many seeds in virtual time, then storms of faults over real processes (with --power of power cuts alone),
                         seed after seed; a stopped run continues (target/xtask/chaos)
  chart [--bless]        lint and render the Helm chart, and check what comes out; needs the built binaries;
                         --bless writes its schema of values from the services' settings
  clients                generate clients in other languages from the .proto files and run them against a fleet
  containers             build the images, and run the pods of the small preset as containers of this machine; needs the built
                         binaries, and root; skipped where the machine refuses, an error there with MEDFLEET_CONTAINERS=must
  cuda [--arch 90]       the binaries with CUDA, built without a GPU, in target/cuda
  demo                   build, start a fleet, submit a phantom and a real chest film, print the drafts, stop
  eval [--count 500] [--seed 770077]   what the demo model can do, asked of a fleet about phantoms that it never saw
  fuzz [--minutes 60] [--seed 1]   broken files for everything that reads what a stranger sent
  observe [--bless]      the reference of metrics, the alerts and the dashboards against what the services export
          [--ask URL]    … every query put to a running Prometheus, and its series held against the reference
  sbom [FILE]            what the binaries are made of, from Cargo.lock, as CycloneDX
  rebuild                how long the build takes after a one-line change in a service
  up                     a local fleet that keeps running
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["ci"] => ci::run(),
        ["fetch"] => fetch::all(),
        ["fetch", names @ ..] => fetch::named(names),
        ["tidy"] => tidy::run(),
        ["proto"] => proto::run(proto::Mode::Check),
        ["proto", "--bless"] => proto::run(proto::Mode::Bless),
        ["proto", "--bless-breaking"] => proto::run(proto::Mode::BlessBreaking),
        ["bench-peers", options @ ..] => peers::run(options),
        ["chaos", arguments @ ..] => chaos::run(arguments),
        ["chart"] => chart::run(Mode::Check),
        ["chart", "--bless"] => chart::run(Mode::Bless),
        ["clients"] => clients::run(),
        ["containers"] => containers::run(),
        // Started by that, in namespaces of its own.
        ["containers", "--within", part] => containers::within(part),
        ["cuda"] => cuda::run(None),
        ["cuda", "--arch", capability] => cuda::run(Some(capability)),
        ["demo"] => demo::run(),
        ["eval", options @ ..] => eval::run(options),
        ["fuzz", options @ ..] => fuzz::run(options),
        ["observe"] => observe::run(Mode::Check),
        ["observe", "--bless"] => observe::run(Mode::Bless),
        ["observe", "--ask", server] => observe::ask(server),
        ["sbom"] => sbom::run(None),
        ["sbom", file] => sbom::run(Some(file)),
        ["rebuild"] => rebuild::run(),
        ["up"] => demo::up(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
