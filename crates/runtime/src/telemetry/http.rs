//! Sends spans as OTLP over HTTP/1.1: one POST of protobuf for a batch, to `/v1/traces` below the collector's address, tried
//! again where <https://opentelemetry.io/docs/specs/otlp/#otlphttp> says so and no longer than an export may take.
//! The exporter library has the same behind features that bring further packages; the client here is the blob store's.

use std::time::Duration;

use medfleet_core::chain;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode, Url};
use tokio::runtime::Handle;

use super::TelemetryError;

/// What is added to the collector's address.
const PATH: &str = "/v1/traces";
/// Pauses between the tries, as the exporter over gRPC makes them.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// Answers after which the same may be sent again.
const PASSING: [StatusCode; 4] = [
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

#[derive(Debug)]
pub(super) struct HttpExporter {
    client: Client,
    url: Url,
    timeout: Duration,
    resource: ResourceAttributesWithSchema,
    handle: Handle,
}

/// Why a batch was not taken.
struct Refusal {
    reason: String,
    /// Whether another try may be taken.
    passes: bool,
}

impl HttpExporter {
    /// Nothing is sent yet. Must be called inside a tokio runtime, which carries the connection. The collector is called
    /// directly, never by a proxy that the environment names, as over gRPC.
    ///
    /// # Errors
    /// An address that is none or names the path itself, and certificates of the machine that cannot be read.
    pub(super) fn new(endpoint: &str, timeout: Duration) -> Result<Self, TelemetryError> {
        let base = endpoint.trim_end_matches('/');
        if base.ends_with(PATH) {
            return Err(TelemetryError::Path);
        }
        let url = Url::parse(&format!("{base}{PATH}")).map_err(|_| TelemetryError::Endpoint)?;
        // The client takes its TLS from the process. Being the second to name it is fine: it is ring everywhere here.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut client = Client::builder().no_proxy().redirect(Policy::none());
        if url.scheme() == "http" {
            // No certificate is looked at, so that none has to be here.
            client = client.tls_certs_only(std::iter::empty::<Certificate>());
        }
        Ok(Self {
            client: client.build().map_err(TelemetryError::Client)?,
            url,
            timeout,
            resource: ResourceAttributesWithSchema::default(),
            handle: Handle::current(),
        })
    }
}

impl SpanExporter for HttpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let (client, url, timeout) = (self.client.clone(), self.url.clone(), self.timeout);
        let sending =
            async move { tokio::time::timeout(timeout, send(&client, &url, &body)).await };
        // Whoever exports has a thread and no runtime; sockets and timers need one.
        match self.handle.spawn(sending).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => Err(OTelSdkError::InternalFailure(reason)),
            Ok(Err(_)) => Err(OTelSdkError::Timeout(timeout)),
            Err(ended) => Err(OTelSdkError::InternalFailure(ended.to_string())),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Until the collector takes it, refuses it for good, or was asked once more after each of [`PAUSES`].
async fn send(client: &Client, url: &Url, body: &[u8]) -> Result<(), String> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let refusal = match post(client, url, body).await {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        match pauses.next().filter(|_| refusal.passes) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(refusal.reason),
        }
    }
}

async fn post(client: &Client, url: &Url, body: &[u8]) -> Result<(), Refusal> {
    let request = client
        .post(url.clone())
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(body.to_vec());
    match request.send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(Refusal {
            reason: format!("the collector answers {}", answer.status()),
            passes: PASSING.contains(&answer.status()),
        }),
        // Without the address, in which there may be a password.
        Err(error) => Err(Refusal {
            reason: chain(&error.without_url()),
            passes: true,
        }),
    }
}

#[cfg(test)]
mod tests;
