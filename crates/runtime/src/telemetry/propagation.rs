//! Carries a trace across processes as W3C `traceparent` and `tracestate` texts, in message headers and gRPC metadata.
//! Others use these functions and never name opentelemetry.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The headers that continue the span's trace elsewhere: `traceparent`, and `tracestate` when there is one.
/// Empty without telemetry.
#[must_use]
pub fn inject(span: &Span) -> Vec<(String, String)> {
    let mut headers = Headers(Vec::new());
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.0.retain(|(_, value)| !value.is_empty());
    headers.0
}

/// Makes the span continue the trace that the headers name; all other headers are ignored. Names compare without case.
/// Call it before the span is entered for the first time. True when the span now continues that trace; a missing or
/// broken header, or no telemetry, leaves it as it was: a bad trace context never stops a job.
pub fn set_parent<K, V>(span: &Span, headers: &[(K, V)]) -> bool
where
    K: AsRef<str>,
    V: AsRef<str>,
{
    let context = context_of(headers);
    context.span().span_context().is_valid() && span.set_parent(context).is_ok()
}

/// As [`set_parent`], for who takes a message: the span also links to that of who sent it, where the trace is recorded. The
/// conventions for messaging tie the two by a link, and the parent makes a job one trace; both are there.
pub fn follow<K, V>(span: &Span, headers: &[(K, V)]) -> bool
where
    K: AsRef<str>,
    V: AsRef<str>,
{
    let context = context_of(headers);
    let sender = context.span().span_context().clone();
    let follows = sender.is_valid() && span.set_parent(context).is_ok();
    if follows && sender.is_sampled() {
        span.add_link(sender);
    }
    follows
}

/// What `traceparent` and `tracestate` among the headers say.
fn context_of<K, V>(headers: &[(K, V)]) -> Context
where
    K: AsRef<str>,
    V: AsRef<str>,
{
    let found = headers.iter().filter_map(|(name, value)| {
        let name = name.as_ref().to_ascii_lowercase();
        ["traceparent", "tracestate"]
            .contains(&name.as_str())
            .then(|| (name, value.as_ref().to_owned()))
    });
    TraceContextPropagator::new().extract(&Headers(found.collect()))
}

/// The span's trace id: 32 lowercase hexadecimal digits; none without telemetry or for a disabled span.
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let id = context.span().span_context().clone();
    id.is_valid().then(|| id.trace_id().to_string())
}

/// Whether the span's trace is recorded. What is known only at the end of a span is to be written into it only then: in a log
/// of JSON all fields of the span are read and written again for it, as much work as the span itself was.
#[must_use]
pub fn is_recorded(span: &Span) -> bool {
    span.context().span().span_context().is_sampled()
}

/// As [`trace_id`], only where the trace is recorded.
#[must_use]
pub(crate) fn recorded_trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let id = context.span().span_context().clone();
    (id.is_valid() && id.is_sampled()).then(|| id.trace_id().to_string())
}

struct Headers(Vec<(String, String)>);

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}
