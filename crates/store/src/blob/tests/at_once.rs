//! Small contents with their reference, at a place that does all of it in one call.

use std::future::ready;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::backend::{AtOnce, Batch, Entry, Landed};

/// A folder whose calls are counted.
#[derive(Debug)]
struct Counted {
    place: Folder,
    calls: AtomicU32,
}

impl Counted {
    fn new(path: &std::path::Path, capacity_bytes: Option<u64>) -> (Arc<Self>, BlobStore) {
        let counted = Arc::new(Self {
            place: Folder::open(path).expect("opens"),
            calls: AtomicU32::new(0),
        });
        let backend: Arc<dyn Backend> = counted.clone();
        let limits = Limits {
            capacity_bytes,
            ..LIMITS
        };
        (counted, over(&backend, limits))
    }

    fn call(&self) -> &Folder {
        self.calls.fetch_add(1, Ordering::Relaxed);
        &self.place
    }

    /// Calls since this was last asked.
    fn calls(&self) -> u32 {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Backend for Counted {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        self.call().put(name, bytes).await
    }

    async fn put_all(&self, objects: Vec<(Name, Bytes)>) -> Result<(), BackendError> {
        self.call().put_all(objects).await
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        self.call().get(name, bytes_max).await
    }

    async fn get_all(
        &self,
        names: &[Name],
        bytes_max: u64,
    ) -> Result<Vec<Option<Bytes>>, BackendError> {
        self.call().get_all(names, bytes_max).await
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        self.call().head(name).await
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        self.call().delete(name).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        self.call().list(prefix)
    }

    fn refreshes(&self) -> bool {
        true
    }

    async fn refresh(&self, name: &Name) -> Result<bool, BackendError> {
        self.call().refresh(name).await
    }

    fn at_once(&self) -> Option<&dyn AtOnce> {
        Some(self)
    }
}

#[async_trait]
impl AtOnce for Counted {
    async fn put_batch(&self, batch: Batch) -> Result<Option<Landed>, BackendError> {
        self.call().put_batch(batch).await
    }
}

fn small() -> Vec<(BlobKind, Bytes)> {
    vec![
        (BlobKind::Input, Bytes::from_static(b"a file")),
        (BlobKind::Study, Bytes::from_static(b"the list of files")),
    ]
}

#[tokio::test]
async fn small_contents_and_their_reference_are_one_call() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let key = key(1);
    for _ in 0..2 {
        let kept = store.keep(&key, small(), &[], ready(Ok(()))).await;
        let digests = kept.expect("keeps");
        assert_eq!(counted.calls(), 1, "also when all of it is there already");
        for ((kind, content), digest) in small().into_iter().zip(&digests) {
            let got = store.get(&key.tenant, kind, digest).await;
            assert_eq!(got.expect("there"), content);
        }
        counted.calls();
    }
    let holders = store.holders(&key.tenant).await.expect("lists");
    assert!(holders.contains_key(&key.job));
    let erased = store.erase(&key.tenant, &key.job).await.expect("erases");
    assert_eq!(erased.deleted, 2);
}

/// Two contents and a text of tenant `a`, and the keys of that text and of one that is not there.
async fn lists(store: &BlobStore) -> ([(BlobKind, Digest); 2], [(BlobKind, Vec<u8>); 2]) {
    let a = tenant("a");
    let mut contents = Vec::new();
    for (kind, content) in small() {
        let digest = store.put(&a, kind, content).await.expect("puts");
        contents.push((kind, digest));
    }
    let (kind, text) = (BlobKind::TokensOfChunk, Bytes::from_static(b"tokens"));
    let put = store.put_mutable(&a, kind, b"there", text).await;
    put.expect("puts");
    let texts = [b"there".to_vec(), b"not there".to_vec()].map(|key| (kind, key));
    (contents.try_into().expect("two"), texts)
}

#[tokio::test]
async fn lists_are_read_in_one_call() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let (contents, texts) = lists(&store).await;
    counted.calls();
    let read = store.get_together(&tenant("a"), contents, &texts).await;
    let (found, said) = read.expect("reads");
    assert_eq!(counted.calls(), 1);
    let expected: Vec<_> = small().into_iter().map(|(_, content)| content).collect();
    assert_eq!(found.to_vec(), expected);
    assert_eq!(said, [Some(Bytes::from_static(b"tokens")), None]);
}

#[tokio::test]
async fn a_text_comes_under_each_of_its_keys_in_one_call() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let (a, kind) = (tenant("a"), BlobKind::TokensOfChunk);
    let keys: [&[u8]; 2] = [b"of the job", b"of the frames"];
    for text in [&b"a list"[..], b"another"] {
        let list = Bytes::from_static(text);
        let put = store.put_under_each(&a, kind, &keys, &list).await;
        put.expect("puts");
        assert_eq!(counted.calls(), 1);
        for key in keys {
            let found = store.get_mutable(&a, kind, key).await;
            assert_eq!(found.expect("reads"), Some(list.clone()));
        }
        counted.calls();
    }
    let (_, full) = Counted::new(folder.path(), Some(4));
    let list = Bytes::from_static(b"list");
    let put = full.put_under_each(&a, kind, &keys, &list).await;
    assert!(matches!(put, Err(StoreError::Full { .. })), "{put:?}");
    assert_eq!(full.full_writes(), 1);
    let large = Bytes::from(vec![0; (1 << 20) + 1]);
    let put = store.put_under_each(&a, kind, &keys, &large).await;
    assert!(matches!(put, Err(StoreError::TooLarge { .. })), "{put:?}");
}

/// What is damaged is dealt with as if it were read alone, and the others do not suffer.
#[tokio::test]
async fn a_list_that_is_damaged_is_not_read_with_the_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let (contents, texts) = lists(&store).await;
    let a = tenant("a");
    let (kind, digest) = contents[1];
    let damaged = blob_name(&a, kind, &digest);
    let other = Bytes::from_static(b"other bytes");
    counted.put(&damaged, other.clone()).await.expect("damages");
    let read = store.get_together(&a, contents, &texts).await;
    assert!(
        matches!(read, Err(StoreError::Corrupt { digest: found, .. }) if found == digest),
        "{read:?}"
    );
    let read = store.get_together(&a, contents, &texts).await;
    assert!(
        matches!(read, Err(StoreError::Missing { digest: found, .. }) if found == digest),
        "a corrupt content is deleted: {read:?}"
    );
    let read = store.get_together(&a, [contents[0]], &texts).await;
    read.expect("the others are as they were");
    let text = blob_name(&a, texts[0].0, &store.name_of(&a, b"there"));
    counted.put(&text, other).await.expect("damages");
    let read = store.get_together(&a, [contents[0]], &texts).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    // Of another tenant there is nothing.
    let read = store.get_together(&tenant("b"), [contents[0]], &[]).await;
    assert!(matches!(read, Err(StoreError::Missing { .. })), "{read:?}");
}

/// One that is larger than may be read says so, and hides no other.
#[tokio::test]
async fn a_list_that_is_too_large_is_refused_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let (contents, texts) = lists(&store).await;
    let a = tenant("a");
    let text = blob_name(&a, texts[1].0, &store.name_of(&a, b"not there"));
    let large = Bytes::from(vec![0; (1 << 20) + 33]);
    counted.put(&text, large).await.expect("puts");
    let read = store.get_together(&a, contents, &texts).await;
    assert!(
        matches!(read, Err(StoreError::TooLarge { kind, .. }) if kind == texts[1].0),
        "{read:?}"
    );
    let read = store.get_together(&a, contents, &texts[..1]).await;
    read.expect("reads what is not too large");
}

#[tokio::test]
async fn of_an_erased_job_nothing_is_begun() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (counted, store) = Counted::new(folder.path(), None);
    let JobKey { tenant, job } = &key(1);
    store.bury(tenant, job).await.expect("buries");
    counted.calls();
    let kept = store.keep(&key(1), small(), &[], ready(Ok(()))).await;
    assert!(matches!(kept, Err(StoreError::JobErased)), "{kept:?}");
    assert_eq!(counted.calls(), 1);
    let inputs = store
        .list(tenant, BlobKind::Input)
        .collect::<Vec<_>>()
        .await;
    assert!(inputs.is_empty(), "{inputs:?}");
    assert!(store.holders(tenant).await.expect("lists").is_empty());
}

/// Only when what runs beside has ended can be asked for what else the job relies on.
#[tokio::test]
async fn what_is_stored_beside_may_be_relied_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_, store) = Counted::new(folder.path(), None);
    let key = key(1);
    let frame = Bytes::from_static(b"pixels");
    let also = (BlobKind::Frame, store.digest(&key.tenant, &frame).await);
    let (other, tenant) = (store.clone(), key.tenant.clone());
    let meanwhile = async move {
        let put = other.put(&tenant, BlobKind::Frame, frame).await;
        put.map(drop)
    };
    let kept = store.keep(&key, small(), &[also], meanwhile).await;
    assert_eq!(kept.expect("keeps").len(), 2);
}

/// Without room the refusal says what is free, and nothing was written.
#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_, store) = Counted::new(folder.path(), Some(4));
    let kept = store.keep(&key(1), small(), &[], ready(Ok(()))).await;
    assert!(
        matches!(kept, Err(StoreError::Full { free: 4, .. })),
        "{kept:?}"
    );
}
