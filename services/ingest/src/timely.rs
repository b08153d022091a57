//! A call's request comes whole within its time, or the call ends: a caller that sends it byte by byte holds a place and
//! memory no longer than that. Uploads, which may last, have limits of their own.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::server::NamedService;

/// The call whose request is a stream.
const UPLOAD: &str = "/medfleet.v1.JobService/UploadInput";

/// A service whose requests come in time.
#[derive(Debug, Clone)]
pub(crate) struct Timely<S> {
    service: S,
    limit: Duration,
}

impl<S> Timely<S> {
    pub(crate) const fn new(service: S, limit: Duration) -> Self {
        Self { service, limit }
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
        let limit = self.limit;
        let request = match request.uri().path() {
            UPLOAD => request,
            _ => request.map(|body| Body::new(Limited::new(body, limit))),
        };
        self.service.call(request)
    }
}

/// A body that breaks off when it has not come whole in time.
#[derive(Debug)]
struct Limited {
    body: Body,
    limit: Duration,
    late: Pin<Box<Sleep>>,
}

impl Limited {
    fn new(body: Body, limit: Duration) -> Self {
        Self {
            body,
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
            return frame;
        }
        self.late.as_mut().poll(context).map(|()| {
            let limit = self.limit;
            let text = format!(
                "the request did not come whole within {limit:?} (ingest.limits.request_time_max): send it faster, and files as uploads"
            );
            Some(Err(Status::deadline_exceeded(text)))
        })
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
    use std::future::poll_fn;

    use medfleet_proto::v1::job_service_server::SERVICE_NAME;
    use tonic::Code;

    use super::*;

    /// Gives what it has, and then nothing, and no end.
    struct Drip(Option<Bytes>);

    impl http_body::Body for Drip {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn what_has_come_is_given_and_what_does_not_come_is_not_waited_for() {
        let drip = Body::new(Drip(Some(Bytes::from_static(b"x"))));
        let mut body = Limited::new(drip, Duration::from_millis(20));
        let mut next = async || {
            let frame =
                poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context));
            frame.await.expect("it has no end")
        };
        let first = next().await.expect("has come").into_data();
        assert_eq!(first.expect("bytes"), "x");
        let status = next().await.expect_err("never comes");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("request_time_max"), "{status:?}");
    }

    #[test]
    fn the_upload_is_a_call_of_the_service() {
        assert!(UPLOAD.starts_with(&format!("/{SERVICE_NAME}/")));
    }
}
