//! A client as an integrator would write it: the generated stubs, a token, and nothing of the fleet's insides.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use medfleet_proto::v1::{
    self, Failure, FailureReason, Job, JobState, SubmitJobRequest, UploadInputRequest, UploadStart,
    WatchJobRequest, WatchJobResponse, dead_letter_service_client::DeadLetterServiceClient,
    erase_jobs_request::Whose, job_service_client::JobServiceClient,
    operator_service_client::OperatorServiceClient, task::Kind, upload_input_request::Content,
    watch_job_response::Event,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Response, Status};

use crate::picture;

/// Longest time a test waits for anything; generous, because machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One call of a stub, with the client's token.
macro_rules! ask {
    ($client:ident.$stub:ident, $method:ident, $message:expr) => {
        $client
            .$stub
            .clone()
            .$method($client.request($message))
            .await
            .map(Response::into_inner)
    };
}

/// A connected client of one tenant.
#[derive(Debug, Clone)]
pub struct Client {
    stub: JobServiceClient<Channel>,
    letters: DeadLetterServiceClient<Channel>,
    operator: OperatorServiceClient<Channel>,
    token: MetadataValue<Ascii>,
}

/// What a watcher has received so far; also what it needs to resume.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub sequence: u64,
    pub attempt: u32,
    pub text: String,
    /// Every state event in order, as (sequence, state, chunks done).
    pub progress: Vec<(u64, JobState, u32)>,
    /// The final job, once seen.
    pub last: Option<Job>,
}

impl Client {
    /// Connects with a bearer token.
    pub async fn connect(url: &str, token: &str) -> Result<Self> {
        let channel = Channel::from_shared(url.to_owned())?
            .connect_timeout(Duration::from_secs(10))
            .connect()
            .await
            .with_context(|| format!("connect to {url}"))?;
        Self::over(channel, token)
    }

    /// Connects over TLS to a server that calls itself `localhost`, trusting `authority` (PEM) and nobody else.
    pub async fn connect_tls(api: SocketAddr, token: &str, authority: &str) -> Result<Self> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority))
            .domain_name("localhost");
        let endpoint = Channel::from_shared(format!("https://{api}"))?.tls_config(tls)?;
        Self::over(endpoint.connect().await.context("connect over TLS")?, token)
    }

    /// Speaks over a channel that exists already.
    pub fn over(channel: Channel, token: &str) -> Result<Self> {
        let stub = JobServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        Ok(Self {
            stub,
            letters: DeadLetterServiceClient::new(channel.clone()),
            operator: OperatorServiceClient::new(channel),
            token: format!("Bearer {token}")
                .parse()
                .context("token as metadata")?,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.token.clone());
        request
    }

    /// Uploads a whole file and returns its handle.
    pub async fn upload(&self, bytes: &[u8]) -> Result<String, Status> {
        let upload = self.upload_part("", 0, bytes.len() as u64, bytes).await?;
        Ok(upload.name)
    }

    /// Sends `bytes` to a new (`name` empty) or broken upload from `offset`.
    pub async fn upload_part(
        &self,
        name: &str,
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Result<v1::Upload, Status> {
        let start = UploadStart {
            upload: name.into(),
            offset,
            total_bytes: total,
        };
        let mut messages = vec![UploadInputRequest {
            content: Some(Content::Start(start)),
        }];
        messages.extend(bytes.chunks(1 << 20).map(|chunk| UploadInputRequest {
            content: Some(Content::Chunk(chunk.to_vec().into())),
        }));
        let answer = ask!(self.stub, upload_input, tokio_stream::iter(messages))?;
        present(answer.upload, "upload")
    }

    /// How much of an upload is stored.
    pub async fn get_upload(&self, name: &str) -> Result<v1::Upload, Status> {
        let request = v1::GetUploadRequest { name: name.into() };
        let answer = ask!(self.stub, get_upload, request)?;
        present(answer.upload, "upload")
    }

    pub async fn submit(&self, job: SubmitJobRequest) -> Result<Job, Status> {
        Ok(self.submit_full(job).await?.0)
    }

    /// Submits a report about one picture, sent within the request.
    pub async fn submit_picture(&self, picture: Vec<u8>) -> Result<Job, Status> {
        self.submit(report(vec![inline(picture)])).await
    }

    /// Submits a job; also tells whether it had been accepted before.
    pub async fn submit_full(&self, job: SubmitJobRequest) -> Result<(Job, bool), Status> {
        let answer = ask!(self.stub, submit_job, job)?;
        Ok((present(answer.job, "job")?, answer.already_accepted))
    }

    pub async fn get(&self, name: &str) -> Result<Job, Status> {
        let request = v1::GetJobRequest {
            name: name.into(),
            ..Default::default()
        };
        self.get_with(request).await
    }

    /// Returns the job of a request id.
    pub async fn get_by_request_id(&self, request_id: &str) -> Result<Job, Status> {
        let request = v1::GetJobRequest {
            request_id: request_id.into(),
            ..Default::default()
        };
        self.get_with(request).await
    }

    async fn get_with(&self, request: v1::GetJobRequest) -> Result<Job, Status> {
        let answer = ask!(self.stub, get_job, request)?;
        present(answer.job, "job")
    }

    pub async fn result(&self, name: &str) -> Result<v1::Result, Status> {
        let request = v1::GetResultRequest { name: name.into() };
        let answer = ask!(self.stub, get_result, request)?;
        present(answer.result, "result")
    }

    /// Returns a page of jobs and the token of the next.
    pub async fn list(
        &self,
        page_size: i32,
        page_token: &str,
    ) -> Result<(Vec<Job>, String), Status> {
        self.list_with(v1::ListJobsRequest {
            page_size,
            page_token: page_token.into(),
            states: vec![],
        })
        .await
    }

    /// Returns the first page of the jobs in a state.
    pub async fn list_in(&self, state: JobState) -> Result<Vec<Job>, Status> {
        let message = v1::ListJobsRequest {
            states: vec![state.into()],
            ..v1::ListJobsRequest::default()
        };
        Ok(self.list_with(message).await?.0)
    }

    async fn list_with(&self, message: v1::ListJobsRequest) -> Result<(Vec<Job>, String), Status> {
        let page = ask!(self.stub, list_jobs, message)?;
        Ok((page.jobs, page.next_page_token))
    }

    pub async fn cancel(&self, name: &str) -> Result<Job, Status> {
        let request = v1::CancelJobRequest { name: name.into() };
        let answer = ask!(self.stub, cancel_job, request)?;
        present(answer.job, "job")
    }

    pub async fn erase(&self, name: &str) -> Result<v1::EraseJobResponse, Status> {
        let request = v1::EraseJobRequest { name: name.into() };
        ask!(self.stub, erase_job, request)
    }

    /// Erases, or counts, the jobs of a patient or a study, of all pages.
    pub async fn erase_jobs(
        &self,
        whose: &Whose,
        count_only: bool,
    ) -> Result<v1::EraseJobsResponse, Status> {
        let mut done = v1::EraseJobsResponse::default();
        loop {
            let request = v1::EraseJobsRequest {
                whose: Some(whose.clone()),
                count_only,
                page_token: done.next_page_token.clone(),
            };
            let page = ask!(self.stub, erase_jobs, request)?;
            done.jobs_erased += page.jobs_erased;
            done.jobs_cancelled += page.jobs_cancelled;
            done.jobs_erased_before += page.jobs_erased_before;
            done.jobs_failed += page.jobs_failed;
            done.jobs_unreadable += page.jobs_unreadable;
            done.objects_removed += page.objects_removed;
            done.objects_shared += page.objects_shared;
            done.next_page_token = page.next_page_token;
            if done.next_page_token.is_empty() {
                return Ok(done);
            }
        }
    }

    /// Dead letters, at most `page_size`, after a page: the letters and the token of the next page.
    pub async fn dead_letters(
        &self,
        page_size: i32,
        page_token: &str,
    ) -> Result<(Vec<v1::DeadLetter>, String), Status> {
        let request = v1::ListDeadLettersRequest {
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = ask!(self.letters, list_dead_letters, request)?;
        Ok((page.dead_letters, page.next_page_token))
    }

    pub async fn dead_letter(&self, name: &str) -> Result<v1::DeadLetter, Status> {
        let request = v1::GetDeadLetterRequest { name: name.into() };
        let answer = ask!(self.letters, get_dead_letter, request)?;
        present(answer.dead_letter, "letter")
    }

    pub async fn replay(&self, name: &str) -> Result<Job, Status> {
        let request = v1::ReplayDeadLetterRequest { name: name.into() };
        let answer = ask!(self.letters, replay_dead_letter, request)?;
        present(answer.job, "job")
    }

    pub async fn discard(&self, name: &str) -> Result<(), Status> {
        let request = v1::DiscardDeadLetterRequest { name: name.into() };
        ask!(self.letters, discard_dead_letter, request).map(drop)
    }

    pub async fn pause(&self, tenant: &str, class: v1::Class) -> Result<v1::Pause, Status> {
        let request = v1::PauseWorkRequest {
            tenant: tenant.to_owned(),
            class: class.into(),
        };
        let answer = ask!(self.operator, pause_work, request)?;
        present(answer.pause, "pause")
    }

    /// Lets it go on.
    pub async fn resume(&self, tenant: &str, class: v1::Class) -> Result<(), Status> {
        let request = v1::ResumeWorkRequest {
            tenant: tenant.to_owned(),
            class: class.into(),
        };
        ask!(self.operator, resume_work, request).map(drop)
    }

    pub async fn pauses(&self) -> Result<Vec<v1::Pause>, Status> {
        Ok(ask!(self.operator, list_pauses, v1::ListPausesRequest {})?.pauses)
    }

    /// Queues what open jobs wait for anew: how many jobs are open, and how many units were not queued.
    pub async fn requeue(&self) -> Result<(u32, u32), Status> {
        let (mut open, mut queued, mut page_token) = (0, 0, String::new());
        loop {
            let request = v1::RequeueJobsRequest {
                tenant: String::new(),
                page_token,
            };
            let page = ask!(self.operator, requeue_jobs, request)?;
            open += page.open_jobs;
            queued += page.queued_units;
            if page.next_page_token.is_empty() {
                return Ok((open, queued));
            }
            page_token = page.next_page_token;
        }
    }

    /// Opens a watch that continues after what was `seen`.
    pub async fn watch(
        &self,
        name: &str,
        seen: &Seen,
    ) -> Result<tonic::Streaming<WatchJobResponse>, Status> {
        let message = WatchJobRequest {
            name: name.into(),
            after_sequence: seen.sequence,
            text_position: Some(v1::TextPosition {
                attempt: seen.attempt,
                offset_bytes: seen.text.len() as u64,
            }),
        };
        ask!(self.stub, watch_job, message)
    }

    /// Watches until `enough` says so or the stream ends; checks that nothing repeats and no text is missing.
    /// Each message has [`PATIENCE`]: one of thousands of watches may take longer as a whole.
    pub async fn watch_until(
        &self,
        name: &str,
        seen: &mut Seen,
        enough: impl Fn(&Seen) -> bool,
    ) -> Result<()> {
        let late = || format!("watch of {name} took too long");
        let opened = tokio::time::timeout(PATIENCE, self.watch(name, seen)).await;
        let mut stream = opened.with_context(late)??;
        loop {
            let message = tokio::time::timeout(PATIENCE, stream.next()).await;
            let Some(message) = message.with_context(late)? else {
                return Ok(());
            };
            seen.take(message?)?;
            if enough(seen) {
                return Ok(());
            }
        }
    }

    /// Watches to the end and returns everything seen.
    pub async fn watch_to_end(&self, name: &str) -> Result<Seen> {
        let mut seen = Seen::default();
        self.watch_until(name, &mut seen, |_| false).await?;
        ensure!(
            seen.last.is_some(),
            "the watch of {name} ended without a final job"
        );
        Ok(seen)
    }

    /// Watches to the end, which must be that the job has completed.
    pub async fn watch_completed(&self, name: &str) -> Result<Seen> {
        let seen = self.watch_to_end(name).await?;
        let state = seen.last.as_ref().map(Job::state);
        ensure!(state == Some(JobState::Completed), "{seen:?}");
        Ok(seen)
    }

    /// Waits until the job is final, by asking.
    pub async fn wait_final(&self, name: &str) -> Result<Job> {
        self.wait_for(name, |job| is_final(job.state())).await
    }

    /// Waits until the job is final, which must be by completing.
    pub async fn wait_completed(&self, name: &str) -> Result<Job> {
        let job = self.wait_final(name).await?;
        ensure!(job.state() == JobState::Completed, "{job:?}");
        Ok(job)
    }

    /// Waits until the job is final, which must be by failing for this reason.
    pub async fn wait_failed(&self, name: &str, reason: FailureReason) -> Result<Failure> {
        let job = self.wait_final(name).await?;
        ensure!(job.state() == JobState::Failed, "{job:?}");
        let failure = job.failure.context("a failure")?;
        ensure!(failure.reason() == reason, "{failure:?}");
        Ok(failure)
    }

    /// Waits until the job is in a state, by asking.
    pub async fn wait_state(&self, name: &str, state: JobState) -> Result<Job> {
        self.wait_for(name, |job| job.state() == state).await
    }

    /// Waits for the tenant's first dead letter: it is written right after the record of its job.
    pub async fn wait_letter(&self) -> Result<v1::DeadLetter> {
        medfleet_testkit::wait_until(PATIENCE, "a dead letter", async || {
            let (letters, _) = self.dead_letters(10, "").await.ok()?;
            letters.into_iter().next()
        })
        .await
    }

    /// Waits until `condition` holds of the job, by asking; a server that is away meanwhile is asked again.
    pub async fn wait_for(&self, name: &str, condition: impl Fn(&Job) -> bool) -> Result<Job> {
        let last = std::sync::Mutex::new(None);
        let found =
            medfleet_testkit::wait_until(PATIENCE, "the job to reach a state", async || {
                let job = self.get(name).await.ok()?;
                let reached = condition(&job).then(|| job.clone());
                if let Ok(mut slot) = last.lock() {
                    *slot = Some(job.state());
                }
                reached
            })
            .await;
        found.with_context(|| format!("{name} last seen in {:?}", last.into_inner()))
    }
}

/// The message that a response exists for; without it the server breaks the contract.
fn present<T>(message: Option<T>, name: &str) -> Result<T, Status> {
    message.ok_or_else(|| Status::internal(format!("the response has no {name}")))
}

/// Whether nothing follows a state.
pub const fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Completed | JobState::Failed | JobState::Cancelled | JobState::Expired
    )
}

impl Seen {
    /// Adds one message, checking order and contiguity. A client may resume from the sequence of any of them, and the final one is
    /// the last.
    pub fn take(&mut self, message: WatchJobResponse) -> Result<()> {
        let (before, sequence) = (self.sequence, message.sequence);
        ensure!(self.last.is_none(), "{message:?} behind the final one");
        ensure!(sequence >= before, "{message:?} behind {before}");
        self.sequence = sequence;
        match message.event.context("a watch message without an event")? {
            Event::Progress(progress) => {
                ensure!(sequence > before, "event {sequence} after {before}");
                self.progress
                    .push((sequence, progress.state(), progress.chunks_done));
            }
            Event::Reset(reset) => {
                self.attempt = reset.attempt;
                self.text.clear();
            }
            Event::Text(delta) => {
                if self.attempt == 0 {
                    self.attempt = delta.attempt;
                }
                ensure!(
                    delta.attempt == self.attempt,
                    "text of attempt {} in {}",
                    delta.attempt,
                    self.attempt
                );
                let have = self.text.len() as u64;
                ensure!(
                    delta.offset_bytes == have,
                    "text at {} where {have} was due",
                    delta.offset_bytes
                );
                self.text.push_str(&delta.text);
            }
            Event::Final(job) => self.last = Some(job),
        }
        Ok(())
    }
}

/// Whether all of a job's images are encoded.
pub const fn is_encoded(job: &Job) -> bool {
    job.chunks_total > 0 && job.chunks_done == job.chunks_total
}

/// The refusal of a call that must be refused with this code.
#[track_caller]
pub fn refused<T>(answer: Result<T, Status>, code: Code) -> Result<Status> {
    let at = std::panic::Location::caller();
    let refused = answer.err().with_context(|| format!("{at}: answered"))?;
    ensure!(refused.code() == code, "{at}: {refused:?}");
    Ok(refused)
}

/// A job over uploads or inline pictures.
pub fn task(kind: Kind, inputs: Vec<v1::Input>) -> SubmitJobRequest {
    SubmitJobRequest {
        task: Some(v1::Task { kind: Some(kind) }),
        inputs,
        ..Default::default()
    }
}

pub fn report(inputs: Vec<v1::Input>) -> SubmitJobRequest {
    task(Kind::Report(v1::ReportTask::default()), inputs)
}

/// A report job over small pictures of these seeds.
pub fn pictures(seeds: &[u32]) -> Result<SubmitJobRequest> {
    let inputs = seeds
        .iter()
        .map(|seed| Ok(inline(picture::png(64, *seed)?)));
    Ok(report(inputs.collect::<Result<_>>()?))
}

pub fn inline(bytes: Vec<u8>) -> v1::Input {
    v1::Input {
        source: Some(v1::input::Source::Content(bytes.into())),
        ..v1::Input::default()
    }
}

pub fn uploaded(name: &str) -> v1::Input {
    v1::Input {
        source: Some(v1::input::Source::Upload(name.into())),
        ..v1::Input::default()
    }
}
