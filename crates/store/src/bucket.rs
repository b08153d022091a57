//! Files of a bucket that are no blobs: names as they are, any size, moved in pieces. A model's weights are such files.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

use crate::backend::{BackendError, failed, found};
use crate::config::{OpenError, S3Config};

/// Bytes of one request. One that fails is made again whole, and must end within the client's 30 s.
const PIECE_BYTES: usize = 16 << 20;
/// Requests under way for one file.
const PIECES_AT_ONCE: usize = 4;

/// A bucket of S3, or of what is compatible with it.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
}

/// A file that is being read.
pub struct Reading {
    /// Its length in bytes, as the bucket has it.
    pub bytes: u64,
    /// Its content, from the beginning.
    pub pieces: BoxStream<'static, Result<Bytes, BackendError>>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Bucket {
    /// Makes the client; nothing is sent yet.
    ///
    /// # Errors
    /// For settings that don't make sense, and in a build without S3.
    pub fn open(config: &S3Config) -> Result<Self, OpenError> {
        config.check()?;
        Ok(Self {
            store: crate::config::s3::client(config)?,
        })
    }

    /// In memory, gone with the process. For tests.
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(object_store::memory::InMemory::new()),
        }
    }

    /// The file of that name; none where there is none.
    ///
    /// # Errors
    /// When the bucket refuses or cannot be reached. A piece that fails later ends the stream with its error.
    pub async fn read(&self, name: &str) -> Result<Option<Reading>, BackendError> {
        let path = parsed(name)?;
        let Some(meta) = found("look up a file", self.store.head(&path).await)? else {
            return Ok(None);
        };
        let store = Arc::clone(&self.store);
        let pieces = stream::iter(ranges(meta.size)).map(move |range| {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move {
                let options = GetOptions::new().with_range(Some(range));
                let read = async { store.get_opts(&path, options).await?.bytes().await };
                read.await.map_err(|error| failed("read a file", error))
            }
        });
        Ok(Some(Reading {
            bytes: meta.size,
            pieces: pieces.buffered(PIECES_AT_ONCE).boxed(),
        }))
    }

    /// Writes a file of that name, in place of what was there. It is there when all of it is.
    ///
    /// # Errors
    /// When the bucket refuses or cannot be reached, and what the content's own stream says.
    pub async fn write(
        &self,
        name: &str,
        content: impl Stream<Item = Result<Bytes, BackendError>> + Send + Unpin,
    ) -> Result<(), BackendError> {
        let path = parsed(name)?;
        let begun = self.store.put_multipart(&path).await;
        let mut upload = begun.map_err(|error| failed("write a file", error))?;
        let written = send(&mut *upload, content).await;
        if written.is_err() {
            // What was sent lies in the bucket, unseen; a store that cannot be told removes it by its own rules.
            drop(upload.abort().await);
        }
        written
    }
}

async fn send(
    upload: &mut dyn object_store::MultipartUpload,
    mut content: impl Stream<Item = Result<Bytes, BackendError>> + Send + Unpin,
) -> Result<(), BackendError> {
    let mut part = Vec::with_capacity(PIECE_BYTES);
    let mut sent = false;
    while let Some(piece) = content.try_next().await? {
        let mut piece = &piece[..];
        // Every part but the last has the same length: some stores demand it.
        while part.len() + piece.len() >= PIECE_BYTES {
            let (now, later) = piece.split_at(PIECE_BYTES - part.len());
            part.extend_from_slice(now);
            let full = std::mem::replace(&mut part, Vec::with_capacity(PIECE_BYTES));
            let put = upload.put_part(Bytes::from(full).into()).await;
            put.map_err(|error| failed("write a file", error))?;
            (piece, sent) = (later, true);
        }
        part.extend_from_slice(piece);
    }
    // An empty file has one part too.
    if !part.is_empty() || !sent {
        let put = upload.put_part(Bytes::from(part).into()).await;
        put.map_err(|error| failed("write a file", error))?;
    }
    let completed = upload.complete().await;
    completed
        .map(drop)
        .map_err(|error| failed("write a file", error))
}

fn parsed(name: &str) -> Result<Path, BackendError> {
    Path::parse(name).map_err(|error| failed("name a file", error.into()))
}

/// The pieces of a file, in order.
fn ranges(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes)
        .step_by(PIECE_BYTES)
        .map(move |start| start..bytes.min(start + PIECE_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_pieces() {
        let piece = PIECE_BYTES as u64;
        let check = |bytes: u64, expected: &[(u64, u64)]| {
            let cut = ranges(bytes).map(|range| (range.start, range.end));
            assert_eq!(cut.collect::<Vec<_>>(), expected);
        };
        check(0, &[]);
        check(3, &[(0, 3)]);
        check(piece, &[(0, piece)]);
        check(piece + 1, &[(0, piece), (piece, piece + 1)]);
    }

    #[tokio::test]
    async fn what_was_written_is_read_whatever_its_length() {
        let bucket = Bucket::in_memory();
        for length in [0, 5, PIECE_BYTES, 2 * PIECE_BYTES + 7] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            // In pieces that fit no part.
            let pieces: Vec<_> = content
                .chunks(7_000_001)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect();
            let written = bucket.write("models/a b/SHA256SUMS", stream::iter(pieces));
            written.await.expect("writes");
            let reading = bucket.read("models/a b/SHA256SUMS").await.expect("reads");
            let reading = reading.expect("is there");
            assert_eq!(reading.bytes, length as u64);
            let pieces: Vec<Bytes> = reading.pieces.try_collect().await.expect("reads");
            let read: Vec<u8> = pieces.iter().flatten().copied().collect();
            assert!(read == content, "{length}");
        }
        assert!(bucket.read("models/b").await.expect("answers").is_none());
    }

    #[tokio::test]
    async fn a_file_whose_content_fails_is_not_there() {
        let bucket = Bucket::in_memory();
        let gone = BackendError::failed("read", false, "gone");
        let content = stream::iter([Ok(Bytes::from_static(b"half")), Err(gone)]);
        bucket.write("half", content).await.expect_err("is told");
        assert!(bucket.read("half").await.expect("answers").is_none());
    }
}
