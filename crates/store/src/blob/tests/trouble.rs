//! What comes at the wrong moment: erasures while something is stored, callers that are dropped, places without room,
//! contents that the place has changed.

use std::future::ready;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

use super::*;

/// Far above what any of these waits takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// In no name.
const NONE: &str = " ";

/// A place that is slow or full.
#[derive(Debug)]
struct Odd {
    place: Arc<dyn Backend>,
    /// A put of a name with this in it begins, and goes on when it is told to.
    slow: &'static str,
    begun: Notify,
    go: Notify,
    landed: AtomicU32,
    /// There is no room for names with this in them, until something is deleted.
    refused: &'static str,
    full: AtomicBool,
}

impl Odd {
    fn new(slow: &'static str, refused: &'static str) -> (Arc<Self>, BlobStore) {
        let (plain, place) = store();
        let odd = Arc::new(Self {
            place,
            slow,
            begun: Notify::new(),
            go: Notify::new(),
            landed: AtomicU32::new(0),
            refused,
            full: AtomicBool::new(true),
        });
        let backend: Arc<dyn Backend> = odd.clone();
        (odd, over(&backend, plain.limits()))
    }

    fn has_landed(&self) -> bool {
        self.landed.load(Ordering::Relaxed) > 0
    }
}

#[async_trait]
impl Backend for Odd {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        if name.as_str().contains(self.refused) && self.full.load(Ordering::Relaxed) {
            return Err(BackendError::Full);
        }
        if !name.as_str().contains(self.slow) {
            return self.place.put(name, bytes).await;
        }
        self.begun.notify_one();
        self.go.notified().await;
        self.place.put(name, bytes).await?;
        self.landed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        self.place.get(name, bytes_max).await
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        self.place.head(name).await
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        self.full.store(false, Ordering::Relaxed);
        self.place.delete(name).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        self.place.list(prefix)
    }
}

fn key() -> JobKey {
    JobKey {
        tenant: tenant("a"),
        job: job(1),
    }
}

fn frame() -> Vec<(BlobKind, Bytes)> {
    vec![(BlobKind::Frame, Bytes::from_static(b"pixels"))]
}

/// How many objects of a kind there are.
async fn count(odd: &Odd, prefix: &str) -> usize {
    odd.place.list(prefix).collect::<Vec<_>>().await.len()
}

/// Waits for a state, without a clock.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.expect("the state comes");
}

/// Begins something, drops it while its slow write is under way, erases the job, and lets the write land.
async fn drop_half_way<T>(
    odd: &Odd,
    store: &BlobStore,
    work: impl Future<Output = Result<T, StoreError>>,
) {
    {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            _ = &mut work => panic!("the write is slow"),
            () = odd.begun.notified() => {}
        }
    }
    let JobKey { tenant, job } = key();
    store.erase(&tenant, &job).await.expect("erases");
    odd.go.notify_one();
    until(async || odd.has_landed()).await;
}

#[tokio::test]
async fn a_text_that_lands_after_its_writer_and_its_job_are_gone_goes_too() {
    let (odd, store) = Odd::new("/text/", NONE);
    let (job, text) = (key(), Bytes::from_static(b"so far"));
    let put = store.put_mutable_of(&job, BlobKind::Text, b"1", text);
    drop_half_way(&odd, &store, put).await;
    until(async || count(&odd, "a/text").await == 0).await;
}

#[tokio::test]
async fn a_blob_that_lands_after_its_worker_and_its_job_are_gone_goes_too() {
    let (odd, store) = Odd::new("/frame/", NONE);
    let job = key();
    let kept = store.keep(&job, frame(), &[], ready(Ok(())));
    drop_half_way(&odd, &store, kept).await;
    until(async || count(&odd, "a/frame").await == 0 && count(&odd, "a/refs").await == 0).await;
}

#[tokio::test]
async fn what_landed_of_a_keep_that_failed_goes_with_its_job() {
    let (odd, store) = Odd::new("/frame/", "/refs/");
    let job = key();
    let kept = store.keep(&job, frame(), &[], ready(Ok(())));
    let erase = async {
        odd.begun.notified().await;
        let buried = store.bury(&job.tenant, &job.job).await;
        buried.expect("buries");
        // The list was refused when the blob's write had begun; now there is room.
        odd.full.store(false, Ordering::Relaxed);
        odd.go.notify_one();
    };
    let (kept, ()) = futures::join!(kept, erase);
    assert!(matches!(kept, Err(StoreError::JobErased)), "{kept:?}");
    assert!(odd.has_landed());
    assert_eq!(count(&odd, "a/frame").await, 0);
    assert_eq!(count(&odd, "a/refs").await, 0);
}

#[tokio::test]
async fn nothing_is_stored_for_an_erased_job() {
    let (store, place) = store();
    let job = key();
    store.bury(&job.tenant, &job.job).await.expect("buries");
    let kept = store.keep(&job, frame(), &[], ready(Ok(()))).await;
    assert!(matches!(kept, Err(StoreError::JobErased)), "{kept:?}");
    assert_eq!(place.list("a/frame").collect::<Vec<_>>().await.len(), 0);
}

#[tokio::test]
async fn erasing_makes_its_own_room() {
    let (odd, store) = Odd::new(NONE, "/erased/");
    let JobKey { tenant, job } = key();
    let kept = store.keep(&key(), frame(), &[], ready(Ok(()))).await;
    kept.expect("stores");
    store.bury(&tenant, &job).await.expect("finds room");
    assert!(store.is_erased(&tenant, &job).await.expect("works"));
    assert_eq!(count(&odd, "a/frame").await, 0);
    store.erase(&tenant, &job).await.expect("erases");
    assert_eq!(count(&odd, "a/refs").await, 0);
}

#[tokio::test]
async fn a_full_place_with_nothing_of_the_job_stays_full() {
    let (_odd, store) = Odd::new(NONE, "/erased/");
    let JobKey { tenant, job } = key();
    let buried = store.bury(&tenant, &job).await;
    assert!(
        matches!(buried, Err(StoreError::Backend(BackendError::Full))),
        "{buried:?}"
    );
}

#[tokio::test]
async fn what_is_corrupt_is_made_again_by_the_next_put() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let places: [Arc<dyn Backend>; 2] = [
        Arc::new(Objects::in_memory()),
        Arc::new(Folder::open(folder.path()).expect("opens")),
    ];
    for place in places {
        corrupt_is_made_again(place).await;
    }
}

async fn corrupt_is_made_again(place: Arc<dyn Backend>) {
    let (plain, _) = store();
    let store = over(&place, plain.limits());
    let a = tenant("a");
    let digest = put(&store, "a", BlobKind::Tokens, b"tokens").await;
    let name = blob_name(&a, BlobKind::Tokens, &digest);
    // As long as the content, so that only a read can tell.
    let wrong = Bytes::from_static(b"tokenz");
    place.put(&name, wrong.clone()).await.expect("overwrites");
    // Whoever puts the content need not have read it before.
    assert_eq!(digest, put(&store, "a", BlobKind::Tokens, b"tokens").await);
    let found = store.get(&a, BlobKind::Tokens, &digest).await;
    assert_eq!(&found.expect("gets")[..], b"tokens");
    place.put(&name, wrong).await.expect("overwrites");
    let found = store.get(&a, BlobKind::Tokens, &digest).await;
    assert!(
        matches!(found, Err(StoreError::Corrupt { .. })),
        "{found:?}"
    );
    let there = store.exists(&a, BlobKind::Tokens, &digest).await;
    assert!(!there.expect("works"));
    assert_eq!(digest, put(&store, "a", BlobKind::Tokens, b"tokens").await);
    let found = store.get(&a, BlobKind::Tokens, &digest).await;
    assert_eq!(&found.expect("gets")[..], b"tokens");
}
