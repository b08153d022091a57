//! Sends a file, and goes on where it broke: the handle is taken first, then bytes follow from the committed offset.

use std::convert::Infallible;
use std::io::SeekFrom;
use std::path::Path;
use std::time::{Duration, Instant};

use medfleet_ingest::UPLOADS_RENEWED_EVERY;
use medfleet_proto::v1::{
    GetUploadRequest, Upload, UploadInputRequest, UploadStart, upload_input_request::Content,
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::error::said;
use super::{Client, ClientError, retry};

/// Most bytes that travel inside a submit request, over all inputs; larger studies are uploaded. The contract allows 3 MiB, and
/// wants the request to come whole within two minutes.
pub(crate) const CONTENT_BYTES_MAX: u64 = 512 << 10;
/// Bytes of one message; the contract allows 2 MiB, and wants each to come whole within a minute.
const CHUNK_BYTES: usize = 256 << 10;
/// A line of this many bits per second carries one message within its minute, and one request within its two.
const SLOWEST_LINE: usize = 40_000;
const _: () = assert!(CHUNK_BYTES * 8 / 60 < SLOWEST_LINE);
const _: () = assert!(CONTENT_BYTES_MAX * 8 / 120 < SLOWEST_LINE as u64);
/// When a complete upload that could not be renewed is renewed again.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 2;

/// How an upload goes.
#[derive(Debug)]
pub(crate) enum UploadNews {
    /// So many bytes are on their way or stored.
    Sent {
        /// Bytes from the file's beginning.
        bytes: u64,
        total: u64,
    },
    Stored {
        total: u64,
    },
    /// It broke and is tried again.
    Broke {
        /// Failures in a row.
        attempts: u32,
        /// Why, in words.
        said: String,
    },
}

/// The complete uploads of a study, which live on while its other files are on their way.
#[derive(Debug, Default)]
pub(crate) struct KeptUploads(Vec<KeptUpload>);

#[derive(Debug)]
struct KeptUpload {
    /// Its handle, `uploads/{id}`.
    name: String,
    /// Bytes of the whole file.
    bytes: u64,
    /// When the complete uploads are renewed next. It does not depend on the file being sent: many short files take as long as a
    /// large one.
    renew_at: tokio::time::Instant,
}

impl KeptUploads {
    fn add(&mut self, complete: Upload) {
        self.0.push(KeptUpload {
            name: complete.name,
            bytes: complete.total_bytes,
            renew_at: tokio::time::Instant::now() + UPLOADS_RENEWED_EVERY,
        });
    }
}

/// Who is told how an upload goes.
pub(crate) type OnNews<'a> = &'a mut (dyn FnMut(UploadNews) + Send);

impl Client {
    /// Sends the file at `path` and returns the handle of the complete upload, `uploads/{id}`, while the complete uploads in
    /// `kept` live on: the first files of a study on a slow line must be there when the last one is. It is one of them then.
    pub(crate) async fn upload(
        &self,
        kept: &mut KeptUploads,
        path: &Path,
        news: OnNews<'_>,
    ) -> Result<String, ClientError> {
        let complete = tokio::select! {
            complete = self.send(path, news) => complete?,
            never = self.renew(kept) => match never {},
        };
        let name = complete.name.clone();
        kept.add(complete);
        Ok(name)
    }

    /// Renews complete uploads, each in its time, again and again.
    async fn renew(&self, kept: &mut KeptUploads) -> Infallible {
        loop {
            let next = kept.0.iter_mut().min_by_key(|upload| upload.renew_at);
            let Some(next) = next else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next.renew_at).await;
            let start = UploadStart {
                upload: next.name.clone(),
                offset: next.bytes,
                total_bytes: next.bytes,
            };
            let renewed = timeout(self.answer_max, self.stream(alone(start))).await;
            let after = match renewed {
                Ok(Ok(_)) => UPLOADS_RENEWED_EVERY,
                // What comes too late, the submit says.
                Ok(Err(_)) | Err(_) => RENEW_AGAIN,
            };
            next.renew_at = tokio::time::Instant::now() + after;
        }
    }

    /// Sends the file at `path`, until it is complete.
    async fn send(&self, path: &Path, news: OnNews<'_>) -> Result<Upload, ClientError> {
        let unreadable = |source| ClientError::File {
            path: path.to_path_buf(),
            source,
        };
        let total = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
        let mut state: Option<Upload> = None;
        let mut row = Row::new();
        loop {
            let is_opening = state.is_none();
            let status = match self.advance(path, total, state.take(), news).await? {
                Ok(upload) if upload.complete => {
                    news(UploadNews::Stored { total });
                    return Ok(upload);
                }
                Ok(upload) => {
                    let bytes = upload.committed_bytes;
                    news(UploadNews::Sent { bytes, total });
                    state = Some(upload);
                    if row.has_come_to(bytes) || is_opening {
                        continue;
                    }
                    // Ended by something in between, or because the server took nothing: without counting a failure, this could
                    // repeat for ever.
                    Status::unavailable("the stream ended before the file did")
                }
                Err(Broken { status, upload }) => {
                    state = upload;
                    status
                }
            };
            row.failures += 1;
            let (attempts, said) = (row.failures, said(&status));
            self.pause(attempts, row.begun, status).await?;
            news(UploadNews::Broke { attempts, said });
            state = self.resume_from(state.take()).await?;
            if let Some(upload) = &state {
                row.has_come_to(upload.committed_bytes);
            }
        }
    }

    /// One step: opens the upload, or sends everything that is missing.
    async fn advance(
        &self,
        path: &Path,
        total: u64,
        state: Option<Upload>,
        news: OnNews<'_>,
    ) -> Result<Result<Upload, Broken>, ClientError> {
        let Some(known) = state else {
            // The handle comes first and alone: without it a broken stream could not be resumed.
            let start = UploadStart {
                upload: String::new(),
                offset: 0,
                total_bytes: total,
            };
            let opened = timeout(self.answer_max, self.stream(alone(start))).await;
            let opened = opened.unwrap_or_else(|_| Err(self.silence()));
            return Ok(opened.map_err(|status| Broken {
                status,
                upload: None,
            }));
        };
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let start = UploadStart {
            upload: known.name.clone(),
            offset: known.committed_bytes,
            total_bytes: total,
        };
        // Some 4 MiB may be in buffers between the file and the fleet; the slowest line carries them in this time.
        let patience = self.answer_max * 5;
        let fed = async {
            feed(path, start, sender, patience, news).await?;
            // Nothing is left to send, or nothing is taken any more.
            tokio::time::sleep(patience).await;
            Ok::<_, ClientError>(Status::deadline_exceeded("what was sent was not answered"))
        };
        let status = tokio::select! {
            answer = self.stream(receiver) => match answer {
                Ok(upload) => return Ok(Ok(upload)),
                Err(status) => status,
            },
            fed = fed => fed?,
        };
        Ok(Err(Broken {
            status,
            upload: Some(known),
        }))
    }

    async fn stream(&self, receiver: mpsc::Receiver<UploadInputRequest>) -> Result<Upload, Status> {
        let mut stub = self.stub.clone();
        let response = stub.upload_input(ReceiverStream::new(receiver)).await?;
        response
            .into_inner()
            .upload
            .ok_or_else(|| Status::data_loss("the answer lacks UploadInputResponse.upload"))
    }

    /// Asks how much is stored. An upload that the fleet no longer knows starts over.
    async fn resume_from(&self, state: Option<Upload>) -> Result<Option<Upload>, ClientError> {
        let Some(known) = state else { return Ok(None) };
        let mut stub = self.stub.clone();
        let request = GetUploadRequest {
            name: known.name.clone(),
        };
        let told = timeout(self.answer_max, stub.get_upload(request)).await;
        match told.unwrap_or_else(|_| Err(self.silence())) {
            Ok(response) => Ok(response.into_inner().upload),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            // The next step counts this failure: it meets the same connection.
            Err(status) if retry::may_pass(&status) => Ok(Some(known)),
            Err(status) => Err(ClientError::from_status(
                &self.server,
                1,
                Default::default(),
                status,
            )),
        }
    }
}

/// Failures in a row: those since the upload last came further. However often a line breaks, it carries a file to its end
/// as long as each stream of it stores something.
#[derive(Debug)]
struct Row {
    failures: u32,
    /// When it began.
    begun: Instant,
    /// Bytes stored, as the fleet said last.
    stored: u64,
}

impl Row {
    fn new() -> Self {
        Self {
            failures: 0,
            begun: Instant::now(),
            stored: 0,
        }
    }

    /// Notes how much is stored; true where that is more than before. An upload that had to be opened again begins at 0.
    fn has_come_to(&mut self, stored: u64) -> bool {
        let is_further = stored > self.stored;
        self.stored = stored;
        if is_further {
            (self.failures, self.begun) = (0, Instant::now());
        }
        is_further
    }
}

/// A step that broke, and what is known of the upload.
struct Broken {
    status: Status,
    upload: Option<Upload>,
}

/// Sends the start and then the file from the start's offset. Ends quietly when the call has ended, or takes nothing for
/// `patience`.
async fn feed(
    path: &Path,
    start: UploadStart,
    sender: mpsc::Sender<UploadInputRequest>,
    patience: Duration,
    news: OnNews<'_>,
) -> Result<(), ClientError> {
    let unreadable = |source| ClientError::File {
        path: path.to_path_buf(),
        source,
    };
    let (mut sent, total) = (start.offset, start.total_bytes);
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    file.seek(SeekFrom::Start(sent)).await.map_err(unreadable)?;
    if !is_taken(&sender, patience, Content::Start(start)).await {
        return Ok(());
    }
    while sent < total {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let wanted = (total - sent).min(CHUNK_BYTES as u64);
        let read = (&mut file)
            .take(wanted)
            .read_to_end(&mut chunk)
            .await
            .map_err(unreadable)?;
        if read == 0 {
            return Err(ClientError::FileChanged {
                path: path.to_path_buf(),
                total,
                sent,
            });
        }
        sent += read as u64;
        if !is_taken(&sender, patience, Content::Chunk(chunk.into())).await {
            return Ok(());
        }
        news(UploadNews::Sent { bytes: sent, total });
    }
    // Somebody still writes to the file: what was sent would be taken for all of it.
    let length = file.metadata().await.map_err(unreadable)?.len();
    if length > total {
        return Err(ClientError::FileChanged {
            path: path.to_path_buf(),
            total,
            sent: length,
        });
    }
    Ok(())
}

/// Whether the call takes it in time.
async fn is_taken(
    sender: &mpsc::Sender<UploadInputRequest>,
    patience: Duration,
    content: Content,
) -> bool {
    let sent = timeout(patience, sender.send(message(content))).await;
    matches!(sent, Ok(Ok(())))
}

/// A stream of the start and nothing else.
fn alone(start: UploadStart) -> mpsc::Receiver<UploadInputRequest> {
    let (sender, receiver) = mpsc::channel(1);
    // The channel has room for the one message, and its receiver is right here.
    let _sent = sender.try_send(message(Content::Start(start)));
    receiver
}

fn message(content: Content) -> UploadInputRequest {
    UploadInputRequest {
        content: Some(content),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyhow::{Context, bail, ensure};
    use medfleet_core::UploadId;
    use medfleet_ingest::{TokensFile, create_token};
    use medfleet_queue::{Queue, Updated};
    use medfleet_runtime::config::{Sources, load};
    use medfleet_runtime::{Health, Metrics, Pages, Shutdown, SystemClock, SystemRandom, TaskSet};
    use medfleet_store::{BlobStore, FleetKey};
    use medfleet_testkit::{self as kit, wait_until};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::{Fleet, Retry};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn failures_count_from_where_the_upload_last_came_further() {
        let mut row = Row::new();
        for (stored, is_further, failures) in
            [(4, true, 0), (4, false, 1), (0, false, 1), (1, true, 0)]
        {
            row.failures = 1;
            assert_eq!(row.has_come_to(stored), is_further);
            assert_eq!(row.failures, failures);
        }
    }

    /// A server on which connections are made and nothing is ever said, and a client of it.
    async fn stuck() -> (TcpListener, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("binds");
        let address = listener.local_addr().expect("bound");
        let fleet = Fleet::plain(format!("http://{address}"), "t");
        let client = Client::new(&fleet, Retry::ONCE).expect("a URL");
        (listener, client)
    }

    /// A real ingest is asked in time to keep the first file, and does, however short the files are that come behind it.
    #[tokio::test]
    async fn complete_uploads_live_on_while_others_are_on_their_way() -> anyhow::Result<()> {
        let (_server, queue) = kit::start().await?;
        let folder = tempfile::tempdir()?;
        let (token, entry) = create_token("reading-room", &kit::tenant(), &SystemRandom);
        let tokens = folder.path().join("tokens.toml");
        let entries = TokensFile {
            tokens: vec![entry],
        };
        std::fs::write(&tokens, entries.to_toml()?)?;
        let sources = Sources {
            overrides: vec![
                format!("tokens={}", tokens.display()),
                "default_model=tiny".to_owned(),
                "models.tiny=tiny-here".to_owned(),
            ],
            ..Sources::default()
        };
        let config: medfleet_ingest::Config = load(&sources)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = format!("http://{}", listener.local_addr()?);
        let fleet = Fleet::plain(server, token.expose());
        let client = Client::new(&fleet, Retry::PATIENT)?;
        let deployment = medfleet_ingest::Deployment {
            listener,
            pages: Pages::default(),
            random: Arc::new(SystemRandom),
        };
        let dependencies = medfleet_worker::Dependencies {
            queue: queue.clone(),
            store: BlobStore::in_memory(FleetKey::new([1; 32])),
            metrics: Metrics::new(),
            health: Health::new(),
            tasks: TaskSet::new(Shutdown::new(Duration::ZERO)),
            clock: Arc::new(SystemClock),
        };
        let file = folder.path().join("film");
        std::fs::write(&file, b"pixels")?;
        tokio::select! {
            ended = medfleet_ingest::run(config, deployment, dependencies) => bail!("{ended:?}"),
            kept = first_is_kept(&client, &queue, &file) => kept,
        }
    }

    async fn first_is_kept(client: &Client, queue: &Queue, file: &Path) -> anyhow::Result<()> {
        let mut kept = KeptUploads::default();
        let first = client.upload(&mut kept, file, &mut |_| ()).await?;
        let id = UploadId::new(first.trim_start_matches("uploads/"))?;
        let tenant = kit::tenant();
        let found = queue.upload(&tenant, &id).await?;
        let (mut record, revision) = found.context("an upload")?;
        // Nearly all of its time is over.
        let ends = kit::clock()().0 + 120_000;
        record.expire_unix_millis = ends;
        let updated = queue.update_upload(&tenant, &id, &record, revision).await?;
        ensure!(matches!(updated, Updated::Updated(_)), "{updated:?}");
        for upload in &mut kept.0 {
            upload.renew_at = tokio::time::Instant::now();
        }
        // What the end of one file breaks off is done beside the next.
        wait_until(PATIENCE, "the first file to live on", async || {
            let sent = client.upload(&mut kept, file, &mut |_| ()).await;
            sent.ok()?;
            let (record, _) = queue.upload(&tenant, &id).await.ok()??;
            (record.expire_unix_millis > ends).then_some(())
        })
        .await
    }

    #[tokio::test]
    async fn a_file_that_grows_while_it_is_sent_is_not_taken_for_whole() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"pixels").expect("is written");
        let check = async |total_bytes, expected: Option<u64>| {
            let start = UploadStart {
                total_bytes,
                ..UploadStart::default()
            };
            let (sender, _receiver) = mpsc::channel(4);
            let fed = feed(file.path(), start, sender, PATIENCE, &mut |_| ()).await;
            let found = match fed {
                Ok(()) => None,
                Err(ClientError::FileChanged { sent, .. }) => Some(sent),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, expected, "{total_bytes}");
        };
        check(6, None).await;
        check(3, Some(6)).await;
        check(9, Some(6)).await;
    }

    #[tokio::test]
    async fn an_upload_to_a_server_that_is_stuck_ends() {
        let (_listener, mut client) = stuck().await;
        client.answer_max = Duration::from_millis(20);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"pixels").expect("is written");
        let known = Upload {
            name: "uploads/a".to_owned(),
            total_bytes: 6,
            ..Upload::default()
        };
        for state in [None, Some(known)] {
            let was_known = state.is_some();
            let step = client.advance(file.path(), 6, state, &mut |_| ()).await;
            let broken = step.expect("the file is read").expect_err("no answer");
            assert_eq!(broken.status.code(), Code::DeadlineExceeded);
            assert_eq!(broken.upload.is_some(), was_known);
        }
    }
}
