//! What requests hold, over the gate and a service that only reads.

use std::future::pending;

use futures::{FutureExt, stream};
use http_body_util::{BodyExt, StreamBody};
use medfleet_runtime::{Metrics, SeededRandom};
use tonic::Code;
use tonic::codegen::http::HeaderValue;
use tonic::service::interceptor::InterceptedService;
use tonic_types::StatusExt;

use super::*;
use crate::calls::Gate;
use crate::metrics::Figures;
use crate::tokens::{Tokens, TokensFile, create_token};

const RETRY_AFTER: Duration = Duration::from_secs(7);

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

#[test]
fn no_tenant_takes_the_last_room_from_the_others() {
    let room = Room::default();
    let of = |name: &str| room.of(tenant(name));
    let greedy = of("north");
    let most = HELD_BYTES_MAX - HELD_BYTES_MAX / 4;
    assert!(greedy.grow(most - 1) && greedy.grow(1));
    assert!(!greedy.grow(1) && !of("north").grow(1));
    // Each of the others may have one of the largest, as long as there is room at all.
    let first = of("south");
    assert!(first.grow(SHARE_BYTES) && !of("south").grow(1));
    let others = ["east", "west", "lake"].map(of);
    assert!(others.iter().all(|held| held.grow(SHARE_BYTES)));
    assert!(!of("late").grow(1));
    drop(greedy);
    assert!(first.grow(SHARE_BYTES) && of("late").grow(1));
    drop((first, others));
    let holders = room.lock();
    assert!(holders.bytes.is_empty() && !holders.is_said);
}

/// Reads a request to its end, and then answers or does not.
#[derive(Clone)]
struct Reader {
    answers: bool,
}

impl Service<Request<Body>> for Reader {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Call {
        let answers = self.answers;
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                if let Err(status) = frame {
                    return Ok(status.into_http());
                }
            }
            match answers {
                true => Ok(Response::new(Body::empty())),
                false => pending().await,
            }
        })
    }
}

/// A request of so many bytes, in pieces as they come over a line.
fn request(path: &'static str, bytes: usize) -> Request<Body> {
    let pieces = vec![Bytes::from(vec![0_u8; 16 << 10]); bytes / (16 << 10)];
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Status>(Frame::data(piece)));
    let mut request = Request::new(Body::new(StreamBody::new(stream::iter(frames))));
    *request.uri_mut() = path.parse().expect("a path");
    request
}

fn is_empty(load: &Load) -> bool {
    [&load.small, &load.files]
        .iter()
        .all(|room| room.lock().bytes.is_empty())
}

#[tokio::test]
async fn who_finds_no_room_is_told_to_come_back_and_what_is_small_has_its_own() {
    let (token, entry) = create_token("pacs", &tenant("north"), &SeededRandom::new(1));
    let file = TokensFile {
        tokens: vec![entry],
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, file.to_toml().expect("writes")).expect("a writable folder");
    let tokens = Tokens::load(&path).await.expect("it is good");
    let load = Load::default();
    let gate = Gate {
        tokens,
        figures: Figures::new(&Metrics::new()),
    };
    let weighed = Weighed::new(Reader { answers: true }, load.clone(), RETRY_AFTER);
    let mut service = InterceptedService::new(weighed, gate);
    let bearer: HeaderValue = format!("Bearer {}", token.expose()).parse().expect("text");
    let mut send = async |path, bytes| {
        let mut request = request(path, bytes);
        let headers = request.headers_mut();
        headers.insert("authorization", bearer.clone());
        let answer = service.call(request).await.expect("it answers");
        answer.extensions().get::<Status>().cloned()
    };
    assert!(send(SUBMIT, 1 << 20).await.is_none());
    let most = HELD_BYTES_MAX - HELD_BYTES_MAX / 4;
    let others = load.of(tenant("north"));
    assert!(others.files.grow(most));
    let busy = send(SUBMIT, 1 << 20).await.expect("no room");
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy:?}");
    let details = busy.get_error_details();
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(RETRY_AFTER));
    for (path, bytes) in [(SUBMIT, SMALL_BYTES), (UPLOAD, 1 << 20)] {
        let refused = send(path, bytes).await;
        assert!(refused.is_none(), "{path} {bytes}: {refused:?}");
    }
    // Nor has a tenant room without end for what is small.
    assert!(others.small.grow(most));
    let busy = send(SUBMIT, SMALL_BYTES).await.expect("no room");
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy:?}");
    drop(others);
    assert!(is_empty(&load), "what was answered holds room");
}

/// Two bytes each: as many of them as fit would take hundreds of MiB once decoded.
#[tokio::test]
async fn a_submit_of_more_inputs_than_any_job_has_is_refused_while_it_comes() {
    let inputs = [0x1a, 0].repeat(1 << 20);
    let length = u32::try_from(inputs.len()).expect("it is short");
    let message = [&[0_u8][..], &length.to_be_bytes(), &inputs].concat();
    let mut weighed = Weighed::new(Reader { answers: true }, Load::default(), RETRY_AFTER);
    let mut send = async |path: &'static str| {
        let frame = Ok::<_, Status>(Frame::data(Bytes::from(message.clone())));
        let mut request = Request::new(Body::new(StreamBody::new(stream::iter([frame]))));
        *request.uri_mut() = path.parse().expect("a path");
        request
            .extensions_mut()
            .insert(Caller::of(&tenant("north")));
        let answer = weighed.call(request).await.expect("it answers");
        answer.extensions().get::<Status>().map(Status::code)
    };
    assert_eq!(send(SUBMIT).await, Some(Code::InvalidArgument));
    assert_eq!(send(UPLOAD).await, None);
}

#[tokio::test]
async fn a_request_holds_room_until_it_is_answered() {
    let load = Load::default();
    let weighed = Weighed::new((), load.clone(), RETRY_AFTER);
    let (request, held) = weighed.weigh(request(SUBMIT, 1 << 20), tenant("north"));
    let mut reading = Reader { answers: false }.call(request);
    assert!((&mut reading).now_or_never().is_none());
    drop(reading);
    let bytes = |room: &Room| room.lock().bytes.get(&tenant("north")).copied();
    let small = SMALL_BYTES as u64;
    assert_eq!(bytes(&load.small), Some(small));
    assert_eq!(bytes(&load.files), Some((1 << 20) - small));
    drop(held);
    assert!(is_empty(&load));
}

#[tokio::test]
async fn a_call_that_sends_nothing_holds_room_too() {
    let load = Load::default();
    let mut weighed = Weighed::new(Reader { answers: false }, load.clone(), RETRY_AFTER);
    let mut call = || {
        let mut request = request(SUBMIT, 0);
        request
            .extensions_mut()
            .insert(Caller::of(&tenant("north")));
        weighed.call(request)
    };
    let most = (HELD_BYTES_MAX - HELD_BYTES_MAX / 4) / CALL_BYTES;
    let mut open: Vec<_> = (0..most).map(|_| call()).collect();
    let refused = call().await.expect("it answers");
    let code = refused.extensions().get::<Status>().map(Status::code);
    assert_eq!(code, Some(Code::ResourceExhausted));
    open.pop();
    assert!(call().now_or_never().is_none(), "its place is free again");
    drop(open);
    assert!(is_empty(&load));
}

/// Tonic says of such a call that it was cancelled, which a client takes for a wish of its own.
#[tokio::test]
async fn a_call_whose_caller_waits_no_more_ends_for_its_time() {
    let mut weighed = Weighed::new(Reader { answers: false }, Load::default(), RETRY_AFTER);
    let mut request = request(SUBMIT, 0);
    let waits = HeaderValue::from_static("20m");
    request.headers_mut().insert("grpc-timeout", waits);
    let answer = weighed.call(request).await.expect("it answers");
    let status = answer.extensions().get::<Status>();
    assert_eq!(status.map(Status::code), Some(Code::DeadlineExceeded));
}

#[test]
fn how_long_a_caller_waits_is_read_as_grpc_writes_it() {
    let check = |text: &'static str, expected| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_static(text));
        assert_eq!(patience(&headers), expected, "{text}");
    };
    let millis = Duration::from_millis;
    for (text, expected) in [
        ("1H", 3_600_000),
        ("2M", 120_000),
        ("3S", 3_000),
        ("40m", 40),
    ] {
        check(text, Some(millis(expected)));
    }
    check("5000u", Some(millis(5)));
    check("6000000n", Some(millis(6)));
    check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
    for wrong in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S"] {
        check(wrong, None);
    }
    assert_eq!(patience(&HeaderMap::new()), None);
}
