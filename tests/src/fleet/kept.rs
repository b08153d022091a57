//! What a fleet leaves behind on disks, for tests that look for what must not be there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use medfleet_queue::{Queue, QueueConfig, StreamBytes};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Fleet, Role};
use crate::config;

impl Fleet {
    /// Every byte that nats-server keeps of streams and buckets, and its log.
    pub async fn queue_files(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let nats = self.nats.lock().await;
        let mut files = files_below(&nats.store())?;
        files.push(nats.log());
        // What the server has removed in the meantime is not kept.
        let read = |path: PathBuf| fs::read(&path).ok().map(|bytes| (path, bytes));
        Ok(files.into_iter().filter_map(read).collect())
    }

    /// A connection to its queue, for looking at what no client sees.
    pub async fn queue(&self) -> Result<Queue> {
        config::queue(&self.nats.lock().await.url()).await
    }

    /// Gives the streams so much room, as another `queue.stream_bytes_max` does.
    pub async fn change_streams(&self, stream_bytes_max: StreamBytes) -> Result<()> {
        let config = QueueConfig {
            stream_bytes_max,
            // No line of the audit goes, however little room it has.
            audit_lines_max: Some(0),
            ..QueueConfig::at(self.nats.lock().await.url())
        };
        let queue = Queue::connect(&config, medfleet_testkit::clock()).await?;
        Ok(queue.ensure(&[]).await?)
    }

    /// Publishes bytes that are no unit, as a client of NATS that is none of ours does.
    pub async fn publish_garbage(&self, subject: &str) -> Result<()> {
        const GARBAGE: &[u8] = &[0x0a, 0xff];
        let address = self.nats.lock().await.address();
        let (from, mut to) = TcpStream::connect(address).await?.into_split();
        let length = GARBAGE.len();
        let begin = format!("CONNECT {{\"verbose\":false}}\r\nPUB {subject} {length}\r\n");
        // It answers the ping when it has read what came before.
        let message = [begin.as_bytes(), GARBAGE, b"\r\nPING\r\n"].concat();
        to.write_all(&message).await?;
        let mut lines = BufReader::new(from).lines();
        while let Some(line) = lines.next_line().await? {
            ensure!(!line.starts_with("-ERR"), "NATS says {line}");
            if line == "PONG" {
                return Ok(());
            }
        }
        bail!("NATS closed the connection")
    }

    /// Whether NATS lets the user of a service publish to a subject.
    pub async fn may_publish(&self, role: Role, subject: &str) -> Result<bool> {
        self.may(role, &format!("PUB {subject} 0\r\n")).await
    }

    /// Whether NATS lets the user of a service listen to a subject.
    pub async fn may_subscribe(&self, role: Role, subject: &str) -> Result<bool> {
        self.may(role, &format!("SUB {subject} 1")).await
    }

    /// Whether NATS lets the user of a service do what a line of its protocol says.
    async fn may(&self, role: Role, what: &str) -> Result<bool> {
        let address = self.nats.lock().await.address();
        let (from, mut to) = TcpStream::connect(address).await?.into_split();
        let (user, password) = (role.name(), config::NATS_PASSWORD);
        let begin = format!(
            "CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n"
        );
        let message = format!("{begin}{what}\r\nPING\r\n");
        to.write_all(message.as_bytes()).await?;
        let mut lines = BufReader::new(from).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("-ERR 'Permissions Violation") {
                return Ok(false);
            }
            ensure!(!line.starts_with("-ERR"), "NATS says {line}");
            if line == "PONG" {
                return Ok(true);
            }
        }
        bail!("NATS closed the connection")
    }

    /// What NATS refused to its users for want of rights, a line of its log each.
    pub async fn refusals(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.nats.lock().await.log())?;
        let refused = log.lines().filter(|line| line.contains("Violation"));
        Ok(refused.map(str::to_owned).collect())
    }

    /// Copies what a stopped fleet keeps: the queue's files and the blobs.
    pub async fn back_up(&self, to: &Path) -> Result<()> {
        copy(&self.nats.lock().await.store(), &to.join("queue"))?;
        copy(&self.blobs(), &to.join("blobs"))
    }

    /// Puts such a copy in the place of what a stopped fleet keeps.
    pub async fn put_back(&self, from: &Path) -> Result<()> {
        for (kept, copied) in [
            (self.nats.lock().await.store(), from.join("queue")),
            (self.blobs(), from.join("blobs")),
        ] {
            fs::remove_dir_all(&kept).with_context(|| format!("remove {}", kept.display()))?;
            copy(&copied, &kept)?;
        }
        Ok(())
    }

    /// Every byte that the fleet keeps: blobs of every tenant and kind, streams and buckets.
    pub async fn kept(&self) -> Result<Vec<Vec<u8>>> {
        let mut kept = read_below(&self.blobs())?;
        kept.extend(
            self.queue_files()
                .await?
                .into_iter()
                .map(|(_, bytes)| bytes),
        );
        Ok(kept)
    }

    /// The blobs of a kind, all of a tenant's.
    pub fn blobs_of(&self, tenant: &str, kind: &str) -> Result<Vec<Vec<u8>>> {
        read_below(&self.blobs().join(tenant).join(kind))
    }
}

pub(crate) fn read_below(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("read {}", path.display()));
    files_below(folder)?.into_iter().map(read).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files_below(from)? {
        let copied = to.join(file.strip_prefix(from)?);
        fs::create_dir_all(copied.parent().context("a file is in a folder")?)?;
        fs::copy(&file, &copied).with_context(|| format!("copy {}", file.display()))?;
    }
    Ok(())
}

pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files.sort();
    Ok(files)
}
