//! How large the window of an HTTP/2 connection must be for the small messages that may wait on it unread.
//!
//! h2 closes a connection (`too_many_data_frames`) as soon as the data frames that wait on it unread lack, together, more than
//! half of its window to 256 bytes each. Both sides count what they receive. A frame that ends its stream is free, but a gRPC
//! message never does: an empty frame follows the request, trailers follow the answer. So the window decides how many small
//! messages may wait, and what it bounds in bytes is never reached by them.
//!
//! hyper's windows leave room for 2,088 such messages where a server receives, and for 10,443 where a client does. Who may have
//! more waiting takes the window from here: ingest for requests, an encoder for requests of decode, and the clients of ingest,
//! which share a connection among thousands of watches. Decode as a client of encoders needs none: image tokens come in frames of
//! 16 KiB, and the window is full of these long before the small frames between them count.

use tonic::transport::{Endpoint, Server};

/// What h2 assumes that a data frame costs to keep, whatever is in it.
const FRAME_BYTES: u32 = 256;
/// The largest window that HTTP/2 has.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Calls that ingest takes on one connection at a time; thousands of watches share one.
pub const API_CALLS_MAX: u32 = 10_000;
/// Messages of a watch that may wait unread, on the average of all on a connection: a job of one picture tells of six states, and
/// whoever watches may be busy with another one.
const WATCH_UNREAD: u32 = 8;

/// A server that takes `calls` calls at a time on a connection, and whose connections survive while none of the requests has been
/// read yet.
pub fn taking_calls(server: Server, calls: u32) -> Server {
    server
        .initial_connection_window_size(Some(window_of(calls)))
        .max_concurrent_streams(Some(calls))
}

/// An endpoint whose connection survives as many unread answers and events of jobs as ingest sends on one connection.
pub fn of_many_calls(endpoint: Endpoint) -> Endpoint {
    endpoint.initial_connection_window_size(Some(window_of(API_CALLS_MAX * WATCH_UNREAD)))
}

/// The window on which so many messages of any size may wait unread.
const fn window_of(messages: u32) -> u32 {
    let window = (2 * FRAME_BYTES).saturating_mul(messages);
    if window < WINDOW_MAX {
        window
    } else {
        WINDOW_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use futures::future::{BoxFuture, try_join_all};
    use medfleet_proto::work::v1::FetchTokensRequest;
    use medfleet_proto::work::v1::token_service_client::TokenServiceClient;
    use medfleet_proto::work::v1::token_service_server;
    use tokio::net::TcpListener;
    use tokio::sync::Barrier;
    use tonic::Status;
    use tonic::body::Body;
    use tonic::codegen::{Service, http};
    use tonic::server::NamedService;
    use tonic::transport::server::TcpIncoming;

    use super::*;

    /// Twice as many as hyper's own window has room for.
    const CALLS: u32 = 4096;

    /// Reads no request before all of them are there.
    #[derive(Debug, Clone)]
    struct Late(Arc<Barrier>);

    impl NamedService for Late {
        const NAME: &'static str = token_service_server::SERVICE_NAME;
    }

    impl Service<http::Request<Body>> for Late {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let all = Arc::clone(&self.0);
            Box::pin(async move {
                all.wait().await;
                drop(request);
                Ok(Status::ok("").into_http())
            })
        }
    }

    #[tokio::test]
    async fn a_connection_survives_all_its_calls_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let calls = usize::try_from(CALLS).expect("fits");
        let served = taking_calls(Server::builder(), CALLS)
            .add_service(Late(Arc::new(Barrier::new(calls))))
            .serve_with_incoming(TcpIncoming::from(listener));
        let endpoint = of_many_calls(Endpoint::from_shared(address).expect("a URL"));
        let client = TokenServiceClient::new(endpoint.connect_lazy());
        let asked = (0..CALLS).map(|_| {
            let mut client = client.clone();
            async move { client.fetch_tokens(FetchTokensRequest::default()).await }
        });
        tokio::select! {
            ended = served => panic!("the server ended: {ended:?}"),
            answered = try_join_all(asked) => {
                answered.expect("every call is answered");
            }
        }
    }

    #[test]
    fn a_window_is_never_larger_than_http2_has() {
        assert_eq!(window_of(10_000), 5_120_000);
        assert_eq!(window_of(u32::MAX), WINDOW_MAX);
    }
}
