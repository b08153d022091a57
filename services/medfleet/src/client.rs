//! The public API as a client sees it: one fleet, one token, every call bounded and, where it broke, resumed.
//!
//! Reading order: `address` (which fleet), `retry` (how long we try), `upload` and `watch` (the two calls that resume).

mod address;
mod error;
mod retry;
mod upload;
mod watch;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use medfleet_proto::v1::{
    CancelJobRequest, Class, DeadLetter, DiscardDeadLetterRequest, EraseJobRequest,
    EraseJobResponse, EraseJobsRequest, EraseJobsResponse, GetDeadLetterRequest, GetJobRequest,
    GetResultRequest, Job, JobState, ListDeadLettersRequest, ListDeadLettersResponse,
    ListJobsRequest, ListJobsResponse, ListPausesRequest, Pause, PauseWorkRequest,
    ReplayDeadLetterRequest, RequeueJobsRequest, RequeueJobsResponse, Result as Draft,
    ResumeWorkRequest, SubmitJobRequest, SubmitJobResponse,
    dead_letter_service_client::DeadLetterServiceClient, job_service_client::JobServiceClient,
    operator_service_client::OperatorServiceClient,
};
use medfleet_runtime::certificates::validities;
use medfleet_worker::http2::of_many_calls;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

pub(crate) use address::{AddressFile, Fleet, ServerArgs, TlsFiles};
pub(crate) use error::ClientError;
pub(crate) use retry::Retry;
pub(crate) use upload::{CONTENT_BYTES_MAX, KeptUploads, UploadNews};
pub(crate) use watch::{Cursor, Event};

use crate::show::seconds;

/// Largest answer we take; a result with its sentences and frames is far below.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest wait for an answer once the whole request is sent; a fleet gives a request two minutes to arrive. It ends calls to a
/// server that is stuck but still answers pings, which would otherwise wait for ever.
const ANSWER_MAX: Duration = Duration::from_secs(180);
/// Longest wait between two attempts that is not announced on stderr.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long opening a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How often an idle connection is probed, so that a dead server is noticed while watching.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a probe may stay unanswered.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(10);
/// What PEM files are for, with the flags that name them.
const AUTHORITIES: &str = "certificate authorities (--ca)";
const SHOWN: &str = "what is shown to the fleet (--client-cert, --client-key)";

type Stub = JobServiceClient<InterceptedService<Channel, Bearer>>;
type OperatorStub = OperatorServiceClient<InterceptedService<Channel, Bearer>>;
type LetterStub = DeadLetterServiceClient<InterceptedService<Channel, Bearer>>;

/// One unary call of a stub, as [`Client::on`] makes it.
macro_rules! ask {
    ($client:ident.$stub:ident, $method:ident, $request:expr) => {
        $client
            .on(&$client.$stub, $request, |mut stub, request| async move {
                stub.$method(request).await
            })
            .await
    };
}

/// A client of one tenant of one fleet.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    stub: Stub,
    letters: LetterStub,
    operator: OperatorStub,
    server: String,
    retry: Retry,
    answer_max: Duration,
}

/// Adds the token to every call.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer")
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Client {
    /// Prepares a client; the connection is opened by the first call, and opened again whenever it breaks.
    /// Call inside a tokio runtime.
    ///
    /// # Errors
    /// A server that is no URL, an `https` server without certificates to trust, PEM files that cannot be used, a token with
    /// control characters.
    pub(crate) fn new(fleet: &Fleet, retry: Retry) -> Result<Self, ClientError> {
        let endpoint = endpoint(&fleet.server, &fleet.tls)?;
        let mut token: MetadataValue<Ascii> = format!("Bearer {}", fleet.token)
            .parse()
            .map_err(|_invalid| ClientError::Token)?;
        token.set_sensitive(true);
        let channel = endpoint.connect_lazy();
        let bearer = Bearer(token);
        Ok(Self {
            stub: JobServiceClient::with_interceptor(channel.clone(), bearer.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            letters: DeadLetterServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            operator: OperatorServiceClient::with_interceptor(channel, bearer),
            server: fleet.server.clone(),
            retry,
            answer_max: ANSWER_MAX,
        })
    }

    /// Accepts a job; repeated safely, because the caller has set a request id.
    pub(crate) async fn submit(
        &self,
        request: &SubmitJobRequest,
    ) -> Result<SubmitJobResponse, ClientError> {
        ask!(self.stub, submit_job, request)
    }

    pub(crate) async fn job(&self, name: &str) -> Result<Job, ClientError> {
        let request = GetJobRequest {
            name: name.to_owned(),
            ..GetJobRequest::default()
        };
        let answer = ask!(self.stub, get_job, &request)?;
        held(answer.job, "GetJobResponse.job")
    }

    /// The draft of a completed job.
    pub(crate) async fn draft(&self, name: &str) -> Result<Draft, ClientError> {
        let request = GetResultRequest {
            name: name.to_owned(),
        };
        let answer = ask!(self.stub, get_result, &request)?;
        held(answer.result, "GetResultResponse.result")
    }

    /// Cancels a job and returns it.
    pub(crate) async fn cancel(&self, name: &str) -> Result<Job, ClientError> {
        let request = CancelJobRequest {
            name: name.to_owned(),
        };
        let answer = ask!(self.stub, cancel_job, &request)?;
        held(answer.job, "CancelJobResponse.job")
    }

    pub(crate) async fn erase(&self, name: &str) -> Result<EraseJobResponse, ClientError> {
        let request = EraseJobRequest {
            name: name.to_owned(),
        };
        ask!(self.stub, erase_job, &request)
    }

    /// Erases, or counts, one page of the jobs of a patient or a study.
    pub(crate) async fn erase_jobs(
        &self,
        request: &EraseJobsRequest,
    ) -> Result<EraseJobsResponse, ClientError> {
        ask!(self.stub, erase_jobs, request)
    }

    pub(crate) async fn jobs(
        &self,
        states: &[JobState],
        page_token: &str,
    ) -> Result<ListJobsResponse, ClientError> {
        let states: Vec<i32> = states.iter().map(|state| i32::from(*state)).collect();
        let request = ListJobsRequest {
            page_size: 0,
            page_token: page_token.to_owned(),
            states,
        };
        ask!(self.stub, list_jobs, &request)
    }

    pub(crate) async fn dead_letters(
        &self,
        page_token: &str,
    ) -> Result<ListDeadLettersResponse, ClientError> {
        let request = ListDeadLettersRequest {
            page_size: 0,
            page_token: page_token.to_owned(),
        };
        ask!(self.letters, list_dead_letters, &request)
    }

    pub(crate) async fn dead_letter(&self, name: &str) -> Result<DeadLetter, ClientError> {
        let request = GetDeadLetterRequest {
            name: name.to_owned(),
        };
        let answer = ask!(self.letters, get_dead_letter, &request)?;
        held(answer.dead_letter, "GetDeadLetterResponse.dead_letter")
    }

    /// Starts a dead letter's job over and returns it.
    pub(crate) async fn replay(&self, name: &str) -> Result<Job, ClientError> {
        let request = ReplayDeadLetterRequest {
            name: name.to_owned(),
        };
        let answer = ask!(self.letters, replay_dead_letter, &request)?;
        held(answer.job, "ReplayDeadLetterResponse.job")
    }

    pub(crate) async fn discard(&self, name: &str) -> Result<(), ClientError> {
        let request = DiscardDeadLetterRequest {
            name: name.to_owned(),
        };
        ask!(self.letters, discard_dead_letter, &request).map(drop)
    }

    /// Holds work back; every tenant's where none is named, every class where none is.
    pub(crate) async fn pause_work(
        &self,
        tenant: &str,
        class: Class,
    ) -> Result<Pause, ClientError> {
        let request = PauseWorkRequest {
            tenant: tenant.to_owned(),
            class: class.into(),
        };
        let answer = ask!(self.operator, pause_work, &request)?;
        held(answer.pause, "PauseWorkResponse.pause")
    }

    /// Lets it go on.
    pub(crate) async fn resume_work(&self, tenant: &str, class: Class) -> Result<(), ClientError> {
        let request = ResumeWorkRequest {
            tenant: tenant.to_owned(),
            class: class.into(),
        };
        ask!(self.operator, resume_work, &request).map(drop)
    }

    /// Everything that is held back.
    pub(crate) async fn pauses(&self) -> Result<Vec<Pause>, ClientError> {
        let request = ListPausesRequest {};
        let answer = ask!(self.operator, list_pauses, &request)?;
        Ok(answer.pauses)
    }

    /// Queues what open jobs wait for anew, of one page of records.
    pub(crate) async fn requeue(
        &self,
        request: &RequeueJobsRequest,
    ) -> Result<RequeueJobsResponse, ClientError> {
        ask!(self.operator, requeue_jobs, request)
    }

    /// One unary call, repeated while the failure may pass and the retry rule allows.
    async fn on<S: Clone, R: Clone, T, F>(
        &self,
        stub: &S,
        request: &R,
        mut once: impl FnMut(S, R) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let begun = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let status = match timeout(self.answer_max, once(stub.clone(), request.clone())).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(self.give_up(attempts, begun, self.silence())),
            };
            self.pause(attempts, begun, status).await?;
        }
    }

    /// That no answer came.
    fn silence(&self) -> Status {
        let waited = seconds(self.answer_max);
        Status::deadline_exceeded(format!("no answer came within {waited}"))
    }

    fn give_up(&self, attempts: u32, begun: Instant, status: Status) -> ClientError {
        ClientError::from_status(&self.server, attempts, begun.elapsed(), status)
    }

    /// Waits before the next attempt, or says why there is none.
    async fn pause(
        &self,
        attempts: u32,
        begun: Instant,
        status: Status,
    ) -> Result<(), ClientError> {
        match self.retry.after(attempts, &status) {
            Some(delay) => {
                if delay > SILENCE_MAX {
                    let (said, delay) = (status.message(), seconds(delay));
                    eprintln!("medfleet: {said}; again in {delay}");
                }
                tokio::time::sleep(delay).await;
                Ok(())
            }
            None => Err(self.give_up(attempts, begun, status)),
        }
    }
}

/// What every such answer holds.
fn held<T>(part: Option<T>, missing: &'static str) -> Result<T, ClientError> {
    part.ok_or(ClientError::Protocol { missing })
}

fn endpoint(server: &str, files: &TlsFiles) -> Result<Endpoint, ClientError> {
    let no_address = || ClientError::Server {
        server: server.to_owned(),
    };
    // A URL of another scheme, or with the scheme in capitals, would be called in plain text.
    if !server.starts_with("http://") && !server.starts_with("https://") {
        return Err(no_address());
    }
    let endpoint = Endpoint::from_shared(server.to_owned()).map_err(|_invalid| no_address())?;
    let endpoint = of_many_calls(endpoint)
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_MAX);
    if !server.starts_with("https:") {
        let without_use = match files {
            TlsFiles { ca: Some(_), .. } => "--ca",
            TlsFiles {
                client_cert: Some(_),
                ..
            } => "--client-cert",
            _ => return Ok(endpoint),
        };
        return Err(ClientError::PlainText {
            server: server.to_owned(),
            flag: without_use,
        });
    }
    let ca = files
        .ca
        .as_ref()
        .ok_or_else(|| ClientError::NoCertificates {
            server: server.to_owned(),
        })?;
    let authorities = pem(ca, AUTHORITIES)?;
    // TLS would take it and trust nobody, and the fleet's certificate would be blamed.
    if validities(&authorities).is_empty() {
        let nothing = std::io::Error::other("it holds no certificate");
        return Err(unusable(ca, AUTHORITIES, nothing));
    }
    let authorities = Certificate::from_pem(authorities);
    let tls = ClientTlsConfig::new().ca_certificate(authorities);
    let trusting = endpoint.clone().tls_config(tls.clone());
    let trusting = trusting.map_err(|error| unusable(ca, AUTHORITIES, error))?;
    let (Some(cert), Some(key)) = (&files.client_cert, &files.client_key) else {
        return Ok(trusting);
    };
    let identity = Identity::from_pem(pem(cert, SHOWN)?, pem(key, SHOWN)?);
    let showing = endpoint.tls_config(tls.identity(identity));
    showing.map_err(|error| unusable(cert, SHOWN, error))
}

/// The content of a PEM file.
fn pem(path: &Path, what: &'static str) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|error| unusable(path, what, error))
}

fn unusable(
    path: &Path,
    what: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> ClientError {
    ClientError::Certificates {
        path: path.to_path_buf(),
        what,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::net::TcpListener;
    use tonic::service::Routes;
    use tonic::transport::server::TcpIncoming;
    use tonic::transport::{Server, ServerTlsConfig};

    use super::*;
    use crate::exit::Exit;

    #[tokio::test]
    async fn a_call_that_nobody_answers_ends() {
        let fleet = Fleet::plain("http://127.0.0.1:1", "t");
        let mut client = Client::new(&fleet, Retry::PATIENT).expect("a URL");
        client.answer_max = Duration::from_millis(10);
        let never = |(), ()| std::future::pending::<Result<Response<()>, Status>>();
        let error = client.on(&(), &(), never).await.expect_err("nothing came");
        assert_eq!(error.exit(), Exit::Unreachable);
        let said = error.to_string();
        assert!(said.contains("no answer came within 10 ms"), "{said}");
    }

    /// One that knows no method.
    #[tokio::test]
    async fn a_server_that_demands_a_certificate_is_shown_one() {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]);
        let own = own.expect("a certificate");
        let (cert, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, content: &str| -> Option<PathBuf> {
            let path = folder.path().join(name);
            std::fs::write(&path, content).expect("is written");
            Some(path)
        };
        let without = TlsFiles {
            ca: file("ca.pem", &cert),
            ..TlsFiles::default()
        };
        let with = TlsFiles {
            client_cert: file("client.pem", &cert),
            client_key: file("client.key", &key),
            ..without.clone()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = format!("https://{}", listener.local_addr().expect("bound"));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&cert, &key))
            .client_ca_root(Certificate::from_pem(&cert));
        let served = Server::builder()
            .tls_config(tls)
            .expect("good files")
            .add_routes(Routes::default())
            .serve_with_incoming(TcpIncoming::from(listener));
        let is_answered = async |tls: TlsFiles| {
            let fleet = Fleet {
                tls,
                ..Fleet::plain(&address, "t")
            };
            let client = Client::new(&fleet, Retry::ONCE);
            let refused = client.expect("good files").pauses().await;
            let refused = refused.expect_err("it knows no method");
            matches!(&refused, ClientError::Refused { code, .. } if *code == "UNIMPLEMENTED")
        };
        let calls = async { (is_answered(without).await, is_answered(with).await) };
        let answered = tokio::select! {
            ended = served => panic!("the server ended: {ended:?}"),
            answered = calls => answered,
        };
        assert_eq!(answered, (false, true));
    }

    #[test]
    fn what_is_neither_http_nor_https_is_not_called_in_plain_text() {
        for server in ["HTTPS://fleet:1", "grpcs://fleet:1", "htps://fleet:1"] {
            let refused = endpoint(server, &TlsFiles::default());
            let refused = refused.expect_err("whoever wrote it wants TLS");
            assert_eq!(refused.exit(), Exit::Usage);
            let said = refused.to_string();
            assert!(said.contains("expected http://HOST:PORT or"), "{said}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named_with_their_flag() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ca = folder.path().join("ca.pem");
        let own = rcgen::generate_simple_self_signed(vec!["fleet".to_owned()]);
        std::fs::write(&ca, own.expect("a certificate").cert.pem()).expect("is written");
        let files = TlsFiles {
            ca: Some(ca),
            client_cert: Some("not-there.pem".into()),
            client_key: Some("not-there.key".into()),
        };
        let check = |server: &str, expected: &str| {
            let refused = endpoint(server, &files).expect_err("not a good one");
            assert_eq!(refused.exit(), Exit::Usage);
            assert!(refused.to_string().contains(expected), "{refused}");
        };
        check("https://fleet:1", "not-there.pem as what is shown");
        check("http://fleet:1", "--ca is for TLS alone");
        std::fs::write(folder.path().join("none.pem"), "a token").expect("is written");
        let none = TlsFiles {
            ca: Some(folder.path().join("none.pem")),
            ..TlsFiles::default()
        };
        let refused = endpoint("https://fleet:1", &none).expect_err("nobody is trusted by it");
        assert!(refused.to_string().contains("(--ca)"), "{refused}");
        let shown = TlsFiles { ca: None, ..files };
        let refused = endpoint("http://fleet:1", &shown).expect_err("nobody is shown it");
        assert_eq!(refused.exit(), Exit::Usage);
        let said = refused.to_string();
        assert!(said.contains("--client-cert is for TLS alone"), "{said}");
    }
}
