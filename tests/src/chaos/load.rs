//! Jobs of five tenants as a seed makes them, sent as hospitals send them: with a request id, again after every error
//! that says "try later", and now and then twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use medfleet_imaging::{Limits, Options, decode_file};
use medfleet_phantom::Phantom;
use medfleet_proto::v1::{
    AnswerTask, Class, DecodingParameters, Input, ReportTask, SubmitJobRequest, Task, task::Kind,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::chaos::oracle::{self, Pixels, Question};
use crate::chaos::plan::Random;
use crate::client::{Client, PATIENCE, inline, uploaded};
use crate::picture;

/// The tenants of a fleet under chaos.
pub const TENANTS: [&str; 5] = ["st-mary", "st-john", "st-luke", "north", "harbour"];
/// Longest wait for one answer; then the call is made again, with the same request id.
const CALL: Duration = Duration::from_secs(5);
/// Calls under way at a time.
const CALLS_MAX: usize = 64;
/// Width of the synthetic chest films, in pixels.
const FILM_COLUMNS: u32 = 96;
/// Pictures that several jobs of several tenants send.
const SHARED: u64 = 3;

/// A job to send, and what must come back.
#[derive(Debug, Clone)]
pub struct Asked {
    pub tenant: &'static str,
    /// When, from the start of the load.
    pub at: Duration,
    pub files: Vec<Vec<u8>>,
    /// What the model sees of them, in order.
    pub images: Vec<Pixels>,
    pub question: Question,
    /// The request without its inputs.
    pub request: SubmitJobRequest,
    /// Whether the files are uploaded first.
    pub is_uploaded: bool,
    /// Whether it is sent a second time.
    pub is_repeated: bool,
}

impl Asked {
    pub fn expected(&self) -> String {
        let seed = self.request.decoding.as_ref().map_or(0, |d| d.seed);
        oracle::text(&self.question, &self.images, seed)
    }

    /// The text that a release must give whose prompts are of this version.
    pub fn expected_by(&self, prompts: &str) -> String {
        let seed = self.request.decoding.as_ref().map_or(0, |d| d.seed);
        oracle::text_by(prompts, &self.question, &self.images, seed)
    }
}

pub fn jobs(seed: u64, count: usize, horizon: Duration) -> Result<Vec<Asked>> {
    let mut random = Random::new(seed ^ 0x6a09_e667_f3bc_c909);
    let every = horizon / u32::try_from(count.max(1))?;
    (0..count)
        .map(|number| job(&mut random, seed, number, every))
        .collect()
}

fn job(random: &mut Random, seed: u64, number: usize, every: Duration) -> Result<Asked> {
    let tenant = TENANTS[random.below(TENANTS.len() as u64) as usize];
    let kind = random.below(8);
    let (mut files, mut images) = (Vec::new(), Vec::new());
    if kind < 2 {
        let (file, pixels) = film(seed, number as u64)?;
        files.push(file);
        images.push(pixels);
    } else {
        let count = if kind < 5 { 1 } else { random.between((2, 4)) };
        for image in 0..count {
            // Mostly pictures that nobody else sends, so that any mix-up shows; some that many do, so that they share.
            let picture = match random.below(10) {
                0 => random.below(SHARED),
                _ => seed << 32 | (number as u64) << 8 | (image + SHARED),
            };
            let (file, pixels) = noise(picture)?;
            files.push(file);
            images.push(pixels);
        }
    }
    let words = format!("number {} of {tenant}", in_letters(number));
    let (question, task) = if kind == 4 || kind == 7 {
        let question = format!("what is {words}?");
        (
            Question::Answer(question.clone()),
            Kind::Answer(AnswerTask { question }),
        )
    } else {
        let clinical_context = if random.below(2) == 0 {
            String::new()
        } else {
            words
        };
        (
            Question::Report(clinical_context.clone()),
            Kind::Report(ReportTask { clinical_context }),
        )
    };
    let classes = [
        Class::Routine,
        Class::Routine,
        Class::Urgent,
        Class::Stat,
        Class::Bulk,
    ];
    Ok(Asked {
        tenant,
        at: every * u32::try_from(number)?,
        files,
        images,
        question,
        request: SubmitJobRequest {
            request_id: format!("{seed}-{number}"),
            task: Some(Task { kind: Some(task) }),
            class: classes[random.below(5) as usize] as i32,
            decoding: Some(DecodingParameters {
                seed: random.below(1_000),
                ..DecodingParameters::default()
            }),
            ..SubmitJobRequest::default()
        },
        is_uploaded: random.below(5) == 0,
        is_repeated: random.below(5) == 0,
    })
}

/// A number that no header of a film says: what a header says is masked in a prompt, so that the answer would be another.
fn in_letters(number: usize) -> String {
    let digits = number.to_string().into_bytes();
    digits
        .into_iter()
        .map(|digit| char::from(digit - b'0' + b'k'))
        .collect()
}

/// A synthetic chest film as a DICOM file, and its one frame.
fn film(seed: u64, number: u64) -> Result<(Vec<u8>, Pixels)> {
    let film = Phantom::draw(seed, number, false).dicom(FILM_COLUMNS);
    film_of(film.context("write a film")?)
}

/// A DICOM file and its one frame. The frame is made by the same crate that preprocess uses: what is checked here is the
/// way of images through the fleet, not their decoding.
pub fn film_of(file: Vec<u8>) -> Result<(Vec<u8>, Pixels)> {
    let options = Options::new(oracle::SIDE, Limits::default())?;
    let decoded = decode_file(&file, &options).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    let (frame, _) = decoded.frames.into_iter().next().context("no frame")?;
    let pixels = Pixels {
        channels: frame.channels,
        bytes: frame.pixels,
        is_film: true,
    };
    Ok((file, pixels))
}

/// A picture that its number determines, already of the model's size: the frame is its pixels.
fn noise(number: u64) -> Result<(Vec<u8>, Pixels)> {
    let mut random = Random::new(number);
    let bytes = (0..oracle::SIDE * oracle::SIDE).map(|_| random.below(256) as u8);
    let bytes: Vec<u8> = bytes.collect();
    let file = picture::grey_png(oracle::SIDE, bytes.clone())?;
    let pixels = Pixels {
        channels: 1,
        bytes,
        is_film: false,
    };
    Ok((file, pixels))
}

/// Clients of every tenant at every ingest.
#[derive(Debug)]
pub struct Clients {
    all: Vec<(&'static str, Vec<Client>)>,
    turn: AtomicU64,
    retried: AtomicU64,
}

/// A job that was accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub name: String,
    pub asked: Asked,
}

impl Clients {
    /// From the clients of each tenant.
    pub fn new(all: Vec<(&'static str, Vec<Client>)>) -> Self {
        Self {
            all,
            turn: AtomicU64::new(0),
            retried: AtomicU64::new(0),
        }
    }

    /// Calls that were made again because the fleet said so, or did not answer.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Makes a call at one ingest after the other until it is answered.
    /// Only an answer that says "try later" is asked for again, for [`PATIENCE`] at most.
    pub async fn call<T>(
        &self,
        tenant: &str,
        call: impl AsyncFn(Client) -> Result<T, Status>,
    ) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        let clients = self.all.iter().find(|(name, _)| *name == tenant);
        let (_, clients) = clients.context("no client of this tenant")?;
        loop {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
            let client = clients[turn % clients.len()].clone();
            let status = match tokio::time::timeout(CALL, call(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) if is_later(&status) => status,
                Ok(Err(status)) => bail!("a client saw {status:?}"),
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            if Instant::now() > until {
                bail!("still {status:?} after {PATIENCE:?}");
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a job until it is accepted.
    /// A repeat must give the same job.
    pub async fn submit(&self, asked: &Asked) -> Result<String> {
        let mut inputs: Vec<Input> = Vec::new();
        for file in &asked.files {
            inputs.push(if asked.is_uploaded {
                let upload = async |client: Client| client.upload(file).await;
                uploaded(&self.call(asked.tenant, upload).await?)
            } else {
                inline(file.clone())
            });
        }
        let request = SubmitJobRequest {
            inputs,
            ..asked.request.clone()
        };
        let submit = async |client: Client| client.submit(request.clone()).await;
        let job = self.call(asked.tenant, submit).await?;
        if asked.is_repeated {
            let again = self.call(asked.tenant, submit).await?;
            if again.name != job.name {
                bail!("{} became {} when it was sent again", job.name, again.name);
            }
        }
        Ok(job.name)
    }

    /// Sends all jobs, each at its time.
    pub async fn send(&self, jobs: Vec<Asked>) -> Result<Vec<Accepted>> {
        let begun = Instant::now();
        let sent = futures::stream::iter(jobs).map(|asked| async move {
            tokio::time::sleep_until(begun + asked.at).await;
            let name = self.submit(&asked).await;
            let name = name.with_context(|| format!("job {}", asked.request.request_id))?;
            anyhow::Ok(Accepted { name, asked })
        });
        let sent: Vec<_> = sent.buffer_unordered(CALLS_MAX).collect().await;
        sent.into_iter().collect()
    }
}

/// What the contract tells a client to answer with the same call, later.
fn is_later(status: &Status) -> bool {
    // Cancelled and unknown: the connection broke under the call.
    let later = [
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Unknown,
    ];
    later.contains(&status.code()) || was_not_taken(status)
}

/// Whether a server that ends had closed the connection before the call was on its way: tonic reads HTTP/2's GOAWAY without an
/// error, under which a call may be sent again (RFC 9113, 6.8), as an internal error that comes from the transport.
fn was_not_taken(status: &Status) -> bool {
    status.code() == Code::Internal && std::error::Error::source(status).is_some()
}
