//! The store over memory and over a folder: names, checks, limits, references, collection, erasure.

use std::time::Duration;

use async_trait::async_trait;
use medfleet_core::JobId;

use super::*;
use crate::backend::{Folder, Objects};

mod at_once;
mod found;
mod relied;
mod trouble;
mod watch;

use watch::{Call, Place, Watch, watched};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Far beyond any real time of writing.
const LATER: UnixMillis = UnixMillis(i64::MAX);
const LIMITS: Limits = Limits {
    blob_bytes_max: 1 << 20,
    capacity_bytes: None,
};

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a good name")
}

fn job(byte: u8) -> JobId {
    JobId::from_bytes([byte; 16])
}

fn key(number: u8) -> JobKey {
    JobKey::new(tenant("a"), job(number))
}

fn over(backend: &Arc<dyn Backend>, limits: Limits) -> BlobStore {
    BlobStore::new(Arc::clone(backend), FleetKey::new([7; 32]), limits)
}

fn store() -> (BlobStore, Arc<dyn Backend>) {
    let backend: Arc<dyn Backend> = Arc::new(Objects::in_memory());
    (over(&backend, LIMITS), backend)
}

async fn put(store: &BlobStore, who: &str, kind: BlobKind, content: &'static [u8]) -> Digest {
    store
        .put(&tenant(who), kind, Bytes::from_static(content))
        .await
        .expect("puts")
}

/// The same for the tenant that most have, with what it is found by.
async fn stored(store: &BlobStore, kind: BlobKind, content: &'static [u8]) -> (BlobKind, Digest) {
    (kind, put(store, "a", kind, content).await)
}

async fn is_there(store: &BlobStore, who: &str, (kind, digest): (BlobKind, Digest)) -> bool {
    let found = store.exists(&tenant(who), kind, &digest).await;
    found.expect("works")
}

async fn refer(store: &BlobStore, number: u8, blobs: &[(BlobKind, Digest)]) {
    let taken = store.reference(&tenant("a"), &job(number), blobs).await;
    taken.expect("references");
}

const fn erasure(deleted: u64, kept: u64) -> Erased {
    Erased { deleted, kept }
}

#[tokio::test]
async fn what_is_put_is_got_by_its_tenant_only() {
    let (store, _) = store();
    let (a, b) = (tenant("a"), tenant("b"));
    let digest = put(&store, "a", BlobKind::Frame, b"pixels").await;
    assert_eq!(digest, put(&store, "a", BlobKind::Frame, b"pixels").await);
    assert_eq!(
        &store.get(&a, BlobKind::Frame, &digest).await.expect("gets")[..],
        b"pixels"
    );
    let head = store.head(&a, BlobKind::Frame, &digest).await;
    let head = head.expect("works").expect("is there");
    assert_eq!((head.digest, head.bytes), (digest, 6));
    assert!(!is_there(&store, "b", (BlobKind::Frame, digest)).await);
    assert!(!is_there(&store, "a", (BlobKind::Tokens, digest)).await);
    let missing = store.get(&b, BlobKind::Frame, &digest).await;
    assert!(
        matches!(missing, Err(StoreError::Missing { .. })),
        "{missing:?}"
    );
    assert_ne!(digest, put(&store, "b", BlobKind::Frame, b"pixels").await);
    // Once for a tenant, however often it was put.
    let stored = store.stored_bytes().await.expect("counts");
    let stored: Vec<(TenantId, u64)> = stored.into_iter().collect();
    assert_eq!(stored, [(a.clone(), 6), (b, 6)]);
    for was_there in [true, false] {
        let deleted = store.delete(&a, BlobKind::Frame, &digest).await;
        assert_eq!(deleted.expect("deletes"), was_there);
    }
}

#[tokio::test]
async fn long_contents_hash_like_short_ones() {
    let (store, _) = store();
    let content = Bytes::from(vec![5; HASH_INLINE_BYTES_MAX + 1]);
    let digest = store
        .put(&tenant("a"), BlobKind::Study, content.clone())
        .await
        .expect("puts");
    assert_eq!(
        digest,
        store.key().of_tenant(&tenant("a")).of_content(&content)
    );
    assert_eq!(
        store
            .get(&tenant("a"), BlobKind::Study, &digest)
            .await
            .expect("gets"),
        content
    );
}

#[tokio::test]
async fn a_changed_content_is_never_returned() {
    let (store, backend) = store();
    let a = tenant("a");
    let digest = put(&store, "a", BlobKind::Tokens, b"tokens").await;
    let name = blob_name(&a, BlobKind::Tokens, &digest);
    for wrong in [&b"tokenz"[..], b"", b"tokens and more"] {
        backend
            .put(&name, Bytes::from_static(wrong))
            .await
            .expect("overwrites");
        let found = store.get(&a, BlobKind::Tokens, &digest).await;
        assert!(
            matches!(found, Err(StoreError::Corrupt { .. })),
            "{found:?}"
        );
    }
    let key = b"job attempt";
    let text = Bytes::from_static(b"so far");
    let digest = store
        .put_mutable(&a, BlobKind::Text, key, text)
        .await
        .expect("puts");
    let name = blob_name(&a, BlobKind::Text, &digest);
    let stored = backend
        .get(&name, 1_000)
        .await
        .expect("works")
        .expect("is there");
    for index in [0, stored.len() - 1] {
        let mut wrong = stored.to_vec();
        wrong[index] ^= 1;
        backend.put(&name, wrong.into()).await.expect("overwrites");
        let found = store.get_mutable(&a, BlobKind::Text, key).await;
        assert!(
            matches!(found, Err(StoreError::Corrupt { .. })),
            "{found:?}"
        );
    }
    backend
        .put(&name, stored.slice(..10))
        .await
        .expect("overwrites");
    assert!(store.get_mutable(&a, BlobKind::Text, key).await.is_err());
}

#[tokio::test]
async fn mutable_texts_keep_the_last_put_and_cannot_be_swapped() {
    let (store, backend) = store();
    let a = tenant("a");
    let get = |key: &'static [u8]| {
        let (store, a) = (store.clone(), a.clone());
        async move { store.get_mutable(&a, BlobKind::Text, key).await }
    };
    assert_eq!(get(b"1").await.expect("works"), None);
    for text in ["first", "second"] {
        let put = store.put_mutable(
            &a,
            BlobKind::Text,
            b"1",
            Bytes::from_static(text.as_bytes()),
        );
        put.await.expect("puts");
    }
    assert_eq!(
        get(b"1").await.expect("works"),
        Some(Bytes::from_static(b"second"))
    );
    let one = store.key().of_tenant(&a).of_key(b"1");
    let two = store.key().of_tenant(&a).of_key(b"2");
    let stored = backend
        .get(&blob_name(&a, BlobKind::Text, &one), 1_000)
        .await
        .expect("works");
    let stored = stored.expect("is there");
    backend
        .put(&blob_name(&a, BlobKind::Text, &two), stored)
        .await
        .expect("swaps");
    assert!(get(b"2").await.is_err());
}

#[tokio::test]
async fn limits_have_names() {
    let backend: Arc<dyn Backend> = Arc::new(Objects::in_memory());
    let store = over(
        &backend,
        Limits {
            blob_bytes_max: 10,
            capacity_bytes: Some(25),
        },
    );
    let a = tenant("a");
    let put = |content: Vec<u8>| {
        let (store, a) = (store.clone(), a.clone());
        async move { store.put(&a, BlobKind::Input, content.into()).await }
    };
    assert_eq!(store.headroom().await.expect("works"), Some(25));
    assert!(matches!(
        put(vec![0; 11]).await,
        Err(StoreError::TooLarge { bytes_max: 10, .. })
    ));
    put(vec![1; 10]).await.expect("fits");
    put(vec![2; 10]).await.expect("fits");
    assert_eq!(store.headroom().await.expect("works"), Some(5));
    let full = put(vec![3; 10]).await.expect_err("does not fit");
    assert!(matches!(full, StoreError::Full { free: 5, bytes: 10 }) && full.is_transient());
    assert_eq!(store.full_writes(), 1);
    let unlimited = over(
        &backend,
        Limits {
            blob_bytes_max: 10,
            capacity_bytes: None,
        },
    );
    assert_eq!(unlimited.headroom().await.expect("works"), None);
}

/// The life of shared blobs, over a place that can refresh and one that can't.
async fn referenced_blobs_stay(backend: Arc<dyn Backend>) {
    let store = over(&backend, LIMITS);
    let a = tenant("a");
    let shared = stored(&store, BlobKind::Frame, b"shared").await;
    let own = stored(&store, BlobKind::Text, b"own").await;
    let loose = stored(&store, BlobKind::Tokens, b"loose").await;
    refer(&store, 1, &[shared, own]).await;
    // Again.
    refer(&store, 1, &[own, shared]).await;
    refer(&store, 2, &[shared]).await;
    let gone = (BlobKind::Frame, Digest::new([0; 32]));
    let missing = store.reference(&a, &job(2), &[gone]).await;
    assert!(
        matches!(missing, Err(StoreError::Missing { .. })),
        "{missing:?}"
    );
    let there = async |blob: (BlobKind, Digest)| is_there(&store, "a", blob).await;
    let collect = async |now: UnixMillis| store.collect(&a, DAY, now).await.expect("collects");
    let young = collect(UnixMillis(0)).await;
    assert_eq!((young.seen, young.deleted), (3, 0));
    let old = collect(LATER).await;
    assert_eq!((old.seen, old.deleted, old.deleted_bytes), (3, 1, 5));
    assert!(!there(loose).await && there(shared).await && there(own).await);
    store.release(&a, &job(1)).await.expect("releases");
    store.release(&a, &job(1)).await.expect("releases again");
    assert_eq!(collect(LATER).await.deleted, 1);
    assert!(there(shared).await && !there(own).await);
    store.release(&a, &job(2)).await.expect("releases");
    assert_eq!(collect(LATER).await.deleted, 1);
    assert!(store.stored_bytes().await.expect("counts").is_empty());
}

/// A client sends again what it had sent in vain long ago, just when what was left of that is let go.
#[tokio::test]
async fn what_a_job_relies_on_anew_is_not_let_go_by_an_older_look() {
    let (store, _) = store();
    let a = tenant("a");
    let film = [stored(&store, BlobKind::Input, b"film").await];
    refer(&store, 1, &film).await;
    let holders = async || store.holders(&a).await.expect("lists");
    let seen = holders().await.remove(&job(1)).expect("it is there");
    // Until the place's clock shows that it is later.
    while holders().await[&job(1)].latest <= seen.latest {
        refer(&store, 1, &film).await;
    }
    store.release_holder(&seen).await.expect("releases");
    let anew = holders().await.remove(&job(1)).expect("it stays");
    store.release_holder(&anew).await.expect("releases");
    assert!(holders().await.is_empty());
}

#[tokio::test]
async fn referenced_blobs_stay_in_memory() {
    referenced_blobs_stay(Arc::new(Objects::in_memory())).await;
}

#[tokio::test]
async fn referenced_blobs_stay_in_a_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    referenced_blobs_stay(Arc::new(Folder::open(folder.path()).expect("opens"))).await;
}

#[tokio::test]
async fn a_corrupt_reference_list_stops_collection_and_erasure() {
    let (store, backend) = store();
    let a = tenant("a");
    let blob = stored(&store, BlobKind::Frame, b"x").await;
    refer(&store, 1, &[blob]).await;
    let lists: Vec<_> = backend.list("a/refs").collect().await;
    let list = lists[0].as_ref().expect("lists").name.clone();
    backend
        .put(&list, Bytes::from_static(b"frame"))
        .await
        .expect("overwrites");
    let stopped = store.collect(&a, DAY, LATER).await;
    assert!(
        matches!(stopped, Err(StoreError::CorruptReferences { .. })),
        "{stopped:?}"
    );
    assert!(store.erase(&a, &job(2)).await.is_err());
    assert!(is_there(&store, "a", blob).await);
}

#[tokio::test]
async fn erasing_takes_what_only_this_job_has_and_leaves_a_tombstone() {
    let (store, _) = store();
    let a = tenant("a");
    let shared = stored(&store, BlobKind::Frame, b"shared").await;
    let own = stored(&store, BlobKind::Result, b"own").await;
    refer(&store, 1, &[shared, own]).await;
    refer(&store, 2, &[shared]).await;
    assert!(!store.is_erased(&a, &job(1)).await.expect("works"));
    let erased = store.erase(&a, &job(1)).await.expect("erases");
    assert_eq!(erased, erasure(1, 1));
    assert!(store.is_erased(&a, &job(1)).await.expect("works"));
    assert!(!is_there(&store, "a", own).await && is_there(&store, "a", shared).await);
    let refused = store.reference(&a, &job(1), &[shared]).await;
    assert!(matches!(refused, Err(StoreError::JobErased)), "{refused:?}");
    assert_eq!(
        store.erase(&a, &job(1)).await.expect("repeats"),
        Erased::default()
    );
    assert_eq!(store.erase(&a, &job(2)).await.expect("erases").deleted, 1);
}

/// Others who are at work during an erasure.
#[derive(Debug)]
struct Busy {
    /// Somebody puts this one again all the time.
    touched: Option<Name>,
    /// When the first's list is read, the second has just written the same one.
    joins: Option<(JobId, JobId)>,
}

#[async_trait]
impl Watch for Busy {
    async fn after(&self, place: &Place, call: Call, name: &Name) -> Result<(), BackendError> {
        let (Call::Get, Some((first, second))) = (call, &self.joins) else {
            return Ok(());
        };
        if let Some(content) = place.get(name, u64::MAX).await? {
            let same = name.as_str().replace(first.as_str(), second.as_str());
            let same: Name = same.parse().expect("a good name");
            place.put(&same, content).await?;
        }
        Ok(())
    }

    fn time(&self, name: &Name, time: UnixMillis) -> UnixMillis {
        match &self.touched {
            Some(touched) if touched == name => LATER,
            _ => time,
        }
    }
}

/// Erases job 1, whose only blob others use meanwhile; the jobs that hold references after it.
async fn erase_while(
    touched: bool,
    joins: Option<(JobId, JobId)>,
) -> (BlobStore, (BlobKind, Digest), Vec<JobId>) {
    let (store, place) = store();
    let a = tenant("a");
    let blob = stored(&store, BlobKind::Tokens, b"equal tokens").await;
    refer(&store, 1, &[blob]).await;
    let touched = touched.then(|| blob_name(&a, blob.0, &blob.1));
    let busy = watched(&place, Arc::new(Busy { touched, joins }));
    let erased = over(&busy, LIMITS).erase(&a, &job(1)).await;
    assert_eq!(erased.expect("erases"), erasure(0, 1));
    assert!(is_there(&store, "a", blob).await);
    let holders = store.holders(&a).await.expect("lists");
    (store, blob, holders.into_keys().collect())
}

#[tokio::test]
async fn erasing_leaves_what_is_put_meanwhile_to_the_erasure_that_follows() {
    let (store, blob, holders) = erase_while(true, None).await;
    let a = tenant("a");
    assert_eq!(holders, [job(1)], "the next erasure finds it by the list");
    // As by the late worker that put it, or by the next sweep.
    let again = store.erase(&a, &job(1)).await.expect("erases");
    assert_eq!(again, erasure(1, 0));
    assert!(!is_there(&store, "a", blob).await);
    assert!(store.holders(&a).await.expect("lists").is_empty());
}

#[tokio::test]
async fn erasing_leaves_what_is_referenced_meanwhile() {
    let (_, _, holders) = erase_while(false, Some((job(1), job(2)))).await;
    assert_eq!(holders, [job(2)]);
}
