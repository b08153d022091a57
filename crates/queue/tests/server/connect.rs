//! Connecting: what is refused and what the refusal says; making streams from many processes at once.

use anyhow::{Context, Result, ensure};
use medfleet_core::setting::{ByteSize, Secret};
use medfleet_core::{PoolName, Stage};
use medfleet_queue::{ConnectError, Queue, QueueConfig};
use medfleet_testkit::{self as kit, FaultyLink, NATS_DEFAULT, NatsServer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};

async fn refusal(config: &QueueConfig) -> Result<ConnectError> {
    Queue::connect(config, kit::clock())
        .await
        .err()
        .context("it connected")
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() -> Result<()> {
    // Kept and never listened at: nobody else's server gets the port meanwhile.
    let taken = TcpSocket::new_v4()?;
    taken.bind("127.0.0.1:0".parse()?)?;
    let address = taken.local_addr()?;
    let mut config = kit::config(&format!("nats://me:hunter2@{address}"));
    config.password = None;
    let error = refusal(&config).await?;
    ensure!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    ensure!(text.contains(&address.to_string()), "{text}");
    ensure!(!text.contains("hunter2"), "{text}");
    Ok(())
}

#[tokio::test]
async fn an_old_server_is_refused_with_both_versions() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let config = kit::config(&format!("nats://{}", listener.local_addr()?));
    let old = async {
        // The banner of a server from before; it answers the client's first ping, and no more.
        let (mut stream, _) = listener.accept().await?;
        let banner = r#"INFO {"server_id":"A","version":"2.9.10","proto":1,"headers":true,"max_payload":1048576,"host":"0","port":1}"#;
        stream
            .write_all(format!("{banner}\r\nPONG\r\n").as_bytes())
            .await?;
        std::future::pending::<Result<()>>().await
    };
    let error = tokio::select! {
        error = refusal(&config) => error?,
        ended = old => return ended,
    };
    ensure!(
        error.to_string() == "the NATS server is version 2.9.10; at least 2.12.0 is needed",
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn contradicting_settings_are_refused_before_connecting() -> Result<()> {
    let mut config = kit::config("nats://127.0.0.1:1");
    config.heartbeat = Some(config.ack_wait);
    let error = refusal(&config).await?;
    ensure!(matches!(error, ConnectError::Config(_)), "{error:?}");
    config = kit::config("nats://127.0.0.1:1");
    config.password = Some(Secret::new("x"));
    ensure!(matches!(refusal(&config).await?, ConnectError::Config(_)));
    Ok(())
}

#[tokio::test]
async fn a_queue_that_would_deliver_nothing_is_refused_before_connecting() -> Result<()> {
    let mut config = kit::config("nats://127.0.0.1:1");
    config.in_flight_max = 0;
    let ConnectError::Config(error) = refusal(&config).await? else {
        anyhow::bail!("it tried to connect");
    };
    let text = error.to_string();
    ensure!(
        text.starts_with("queue.in_flight_max must be at least 1, found 0"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn many_processes_make_the_streams_at_once_and_again() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut config = kit::config(&server.url());
    let pools = [kit::pool(), PoolName::new("big-there")?];
    let mut queues = Vec::new();
    for _ in 0..4 {
        queues.push(Queue::connect(&config, kit::clock()).await?);
    }
    let made = queues.iter().map(|queue| queue.ensure(&pools));
    futures::future::try_join_all(made).await?;
    queues[0].ensure(&pools).await?;
    ensure!(queues[0].server_version() == NATS_DEFAULT);
    ensure!(queues[0].is_connected());
    for stage in Stage::ALL {
        ensure!(queues[0].outstanding(*stage, &pools[1]).await?.total() == 0);
    }
    // Other limits are taken over by what is there.
    config.intake_messages_max = 7;
    config.in_flight_max = 9;
    Queue::connect(&config, kit::clock())
        .await?
        .ensure(&pools)
        .await?;
    queues[0].drain().await;
    let closed = queues[0].ensure(&pools).await;
    ensure!(
        matches!(closed, Err(medfleet_queue::QueueError::Closed)),
        "{closed:?}"
    );
    Ok(())
}

/// A worker that starts asks for the streams that ingest has made, and their room is taken, by themselves.
#[tokio::test]
async fn streams_that_have_most_of_the_room_are_found() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut config = kit::config(&server.url());
    // Of the server's 16 GiB less is left beside them.
    config.stream_bytes_max.events = ByteSize::from_mib(9 * 1024);
    let queue = kit::queue(&config).await?;
    queue.ensure_there(&[kit::pool()]).await?;
    Ok(())
}

#[tokio::test]
async fn streams_are_made_by_a_server_that_takes_its_time() -> Result<()> {
    let nats = NatsServer::start().await?;
    let link = FaultyLink::to(nats.address()).await?;
    let mut config = kit::config(&link.nats_url());
    config.request_timeout = medfleet_core::setting::DurationText::from_millis(300);
    let queue = Queue::connect(&config, kit::clock()).await?;
    link.stall();
    let pools = [kit::pool()];
    let mut making = std::pin::pin!(queue.ensure(&pools));
    let patience = 3 * config.request_timeout.get();
    let given_up = tokio::time::timeout(patience, &mut making).await;
    ensure!(given_up.is_err(), "it ended: {given_up:?}");
    link.mend();
    making.await?;
    Ok(())
}
