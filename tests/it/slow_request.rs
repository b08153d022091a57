//! A caller that is known and does not send its request to the end: the call ends in its time, and others are served.

use anyhow::{Context, Result, ensure};
use medfleet_tests::client::PATIENCE;
use medfleet_tests::fleet::{Fleet, Options};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Messages that are never sent and never come.
struct Nothing;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_come_is_not_waited_for() -> Result<()> {
    let limits = toml::toml! {
        [limits]
        request_time_max = "1s"
    };
    let fleet = Fleet::start(Options {
        ingest: limits,
        ..Options::default()
    })
    .await?;
    let channel = Channel::from_shared(fleet.url())?.connect().await?;
    let token = format!("Bearer {}", fleet.token("st-mary"));
    for method in [
        "JobService/GetJob",
        "JobService/WatchJob",
        "OperatorService/ListPauses",
    ] {
        let mut call = tonic::client::Grpc::new(channel.clone());
        call.ready().await.context("the server is there")?;
        let mut request = Request::new(futures::stream::pending());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", token.parse()?);
        let path: PathAndQuery = format!("/medfleet.v1.{method}").parse()?;
        let answer = call.client_streaming(request, path, Nothing);
        let answer = tokio::time::timeout(PATIENCE, answer).await?;
        let refused = answer
            .err()
            .with_context(|| format!("{method} was answered"))?;
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
