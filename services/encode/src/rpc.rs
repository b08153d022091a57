//! The token service: tokens that are still in memory, streamed to decode workers of the same fleet.
//! The caller proves with a token derived from the fleet key that it is one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use medfleet_core::{Digest, TenantId};
use medfleet_proto::work::v1::token_service_server::{TokenService, TokenServiceServer};
use medfleet_proto::work::v1::{FetchTokensRequest, FetchTokensResponse};
use medfleet_worker::http2::taking_calls;
use medfleet_worker::{PemFile, identity};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::cache::Cache;
use crate::config::TlsConfig;
use crate::error::StartError;
use crate::metrics::EncodeMetrics;

/// Bytes in one message of the stream; gRPC's own limit is 4 MiB.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Tensors in one request.
const DIGESTS_MAX: usize = 4096;
/// Calls on one connection at a time: a decode worker has one connection, and at most so many slots.
const CALLS_MAX: u32 = 4096;
/// Without keep-alive, the connections of decoders that died would stay open for ever.
pub(crate) const KEEP_ALIVE: KeepAlive = KeepAlive {
    every: Duration::from_secs(30),
    wait: Duration::from_secs(20),
};

/// When a silent connection is closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepAlive {
    /// How often a silent peer is pinged.
    every: Duration,
    /// How long the peer may take to answer a ping, and to finish the TLS handshake.
    wait: Duration,
}

/// A server with TLS as configured.
pub(crate) async fn server(
    tls: Option<&TlsConfig>,
    keep_alive: KeepAlive,
) -> Result<Server, StartError> {
    let server = taking_calls(Server::builder(), CALLS_MAX)
        .http2_keepalive_interval(Some(keep_alive.every))
        .http2_keepalive_timeout(Some(keep_alive.wait));
    let Some(tls) = tls else {
        return Ok(server);
    };
    let cert = PemFile::new("encode.tls.cert", &tls.cert);
    let key = PemFile::new("encode.tls.key", &tls.key);
    let identity = identity(cert, key).await?;
    let tls = ServerTlsConfig::new()
        .identity(identity)
        .timeout(keep_alive.wait);
    server.tls_config(tls).map_err(StartError::Tls)
}

/// Serves tokens to whoever shows the fleet's internal `token`, until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    mut server: Server,
    tokens: Tokens,
    token: String,
    until: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let expected = blake3::hash(format!("Bearer {token}").as_bytes());
    let check = move |request: Request<()>| {
        let given = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes());
        // Equality of hashes takes the same time wherever they differ.
        if given.is_some_and(|given| blake3::hash(given) == expected) {
            Ok(request)
        } else {
            Err(Status::unauthenticated(
                "the fleet's internal token is needed",
            ))
        }
    };
    server
        .add_service(TokenServiceServer::with_interceptor(tokens, check))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            until.cancelled().await;
        })
        .await
}

/// What the service answers from: the tokens in memory.
pub(crate) struct Tokens {
    pub(crate) cache: Arc<Cache>,
    pub(crate) metrics: EncodeMetrics,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<FetchTokensResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TokenService for Tokens {
    type FetchTokensStream = Pieces;

    async fn fetch_tokens(
        &self,
        request: Request<FetchTokensRequest>,
    ) -> Result<Response<Pieces>, Status> {
        let FetchTokensRequest { tenant, digests } = request.into_inner();
        let tenant =
            TenantId::new(tenant).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if digests.len() > DIGESTS_MAX {
            return Err(Status::invalid_argument(format!(
                "at most {DIGESTS_MAX} digests"
            )));
        }
        let digests = digests.iter().map(|digest| {
            let digest = Digest::from_slice(digest);
            digest.map_err(|error| Status::invalid_argument(error.to_string()))
        });
        let digests: Vec<Digest> = digests.collect::<Result<_, Status>>()?;
        let held = digests.into_iter();
        let held = held.map(|digest| self.cache.get(&tenant, digest));
        let held: Vec<Option<Bytes>> = held.collect();
        // Each is counted, also where another one is missing and the decoder reads all of them from the store.
        let hits = held.iter().flatten().count();
        self.metrics.cache_hits.inc_by(hits as u64);
        let misses = held.len() - hits;
        self.metrics.cache_misses.inc_by(misses as u64);
        let tensors: Option<Vec<Bytes>> = held.into_iter().collect();
        let tensors = tensors.ok_or_else(|| Status::not_found("not held any more"))?;
        let pieces = tensors
            .into_iter()
            .zip(0_u32..)
            .flat_map(|(tensor, index)| pieces(index, tensor));
        Ok(Response::new(Box::pin(futures::stream::iter(
            pieces.map(Ok),
        ))))
    }
}

/// A tensor in messages; an empty one is one message too.
fn pieces(index: u32, mut tensor: Bytes) -> impl Iterator<Item = FetchTokensResponse> {
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let data = tensor.split_to(tensor.len().min(PIECE_BYTES_MAX));
        over = tensor.is_empty();
        Some(FetchTokensResponse {
            index,
            data,
            last: over,
        })
    })
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Metrics;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::cache::Made;

    /// The caller greets, as HTTP/2 wants it, and is never heard of again.
    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let keep_alive = KeepAlive {
            every: Duration::from_millis(20),
            wait: Duration::from_millis(20),
        };
        let server = server(None, keep_alive).await.expect("no files to read");
        let metrics = EncodeMetrics::register(&Metrics::new());
        let tokens = Tokens {
            cache: Arc::new(Cache::new(0)),
            metrics,
        };
        let until = CancellationToken::new();
        let serving = serve(listener, server, tokens, "token".to_owned(), until);
        let silent = async {
            let mut caller = TcpStream::connect(address).await.expect("connects");
            // The preface and a frame of settings, empty.
            let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            caller.write_all(greeting).await.expect("writes");
            let mut heard = Vec::new();
            let ended = caller.read_to_end(&mut heard);
            // Whether with a good-bye or a reset does not matter.
            tokio::time::timeout(Duration::from_secs(30), ended)
                .await
                .is_ok()
        };
        tokio::select! {
            ended = serving => panic!("the service ended: {ended:?}"),
            closed = silent => assert!(closed, "the connection stayed"),
        }
    }

    #[tokio::test]
    async fn every_tensor_that_is_asked_for_is_counted() {
        let tokens = Tokens {
            cache: Arc::new(Cache::new(1 << 20)),
            metrics: EncodeMetrics::register(&Metrics::new()),
        };
        let tenant = TenantId::new("a").expect("a tenant");
        for byte in [2, 3] {
            let made = Made {
                tokens: Digest::new([byte; 32]),
                made_for: [0; 16],
            };
            let (frame, bytes) = (Digest::new([byte + 100; 32]), Bytes::from_static(b"tokens"));
            tokens.cache.put(&tenant, frame, made, bytes);
        }
        let check = async |asked: &[u8], is_there: bool, expected: (u64, u64)| {
            let digests = asked.iter().map(|byte| vec![*byte; 32].into());
            let request = FetchTokensRequest {
                tenant: tenant.to_string(),
                digests: digests.collect(),
            };
            let answer = tokens.fetch_tokens(Request::new(request)).await;
            assert_eq!(answer.is_ok(), is_there, "{asked:?}");
            let EncodeMetrics {
                cache_hits,
                cache_misses,
                ..
            } = &tokens.metrics;
            assert_eq!((cache_hits.get(), cache_misses.get()), expected);
        };
        // What was used least recently is missing first.
        check(&[1, 2, 3], false, (2, 1)).await;
        check(&[2, 3], true, (4, 1)).await;
    }

    #[test]
    fn tensors_are_cut_into_messages() {
        let check = |bytes: usize, expected: &[usize]| {
            let found: Vec<_> = pieces(7, vec![0; bytes].into()).collect();
            let lengths: Vec<usize> = found.iter().map(|piece| piece.data.len()).collect();
            assert_eq!(lengths, expected);
            let last: Vec<bool> = found.iter().map(|piece| piece.last).collect();
            assert_eq!(last.iter().filter(|last| **last).count(), 1);
            assert_eq!(last.last(), Some(&true));
        };
        check(0, &[0]);
        check(3, &[3]);
        check(PIECE_BYTES_MAX, &[PIECE_BYTES_MAX]);
        check(PIECE_BYTES_MAX + 1, &[PIECE_BYTES_MAX, 1]);
    }
}
