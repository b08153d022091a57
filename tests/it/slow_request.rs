//! Slow and silent clients: a caller that does not finish its request, a socket on which no call is ever made. Each is closed
//! when its time is over, and other clients are served meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use medfleet_testkit::wait_until;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::fleet::{Fleet, Options, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status, Streaming};

/// Messages without anything in them; those that come are not looked at.
pub(crate) struct Nothing;

impl Codec for Nothing {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Nothing {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Nothing {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(None)
    }
}

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_come_is_not_waited_for() -> Result<()> {
    let limits = toml::toml! {
        [limits]
        request_time_max = "1s"
    };
    let fleet = Fleet::with_ingest(limits).await?;
    let channel = Channel::from_shared(fleet.url())?.connect().await?;
    let token = format!("Bearer {}", fleet.token("st-mary"));
    for method in [
        "medfleet.v1.JobService/GetJob",
        "medfleet.v1.JobService/WatchJob",
        "medfleet.v1.OperatorService/ListPauses",
        "grpc.health.v1.Health/Check",
        REFLECTION,
    ] {
        let mut call = tonic::client::Grpc::new(channel.clone());
        call.ready().await.context("the server is there")?;
        let mut request = Request::new(futures::stream::pending());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", token.parse()?);
        let path: PathAndQuery = format!("/{method}").parse()?;
        let answer = call.client_streaming(request, path, Nothing);
        let answer = tokio::time::timeout(PATIENCE, answer).await?;
        let refused = answer
            .err()
            .with_context(|| format!("{method} was answered"))?;
        // Its answers are a stream, which just ends.
        if method == REFLECTION {
            continue;
        }
        ensure!(
            refused.code() == Code::DeadlineExceeded
                && refused.message().contains("request_time_max"),
            "{method}: {refused:?}"
        );
    }
    // Whoever sends its requests is served meanwhile and after.
    ensure!(
        fleet
            .client("st-mary")
            .await?
            .list(1, "")
            .await?
            .0
            .is_empty()
    );
    Ok(())
}

/// Waits until the server has closed a connection, well before it would by default.
async fn is_closed(mut socket: TcpStream) -> Result<()> {
    let mut heard = Vec::new();
    let read = socket.read_to_end(&mut heard);
    let ended = tokio::time::timeout(Duration::from_secs(30), read).await;
    // Closed and reset are both the end.
    drop(ended.context("the connection stays open")?);
    Ok(())
}

/// A connection of a client that trusts `authority`, or speaks in the clear.
async fn connection(fleet: &Fleet, authority: Option<String>) -> Result<Channel> {
    let Some(authority) = authority else {
        return Ok(Channel::from_shared(fleet.url())?.connect().await?);
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority))
        .domain_name("localhost");
    let endpoint = Channel::from_shared(format!("https://{}", fleet.api()))?;
    Ok(endpoint.tls_config(tls)?.connect().await?)
}

/// A call that goes on for as long as its connection does, and says nothing until then.
async fn lasting_call(channel: &Channel) -> Result<Streaming<()>> {
    let mut call = tonic::client::Grpc::new(channel.clone());
    call.ready().await.context("the server is there")?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
    let answers = call.server_streaming(Request::new(()), path, Nothing);
    Ok(answers.await.context("the call begins")?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_comes_to_no_call_is_closed() -> Result<()> {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let tls = (own.cert.pem(), own.signing_key.serialize_pem());
    // The beginning of HTTP/2, and of a TLS greeting of 512 bytes.
    let beginnings: [(Option<_>, &[u8]); 2] = [
        (None, b"PRI * HTTP/2.0"),
        (Some(tls), b"\x16\x03\x01\x02\x00"),
    ];
    for (tls, beginning) in beginnings {
        let limits = toml::toml! {
            [limits]
            first_call_time_max = "3s"
        };
        let authority = tls.as_ref().map(|(certificate, _)| certificate.clone());
        let fleet = Fleet::start(Options {
            tls,
            ingest: limits,
            ..Options::default()
        })
        .await?;
        // A connection that a loaded machine does not bring to its call in time is closed as well.
        let in_time = wait_until(PATIENCE, "a call in time", async || {
            let channel = connection(&fleet, authority.clone()).await.ok()?;
            let called = lasting_call(&channel).await.ok()?;
            Some((channel, called))
        });
        let (_channel, mut called) = in_time.await?;
        let silent = TcpStream::connect(fleet.api()).await?;
        let mut begins = TcpStream::connect(fleet.api()).await?;
        begins.write_all(beginning).await?;
        is_closed(silent).await?;
        is_closed(begins).await?;
        // It is older than these: its time was over before theirs.
        let broken = called.message().now_or_never();
        ensure!(broken.is_none(), "a call was cut: {broken:?}");
        // Nor does it hold up a stop.
        let code = fleet.stop_role(Role::Ingest).await?;
        let log = fleet.log_end(Role::Ingest);
        ensure!(code == Some(0), "it stopped with {code:?}; {log}");
    }
    Ok(())
}
