//! What every call of the public API has in common: who calls, under which span, and translation of a refusal.

use medfleet_runtime::telemetry;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument, Span};

use crate::blobs::is_full;
use crate::error::{self, Refusal};
use crate::metrics::{Figures, Method};
use crate::tokens::{Caller, Tokens};

/// An answer, or why there is none.
pub(crate) type Reply<T> = Result<Response<T>, Status>;

/// The frame of a call.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    pub(crate) figures: Figures,
}

impl Calls {
    /// Runs one call: its caller, span, metrics and the translation of a refusal.
    pub(crate) async fn answer<M, T>(
        &self,
        method: Method,
        request: Request<M>,
        call: impl AsyncFnOnce(Caller, M) -> Result<T, Refusal>,
    ) -> Reply<T> {
        let begun = Instant::now();
        let span = span_of(method, request.metadata());
        // The gate was passed before the body was read; without it nobody is let in.
        let caller = request.extensions().get::<Caller>().cloned();
        let answered = async {
            let answered = match caller {
                Some(caller) => call(caller, request.into_inner()).await,
                None => Err(Refusal::NoToken),
            };
            answered.map_err(|refusal| self.refused(&refusal))
        };
        let answered = answered.instrument(span.clone()).await;
        let code = answered.as_ref().map_or_else(Status::code, |_| Code::Ok);
        if telemetry::is_recorded(&span) {
            span.record("rpc.grpc.status_code", i32::from(code));
            if is_ours(code) {
                span.record("otel.status_code", "ERROR");
            }
        }
        self.figures
            .called(method, code, begun.elapsed().as_secs_f64());
        answered.map(Response::new)
    }

    fn refused(&self, refusal: &Refusal) -> Status {
        if matches!(refusal, Refusal::Store(error) if is_full(error)) {
            self.figures.found_full();
        }
        error::status(refusal)
    }
}

/// Lets calls in by their token, before anything of their body is taken. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) tokens: Tokens,
    pub(crate) figures: Figures,
}

impl Interceptor for Gate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        match self.tokens.caller(request.metadata()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(request)
            }
            Err(refusal) => {
                self.figures.unauthenticated.inc();
                Err(error::status(&refusal))
            }
        }
    }
}

/// Items of a page: what was asked for, the default for 0, or a refusal.
pub(crate) fn page_size(asked: i32) -> Result<usize, Refusal> {
    /// When the caller does not say; part of the public contract.
    const DEFAULT: i32 = 100;
    /// At most; part of the public contract.
    const MAX: i32 = 1000;
    let size = match asked {
        0 => DEFAULT,
        size if (1..=MAX).contains(&size) => size,
        _ => {
            let allowed = format!("1 to {MAX}, or 0 for {DEFAULT}");
            return Err(Refusal::invalid("page_size", allowed));
        }
    };
    Ok(usize::try_from(size).unwrap_or_default())
}

/// Whether the conventions count it as an error of who serves, and not of who calls.
const fn is_ours(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The span of a call; it continues the caller's trace when the metadata names one.
fn span_of(method: Method, metadata: &MetadataMap) -> Span {
    let span = tracing::info_span!(
        "rpc",
        otel.name = %format_args!("{}/{}", method.service(), method.as_str()),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        rpc.system = "grpc",
        rpc.service = method.service(),
        rpc.method = method.as_str(),
        rpc.grpc.status_code = tracing::field::Empty,
    );
    let headers = ["traceparent", "tracestate"]
        .into_iter()
        .filter_map(|name| {
            // What is not text is no trace context.
            let value = metadata.get(name)?.to_str().ok()?;
            Some((name, value))
        });
    telemetry::set_parent(&span, &headers.collect::<Vec<_>>());
    span
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Metrics;
    use medfleet_store::StoreError;

    use super::*;

    #[test]
    fn what_callers_do_wrong_is_no_error_of_ours() {
        assert!(is_ours(Code::Unavailable) && is_ours(Code::Internal));
        let theirs = [
            Code::Ok,
            Code::NotFound,
            Code::InvalidArgument,
            Code::ResourceExhausted,
            Code::Unauthenticated,
        ];
        assert!(!theirs.into_iter().any(is_ours));
    }

    #[test]
    fn calls_for_which_the_store_has_no_room_are_counted() {
        let calls = Calls {
            figures: Figures::new(&Metrics::new()),
        };
        assert!(calls.figures.since_full().is_none());
        let full = Refusal::Store(StoreError::Full { bytes: 2, free: 1 });
        assert_eq!(calls.refused(&full).code(), Code::ResourceExhausted);
        assert!(calls.figures.since_full().is_some());
        assert_eq!(calls.figures.store_full.get(), 1);
        assert_eq!(calls.refused(&Refusal::Stopping).code(), Code::Unavailable);
        assert_eq!(calls.figures.store_full.get(), 1);
    }
}
