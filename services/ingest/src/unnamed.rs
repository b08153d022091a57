//! A limit of the calls that need no token, of each connection: whoever reaches the port could watch the health of a service
//! thousands of times on each of a few connections, and take the memory of all.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

use crate::connections::Arrival;
use crate::error::{self, Refusal};

/// A call that is under way.
type Call = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service that answers anybody, so many calls of a connection at a time.
#[derive(Debug, Clone)]
pub(crate) struct Unnamed<S> {
    service: S,
    /// What is told to who finds no place.
    retry_after: Duration,
}

impl<S> Unnamed<S> {
    pub(crate) const fn new(service: S, retry_after: Duration) -> Self {
        Self {
            service,
            retry_after,
        }
    }
}

impl<S: NamedService> NamedService for Unnamed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Unnamed<S>
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
        let arrival = request.extensions().get::<Arrival>();
        let place = arrival.map(Arrival::take_unnamed);
        if let Some(None) = place {
            let busy = Refusal::Busy {
                what: "too many calls without a token are under way on this connection",
                retry_after: self.retry_after,
            };
            let refused: Response<Body> = error::status(&busy).into_http();
            return Box::pin(ready(Ok(refused)));
        }
        let call = self.service.call(request);
        Box::pin(async move {
            let answer = call.await?;
            let placed = |body| {
                Body::new(Placed {
                    body,
                    _place: place.flatten(),
                })
            };
            Ok(answer.map(placed))
        })
    }
}

/// The body of an answer, which keeps its call's place to its end.
#[derive(Debug)]
struct Placed {
    body: Body,
    _place: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
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
    use futures::stream;
    use http_body_util::StreamBody;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    /// Answers with a body that does not end.
    #[derive(Debug, Clone)]
    struct Watched;

    impl Service<Request<Body>> for Watched {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Call;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Call {
            let endless = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>());
            Box::pin(ready(Ok(Response::new(Body::new(endless)))))
        }
    }

    #[tokio::test]
    async fn a_connection_has_few_calls_without_a_token_until_their_answers_end() {
        let mut service = Unnamed::new(Watched, Duration::from_secs(7));
        let (one, other) = (Arrival::default(), Arrival::default());
        let mut call = async |arrival: &Arrival| {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(arrival.clone());
            service.call(request).await.expect("it answers")
        };
        let refused = |answer: &Response<Body>| answer.extensions().get::<Status>().cloned();
        let mut held = Vec::new();
        let busy = loop {
            let answer = call(&one).await;
            match refused(&answer) {
                Some(status) => break status,
                None => held.push(answer),
            }
        };
        assert_eq!(busy.code(), Code::ResourceExhausted);
        let delay = busy.get_error_details().retry_info().cloned();
        let delay = delay.and_then(|info| info.retry_delay);
        assert_eq!(delay, Some(Duration::from_secs(7)));
        // Nobody else's connection is full by it, nor this one when an answer has ended.
        assert!(refused(&call(&other).await).is_none());
        held.pop();
        assert!(refused(&call(&one).await).is_none());
    }
}
