//! A limit of the time in which a call's request has to arrive, so that a caller that sends it byte by byte does not hold a place
//! and memory for ever. Uploads, which may last, have limits of their own. Where a request is a stream, the limit is for each of
//! its messages.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::server::NamedService;

use crate::connections::Arrival;
use crate::error::{self, Refusal};

/// The call whose request is a stream.
pub(crate) const UPLOAD: &str = "/medfleet.v1.JobService/UploadInput";

/// What has to come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// All of a request.
    Whole,
    /// Each piece of it, after the one before.
    Piece,
}

/// A service whose calls end when their requests do not arrive in time. It also tells their connections that a call has come.
#[derive(Debug, Clone)]
pub(crate) struct Timely<S> {
    service: S,
    span: Span,
    limit: Duration,
}

impl<S> Timely<S> {
    /// Each request, but an upload, comes whole within `limit`.
    pub(crate) const fn new(service: S, limit: Duration) -> Self {
        Self {
            service,
            span: Span::Whole,
            limit,
        }
    }

    /// Requests are streams, in which nothing is waited for longer than `limit`.
    pub(crate) const fn of_streams(service: S, limit: Duration) -> Self {
        Self {
            service,
            span: Span::Piece,
            limit,
        }
    }
}

impl<S: NamedService> NamedService for Timely<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Timely<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        if let Some(arrival) = request.extensions().get::<Arrival>() {
            arrival.called();
        }
        let (span, limit) = (self.span, self.limit);
        let request = match request.uri().path() {
            UPLOAD => request,
            _ => request.map(|body| Body::new(Limited::new(body, span, limit))),
        };
        self.service.call(request)
    }
}

/// A body that ends with an error when it does not arrive in time.
#[derive(Debug)]
struct Limited {
    body: Body,
    span: Span,
    limit: Duration,
    late: Pin<Box<Sleep>>,
}

impl Limited {
    fn new(body: Body, span: Span, limit: Duration) -> Self {
        Self {
            body,
            span,
            limit,
            late: Box::pin(sleep(limit)),
        }
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            if self.span == Span::Piece {
                let until = Instant::now() + self.limit;
                self.late.as_mut().reset(until);
            }
            return frame;
        }
        let limit = self.limit;
        let late = self.late.as_mut().poll(context);
        late.map(|()| Some(Err(error::status(&Refusal::Late { limit }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};

    use futures::{FutureExt, Stream, StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use medfleet_proto::FILE_DESCRIPTOR_SET;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use tonic::Code;
    use tonic::codegen::http::Uri;
    use tonic_types::StatusExt;

    use super::*;

    /// Gives these pieces, and then nothing, and no end.
    fn endless(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
        let frames = pieces.map(|piece| Ok::<_, Status>(Frame::data(piece)));
        Body::new(StreamBody::new(frames.chain(stream::pending())))
    }

    #[tokio::test]
    async fn what_has_come_is_given_and_what_does_not_come_is_not_waited_for() {
        let one = endless(stream::iter([Bytes::from_static(b"x")]));
        let mut body = Limited::new(one, Span::Whole, Duration::from_millis(20));
        let mut next = async || body.frame().await.expect("it has no end");
        let first = next().await.expect("has come").into_data();
        assert_eq!(first.expect("bytes"), "x");
        let status = next().await.expect_err("never comes");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("request_time_max"), "{status:?}");
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        assert_eq!(reason, Some("REQUEST_LATE"));
    }

    #[tokio::test]
    async fn in_a_stream_each_piece_has_its_time() {
        let pieces = stream::iter([(); 3]).then(|()| async {
            sleep(Duration::from_millis(200)).await;
            Bytes::from_static(b"x")
        });
        // Less than all of them take, and far more than one, however busy the machine is.
        let mut service = Timely::of_streams(Echo, Duration::from_millis(500));
        let call = service.call(Request::new(endless(pieces)));
        let mut body = call.await.expect("it answers");
        for _ in 0..3 {
            assert!(matches!(body.frame().await, Some(Ok(_))));
        }
        assert!(matches!(body.frame().await, Some(Err(_))));
    }

    /// Gives the body of a request back.
    struct Echo;

    impl Service<Request<Body>> for Echo {
        type Response = Body;
        type Error = Infallible;
        type Future = Ready<Result<Body, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            ready(Ok(request.into_body()))
        }
    }

    #[tokio::test]
    async fn an_upload_may_last_longer_than_any_other_request() {
        let mut service = Timely::new(Echo, Duration::from_millis(20));
        let mut send = async |path: &'static str| {
            let mut request = Request::new(endless(stream::empty()));
            *request.uri_mut() = Uri::from_static(path);
            service.call(request).await.expect("it answers")
        };
        // The upload begins first, so that a limit of it would be over first.
        let mut upload = send(UPLOAD).await;
        let mut other = send("/medfleet.v1.JobService/SubmitJob").await;
        assert!(upload.frame().now_or_never().is_none());
        assert!(matches!(other.frame().await, Some(Err(_))));
        assert!(upload.frame().now_or_never().is_none());
    }

    #[test]
    fn the_upload_is_the_one_call_whose_request_is_a_stream() {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("it was made of files");
        let mut streams = Vec::new();
        for file in &files.file {
            for service in &file.service {
                let streamed = service.method.iter().filter(|of| of.client_streaming());
                let path = |name: &str| format!("/{}.{}/{name}", file.package(), service.name());
                streams.extend(streamed.map(|method| path(method.name())));
            }
        }
        assert_eq!(streams, [UPLOAD]);
    }
}
