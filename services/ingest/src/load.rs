//! Limits of the memory and the time of a call: the bytes of its request, which are held until it is answered, and how long its
//! caller waits.
//!
//! All requests with files in them share a limit of memory. A burst beyond it is told to come back, so that the process is not
//! killed for lack of memory with everybody's calls. No tenant may take the last of it from the others. Every call and the first
//! bytes of its request count against a limit of their own, so that small calls are answered while large ones wait. Uploads, which
//! are stored as they come, have limits of their own.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready as at_once;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use medfleet_core::TenantId;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::server::NamedService;

use crate::error::{self, Refusal};
use crate::shape::Shape;
use crate::timely::UPLOAD;
use crate::tokens::Caller;

/// The call whose request may hold files.
const SUBMIT: &str = "/medfleet.v1.JobService/SubmitJob";
/// Most bytes that requests with files in them hold together: sixteen of the largest. The first bytes of all requests may hold as
/// many, far more than well-behaved clients need.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// The last quarter of these is for tenants that hold no more than this: one of the largest requests.
const SHARE_BYTES: u64 = 4 << 20;
/// How many of a request's first bytes count against the separate limit: a request without files in it is no longer.
pub(crate) const SMALL_BYTES: usize = 64 << 10;
/// What a call takes besides its request, at least. Who opens call after call and sends nothing holds room by this.
const CALL_BYTES: u64 = 4 << 10;
/// How long before its deadline a call ends, so that it ends with `DEADLINE_EXCEEDED`: tonic would call it cancelled.
const BEFORE_TONIC: Duration = Duration::from_millis(2);

/// What is told to who finds no room for a call.
const TOO_MANY: &str = "too many requests are under way";

/// The bytes that are held. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    /// For each call, and the first [`SMALL_BYTES`] of its request.
    small: Room,
    /// For what follows them.
    files: Room,
}

/// Room for bytes. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
struct Room(Arc<Mutex<Holders>>);

#[derive(Debug, Default)]
struct Holders {
    bytes: HashMap<TenantId, u64>,
    /// Said once, until nobody holds anything.
    is_said: bool,
}

/// What one request holds of a room, until this is dropped.
#[derive(Debug)]
struct Held {
    room: Room,
    tenant: TenantId,
    bytes: AtomicU64,
}

/// What one request holds, until this is dropped.
#[derive(Debug)]
struct Weight {
    small: Held,
    files: Held,
}

impl Load {
    /// Nothing yet, of a tenant.
    fn of(&self, tenant: TenantId) -> Weight {
        Weight {
            small: self.small.of(tenant.clone()),
            files: self.files.of(tenant),
        }
    }
}

impl Room {
    /// Nothing yet, of a tenant.
    fn of(&self, tenant: TenantId) -> Held {
        Held {
            room: self.clone(),
            tenant,
            bytes: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Holders> {
        // Counts, changed in single steps: whole after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Holds so many bytes more; false where there is no room for them.
    fn grow(&self, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let mut holders = self.room.lock();
        let all = holders.bytes.values().sum::<u64>() + bytes;
        let own = holders.bytes.get(&self.tenant).copied().unwrap_or(0) + bytes;
        let for_anybody = HELD_BYTES_MAX - HELD_BYTES_MAX / 4;
        let fits = all <= for_anybody || (all <= HELD_BYTES_MAX && own <= SHARE_BYTES);
        if fits {
            holders.bytes.insert(self.tenant.clone(), own);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else if !std::mem::replace(&mut holders.is_said, true) {
            tracing::warn!(
                tenant = %self.tenant,
                held_bytes_max = HELD_BYTES_MAX,
                "as many bytes of requests are under way as are held at a time; more are told to come back"
            );
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes == 0 {
            return;
        }
        let mut holders = self.room.lock();
        if let Some(own) = holders.bytes.get_mut(&self.tenant) {
            *own -= bytes;
            if *own == 0 {
                holders.bytes.remove(&self.tenant);
            }
        }
        holders.is_said &= !holders.bytes.is_empty();
    }
}

/// A call that is under way.
type Call = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service whose calls hold no more than there is room for, and end when their callers wait no more. Behind the gate, which
/// says whose they are.
#[derive(Debug, Clone)]
pub(crate) struct Weighed<S> {
    service: S,
    load: Load,
    /// What is told to who finds no room.
    retry_after: Duration,
}

impl<S> Weighed<S> {
    pub(crate) const fn new(service: S, load: Load, retry_after: Duration) -> Self {
        Self {
            service,
            load,
            retry_after,
        }
    }

    /// A tenant's request, counted from now on, and what it holds.
    fn weigh(&self, request: Request<Body>, tenant: TenantId) -> (Request<Body>, Arc<Weight>) {
        let held = Arc::new(self.load.of(tenant));
        let is_submit = request.uri().path() == SUBMIT;
        let request = request.map(|body| {
            Body::new(Counted {
                body,
                shape: is_submit.then(Shape::default),
                held: Arc::clone(&held),
                small_bytes: SMALL_BYTES as u64,
                retry_after: self.retry_after,
            })
        });
        (request, held)
    }
}

impl<S: NamedService> NamedService for Weighed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Weighed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Call {
        // Counted from now, not from the first poll: tonic's own deadline begins right after this.
        let patience = patience(request.headers());
        let until = patience
            .and_then(|patience| Instant::now().checked_add(patience.saturating_sub(BEFORE_TONIC)));
        let caller = request.extensions().get::<Caller>();
        let tenant = caller.map(|caller| caller.tenant.clone());
        let (request, held) = match tenant.filter(|_| request.uri().path() != UPLOAD) {
            Some(tenant) => {
                let (request, held) = self.weigh(request, tenant);
                if !held.small.grow(CALL_BYTES) {
                    let refusal = busy(TOO_MANY, self.retry_after);
                    let refused: Response<Body> = error::status(&refusal).into_http();
                    return Box::pin(at_once(Ok(refused)));
                }
                (request, Some(held))
            }
            None => (request, None),
        };
        let call = self.service.call(request);
        Box::pin(async move {
            // Held until there is an answer: as long as that, what was made of the request is in memory too.
            let _held = held;
            let Some(until) = until else {
                return call.await;
            };
            let over = || Status::deadline_exceeded("the caller's deadline is over").into_http();
            timeout_at(until, call).await.unwrap_or_else(|_| Ok(over()))
        })
    }
}

const fn busy(what: &'static str, retry_after: Duration) -> Refusal {
    Refusal::Busy { what, retry_after }
}

/// How long a caller waits, as gRPC's `grpc-timeout` says it: up to eight digits and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if count.len() > 8 || !count.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = count.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A body that counts its bytes, and ends with an error where there is no room for more, or where it is a submit of more than any
/// job has.
#[derive(Debug)]
struct Counted {
    body: Body,
    /// Of a submit, what its message consists of as far as it was read; nothing of other calls.
    shape: Option<Shape>,
    held: Arc<Weight>,
    /// How many of the request's first [`SMALL_BYTES`] are still to come.
    small_bytes: u64,
    retry_after: Duration,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let data = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref());
        let bytes = data.map_or(0, |data| data.len() as u64);
        if let (Some(shape), Some(data)) = (&mut self.shape, data)
            && let Err(refusal) = shape.take(data)
        {
            return Poll::Ready(Some(Err(error::status(&refusal))));
        }
        let small = bytes.min(self.small_bytes);
        self.small_bytes -= small;
        let what = if !self.held.small.grow(small) {
            TOO_MANY
        } else if !self.held.files.grow(bytes - small) {
            "too many requests with files in them are under way"
        } else {
            return Poll::Ready(frame);
        };
        let busy = busy(what, self.retry_after);
        Poll::Ready(Some(Err(error::status(&busy))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
