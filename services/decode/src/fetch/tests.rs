//! Against a token service of this file's own that only counts its callers: the real one belongs to encode.

use std::future::ready;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::Stream;
use medfleet_proto::work::v1::FetchTokensResponse;
use medfleet_proto::work::v1::token_service_server::{TokenService, TokenServiceServer};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::*;

const TENSOR: &[u8] = b"tokens";
/// The name in the certificates, which is not where the encoder is found.
const NAME: &str = "medfleet-encode";

type Pieces = Pin<Box<dyn Stream<Item = Result<FetchTokensResponse, Status>> + Send>>;

/// Sends one tensor to whoever asks, and counts those who showed a token.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicUsize>);

#[tonic::async_trait]
impl TokenService for Counting {
    type FetchTokensStream = Pieces;

    async fn fetch_tokens(
        &self,
        request: Request<FetchTokensRequest>,
    ) -> Result<Response<Pieces>, Status> {
        if request.metadata().contains_key("authorization") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        let piece = Ok::<_, Status>(FetchTokensResponse {
            index: 0,
            data: Bytes::from_static(TENSOR),
            last: true,
        });
        Ok(Response::new(Box::pin(futures::stream::once(ready(piece)))))
    }
}

struct Made {
    cert: String,
    key: String,
}

fn made() -> Made {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a certificate");
    Made {
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

fn trusting(cert: &str, name: &str) -> Option<ClientTlsConfig> {
    Some(known_by(Certificate::from_pem(cert), Some(name)).expect("of use"))
}

/// What the fetcher gets from an encoder with TLS or without, and how many tokens the encoder was shown.
async fn fetched(
    encoder: Option<&Made>,
    tls: Option<ClientTlsConfig>,
) -> (Result<Vec<Bytes>, FetchError>, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address: SocketAddr = listener.local_addr().expect("bound");
    let scheme = if encoder.is_some() { "https" } else { "http" };
    let mut server = Server::builder();
    if let Some(Made { cert, key }) = encoder {
        let identity = Identity::from_pem(cert, key);
        let tls = ServerTlsConfig::new().identity(identity);
        server = server.tls_config(tls).expect("of use");
    }
    let counting = Counting::default();
    let serving = server
        .add_service(TokenServiceServer::new(counting.clone()))
        .serve_with_incoming(TcpIncoming::from(listener));
    // Only a fetch that hangs takes so long.
    let fetcher = Fetcher::new(Duration::from_secs(30), "secret", tls);
    let (url, tenant) = (
        format!("{scheme}://{address}"),
        TenantId::new("st-mary").expect("a name"),
    );
    let digests = [Digest::new([1; 32])];
    let found = tokio::select! {
        ended = serving => panic!("the encoder ended: {ended:?}"),
        found = fetcher.fetch(&url, &tenant, &digests, TENSOR.len()) => found,
    };
    (found, counting.0.load(Ordering::Relaxed))
}

#[tokio::test]
async fn the_token_goes_to_known_encoders_alone() {
    let (ours, theirs) = (made(), made());
    let known = trusting(&ours.cert, NAME);
    let (found, shown) = fetched(Some(&ours), known.clone()).await;
    assert_eq!(found.expect("known"), [Bytes::from_static(TENSOR)]);
    assert_eq!(shown, 1);
    let (found, shown) = fetched(None, None).await;
    assert_eq!(found.expect("plain"), [Bytes::from_static(TENSOR)]);
    assert_eq!(shown, 1);

    let (found, shown) = fetched(Some(&theirs), known.clone()).await;
    let error = found.expect_err("signed by somebody else");
    assert!(matches!(error, FetchError::Refused(_)), "{error:?}");
    assert_eq!(shown, 0);
    let (found, shown) = fetched(Some(&ours), trusting(&ours.cert, "another")).await;
    let error = found.expect_err("another name");
    assert!(matches!(error, FetchError::Refused(_)), "{error:?}");
    assert_eq!(shown, 0);
    let (found, shown) = fetched(None, known).await;
    assert!(matches!(found, Err(FetchError::Plain)), "{found:?}");
    assert_eq!(shown, 0);
    let (found, shown) = fetched(Some(&ours), None).await;
    assert!(matches!(found, Err(FetchError::Unknown)), "{found:?}");
    assert_eq!(shown, 0);
}

/// Of which tensor, what of it, and whether it is the last.
type Piece = (u32, &'static str, bool);

/// Sends these pieces to whoever asks.
#[derive(Debug, Clone)]
struct Sending(&'static [Piece]);

#[tonic::async_trait]
impl TokenService for Sending {
    type FetchTokensStream = Pieces;

    async fn fetch_tokens(
        &self,
        _: Request<FetchTokensRequest>,
    ) -> Result<Response<Pieces>, Status> {
        let pieces = self.0;
        let pieces = pieces.iter().map(|(index, data, last)| {
            Ok::<_, Status>(FetchTokensResponse {
                index: *index,
                data: Bytes::from_static(data.as_bytes()),
                last: *last,
            })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }
}

/// What comes of two tensors of four bytes each, by these pieces.
async fn of_two(pieces: &'static [Piece]) -> Result<Vec<Bytes>, FetchError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let serving = Server::builder()
        .add_service(TokenServiceServer::new(Sending(pieces)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let fetcher = Fetcher::new(Duration::from_secs(30), "secret", None);
    let tenant = TenantId::new("st-mary").expect("a name");
    let digests = [1, 2].map(|byte| Digest::new([byte; 32]));
    tokio::select! {
        ended = serving => panic!("the encoder ended: {ended:?}"),
        found = fetcher.fetch(&url, &tenant, &digests, 4) => found,
    }
}

#[tokio::test]
async fn tensors_are_put_together_of_their_pieces_in_order_or_not_at_all() {
    let both = of_two(&[(0, "ab", false), (0, "cd", true), (1, "efgh", true)]).await;
    assert_eq!(both.expect("both came"), ["abcd", "efgh"]);
    let wrong: [&'static [Piece]; 6] = [
        &[(0, "abcd", true)],
        &[(0, "abcd", true), (1, "ef", false)],
        &[(1, "efgh", true), (0, "abcd", true)],
        &[(0, "ab", false), (1, "efgh", true)],
        &[(0, "abcd", false), (0, "e", true), (1, "efgh", true)],
        &[(0, "abcd", true), (1, "efgh", true), (2, "ijkl", true)],
    ];
    for pieces in wrong {
        let found = of_two(pieces).await;
        let is_refused = matches!(found, Err(FetchError::Pieces));
        assert!(is_refused, "{pieces:?}: {found:?}");
    }
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused() {
    let ca = Certificate::from_pem(made().cert);
    assert!(known_by(ca, Some("not a name")).is_err());
}
