//! A real OTLP receiver, over gRPC and over HTTP: what an operator's collector would be sent, kept for the test to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, async_trait};

/// A collector on two free loopback ports; stops when dropped.
#[derive(Debug)]
pub struct Collector {
    grpc: SocketAddr,
    http: SocketAddr,
    spans: Spans,
    servers: [tokio::task::JoinHandle<()>; 2],
}

type Spans = Arc<Mutex<Vec<Span>>>;

#[derive(Debug)]
struct Receiver(Spans);

#[async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        keep(&self.0, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn receive(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => {
            keep(&spans, request);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

fn keep(spans: &Spans, request: ExportTraceServiceRequest) {
    let scopes = request.resource_spans.into_iter();
    let received = scopes.flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
    spans
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(received);
}

impl Collector {
    /// Starts listening.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listen = async || {
            let listener = TcpListener::bind("127.0.0.1:0").await;
            listener.context("bind the collector")
        };
        let (listener, other) = (listen().await?, listen().await?);
        let (grpc, http) = (listener.local_addr()?, other.local_addr()?);
        let spans = Spans::default();
        let service = TraceServiceServer::new(Receiver(Arc::clone(&spans)));
        let over_grpc = crate::beside(async move {
            let serving = tonic::transport::Server::builder().add_service(service);
            if let Err(error) = serving
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
            {
                panic!("the collector failed: {error}");
            }
        });
        let router = axum::Router::new().route("/v1/traces", axum::routing::post(receive));
        let router = router.with_state(Arc::clone(&spans));
        let over_http = crate::beside(async move {
            if let Err(error) = axum::serve(other, router).await {
                panic!("the collector failed: {error}");
            }
        });
        Ok(Self {
            grpc,
            http,
            spans,
            servers: [over_grpc, over_http],
        })
    }

    /// The endpoint to configure for gRPC.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// The endpoint to configure for HTTP.
    #[must_use]
    pub fn http_endpoint(&self) -> String {
        format!("http://{}", self.http)
    }

    /// All spans received of one trace, 32 hexadecimal digits.
    #[must_use]
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans
            .iter()
            .filter(|span| hex(&span.trace_id) == trace_id)
            .cloned()
            .collect()
    }

    /// Every text in every attribute, event and name of all spans received.
    #[must_use]
    pub fn texts(&self) -> BTreeSet<String> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().map(|span| format!("{span:?}")).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The spans that no parent in the same list explains, by name: a connected trace has exactly one.
#[must_use]
pub fn roots(spans: &[Span]) -> Vec<String> {
    let known: BTreeMap<&[u8], &Span> = spans
        .iter()
        .map(|span| (span.span_id.as_slice(), span))
        .collect();
    let orphan = |span: &&Span| !known.contains_key(span.parent_span_id.as_slice());
    spans
        .iter()
        .filter(orphan)
        .map(|span| span.name.clone())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
