//! A real process from start to exit code. This binary is both sides: with the argument `serve` it is the program under
//! test, otherwise it starts itself as that program, sends it signals and checks how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, FromArgMatches};
use medfleet_runtime::config::ConfigError;
use medfleet_runtime::{Arguments, Process, ProcessConfig, Program, Settings, process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const PROGRAM: Program = Program {
    name: "medfleet-sample",
    about: "A sample",
    version: "0",
    threads_max: 1,
};
/// Much longer than any step takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    process: ProcessConfig,
    /// Whether the body returns when the shutdown begins.
    stubborn: bool,
    /// A file with certificates.
    ca: Option<PathBuf>,
}

impl Settings for Sample {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.process.drain.as_millis() == 0 {
            return Err(ConfigError::relation("process.drain: longer than nothing"));
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let own = arguments.next();
    if arguments.next().as_deref() == Some("serve") {
        let command = Arguments::augment_args(clap::Command::new("serve"));
        let matches = command.get_matches_from(own.into_iter().chain(arguments));
        let arguments = Arguments::from_arg_matches(&matches).expect("clap checked them");
        return process::run(PROGRAM, &arguments, body).into();
    }
    configuration_comes_first();
    a_signal_ends_it_in_order();
    the_end_of_a_certificate_is_told();
    a_stubborn_body_misses_the_deadline();
    a_second_signal_ends_it_at_once();
    ExitCode::SUCCESS
}

async fn body(process: Process<Sample>) -> Result<(), medfleet_runtime::Stop> {
    process.shutdown.begun().await;
    if process.config.stubborn {
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn start(arguments: &[&str]) -> Child {
    let own = std::env::current_exe().expect("this binary has a path");
    let mut command = Command::new(own);
    command.arg("serve").args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("this binary starts")
}

/// Starts a service and waits until its log names the admin port.
fn serving(arguments: &[&str]) -> (Child, String, BufReader<impl Read + use<>>) {
    let mut child = start(arguments);
    let mut log = BufReader::new(child.stderr.take().expect("is piped"));
    let mut line = String::new();
    log.read_line(&mut line).expect("the log is text");
    let line: serde_json::Value = serde_json::from_str(&line).expect("the log is JSON");
    assert_eq!(line["fields"]["message"], "started", "{line}");
    let admin = line["fields"]["admin"]
        .as_str()
        .expect("names the admin port")
        .to_owned();
    (child, admin, log)
}

fn send(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id()).expect("process ids are small");
    kill(Pid::from_raw(id), signal).expect("the child is ours");
}

/// The exit code; the process is ended when it takes too long.
fn code(child: &mut Child) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status.code().expect("it ends by itself");
        }
        if Instant::now() > deadline {
            child.kill().expect("the child is ours");
            panic!("the process did not end");
        }
        std::thread::yield_now();
    }
}

fn fetch(admin: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).expect("the admin port answers");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    text
}

fn ended(arguments: &[&str]) -> (i32, String, String) {
    let output = start(arguments)
        .wait_with_output()
        .expect("the child is ours");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    (
        output.status.code().expect("it ends by itself"),
        text(output.stdout),
        text(output.stderr),
    )
}

fn configuration_comes_first() {
    assert_eq!(
        ended(&["--check-config"]),
        (0, String::new(), String::new())
    );
    let (code, printed, _) = ended(&["--print-config", "--set", "process.drain=90s"]);
    assert_eq!(code, 0);
    assert!(printed.contains("drain = \"90s\""), "{printed}");
    let (code, printed, _) = ended(&["--print-schema"]);
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&printed).expect("is JSON");
    let process = &schema["properties"]["process"];
    assert_eq!(process["properties"]["drain"]["default"], "25s");
    let (code, _, error) = ended(&["--set", "process.drian=90s"]);
    assert_eq!(code, 2);
    assert!(error.contains("unknown key process.drian"), "{error}");
    let (code, _, error) = ended(&["--check-config", "--set", "process.drain=0s"]);
    assert_eq!(
        (code, error.as_str()),
        (2, "medfleet-sample: process.drain: longer than nothing\n")
    );
    let (code, _, error) = ended(&["--set", "process.telemetry.otlp_endpoint=nowhere"]);
    assert_eq!(code, 2);
    assert!(error.contains("otlp_endpoint"), "{error}");
}

fn the_end_of_a_certificate_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ca.crt");
    let made = rcgen::generate_simple_self_signed(vec!["fleet".to_owned()]);
    let pem = made.expect("a certificate").cert.pem();
    std::fs::write(&file, pem).expect("a file");
    let (mut child, admin, _log) = serving(&["--set", &format!("ca={}", file.display())]);
    let told = "medfleet_certificate_end_time_seconds{setting=\"ca\"} ";
    let metrics = fetch(&admin, "/metrics");
    assert!(metrics.contains(told), "{metrics}");
    send(&child, Signal::SIGTERM);
    assert_eq!(code(&mut child), 0);
}

fn a_signal_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, admin, _log) = serving(&[]);
        assert!(fetch(&admin, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(fetch(&admin, "/metrics").contains("medfleet_process_resident_memory_bytes"));
        send(&child, signal);
        assert_eq!(code(&mut child), 0);
    }
}

fn a_stubborn_body_misses_the_deadline() {
    let (mut child, _, _log) = serving(&["--set", "stubborn=true", "--set", "process.drain=50ms"]);
    send(&child, Signal::SIGTERM);
    assert_eq!(code(&mut child), 4);
}

fn a_second_signal_ends_it_at_once() {
    let (mut child, admin, mut log) =
        serving(&["--set", "stubborn=true", "--set", "process.drain=1d"]);
    send(&child, Signal::SIGTERM);
    let mut line = String::new();
    log.read_line(&mut line).expect("the log is text");
    assert!(line.contains("stopping"), "{line}");
    let page = fetch(&admin, "/readyz");
    assert!(
        page.starts_with("HTTP/1.1 503") && page.ends_with("draining"),
        "{page}"
    );
    assert!(fetch(&admin, "/healthz").starts_with("HTTP/1.1 200"));
    send(&child, Signal::SIGTERM);
    assert_eq!(code(&mut child), 4);
}
