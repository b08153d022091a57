//! Carries a trace across processes as W3C `traceparent` and `tracestate` texts, in message headers and gRPC metadata.
//! Others use these functions and never name opentelemetry.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::ids;

/// The headers that continue the span's trace elsewhere: `traceparent`, and `tracestate` when there is one.
/// Empty without telemetry.
pub fn inject(span: &Span) -> Vec<(String, String)> {
    let mut headers = Headers(Vec::new());
    let context = Context::new().with_remote_span_context(ids_of(span));
    TraceContextPropagator::new().inject_context(&context, &mut headers);
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
    continues(span, context_of(headers))
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
    let follows = continues(span, context);
    if follows && sender.is_sampled() {
        span.add_link(sender);
    }
    follows
}

fn continues(span: &Span, context: Context) -> bool {
    let parent = context.span().span_context().clone();
    if !parent.is_valid() {
        return false;
    }
    let held = span.with_subscriber(|(id, dispatch)| ids::set_parent(dispatch, id, &parent));
    held.flatten()
        .unwrap_or_else(|| span.set_parent(context).is_ok())
}

/// What `traceparent` and `tracestate` among the headers say.
fn context_of<K, V>(headers: &[(K, V)]) -> Context
where
    K: AsRef<str>,
    V: AsRef<str>,
{
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Given(headers))
}

/// The span's ids; invalid ones without telemetry, and for a span that has none.
fn ids_of(span: &Span) -> SpanContext {
    let held = span.with_subscriber(|(id, dispatch)| ids::ids_of(dispatch, id));
    held.flatten()
        .unwrap_or_else(|| span.context().span().span_context().clone())
}

/// The span's trace id: 32 lowercase hexadecimal digits; none without telemetry or for a disabled span.
pub fn trace_id(span: &Span) -> Option<String> {
    let ids = ids_of(span);
    ids.is_valid().then(|| ids.trace_id().to_string())
}

/// Whether the span's trace is recorded: what is known only at the end of a span need not be written into it otherwise.
pub fn is_recorded(span: &Span) -> bool {
    ids_of(span).is_sampled()
}

/// As [`trace_id`], only where the trace is recorded.
pub(crate) fn recorded_trace_id(span: &Span) -> Option<String> {
    let ids = ids_of(span);
    (ids.is_valid() && ids.is_sampled()).then(|| ids.trace_id().to_string())
}

/// Headers as they came.
struct Given<'a, K, V>(&'a [(K, V)]);

impl<K: AsRef<str>, V: AsRef<str>> Extractor for Given<'_, K, V> {
    fn get(&self, key: &str) -> Option<&str> {
        let named = |(name, _): &&(K, V)| name.as_ref().eq_ignore_ascii_case(key);
        self.0.iter().find(named).map(|(_, value)| value.as_ref())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

/// Headers as they go.
struct Headers(Vec<(String, String)>);

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}
