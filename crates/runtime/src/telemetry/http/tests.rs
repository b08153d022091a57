//! A collector that answers as it is told, on a real port.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use tracing::info_span;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::*;
use crate::telemetry::{OtlpProtocol, Telemetry, TelemetryConfig};

/// What it answers next, then 200; and what it was sent.
#[derive(Clone, Debug, Default)]
struct Collector {
    answers: Arc<Mutex<VecDeque<u16>>>,
    received: Arc<Mutex<Vec<ResourceSpans>>>,
}

async fn take(
    State(collector): State<Collector>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::http::StatusCode {
    assert_eq!(headers[CONTENT_TYPE.as_str()], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("is protobuf");
    let mut received = collector.received.lock().expect("no panic holds it");
    received.extend(request.resource_spans);
    let mut answers = collector.answers.lock().expect("no panic holds it");
    let answer = answers.pop_front().unwrap_or(200);
    axum::http::StatusCode::from_u16(answer).expect("a status")
}

/// The spans that arrive of one, where the collector answers so.
async fn arrived(answers: &[u16]) -> Vec<ResourceSpans> {
    let collector = Collector::default();
    let first = answers.iter().copied().collect();
    *collector.answers.lock().expect("no panic holds it") = first;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds");
    let address = listener.local_addr().expect("has an address");
    let router = Router::new().route(PATH, post(take));
    let router = router.with_state(collector.clone());
    let server = async { axum::serve(listener, router).await.expect("serves") };
    let config = TelemetryConfig {
        log: "off".to_owned(),
        // A slash at the end is no other address.
        otlp_endpoint: Some(format!("http://{address}/")),
        otlp_protocol: OtlpProtocol::Http,
        ..TelemetryConfig::default()
    };
    let sent = async {
        let writer = BoxMakeWriter::new(std::io::sink);
        let telemetry = Telemetry::with_writer("medfleet-sample", &config, writer);
        let telemetry = telemetry.expect("the settings are right");
        tracing::dispatcher::with_default(telemetry.dispatch(), || {
            info_span!(target: "medfleet_encode::work", "encode chunk").in_scope(|| ());
        });
        telemetry.shutdown(Duration::from_secs(30)).await;
    };
    tokio::select! {
        () = server => {}
        () = sent => {}
    }
    let received = collector.received.lock().expect("no panic holds it");
    received.clone()
}

fn says(spans: &ResourceSpans, key: &str) -> Option<String> {
    let resource = spans.resource.iter().flat_map(|one| &one.attributes);
    let scopes = spans.scope_spans.iter().flat_map(|scope| &scope.spans);
    let attributes = resource.chain(scopes.flat_map(|span| &span.attributes));
    let found = attributes.into_iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn a_span_arrives_with_who_made_it() {
    let received = arrived(&[]).await;
    assert_eq!(received.len(), 1);
    let name = says(&received[0], "service.name");
    assert_eq!(name.as_deref(), Some("medfleet-sample"));
    let role = says(&received[0], "medfleet.role");
    assert_eq!(role.as_deref(), Some("encode"));
    assert_eq!(
        received[0].scope_spans[0].spans[0].name, "encode chunk",
        "{received:?}"
    );
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let check = async |answers: &[u16], tries: usize| {
        assert_eq!(arrived(answers).await.len(), tries, "{answers:?}");
    };
    tokio::join!(
        check(&[503, 429], 3),
        check(&[502, 504, 503, 503], 4),
        check(&[400], 1),
        check(&[307], 1),
    );
}

#[tokio::test]
async fn an_address_is_the_collectors_alone() {
    let made = |endpoint: &str| HttpExporter::new(endpoint, Duration::from_secs(1));
    let exporter = made("http://collector:4318/otlp").expect("is an address");
    assert_eq!(
        exporter.url.as_str(),
        "http://collector:4318/otlp/v1/traces"
    );
    let twice = made("http://collector:4318/v1/traces/").expect_err("names the path");
    assert!(matches!(twice, TelemetryError::Path), "{twice}");
    assert!(made("http://[broken").is_err());
}
