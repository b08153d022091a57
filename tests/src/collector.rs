//! A real OTLP receiver, over gRPC and over HTTP: what an operator's collector would be sent, kept for the test to look at.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, StatusCode};
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
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

/// A span as it was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// What is said of who made it.
    pub resource: Vec<KeyValue>,
    pub span: Span,
}

impl Received {
    /// An attribute of the span, or else of who made it.
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        let mut all = self.span.attributes.iter().chain(&self.resource);
        all.find(|attribute| attribute.key == key)
            .and_then(|attribute| attribute.value.as_ref()?.value.as_ref())
    }
}

type Spans = Arc<Mutex<Vec<Received>>>;

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

async fn receive(State(spans): State<Spans>, headers: HeaderMap, body: Bytes) -> StatusCode {
    match read(&headers, &body) {
        Ok(request) => {
            keep(&spans, request);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

/// A request as it is, or packed by gzip.
fn read(headers: &HeaderMap, body: &[u8]) -> Result<ExportTraceServiceRequest> {
    let mut unpacked = Vec::new();
    let body = match headers.get(CONTENT_ENCODING) {
        None => body,
        Some(encoding) => {
            ensure!(encoding == "gzip", "packed by {encoding:?}");
            GzDecoder::new(body).read_to_end(&mut unpacked)?;
            &unpacked
        }
    };
    Ok(ExportTraceServiceRequest::decode(body)?)
}

fn keep(spans: &Spans, request: ExportTraceServiceRequest) {
    let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
    for made in request.resource_spans {
        let resource = made.resource.map(|resource| resource.attributes);
        let resource = resource.unwrap_or_default();
        let received = made.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(received.map(|span| Received {
            resource: resource.clone(),
            span,
        }));
    }
}

impl Collector {
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

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn http_endpoint(&self) -> String {
        format!("http://{}", self.http)
    }

    /// All spans received of one trace, 32 hexadecimal digits.
    pub fn trace(&self, trace_id: &str) -> Vec<Received> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans
            .iter()
            .filter(|received| hex(&received.span.trace_id) == trace_id)
            .cloned()
            .collect()
    }

    /// Every text in every attribute, event and name of all spans received, and of who made them.
    pub fn texts(&self) -> BTreeSet<String> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = spans.iter().map(|received| format!("{received:?}"));
        texts.collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The spans that no parent in the same list explains, by name: a connected trace has exactly one.
pub fn roots(received: &[Received]) -> Vec<&str> {
    let spans = || received.iter().map(|received| &received.span);
    let known: BTreeSet<&[u8]> = spans().map(|span| span.span_id.as_slice()).collect();
    spans()
        .filter(|span| !known.contains(span.parent_span_id.as_slice()))
        .map(|span| span.name.as_str())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
