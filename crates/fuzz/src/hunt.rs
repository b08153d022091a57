//! Runs targets in child processes, notices how one ends, and makes the input that ended it small.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use medfleet_imaging::THREADS;

use crate::mutate::Inputs;
use crate::targets::Target;

/// Different faults of one target, after which the rest of its time is not worth it.
const FAULTS_MAX: usize = 10;
/// Inputs that a child runs before another takes over.
const BATCH: u64 = 50_000;
/// Numbers that may wait to be read.
const WAITING_MAX: usize = 1024;
/// A child may take this long to start, on a machine that has much else to do.
const START: Duration = Duration::from_secs(60);
/// Tries to make an input smaller.
const TRIES_MAX: u32 = 200;

/// How a hunt is run.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// This program.
    pub program: PathBuf,
    /// Where findings go.
    pub out: PathBuf,
    /// Which inputs.
    pub seed: u64,
    /// Inputs of each target.
    pub runs: u64,
    /// Time of each target.
    pub time: Duration,
    /// An input that takes longer hangs.
    pub hang: Duration,
    /// Address space of a child.
    pub memory_bytes: u64,
}

/// What was found about a target.
#[derive(Debug, Default)]
pub struct Report {
    /// Inputs that ran.
    pub runs: u64,
    /// Each fault, and the file with the smallest input that has it.
    pub faults: BTreeMap<String, PathBuf>,
}

/// How a child ended.
enum End {
    Done,
    /// The time of the target is over.
    Time,
    /// At an input, with what tells one fault from another.
    Fault(u64, String),
}

impl Hunt {
    /// Hunts in one target.
    pub fn target(&self, target: &Target) -> Result<Report> {
        let deadline = Instant::now() + self.time;
        let mut report = Report::default();
        let mut next = 0;
        while next < self.runs && report.faults.len() < FAULTS_MAX {
            let batch = next..self.runs.min(next + BATCH);
            match self.batch(target, batch.clone(), deadline, &mut report.runs)? {
                End::Done => next = batch.end,
                End::Time => break,
                End::Fault(number, fault) => {
                    next = number + 1;
                    if let Entry::Vacant(place) = report.faults.entry(fault) {
                        let fault = place.key();
                        let input = Inputs::new(target, self.seed).get(number);
                        let small = self.smaller(target, input, fault)?;
                        let file = self.keep(target, fault, &small)?;
                        eprintln!(
                            "{}: input {number}: {fault}: {}",
                            target.name,
                            file.display()
                        );
                        place.insert(file);
                    }
                }
            }
        }
        Ok(report)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // As where the service decodes: in several threads, whose heaps would reserve what is limited.
        command.env(THREADS, "2").env("MALLOC_ARENA_MAX", "1");
        command
            .arg("--memory-mib")
            .arg((self.memory_bytes >> 20).to_string());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn batch(
        &self,
        target: &Target,
        numbers: Range<u64>,
        deadline: Instant,
        runs: &mut u64,
    ) -> Result<End> {
        let mut command = self.command();
        command.args(["child", target.name]);
        command.args([self.seed, numbers.start, numbers.end].map(|number| number.to_string()));
        let mut child = command.spawn().context("start a child")?;
        let (said, heard) = mpsc::sync_channel(WAITING_MAX);
        let mut numbers_out = child.stdout.take().context("its output is piped")?;
        thread::spawn(move || {
            let mut number = [0; 8];
            while numbers_out.read_exact(&mut number).is_ok()
                && said.send(u64::from_le_bytes(number)).is_ok()
            {}
        });
        let (mut last, mut patience) = (numbers.start, self.hang + START);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match heard.recv_timeout(patience.min(left)) {
                Ok(number) => {
                    (last, patience) = (number, self.hang);
                    *runs += 1;
                    if left.is_zero() {
                        stop(&mut child);
                        return Ok(End::Time);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    stop(&mut child);
                    return Ok(if left < patience {
                        End::Time
                    } else {
                        End::Fault(last, "hang".to_owned())
                    });
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(fault(child)?.map_or(End::Done, |fault| End::Fault(last, fault)))
    }

    /// Whether one input has this fault.
    fn has(&self, target: &Target, input: &[u8], fault_wanted: &str) -> Result<bool> {
        let path = self.out.join("candidate");
        fs::write(&path, input).with_context(|| format!("write {}", path.display()))?;
        let mut command = self.command();
        command
            .args(["one", target.name])
            .arg(&path)
            .stdout(Stdio::null());
        let mut child = command.spawn().context("start a child")?;
        let deadline = Instant::now() + self.hang;
        loop {
            if child.try_wait().context("ask how the child is")?.is_some() {
                return Ok(fault(child)?.as_deref() == Some(fault_wanted));
            }
            if Instant::now() > deadline {
                stop(&mut child);
                return Ok(fault_wanted == "hang");
            }
            thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Leaves out what the fault does not need: halves first, then smaller parts.
    fn smaller(&self, target: &Target, mut input: Vec<u8>, fault: &str) -> Result<Vec<u8>> {
        fs::create_dir_all(&self.out).with_context(|| format!("make {}", self.out.display()))?;
        let (mut part, mut tries) = (input.len().div_ceil(2), 0);
        while part > 0 && tries < TRIES_MAX {
            let mut at = 0;
            while at < input.len() && tries < TRIES_MAX {
                let mut candidate = input.clone();
                candidate.drain(at..(at + part).min(input.len()));
                tries += 1;
                if self.has(target, &candidate, fault)? {
                    input = candidate;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        Ok(input)
    }

    fn keep(&self, target: &Target, fault: &str, input: &[u8]) -> Result<PathBuf> {
        let digest = blake3::hash(input).to_hex();
        let stem = format!("{}.{}", target.name, &digest[..12]);
        let file = self.out.join(format!("{stem}.bin"));
        fs::write(&file, input).with_context(|| format!("write {}", file.display()))?;
        let note = self.out.join(format!("{stem}.txt"));
        fs::write(&note, fault).with_context(|| format!("write {}", note.display()))?;
        Ok(file)
    }
}

fn stop(child: &mut Child) {
    // An error means that it has ended already.
    let _ended = child.kill();
    let _status = child.wait();
}

/// What ended a child: its first line about it, or its status. `None` if nothing is wrong.
fn fault(child: Child) -> Result<Option<String>> {
    let output = child.wait_with_output().context("wait for a child")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Thread ids and sizes differ from run to run, and from input to input.
    let known = [
        "panicked at",
        "overflowed its stack",
        "memory allocation of",
    ];
    let line = said
        .lines()
        .find(|line| known.iter().any(|word| line.contains(word)));
    let word = line.map(
        |line| match known.iter().find(|word| line.contains(*word)) {
            Some(&"panicked at") => line[line.find("panicked at").unwrap_or(0)..].to_owned(),
            Some(word) => (*word).to_owned(),
            None => line.to_owned(),
        },
    );
    Ok(Some(word.unwrap_or_else(|| output.status.to_string())))
}

/// Where findings go by default, beside the build's other outputs.
pub fn out_default(program: &Path) -> PathBuf {
    program
        .parent()
        .and_then(Path::parent)
        .map_or_else(|| PathBuf::from("fuzz"), |target| target.join("fuzz"))
}
