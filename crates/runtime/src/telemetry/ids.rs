//! Trace ids where there is no collector. They are made, inherited and handed on as an exporter's layer would do it, but nothing
//! else of a span is kept: no attributes are built, and polling a traced future does not read the clock.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Level, Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// Whether a span gets ids, whatever the log level is: other spans exist for log lines only and get none.
pub(super) fn has_ids(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && super::is_ours(metadata)
}

/// Gives every span of [`has_ids`] its ids. What begins here is not recorded; what a caller has marked as recorded goes on so.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

/// The ids of one span, kept with it.
#[derive(Debug)]
struct Held {
    ids: SpanContext,
    /// Whether the ids were handed out, to a child or another process, and must stay as they are.
    are_known: bool,
}

impl Held {
    fn tell(&mut self) -> SpanContext {
        self.are_known = true;
        self.ids.clone()
    }
}

/// The span's ids, or those of the nearest around it that has any; they stay as they are from now on. None where another layer
/// makes the ids.
pub(super) fn ids_of(dispatch: &Dispatch, id: &Id) -> Option<SpanContext> {
    nearest(&dispatch.downcast_ref::<Registry>()?.span(id)?)
}

fn nearest<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>) -> Option<SpanContext> {
    span.scope().find_map(|span| {
        let mut extensions = span.extensions_mut();
        extensions.get_mut::<Held>().map(Held::tell)
    })
}

/// Makes the span a part of its parent's trace; false when its ids are known already. None where another layer makes the ids,
/// and for a span without.
pub(super) fn set_parent(dispatch: &Dispatch, id: &Id, parent: &SpanContext) -> Option<bool> {
    let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
    let mut extensions = span.extensions_mut();
    let held = extensions.get_mut::<Held>()?;
    if !held.are_known {
        held.ids = within(parent, held.ids.span_id());
    }
    Some(!held.are_known)
}

fn within(parent: &SpanContext, own: SpanId) -> SpanContext {
    let state = parent.trace_state().clone();
    SpanContext::new(parent.trace_id(), own, parent.trace_flags(), false, state)
}

impl<S> Layer<S> for Ids
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if !has_ids(attributes.metadata()) {
            return;
        }
        let parent = match attributes.parent() {
            Some(parent) => context.span(parent),
            None if attributes.is_contextual() => context.lookup_current(),
            None => None,
        };
        let parent = parent.and_then(|span| nearest(&span));
        let own = self.0.new_span_id();
        let ids = match parent {
            Some(parent) => within(&parent, own),
            None => {
                let (trace, flags) = (self.0.new_trace_id(), TraceFlags::NOT_SAMPLED);
                SpanContext::new(trace, own, flags, false, TraceState::NONE)
            }
        };
        if let Some(span) = context.span(id) {
            let are_known = false;
            span.extensions_mut().insert(Held { ids, are_known });
        }
    }
}
