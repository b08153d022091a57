//! What a release leaves behind when its fleet stops: the files of its queue, its blobs, and what it said of each job.
//! Kept in `tests/reference/upgrade`, a pair of files for each release, and never changed once it is there.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use medfleet_core::JobKey;
use medfleet_proto::v1::{self, Job, JobState, SubmitJobRequest};
use prost::Message;
use serde::{Deserialize, Serialize};
use toml::toml;

use crate::chaos::oracle::{self, Pixels, Question, SIDE};
use crate::client::{inline, report};
use crate::config::job_key;
use crate::fleet::{Model, Options, Pace, files_below};
use crate::picture;

/// A job, and what the release that left it behind said of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeftJob {
    pub tenant: String,
    /// What its picture and its request id follow from.
    pub number: u32,
    /// Where it stood, for readers of the file.
    pub state: String,
    /// The whole `medfleet.v1.Job`, encoded, in hexadecimal digits.
    pub job: String,
    /// The whole `medfleet.v1.Result`, the same way; empty where there was none.
    pub result: String,
}

/// An upload that was broken off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeftUpload {
    pub tenant: String,
    /// What its picture follows from.
    pub number: u32,
    /// `uploads/{id}`.
    pub name: String,
}

/// What a release left behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Left {
    /// Which: its version, and that of the messages.
    pub release: String,
    /// The nats-server that wrote the files.
    pub nats: String,
    /// Whose work was paused.
    pub paused: String,
    pub jobs: Vec<LeftJob>,
    pub upload: LeftUpload,
}

impl LeftJob {
    /// What was said of it.
    pub fn job(&self) -> Result<Job> {
        Job::decode(bytes_of(&self.job)?.as_slice()).context("a job")
    }

    pub fn result(&self) -> Result<Option<v1::Result>> {
        if self.result.is_empty() {
            return Ok(None);
        }
        let result = v1::Result::decode(bytes_of(&self.result)?.as_slice());
        result.map(Some).context("a result")
    }

    pub fn is_ended(&self) -> Result<bool> {
        Ok(self.job()?.state() >= JobState::Completed)
    }

    /// What its record is stored under.
    pub fn key(&self) -> Result<JobKey> {
        job_key(&self.tenant, &self.job()?.name)
    }
}

impl Left {
    /// Every release's, in order of their names.
    pub fn all() -> Result<Vec<Self>> {
        let mut files = files_below(&folder())?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == "json"));
        let read = |file: &PathBuf| {
            let text = fs::read_to_string(file)?;
            serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
        };
        files.iter().map(read).collect()
    }

    /// Lays its files into a folder, as [`crate::fleet::Fleet::put_back`] takes them.
    pub fn unpack(&self, into: &Path) -> Result<()> {
        let packed = packed(&self.release);
        let packed = fs::read(&packed).with_context(|| format!("read {}", packed.display()))?;
        let mut text = String::new();
        GzDecoder::new(packed.as_slice()).read_to_string(&mut text)?;
        for line in text.lines() {
            let (path, bytes) = line.split_once('\t').context("a line of one word")?;
            let file = into.join(path);
            fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            fs::write(&file, bytes_of(bytes)?)?;
        }
        Ok(())
    }

    /// Keeps it for all releases to come, with the files in a folder.
    /// This release's may not be kept already: what was left behind does not change afterwards.
    pub fn keep(&self, files: &Path) -> Result<PathBuf> {
        let said = folder().join(format!("{}.json", self.release));
        if said.exists() {
            bail!(
                "{} is there already; remove it and its files only while this release is not out yet",
                said.display()
            );
        }
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        for file in files_below(files)? {
            let path = file.strip_prefix(files)?.to_str().context("a path")?;
            writeln!(packer, "{path}\t{}", digits_of(&fs::read(&file)?))?;
        }
        fs::create_dir_all(folder())?;
        fs::write(packed(&self.release), packer.finish()?)?;
        fs::write(&said, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(said)
    }
}

pub fn release() -> String {
    format!("{}-work.v1", env!("CARGO_PKG_VERSION"))
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("reference/upgrade")
}

fn packed(release: &str) -> PathBuf {
    folder().join(format!("{release}.files.gz"))
}

/// How the fleets are set up that write and read it: nothing grows too old within fifty years.
pub fn options(pace: Pace) -> Options {
    Options {
        model: Model::Simulated(pace),
        queue: toml! {
            event_retention = "20000d"
            record_retention = "20000d"
            audit_retention = "20000d"
            dead_retention = "20000d"
            upload_ttl = "20000d"
        },
        // Parts so small that a test picture has several.
        ingest: toml! {
            [limits]
            study_bytes_max = "4 MiB"
            upload_part_bytes = "1 KiB"
            upload_time_to_live = "20000d"
            time_to_live_default = "20000d"
            time_to_live_max = "20000d"
            [retention]
            keep = "20000d"
        },
        ..Options::default()
    }
}

/// The picture of a number, already of the model's size: the frame is its pixels.
pub fn pixels(number: u32) -> Pixels {
    let mut bytes = vec![0; (SIDE * SIDE) as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    Pixels {
        channels: 1,
        bytes,
        is_film: false,
    }
}

/// The file of that picture.
pub fn file(number: u32) -> Result<Vec<u8>> {
    picture::grey_png(SIDE, pixels(number).bytes)
}

pub fn request(number: u32) -> Result<SubmitJobRequest> {
    Ok(SubmitJobRequest {
        request_id: format!("upgrade-{number}"),
        ..report(vec![inline(file(number)?)])
    })
}

/// The one right answer about a picture.
pub fn answer(number: u32) -> String {
    oracle::text(&Question::Report(String::new()), &[pixels(number)], 0)
}

pub(super) fn digits_of(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(digits, "{byte:02x}").expect("writing to a String cannot fail");
    }
    digits
}

fn bytes_of(digits: &str) -> Result<Vec<u8>> {
    ensure!(
        digits.is_ascii() && digits.len().is_multiple_of(2),
        "not pairs of digits"
    );
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16);
    let bytes: Result<Vec<u8>, _> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.context("not hexadecimal digits")
}
