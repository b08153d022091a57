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
    place: Place,
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
        let (_, place) = store();
        let odd = Arc::new(Self {
            place: Arc::clone(&place),
            slow,
            begun: Notify::new(),
            go: Notify::new(),
            landed: AtomicU32::new(0),
            refused,
            full: AtomicBool::new(true),
        });
        let place = watched(&place, odd.clone());
        (odd, over(&place, LIMITS))
    }

    fn is_slow(&self, call: Call, name: &Name) -> bool {
        call == Call::Put && name.as_str().contains(self.slow)
    }

    fn has_landed(&self) -> bool {
        self.landed.load(Ordering::Relaxed) > 0
    }
}

#[async_trait]
impl Watch for Odd {
    async fn before(&self, _: &Place, call: Call, name: &Name) -> Result<(), BackendError> {
        let is_refused = call == Call::Put && name.as_str().contains(self.refused);
        if is_refused && self.full.load(Ordering::Relaxed) {
            return Err(BackendError::Full);
        }
        if call == Call::Delete {
            self.full.store(false, Ordering::Relaxed);
        }
        if self.is_slow(call, name) {
            self.begun.notify_one();
            self.go.notified().await;
        }
        Ok(())
    }

    async fn after(&self, _: &Place, call: Call, name: &Name) -> Result<(), BackendError> {
        if self.is_slow(call, name) {
            self.landed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
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
    let JobKey { tenant, job } = key(1);
    store.erase(&tenant, &job).await.expect("erases");
    odd.go.notify_one();
    until(async || odd.has_landed()).await;
}

#[tokio::test]
async fn a_text_that_lands_after_its_writer_and_its_job_are_gone_goes_too() {
    let (odd, store) = Odd::new("/text/", NONE);
    let (job, text) = (key(1), Bytes::from_static(b"so far"));
    let put = store.put_mutable_of(&job, BlobKind::Text, b"1", text);
    drop_half_way(&odd, &store, put).await;
    until(async || count(&odd, "a/text").await == 0).await;
}

#[tokio::test]
async fn a_blob_that_lands_after_its_worker_and_its_job_are_gone_goes_too() {
    let (odd, store) = Odd::new("/frame/", NONE);
    let job = key(1);
    let kept = store.keep(&job, frame(), &[], ready(Ok(())));
    drop_half_way(&odd, &store, kept).await;
    until(async || count(&odd, "a/frame").await == 0 && count(&odd, "a/refs").await == 0).await;
}

#[tokio::test]
async fn what_landed_of_a_keep_that_failed_goes_with_its_job() {
    let (odd, store) = Odd::new("/frame/", "/refs/");
    let job = key(1);
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
    let job = key(1);
    store.bury(&job.tenant, &job.job).await.expect("buries");
    let kept = store.keep(&job, frame(), &[], ready(Ok(()))).await;
    assert!(matches!(kept, Err(StoreError::JobErased)), "{kept:?}");
    assert_eq!(place.list("a/frame").collect::<Vec<_>>().await.len(), 0);
}

#[tokio::test]
async fn erasing_makes_its_own_room() {
    let (odd, store) = Odd::new(NONE, "/erased/");
    let JobKey { tenant, job } = key(1);
    let kept = store.keep(&key(1), frame(), &[], ready(Ok(()))).await;
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
    let JobKey { tenant, job } = key(1);
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
    let store = over(&place, LIMITS);
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

/// A damaged blob is put again while it is read, after as many reads.
#[derive(Debug)]
struct Mended {
    sound: Bytes,
    after: u32,
    reads: AtomicU32,
}

#[async_trait]
impl Watch for Mended {
    async fn after(&self, place: &Place, call: Call, name: &Name) -> Result<(), BackendError> {
        if call == Call::Get && self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.after {
            place.put(name, self.sound.clone()).await?;
        }
        Ok(())
    }
}

/// Its putter was told that it is there.
#[tokio::test]
async fn a_blob_that_is_put_again_is_not_deleted_by_who_saw_it_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for after in [1, 2] {
        let places: [Arc<dyn Backend>; 2] = [
            Arc::new(Objects::in_memory()),
            Arc::new(Folder::open(folder.path()).expect("opens")),
        ];
        for place in places {
            let (plain, _) = store();
            let sound = Bytes::from_static(b"tokens");
            let digest = plain.digest(&tenant("a"), &sound).await;
            let name = blob_name(&tenant("a"), BlobKind::Tokens, &digest);
            let damaged = place.put(&name, Bytes::from_static(b"tokenz")).await;
            damaged.expect("puts");
            let mended = Mended {
                sound: sound.clone(),
                after,
                reads: AtomicU32::new(0),
            };
            let store = over(&watched(&place, Arc::new(mended)), LIMITS);
            let found = store.get(&tenant("a"), BlobKind::Tokens, &digest).await;
            assert_eq!(found.expect("gets"), sound);
            let stays = place.get(&name, 1_000).await.expect("works");
            assert_eq!(stays, Some(sound));
        }
    }
}

/// It is written again anyway.
#[tokio::test]
async fn a_put_does_not_read_where_reading_saves_nothing() {
    let (_, place) = store();
    assert!(!place.refreshes());
    let read = Arc::new(Mended {
        sound: Bytes::new(),
        after: 0,
        reads: AtomicU32::new(0),
    });
    let store = over(&watched(&place, read.clone()), LIMITS);
    let digest = put(&store, "a", BlobKind::Tokens, b"tokens").await;
    assert_eq!(digest, put(&store, "a", BlobKind::Tokens, b"tokens").await);
    let kept = store.keep(&key(1), frame(), &[], ready(Ok(()))).await;
    kept.expect("keeps");
    let kept = store.keep(&key(1), frame(), &[], ready(Ok(()))).await;
    kept.expect("keeps again");
    assert_eq!(read.reads.load(Ordering::Relaxed), 0);
}
