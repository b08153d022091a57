//! Names below a prefix; and on a cluster, where any server answers direct reads, that what a follower has damaged or has not
//! got yet is no reason to delete what the leader has.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use medfleet_core::{BlobKind, TenantId, UnixMillis};
use medfleet_store::{BlobStore, FleetKey, Limits, StoreError};
use medfleet_testkit::NatsServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OnceCell;

use super::{Inner, Objects, is_below};
use crate::api::once;
use crate::{Queue, QueueConfig};

const BUCKET: &str = "blobs";
const STREAM: &str = "OBJ_blobs";
const CHUNKS: &str = "$O.blobs.C.>";

#[test]
fn prefixes_are_whole_segments() {
    let check = |name: &str, prefix: &str, below: bool| {
        assert_eq!(is_below(name, prefix), below, "{name} {prefix}");
    };
    check("t/frame/a", "", true);
    check("t/frame/a", "t/frame", true);
    check("t/frames/a", "t/frame", false);
    check("t/frame/a", "t/frame/a", true);
}

/// A bucket as it is on a cluster, but on one server, and of which that server answers no direct reads: a follower does.
async fn of_a_cluster(queue: &Queue) -> Result<Objects> {
    let stream = json!({
        "name": STREAM,
        "subjects": [format!("$O.{BUCKET}.C.>"), format!("$O.{BUCKET}.M.>")],
        "storage": "file",
        "allow_rollup_hdrs": true,
        "allow_direct": false,
    });
    let method = format!("STREAM.CREATE.{STREAM}");
    let made: Value = queue.api.call(once("make"), &method, &stream).await?;
    let is_direct = made["config"]["allow_direct"].as_bool();
    ensure!(!is_direct.unwrap_or(false), "{made}");
    let mut api = queue.api.clone();
    api.any_server_is_current = false;
    Ok(Objects {
        inner: Arc::new(Inner {
            api,
            bucket: BUCKET.to_owned(),
            stream: STREAM.to_owned(),
            replicas: 1,
            bytes_max: 1 << 20,
            made: OnceCell::new_with(Some(())),
        }),
    })
}

/// Who answers direct reads, as a server does whose copy is what the test says.
struct Follower {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Follower {
    async fn of(server: SocketAddr) -> Result<Self> {
        let (from, to) = TcpStream::connect(server).await?.into_split();
        let from = BufReader::new(from);
        let mut follower = Self { from, to };
        let subscribe = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB $JS.API.DIRECT.GET.{STREAM} 1\r\nPING\r\n"
        );
        follower.to.write_all(subscribe.as_bytes()).await?;
        while follower.line().await? != "PONG" {}
        Ok(follower)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.from.read_line(&mut line).await?;
        ensure!(read > 0, "NATS closed the connection");
        ensure!(!line.starts_with("-ERR"), "NATS says {line}");
        Ok(line.trim_end().to_owned())
    }

    async fn send(&mut self, reply: &str, headers: &str, payload: &[u8]) -> Result<()> {
        let (head, all) = (headers.len(), headers.len() + payload.len());
        let begin = format!("HPUB {reply} {head} {all}\r\n{headers}");
        let message = [begin.as_bytes(), payload, b"\r\n"].concat();
        Ok(self.to.write_all(&message).await?)
    }

    /// Answers every read of a chunk with this one, or that there is none.
    async fn answer(&mut self, chunk: Option<&[u8]>) -> Result<Infallible> {
        loop {
            let line = self.line().await?;
            if line == "PING" {
                self.to.write_all(b"PONG\r\n").await?;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let ["MSG", _subject, _subscription, reply, bytes] = words.as_slice() else {
                continue;
            };
            let mut request = vec![0; bytes.parse::<usize>()? + 2];
            self.from.read_exact(&mut request).await?;
            let request: Value = serde_json::from_slice(&request)?;
            let subject = request["next_by_subj"].as_str();
            let subject = subject.with_context(|| format!("asked for {request}"))?;
            if let Some(chunk) = chunk {
                let headers = format!(
                    "NATS/1.0\r\nNats-Subject: {subject}\r\nNats-Sequence: 1\r\nNats-Time-Stamp: 2026-11-23T21:00:00Z\r\n\r\n"
                );
                self.send(reply, &headers, chunk).await?;
                self.send(reply, "NATS/1.0 204 EOB\r\n\r\n", b"").await?;
            } else {
                let none = "NATS/1.0 404 Message Not Found\r\n\r\n";
                self.send(reply, none, b"").await?;
            }
        }
    }

    /// Does this while direct reads are answered so.
    async fn beside<T>(
        &mut self,
        chunk: Option<&[u8]>,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        tokio::select! {
            done = work => Ok(done),
            broken = self.answer(chunk) => match broken {
                Ok(never) => match never {},
                Err(error) => Err(error),
            },
        }
    }
}

#[tokio::test]
async fn a_damaged_copy_is_deleted_only_when_the_leader_has_no_other() -> Result<()> {
    let server = NatsServer::start().await?;
    let config = QueueConfig::at(server.url());
    let queue = Queue::connect(&config, Arc::new(|| UnixMillis(0))).await?;
    let objects = Arc::new(of_a_cluster(&queue).await?);
    let limits = Limits {
        blob_bytes_max: 1 << 20,
        capacity_bytes: None,
    };
    let store = BlobStore::new(objects, FleetKey::new([7; 32]), limits);
    let (tenant, kind) = (TenantId::new("st-mary")?, BlobKind::Input);
    let content = Bytes::from_static(b"what was put");
    let digest = store.put(&tenant, kind, content.clone()).await?;
    let mut follower = Follower::of(server.address()).await?;
    for wrong in [Some(&b"what was cut"[..]), Some(&b"short"[..]), None] {
        let read = store.get(&tenant, kind, &digest);
        let read = follower.beside(wrong, read).await?;
        ensure!(read? == content, "{wrong:?}");
        ensure!(store.exists(&tenant, kind, &digest).await?, "{wrong:?}");
    }
    // Now the leader's is no better.
    let chunks = queue.api.subjects(STREAM, CHUNKS).await?;
    let chunk = chunks.first().context("the chunk has a subject")?;
    queue.api.purge(STREAM, chunk).await?;
    let damaged = Bytes::from_static(b"what was cut");
    queue
        .api
        .publish(once("damage"), chunk, None, damaged.clone())
        .await?;
    let read = store.get(&tenant, kind, &digest);
    let read = follower.beside(Some(&damaged), read).await?;
    ensure!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    ensure!(!store.exists(&tenant, kind, &digest).await?, "it stays");
    Ok(())
}
