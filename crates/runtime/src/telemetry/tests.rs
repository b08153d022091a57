//! Logs, spans and propagation, each under its own subscriber and none of them global.

use std::io::Write;
use std::sync::{Arc, Mutex};

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SimpleSpanProcessor, SpanData};
use tracing::{debug_span, info, info_span};

use super::*;

#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic holds it").clone())
            .expect("log lines are text")
    }

    fn writer(&self) -> BoxMakeWriter {
        let lines = self.clone();
        BoxMakeWriter::new(move || lines.clone())
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("no panic holds it")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl opentelemetry_sdk::trace::SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("no panic holds it").extend(batch);
        Ok(())
    }
}

fn logging(log: &str, format: LogFormat) -> (Telemetry, Lines) {
    let lines = Lines::default();
    let config = TelemetryConfig {
        log: log.to_owned(),
        log_format: format,
        ..TelemetryConfig::default()
    };
    let telemetry = Telemetry::with_writer("test", &config, lines.writer());
    (telemetry.expect("the settings are right"), lines)
}

#[test]
fn logs_are_json_and_filtered() {
    let (telemetry, lines) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        info!(slots = 3, "ready");
        tracing::debug!("not shown");
    });
    let text = lines.text();
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON line");
    assert_eq!(line["fields"]["message"], "ready");
    assert_eq!(line["fields"]["slots"], 3);
}

#[test]
fn a_trace_travels_without_exporter_and_with_a_quiet_log() {
    let (telemetry, _) = logging("error", LogFormat::Text);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let first = info_span!("accept");
        let headers = inject(&first);
        let id = trace_id(&first).expect("a trace id exists without a collector");
        assert_eq!(id.len(), 32);
        assert!(
            headers
                .iter()
                .any(|(k, v)| k == "traceparent" && v.contains(&id)),
            "{headers:?}"
        );
        let second = info_span!("work");
        assert!(set_parent(
            &second,
            &[("Traceparent", headers[0].1.as_str()), ("other", "x")]
        ));
        assert_eq!(trace_id(&second), Some(id.clone()));
        let child = second.in_scope(|| info_span!("inner"));
        assert_eq!(trace_id(&child), Some(id));
        assert_ne!(trace_id(&info_span!("another")), trace_id(&first));
    });
}

#[test]
fn a_span_inside_another_is_not_made_without_a_collector() {
    let (telemetry, _) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let outer = info_span!("its id travels");
        let inner = outer.in_scope(|| debug_span!("for a collector"));
        assert!(inner.is_disabled() && inject(&inner).is_empty());
        let within = || inner.in_scope(|| trace_id(&tracing::Span::current()));
        assert_eq!(outer.in_scope(within), trace_id(&outer));
    });
}

#[test]
fn bad_headers_and_no_telemetry_change_nothing() {
    let (telemetry, _) = logging("info", LogFormat::Text);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let span = info_span!("work");
        assert!(!set_parent(&span, &[("traceparent", "00-nonsense")]));
        assert!(!set_parent::<&str, &str>(&span, &[]));
        assert!(trace_id(&span).is_some());
    });
    tracing::dispatcher::with_default(&Dispatch::none(), || {
        let span = info_span!("work");
        assert_eq!((trace_id(&span), inject(&span).len()), (None, 0));
    });
}

/// Telemetry whose spans are kept as they would be exported.
fn exporting() -> (Telemetry, Collected) {
    let collected = Collected::default();
    let processor = SimpleSpanProcessor::new(Supervised::new(collected.clone()));
    let provider = provider_builder("medfleet", true)
        .with_span_processor(processor)
        .build();
    let config = TelemetryConfig {
        log: "off".to_owned(),
        otlp_endpoint: Some("http://collector:4317".to_owned()),
        ..TelemetryConfig::default()
    };
    let telemetry = Telemetry::assemble(&config, Lines::default().writer(), provider);
    (telemetry.expect("the settings are right"), collected)
}

#[test]
fn who_takes_a_message_links_to_who_sent_it() {
    let (telemetry, collected) = exporting();
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let (sends, takes) = (info_span!("sends"), info_span!("takes"));
        assert!(follow(&takes, &inject(&sends)));
        assert!(!follow(&sends, &[("traceparent", "00-nonsense")]));
        // What a caller does not record is not linked to: nobody could find it.
        let unrecorded = format!("00-{}-{}-00", "0a".repeat(16), "0b".repeat(8));
        assert!(follow(
            &info_span!("unrecorded"),
            &[("traceparent", unrecorded)]
        ));
    });
    let spans = collected.0.lock().expect("no panic holds it");
    let named = |name: &str| spans.iter().find(|span| span.name == name);
    let (sends, takes) = (named("sends"), named("takes"));
    let (sends, takes) = (sends.expect("exported"), takes.expect("exported"));
    let sender = sends.span_context.span_id();
    assert_eq!(takes.parent_span_id, sender);
    let links: Vec<_> = takes.links.iter().collect();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links[0].span_context.span_id(), sender);
    assert!(sends.links.is_empty());
    assert!(named("unrecorded").is_none());
}

#[test]
fn a_trace_is_recorded_where_it_is_exported_or_a_caller_records_it() {
    let (exporting, _) = exporting();
    tracing::dispatcher::with_default(exporting.dispatch(), || {
        assert!(is_recorded(&info_span!("begun here")));
    });
    let (telemetry, _) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        assert!(!is_recorded(&info_span!("begun here")));
        let ids = [&*"0a".repeat(16), &*"0b".repeat(8)].join("-");
        let recorded = info_span!("recorded by a caller");
        assert!(set_parent(
            &recorded,
            &[("traceparent", format!("00-{ids}-01"))]
        ));
        assert!(is_recorded(&recorded));
    });
    tracing::dispatcher::with_default(&Dispatch::none(), || {
        assert!(!is_recorded(&info_span!("of nobody")));
    });
}

#[test]
fn exported_spans_are_ours_and_carry_the_role() {
    let (telemetry, collected) = exporting();
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let outer = info_span!(target: "medfleet_encode::work", "encode chunk");
        outer.in_scope(|| {
            info_span!(target: "h2::codec", "not ours").in_scope(|| ());
            debug_span!(target: "medfleet_encode::work", "encode images").in_scope(|| ());
            info!(secret = "contents", "events stay in the log");
        });
    });
    let spans = collected.0.lock().expect("no panic holds it");
    let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["encode images", "encode chunk"]);
    assert!(spans[1].events.is_empty());
    let role = spans[1]
        .attributes
        .iter()
        .find(|a| a.key.as_str() == "medfleet.role");
    assert_eq!(
        role.map(|a| a.value.as_str().into_owned()),
        Some("encode".to_owned())
    );
}

#[tokio::test]
async fn wrong_settings_stop_and_an_absent_collector_does_not() {
    for protocol in [OtlpProtocol::Grpc, OtlpProtocol::Http] {
        wrong_addresses_stop_and_an_absent_collector_does_not(protocol).await;
    }
    let config = TelemetryConfig {
        log: "loud,=".to_owned(),
        ..TelemetryConfig::default()
    };
    assert!(Telemetry::with_writer("test", &config, Lines::default().writer()).is_err());
}

async fn wrong_addresses_stop_and_an_absent_collector_does_not(otlp_protocol: OtlpProtocol) {
    let with = |endpoint: &str| {
        let otlp_endpoint = Some(endpoint.to_owned());
        let otlp_timeout = DurationText::from_millis(200);
        let config = TelemetryConfig {
            otlp_endpoint,
            otlp_protocol,
            otlp_timeout,
            ..TelemetryConfig::default()
        };
        Telemetry::with_writer("test", &config, Lines::default().writer())
    };
    for wrong in [
        "collector:4317",
        "http://",
        "ftp://x",
        "http://[broken",
        "http:///path",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
    assert!(with("https://collector.example:4317").is_ok());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let nobody = format!("http://{}", listener.local_addr().expect("has an address"));
    drop(listener);
    let telemetry = with(&nobody).expect("an absent collector is not a wrong setting");
    tracing::dispatcher::with_default(telemetry.dispatch(), || info_span!("work").in_scope(|| ()));
    telemetry.shutdown(Duration::from_secs(10)).await;
}
