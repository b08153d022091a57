//! The gRPC server: the API, reflection and the health service, with TLS and limits as configured.
//!
//! A call goes through `Timely` (its request comes in time), the gate (whose it is) and `Weighed` (there is room for it); one that
//! needs no token through `Timely` and `Unnamed` (its connection has few of them).

use std::future::Future;
use std::time::Duration;

use medfleet_proto::FILE_DESCRIPTOR_SET;
use medfleet_proto::v1::dead_letter_service_server::{self, DeadLetterServiceServer};
use medfleet_proto::v1::job_service_server::{self, JobServiceServer};
use medfleet_proto::v1::operator_service_server::{self, OperatorServiceServer};
use medfleet_worker::http2::{API_CALLS_MAX, taking_calls};
use medfleet_worker::{PemFile, identity};
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Router;
use tonic::transport::{Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET;
use tonic_health::server::HealthReporter;

use crate::Error;
use crate::calls::Gate;
use crate::config::TlsConfig;
use crate::connections::{self, ConnectionLimits};
use crate::dead::DeadLetters;
use crate::load::{Load, SMALL_BYTES, Weighed};
use crate::operator::Operator;
use crate::rpc::Jobs;
use crate::timely::Timely;
use crate::unnamed::Unnamed;

/// Largest message taken: 3 MiB of content, the texts, and room for names.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEP_ALIVE_WAIT: Duration = Duration::from_secs(20);
/// The services that clients call, and the name under which the health of all of them is asked for.
const SERVICES: [&str; 4] = [
    "",
    job_service_server::SERVICE_NAME,
    dead_letter_service_server::SERVICE_NAME,
    operator_service_server::SERVICE_NAME,
];

/// The services that are served.
pub(crate) struct Served {
    pub(crate) jobs: Jobs,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) operator: Operator,
    /// What every call of them passes first.
    pub(crate) gate: Gate,
    /// How long the request of a call may take to come, uploads apart; in a stream of requests, the next of them.
    pub(crate) request_time_max: Duration,
    /// What a caller is told to wait when a limit of the fleet is reached.
    pub(crate) retry_after: Duration,
}

/// The server with everything it serves.
pub(crate) async fn build(
    served: Served,
    tls: Option<&TlsConfig>,
) -> Result<(Router, HealthReporter), Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tell_health(&reporter, true).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
        // The descriptors also hold the fleet's internal services, which are not served here.
        .with_service_name(job_service_server::SERVICE_NAME)
        .with_service_name(dead_letter_service_server::SERVICE_NAME)
        .with_service_name(operator_service_server::SERVICE_NAME)
        .with_service_name("grpc.health.v1.Health")
        .build_v1()?;
    let mut server = taking_calls(Server::builder(), API_CALLS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WAIT));
    if let Some(tls) = tls {
        server = server
            .tls_config(tls_config(tls).await?)
            .map_err(Error::Tls)?;
    }
    let (gate, limit) = (served.gate, served.request_time_max);
    // Nobody has to say who they are to ask these.
    let health = health.max_decoding_message_size(SMALL_BYTES);
    let reflection = reflection.max_decoding_message_size(SMALL_BYTES);
    let (load, retry_after) = (Load::default(), served.retry_after);
    let jobs = JobServiceServer::new(served.jobs).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let letters = DeadLetterServiceServer::new(served.dead_letters);
    let operator = OperatorServiceServer::new(served.operator);
    let router = server
        .add_service(Timely::new(Unnamed::new(health, retry_after), limit))
        .add_service(Timely::of_streams(
            Unnamed::new(reflection, retry_after),
            limit,
        ))
        .add_service(Timely::new(
            InterceptedService::new(Weighed::new(jobs, load.clone(), retry_after), gate.clone()),
            limit,
        ))
        .add_service(Timely::new(
            InterceptedService::new(
                Weighed::new(letters, load.clone(), retry_after),
                gate.clone(),
            ),
            limit,
        ))
        .add_service(Timely::new(
            InterceptedService::new(Weighed::new(operator, load, retry_after), gate),
            limit,
        ));
    Ok((router, reporter))
}

/// Tells who asks for the health of a service, or of all, whether calls can be answered.
pub(crate) async fn tell_health(reporter: &HealthReporter, is_serving: bool) {
    let status = match is_serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Tells who watches the health that no calls are answered any more, and ends their streams: the server's stop would wait for
/// them.
pub(crate) async fn end_health(mut reporter: HealthReporter) {
    tell_health(&reporter, false).await;
    for service in SERVICES {
        reporter.clear_service_status(service).await;
    }
}

async fn tls_config(tls: &TlsConfig) -> Result<ServerTlsConfig, Error> {
    let cert = PemFile::new("ingest.tls.cert", &tls.cert);
    let key = PemFile::new("ingest.tls.key", &tls.key);
    let identity = identity(cert, key).await?;
    let mut config = ServerTlsConfig::new().identity(identity);
    if let Some(path) = &tls.client_ca {
        let authorities = PemFile::new("ingest.tls.client_ca", path);
        config = config.client_ca_root(authorities.certificates().await?);
    }
    Ok(config)
}

/// Serves until `stopped`, then lets the calls under way end.
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    limits: ConnectionLimits,
    stopped: impl Future<Output = ()>,
) -> Result<(), Error> {
    let incoming = connections::incoming(listener, limits);
    Ok(router
        .serve_with_incoming_shutdown(incoming, stopped)
        .await?)
}
