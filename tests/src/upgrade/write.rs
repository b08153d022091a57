//! Makes what this release leaves behind: a small fleet with a job in every state, stopped as it stands.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use medfleet_core::{Move, PoolName, Stage};
use medfleet_proto::v1::{Class, Job, JobState, SubmitJobRequest};
use medfleet_queue::Applied;
use medfleet_testkit::{NATS_DEFAULT, clock, wait_until};
use prost::Message;

use super::left::{Left, LeftJob, LeftUpload, digits_of, file, options, release, request};
use crate::client::{Client, PATIENCE, is_encoded};
use crate::config::{POOL, job_key};
use crate::fleet::{Fleet, OPERATOR, Pace, Role};

/// Whose work goes on.
const BUSY: &str = "st-mary";
/// Whose work is paused.
const PAUSED: &str = "st-john";
/// A text takes some seconds, so that a worker can be killed in the middle of one.
const STEP_MILLIS: u64 = 200;
/// The number of the upload's picture.
const UPLOAD: u32 = 1_000;

/// A job as it was left.
struct Made {
    tenant: &'static str,
    number: u32,
    name: String,
    state: JobState,
}

struct Writer {
    fleet: Fleet,
    busy: Client,
    paused: Client,
    made: Vec<Made>,
}

/// Runs the fleet, stops it, and keeps what is left. Returns the file that says what.
pub async fn write() -> Result<PathBuf> {
    let pace = Pace::writing(STEP_MILLIS);
    let fleet = Fleet::start(options(pace)).await?;
    let operator = fleet.client(OPERATOR).await?;
    operator.pause(PAUSED, Class::Unspecified).await?;
    let mut writer = Writer {
        busy: fleet.client(BUSY).await?,
        paused: fleet.client(PAUSED).await?,
        fleet,
        made: Vec::new(),
    };
    writer.dead_letter().await?;
    writer.ended().await?;
    writer.held_back().await?;
    writer.under_way().await?;
    let upload = writer.upload().await?;
    let jobs = writer.said().await?;
    writer.fleet.stop_role(Role::Ingest).await?;
    writer.fleet.kill_nats().await?;
    let files = tempfile::tempdir()?;
    writer.fleet.back_up(files.path()).await?;
    let left = Left {
        release: release(),
        nats: NATS_DEFAULT.to_owned(),
        paused: PAUSED.to_owned(),
        jobs,
        upload,
    };
    left.keep(files.path())
}

impl Writer {
    fn client(&self, tenant: &str) -> &Client {
        if tenant == BUSY {
            &self.busy
        } else {
            &self.paused
        }
    }

    /// Submits the next job, which shall be left in a state.
    async fn submit(
        &mut self,
        (tenant, state): (&'static str, JobState),
        change: impl FnOnce(&mut SubmitJobRequest),
    ) -> Result<String> {
        let number = u32::try_from(self.made.len())?;
        let mut request = request(number)?;
        change(&mut request);
        let job = self.client(tenant).submit(request).await?;
        self.made.push(Made {
            tenant,
            number,
            name: job.name.clone(),
            state,
        });
        Ok(job.name)
    }

    /// Submits a job of the tenant whose work goes on, and waits until it stands somewhere.
    async fn reach(&mut self, state: JobState, at: impl Fn(&Job) -> bool) -> Result<String> {
        let name = self.submit((BUSY, state), |_| {}).await?;
        self.busy.wait_for(&name, at).await?;
        Ok(name)
    }

    /// A job that failed for a lost image and left a dead letter.
    async fn dead_letter(&mut self) -> Result<()> {
        self.fleet.stop_role(Role::Decode).await?;
        let name = self.reach(JobState::Failed, is_encoded).await?;
        self.fleet.stop_role(Role::Encode).await?;
        self.fleet.remove_tokens()?;
        self.fleet.start_role(Role::Encode).await?;
        self.fleet.start_role(Role::Decode).await?;
        self.busy.wait_final(&name).await?;
        self.busy.wait_letter().await.map(drop)
    }

    /// A job with a result, and one whose result was erased.
    async fn ended(&mut self) -> Result<()> {
        let is_completed = |job: &Job| job.state() == JobState::Completed;
        self.reach(JobState::Completed, is_completed).await?;
        let erased = self.reach(JobState::Completed, is_completed).await?;
        self.busy.erase(&erased).await?;
        Ok(())
    }

    /// Jobs of the tenant whose work is paused: one that waits, one that was cancelled, one whose time was over.
    async fn held_back(&mut self) -> Result<()> {
        self.submit((PAUSED, JobState::Accepted), |_| {}).await?;
        let cancelled = self.submit((PAUSED, JobState::Cancelled), |_| {}).await?;
        self.paused.cancel(&cancelled).await?;
        let short = |request: &mut SubmitJobRequest| {
            request.time_to_live.insert(Default::default()).seconds = 1;
        };
        let expired = self.submit((PAUSED, JobState::Expired), short).await?;
        self.paused.wait_final(&expired).await?;
        Ok(())
    }

    /// A job in each state between accepted and final, by taking its workers away, the last first.
    async fn under_way(&mut self) -> Result<()> {
        let is_decoding = |job: &Job| job.state() == JobState::Decoding;
        self.reach(JobState::Decoding, is_decoding).await?;
        self.fleet.kill9(Role::Decode).await?;
        self.reach(JobState::Encoding, is_encoded).await?;
        self.fleet.stop_role(Role::Encode).await?;
        let is_preprocessed = |job: &Job| job.state() == JobState::Preprocessed;
        self.reach(JobState::Preprocessed, is_preprocessed).await?;
        self.fleet.stop_role(Role::Preprocess).await?;
        let name = self.submit((BUSY, JobState::Released), |_| {}).await?;
        self.start_and_die(&name).await
    }

    /// What a worker of preprocess does that takes a unit and dies.
    async fn start_and_die(&self, name: &str) -> Result<()> {
        let (queue, pool) = (self.fleet.queue().await?, PoolName::new(POOL)?);
        wait_until(PATIENCE, "a released unit", async || {
            let released = queue.outstanding(Stage::Preprocess, &pool).await.ok()?;
            (released.total() > 0).then_some(())
        })
        .await?;
        let step = Move::Start {
            stage: Stage::Preprocess,
            unit: 0,
            retries_max: 3,
        };
        let applied = queue
            .apply(&job_key(BUSY, name)?, Some(0), &step, clock()())
            .await?;
        ensure!(matches!(applied, Applied::Applied { .. }), "{applied:?}");
        Ok(())
    }

    /// An upload that was broken off half-way.
    async fn upload(&self) -> Result<LeftUpload> {
        let bytes = file(UPLOAD)?;
        let half = &bytes[..bytes.len() / 2];
        let upload = self.busy.upload_part("", 0, bytes.len() as u64, half);
        let upload = upload.await?;
        ensure!(upload.committed_bytes > 0, "{upload:?}");
        Ok(LeftUpload {
            tenant: BUSY.to_owned(),
            number: UPLOAD,
            name: upload.name,
        })
    }

    /// What the fleet says of every job, each of which must stand where it should.
    async fn said(&self) -> Result<Vec<LeftJob>> {
        let mut jobs = Vec::new();
        for made in &self.made {
            let client = self.client(made.tenant);
            let job = client.get(&made.name).await?;
            if job.state() != made.state {
                bail!("it should stand in {:?}: {job:?}", made.state);
            }
            let result = if job.state() == JobState::Completed && job.erase_time.is_none() {
                let result = client.result(&made.name).await;
                digits_of(&result.context("a result")?.encode_to_vec())
            } else {
                String::new()
            };
            jobs.push(LeftJob {
                tenant: made.tenant.to_owned(),
                number: made.number,
                state: job.state().as_str_name().to_owned(),
                job: digits_of(&job.encode_to_vec()),
                result,
            });
        }
        Ok(jobs)
    }
}
