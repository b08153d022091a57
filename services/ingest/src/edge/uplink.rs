//! The hub's public API as this edge calls it: each tenant's own token, every wait bounded, and a note of when the hub last
//! answered. Files have a connection of their own: on a slow line minutes of them lie in its buffers, which no other call and
//! no question whether the hub is there should wait behind.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc;
use medfleet_core::{JobId, TenantId};
use medfleet_proto::v1::{
    self, job_service_client::JobServiceClient, upload_input_request::Content,
};
use medfleet_queue::Headers;
use medfleet_worker::http2::of_many_calls;
use medfleet_worker::{PemFile, identity};
use prost::Message;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::plan::{self, Trouble};
use super::tokens::HubTokens;
use crate::Error;
use crate::config::EdgeConfig;
use crate::convert;
use crate::metrics::EdgeFigures;

/// Largest result that is taken.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How often a silent connection is asked whether it is still there. It has as long to say so as a call to be answered.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Of a result, what a slow line is given the time for; a larger one needs a faster line.
const RESULT_BYTES: u64 = 4 << 20;

/// The hub. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Uplink {
    client: JobServiceClient<Channel>,
    /// A connection for files alone.
    files: JobServiceClient<Channel>,
    pub(super) tokens: HubTokens,
    answer_max: Duration,
    figures: EdgeFigures,
    heard: Arc<Mutex<Heard>>,
    /// The hub has answered after it did not.
    back: Arc<Notify>,
}

/// What was heard of the hub.
#[derive(Debug)]
struct Heard {
    last: Instant,
    is_away: bool,
    /// Tenants whose token it does not know.
    strangers: BTreeSet<TenantId>,
}

/// On whose behalf a call is made, and as part of which trace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behalf<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) headers: &'a Headers,
}

impl Uplink {
    /// Connects when it is first needed, and again whenever the connection is lost.
    pub(super) async fn open(config: &EdgeConfig, figures: EdgeFigures) -> Result<Self, Error> {
        let answer_max = config.answer_max.get();
        let endpoint = endpoint(config).await?;
        let client = JobServiceClient::new(endpoint.connect_lazy());
        // The question lies behind what is in the buffers.
        let in_buffers = plan::patience(answer_max, plan::BUFFERED_BYTES_MAX);
        let files = endpoint.keep_alive_timeout(in_buffers).connect_lazy();
        let heard = Heard {
            last: Instant::now(),
            is_away: false,
            strangers: BTreeSet::new(),
        };
        Ok(Self {
            client: client.max_decoding_message_size(MESSAGE_BYTES_MAX),
            files: JobServiceClient::new(files),
            tokens: HubTokens::load(&config.tokens_file).await?,
            answer_max,
            figures,
            heard: Arc::new(Mutex::new(heard)),
            back: Arc::default(),
        })
    }

    /// The hub's job of a request id; none when it has none.
    pub(super) async fn find(
        &self,
        behalf: Behalf<'_>,
        request_id: String,
    ) -> Result<Option<v1::Job>, Trouble> {
        let request = v1::GetJobRequest {
            name: String::new(),
            request_id,
        };
        let request = self.request(behalf, request)?;
        let mut client = self.client.clone();
        match self.answer(behalf, client.get_job(request)).await {
            Ok(response) => Ok(response.job),
            Err(Trouble::NotThere) => Ok(None),
            // Such as a record of a later release: nothing that is asked of other jobs.
            Err(Trouble::Defect) => {
                tracing::warn!("the hub cannot say whether it has a job; its log says more");
                Err(Trouble::Unsure)
            }
            // It does not know the question: no reason to fail the job.
            Err(Trouble::Refused(_)) => Err(Trouble::Later(
                "the hub is of a version that finds no job by its request id",
                None,
            )),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) async fn submit(
        &self,
        behalf: Behalf<'_>,
        request: v1::SubmitJobRequest,
    ) -> Result<v1::Job, Trouble> {
        let bytes = request.encoded_len() as u64;
        let request = self.request(behalf, request)?;
        let mut client = self.client.clone();
        let call = client.submit_job(request);
        let response = self.answer_with(behalf, bytes, call).await?;
        response.job.ok_or(NO_JOB)
    }

    pub(super) async fn cancel(&self, behalf: Behalf<'_>, job: &JobId) -> Result<(), Trouble> {
        let name = convert::job_name(job);
        let request = self.request(behalf, v1::CancelJobRequest { name })?;
        let mut client = self.client.clone();
        match self.answer(behalf, client.cancel_job(request)).await {
            // It has ended by itself, or is forgotten: either way nothing is left to stop.
            Ok(_) | Err(Trouble::OtherState | Trouble::NotThere) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) async fn erase(&self, behalf: Behalf<'_>, job: &JobId) -> Result<(), Trouble> {
        let name = convert::job_name(job);
        let request = self.request(behalf, v1::EraseJobRequest { name })?;
        let mut client = self.client.clone();
        self.answer(behalf, client.erase_job(request))
            .await
            .map(drop)
    }

    pub(super) async fn result(
        &self,
        behalf: Behalf<'_>,
        job: &JobId,
    ) -> Result<v1::Result, Trouble> {
        let name = convert::job_name(job);
        let request = self.request(behalf, v1::GetResultRequest { name })?;
        let mut client = self.client.clone();
        let call = client.get_result(request);
        let response = self.answer_with(behalf, RESULT_BYTES, call).await?;
        response
            .result
            .ok_or(Trouble::Later("the hub's answer has no result", None))
    }

    pub(super) async fn watch(
        &self,
        behalf: Behalf<'_>,
        request: v1::WatchJobRequest,
    ) -> Result<Streaming<v1::WatchJobResponse>, Trouble> {
        let request = self.request(behalf, request)?;
        let mut client = self.client.clone();
        self.answer(behalf, client.watch_job(request)).await
    }

    /// How far an upload is.
    pub(super) async fn upload_of(
        &self,
        behalf: Behalf<'_>,
        name: String,
    ) -> Result<v1::Upload, Trouble> {
        let request = self.request(behalf, v1::GetUploadRequest { name })?;
        let mut client = self.client.clone();
        let response = self.answer(behalf, client.get_upload(request)).await?;
        response.upload.ok_or(NO_UPLOAD)
    }

    /// Sends what comes; ends when the sender is dropped. The wait for the hub lies with the sender, which is held up by a hub
    /// that takes nothing.
    pub(super) async fn upload(
        &self,
        behalf: Behalf<'_>,
        messages: mpsc::Receiver<v1::UploadInputRequest>,
    ) -> Result<v1::Upload, Trouble> {
        let request = self.request(behalf, messages)?;
        let mut client = self.files.clone();
        let answered = client.upload_input(request).await;
        let response = self.hear(behalf, answered)?;
        response.upload.ok_or(NO_UPLOAD)
    }

    /// Resumes a complete upload, so that the hub keeps it longer.
    pub(super) async fn keep_upload(
        &self,
        behalf: Behalf<'_>,
        (name, size_bytes): (&str, u64),
    ) -> Result<(), Trouble> {
        let start = v1::UploadStart {
            upload: name.to_owned(),
            offset: size_bytes,
            total_bytes: size_bytes,
        };
        let message = v1::UploadInputRequest {
            content: Some(Content::Start(start)),
        };
        let request = self.request(behalf, futures::stream::iter([message]))?;
        let mut client = self.client.clone();
        let call = client.upload_input(request);
        self.answer(behalf, call).await.map(drop)
    }

    /// Asks whether the hub is there and knows a tenant's token.
    pub(super) async fn probe(&self, tenant: &TenantId) {
        let headers = Headers::new();
        let behalf = Behalf {
            tenant,
            headers: &headers,
        };
        // Whatever it answers is noted.
        drop(self.find(behalf, "edge/probe".to_owned()).await);
    }

    /// Waits so long, or until the hub has come back.
    pub(super) async fn rest(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.back.notified() => {}
        }
    }

    /// Shows how long the hub has been silent, and whose tokens it does not know.
    pub(super) fn show(&self) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = heard.last.elapsed().as_secs_f64();
        self.figures.hub_silence.set(silence);
        let strangers = i64::try_from(heard.strangers.len()).unwrap_or(i64::MAX);
        self.figures.strangers.set(strangers);
    }

    fn request<T>(&self, behalf: Behalf<'_>, message: T) -> Result<Request<T>, Trouble> {
        let Some(token) = self.tokens.of(behalf.tenant) else {
            self.note_stranger(behalf.tenant);
            return Err(Trouble::Token);
        };
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", token);
        for (name, value) in behalf.headers {
            let name = AsciiMetadataKey::from_bytes(name.as_bytes());
            // What is no metadata is no trace context either.
            if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value.as_str())) {
                metadata.insert(name, value);
            }
        }
        Ok(request)
    }

    async fn answer<T>(
        &self,
        behalf: Behalf<'_>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Trouble> {
        self.answer_with(behalf, 0, call).await
    }

    /// As [`Uplink::answer`], of a call that brings so many bytes over the line.
    async fn answer_with<T>(
        &self,
        behalf: Behalf<'_>,
        bytes: u64,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Trouble> {
        let answered = timeout(plan::patience(self.answer_max, bytes), call).await;
        let answered = answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
        self.hear(behalf, answered)
    }

    /// What the end of a stream means.
    pub(super) fn broken(&self, behalf: Behalf<'_>, status: Status) -> Trouble {
        match self.hear::<()>(behalf, Err(status)) {
            Err(trouble) => trouble,
            Ok(()) => Trouble::Later("the hub ended a stream", None),
        }
    }

    /// Notes that something came from the hub.
    pub(super) fn heard_from(&self, behalf: Behalf<'_>) {
        self.note_answer(Some(behalf.tenant));
    }

    /// Notes that the hub answered, or that it did not.
    fn hear<T>(
        &self,
        behalf: Behalf<'_>,
        answered: Result<Response<T>, Status>,
    ) -> Result<T, Trouble> {
        let status = match answered {
            Ok(response) => {
                self.note_answer(Some(behalf.tenant));
                return Ok(response.into_inner());
            }
            Err(status) => status,
        };
        let trouble = plan::trouble(&status);
        match &trouble {
            Trouble::Token => {
                self.note_answer(None);
                self.note_stranger(behalf.tenant);
            }
            _ if plan::is_answer(&status) => self.note_answer(Some(behalf.tenant)),
            _ => self.note_away(&trouble),
        }
        Err(trouble)
    }

    /// `known`: the tenant whose token the hub has accepted.
    fn note_answer(&self, known: Option<&TenantId>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.last = Instant::now();
        let was_stranger = known.is_some_and(|tenant| heard.strangers.remove(tenant));
        if was_stranger {
            tracing::info!("the hub knows a tenant's token again");
        }
        if std::mem::take(&mut heard.is_away) {
            tracing::info!("the hub answers again");
            self.back.notify_waiters();
        } else if was_stranger {
            self.back.notify_waiters();
        }
    }

    fn note_away(&self, trouble: &Trouble) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut heard.is_away, true) {
            let why = match trouble {
                Trouble::Later(why, _) => why,
                _ => "the hub did not answer",
            };
            tracing::warn!(why, "the hub is away; jobs are accepted and wait");
        }
    }

    fn note_stranger(&self, tenant: &TenantId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.strangers.insert(tenant.clone()) {
            tracing::error!(
                %tenant,
                "the hub does not know this tenant's token; its jobs wait until ingest.edge.tokens_file has one that it knows"
            );
        }
    }
}

const NO_JOB: Trouble = Trouble::Later("the hub's answer has no job", None);
const NO_UPLOAD: Trouble = Trouble::Later("the hub's answer has no upload", None);

async fn endpoint(config: &EdgeConfig) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(config.hub.clone()).map_err(Error::Hub)?;
    let endpoint = of_many_calls(endpoint)
        .connect_timeout(config.answer_max.get())
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(config.answer_max.get())
        .keep_alive_while_idle(true);
    let Some(path) = &config.ca_file else {
        return Ok(endpoint);
    };
    let file = PemFile::new("ingest.edge.ca_file", path);
    let mut tls = ClientTlsConfig::new().ca_certificate(file.certificates().await?);
    if let Some(name) = &config.server_name {
        tls = tls.domain_name(name.clone());
    }
    if let (Some(cert), Some(key)) = (&config.client_cert, &config.client_key) {
        let cert = PemFile::new("ingest.edge.client_cert", cert);
        let key = PemFile::new("ingest.edge.client_key", key);
        tls = tls.identity(identity(cert, key).await?);
    }
    endpoint.tls_config(tls).map_err(Error::Hub)
}
