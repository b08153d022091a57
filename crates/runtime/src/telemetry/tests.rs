//! Logs, spans and propagation, each under its own subscriber and none of them global.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SimpleSpanProcessor, SpanData};
use serde_json::json;
use tracing::field::Empty;
use tracing::{debug_span, error, info, info_span};

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

/// Logs one line in a span with words of all kinds, some of which are known later only.
fn say_something_in_a_span(telemetry: &Telemetry) {
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let span = info_span!(
            "unit",
            otel.name = "encode work.encode.tiny",
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.destination.name = %format_args!("work.{}.tiny", "encode"),
            rpc.service = "medfleet.v1.Jobs",
            rpc.method = "SubmitJob",
            gen_ai.usage.output_tokens = Empty,
            medfleet.job = "a \"b\" \\ c\n",
            medfleet.deliveries = 2_u64,
            medfleet.share = 1.0,
            medfleet.behind = -3_i64,
            medfleet.is_first = true,
            medfleet.verdict = Empty,
        );
        span.record("gen_ai.usage.output_tokens", 7);
        span.record("medfleet.verdict", "retry");
        span.record("medfleet.verdict", "done");
        span.in_scope(|| info!("said"));
    });
}

#[test]
fn a_line_leaves_out_what_only_a_collector_wants() {
    let (telemetry, lines) = logging("info", LogFormat::Json);
    say_something_in_a_span(&telemetry);
    let text = lines.text();
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON line");
    let expected = json!([{
        "name": "unit",
        "messaging.destination.name": "work.encode.tiny",
        "rpc.method": "SubmitJob",
        "medfleet.job": "a \"b\" \\ c\n",
        "medfleet.deliveries": 2,
        "medfleet.share": 1.0,
        "medfleet.behind": -3,
        "medfleet.is_first": true,
        "medfleet.verdict": "done",
    }]);
    assert_eq!(line["spans"], expected);
    assert_eq!(line["fields"], json!({ "message": "said" }));
}

#[test]
fn lines_of_a_quiet_log_name_their_spans_too() {
    let (telemetry, lines) = logging("error", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        info_span!("unit", medfleet.job = "j").in_scope(|| {
            info!("not shown");
            error!("shown");
        });
    });
    let text = lines.text();
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON line");
    let expected = json!([{ "name": "unit", "medfleet.job": "j" }]);
    assert_eq!(line["spans"], expected);
}

#[test]
fn levels_are_by_module_and_nothing_else_is_a_level() {
    let check = |log: &str, expected: Option<[bool; 3]>| {
        let shown = filter(log).ok().map(|filter| {
            let enables = |target, level| filter.would_enable(target, &level);
            [
                enables("medfleet_queue::api", tracing::Level::DEBUG),
                enables("medfleet_worker", tracing::Level::INFO),
                enables("h2", tracing::Level::WARN),
            ]
        });
        assert_eq!(shown, expected, "{log}");
    };
    check("info", Some([false, true, true]));
    check("DEBUG", Some([true, true, true]));
    check("error", Some([false, false, false]));
    check("off", Some([false, false, false]));
    check("info,medfleet_queue=debug", Some([true, true, true]));
    check("info, h2=off", Some([false, true, false]));
    check("medfleet_queue=trace", Some([true, false, false]));
    for wrong in [
        "",
        "loud",
        "info,",
        "=info",
        "h2=",
        "h2=loud",
        "a=info=debug",
    ] {
        check(wrong, None);
    }
    check("[unit]=debug", None);
}

#[test]
fn a_line_for_people_leaves_it_out_too() {
    let (telemetry, lines) = logging("info", LogFormat::Text);
    say_something_in_a_span(&telemetry);
    let text = lines.text();
    let begin =
        r#"unit{messaging.destination.name=work.encode.tiny rpc.method="SubmitJob" medfleet.job="#;
    let end = r#"medfleet.is_first=true medfleet.verdict="retry" medfleet.verdict="done"}"#;
    assert!(text.contains(begin) && text.contains(end), "{text}");
    assert!(text.contains("said"), "{text}");
    for left_out in ["otel.", "messaging.system", "rpc.service", "gen_ai."] {
        assert!(!text.contains(left_out), "{left_out} in {text}");
    }
}

#[test]
fn spans_that_say_nothing_of_their_own_are_named() {
    let (telemetry, lines) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let outer = info_span!("outer", otel.kind = "client", medfleet.verdict = Empty);
        outer.in_scope(|| info_span!("inner").in_scope(|| info!("said")));
        outer.record("medfleet.verdict", "done");
        outer.in_scope(|| info!("said"));
    });
    let spans: Vec<serde_json::Value> = lines
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .map(|line: serde_json::Value| line["spans"].clone())
        .collect();
    let expected = [
        json!([{ "name": "outer" }, { "name": "inner" }]),
        json!([{ "name": "outer", "medfleet.verdict": "done" }]),
    ];
    assert_eq!(spans, expected);
}

#[test]
fn what_only_a_collector_wants_is_not_written_without_one() {
    struct Counts<'a>(&'a Cell<u32>);
    impl fmt::Display for Counts<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("chat tiny")
        }
    }
    let written = |telemetry: &Telemetry| {
        let times = Cell::new(0);
        tracing::dispatcher::with_default(telemetry.dispatch(), || {
            drop(info_span!("write text", otel.name = %Counts(&times)));
        });
        times.get()
    };
    for format in [LogFormat::Json, LogFormat::Text] {
        assert_eq!(written(&logging("info", format).0), 0);
    }
    let (exporting, collected) = exporting();
    assert_eq!(written(&exporting), 1);
    let spans = collected.0.lock().expect("no panic holds it");
    let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["chat tiny"]);
}

#[test]
fn ids_that_somebody_has_stay_as_they_are() {
    let (telemetry, _) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let other = inject(&info_span!("other"));
        let parent = info_span!("parent");
        let child = parent.in_scope(|| info_span!("child"));
        assert!(!set_parent(&parent, &other), "its child has them");
        assert_eq!(trace_id(&child), trace_id(&parent));
        assert!(!set_parent(&child, &other), "they were told above");
        let sibling = info_span!(parent: &parent, "sibling");
        assert_eq!(trace_id(&sibling), trace_id(&parent));
        let root = parent.in_scope(|| info_span!(parent: None, "root"));
        assert_ne!(trace_id(&root), trace_id(&parent));
    });
}

/// What is logged decides nothing about a trace.
#[test]
fn spans_of_others_and_those_for_the_log_alone_stand_in_no_traces_way() {
    let (telemetry, _) = logging("debug", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let outer = info_span!("outer");
        let between = outer.in_scope(|| info_span!(target: "h2::codec", "not ours"));
        let between = between.in_scope(|| debug_span!("for the log"));
        assert!(!between.is_disabled());
        assert_eq!(inject(&between), inject(&outer), "they are seen through");
        let inner = between.in_scope(|| info_span!("inner"));
        assert_eq!(trace_id(&inner), trace_id(&outer));
    });
}

#[test]
fn what_a_caller_says_of_its_trace_is_handed_on() {
    let (telemetry, _) = logging("info", LogFormat::Json);
    tracing::dispatcher::with_default(telemetry.dispatch(), || {
        let trace = "0a".repeat(16);
        for flags in ["00", "01"] {
            let given = [
                (
                    "traceparent",
                    format!("00-{trace}-{}-{flags}", "0b".repeat(8)),
                ),
                ("tracestate", "site=a".to_owned()),
            ];
            let taken = info_span!("taken");
            assert!(set_parent(&taken, &given));
            let sent = inject(&taken.in_scope(|| info_span!("sent")));
            let [(_, parent), (_, state)] = sent.as_slice() else {
                panic!("{sent:?}");
            };
            assert!(parent.starts_with(&format!("00-{trace}-")), "{parent}");
            assert!(parent.ends_with(flags), "{parent}");
            assert_eq!(state, "site=a");
        }
    });
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
        // It is not there; or it is seen through, while the subscriber of another test wants such spans.
        let sent = inject(&inner);
        assert!(sent.is_empty() || sent == inject(&outer), "{sent:?}");
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
    let provider = provider_builder("medfleet")
        .with_span_processor(processor)
        .build();
    let config = TelemetryConfig {
        log: "off".to_owned(),
        otlp_endpoint: Some("http://collector:4317".to_owned()),
        ..TelemetryConfig::default()
    };
    let telemetry = Telemetry::assemble(&config, Lines::default().writer(), Some(provider));
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
