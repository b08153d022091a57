//! Frames that come again: in other studies, at other encoders, at once, and after an erasure.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use medfleet_core::{Class, JobId};
use medfleet_engine::{EncodeEngine, Simulated, SimulatedShape, SimulatedTiming};
use medfleet_runtime::Metrics;
use medfleet_store::{BlobStore, FleetKey};

use super::*;
use crate::cache::Cache;
use crate::claims::Claims;
use crate::elsewhere::Elsewhere;
use crate::metrics::EncodeMetrics;

pub(crate) fn store() -> BlobStore {
    BlobStore::in_memory(FleetKey::new([1; 32]))
}

/// An encoder that has just started, under this address, and knows of no other.
fn encoder(store: &BlobStore, url: &str) -> Encode {
    let metrics = EncodeMetrics::register(&Metrics::new());
    let alone = Elsewhere::new(None, metrics.clone());
    among((store, url), SimulatedTiming::default(), metrics, alone)
}

/// An encoder of such a pace that has just started among others.
pub(crate) fn among(
    (store, url): (&BlobStore, &str),
    timing: SimulatedTiming,
    metrics: EncodeMetrics,
    elsewhere: Elsewhere,
) -> Encode {
    let shape = SimulatedShape {
        frame_side: 8,
        tokens_per_image: 2,
        token_width: 4,
        ..SimulatedShape::default()
    };
    let simulated = Simulated::new(shape, timing);
    Encode {
        store: store.clone(),
        engine: EncodeEngine::start(Box::new(simulated)).expect("a thread starts"),
        cache: Arc::new(Cache::new(64 << 20)),
        claims: Claims::default(),
        elsewhere: Arc::new(elsewhere),
        frame_nanos: AtomicU64::new(0),
        url: url.to_owned(),
        metrics,
    }
}

pub(crate) fn job(tenant: &str, byte: u8) -> JobKey {
    JobKey::new(
        tenant.parse().expect("a tenant"),
        JobId::from_bytes([byte; 16]),
    )
}

/// The frames of a study that shows these pictures, as far as they are known.
pub(crate) async fn looked(
    encode: &Encode,
    job: &JobKey,
    pictures: &[u8],
) -> Result<Vec<Wanted>, EncodeError> {
    let mut entries = Vec::new();
    for picture in pictures {
        let pixels = vec![*picture; 64].into();
        let digest = encode
            .store
            .put(&job.tenant, BlobKind::Frame, pixels)
            .await?;
        entries.push(FrameEntry {
            digest: digest.as_bytes().to_vec().into(),
            width: 8,
            channels: 1,
            ..FrameEntry::default()
        });
    }
    encode.wanted(&job.tenant, &entries, "rules-1").await
}

async fn tokens(
    encode: &Encode,
    job: &JobKey,
    pictures: &[u8],
) -> Result<TokensManifest, EncodeError> {
    let wanted = looked(encode, job, pictures).await?;
    provide(encode, job, wanted).await
}

async fn provide(
    encode: &Encode,
    job: &JobKey,
    wanted: Vec<Wanted>,
) -> Result<TokensManifest, EncodeError> {
    provide_as(encode, (job, Class::Routine), wanted).await
}

pub(crate) async fn provide_as(
    encode: &Encode,
    (job, class): (&JobKey, Class),
    wanted: Vec<Wanted>,
) -> Result<TokensManifest, EncodeError> {
    let purpose = Purpose {
        class,
        is_last: true,
    };
    let whose = Whose {
        job,
        purpose,
        place: &Place::default(),
    };
    encode.provide(&whose, wanted).await
}

/// Which of the tokens were made for this job.
pub(crate) fn own(store: &BlobStore, job: &JobKey, list: &TokensManifest) -> Vec<bool> {
    let mark = made_for(store.key(), job);
    let tokens = list.tokens.iter();
    tokens.map(|entry| entry.made_for[..] == mark).collect()
}

/// How often frames were looked for in a tier of the cache, and found.
fn looks(encode: &Encode) -> [(u64, u64); 2] {
    [Tier::Memory, Tier::Store].map(|tier| encode.metrics.looks_in(tier))
}

#[tokio::test]
async fn an_image_is_encoded_once_whatever_study_it_is_in() {
    let store = store();
    let first = encoder(&store, "http://first");
    let (one, two) = (job("a", 1), job("a", 2));
    let of_one = tokens(&first, &one, &[1, 2]).await.expect("encodes");
    assert_eq!(own(&store, &one, &of_one), [true, true]);
    assert_eq!(first.metrics.frames.get(), 2);
    let of_two = tokens(&first, &two, &[2, 3, 2]).await.expect("encodes");
    assert_eq!(own(&store, &two, &of_two), [false, true, false]);
    assert_eq!(first.metrics.frames.get(), 3);
    assert_eq!(of_two.tokens[0], of_one.tokens[1]);
    assert_eq!(of_two.encoder_url, "http://first");
    assert_eq!(looks(&first), [(5, 2), (3, 0)]);
    // Another encoder finds them in the store, and decoders fetch them from the one that has all of them.
    let second = encoder(&store, "http://second");
    let three = job("a", 3);
    let of_three = tokens(&second, &three, &[3, 1]).await.expect("finds");
    assert_eq!(own(&store, &three, &of_three), [false, false]);
    assert_eq!(of_three.tokens[1], of_one.tokens[0]);
    assert_eq!(of_three.encoder_url, "http://first");
    let mixed = tokens(&second, &three, &[3, 4]).await.expect("encodes");
    assert_eq!(mixed.encoder_url, "", "nobody has all of them");
    assert_eq!(second.metrics.frames.get(), 1);
    assert_eq!(looks(&second), [(4, 0), (4, 3)]);
    // Another tenant's images are its own.
    let foreign = job("b", 1);
    let of_foreign = tokens(&second, &foreign, &[1]).await.expect("encodes");
    assert_eq!(own(&store, &foreign, &of_foreign), [true]);
    assert_ne!(of_foreign.tokens[0].digest, of_one.tokens[0].digest);
    assert_eq!(second.metrics.frames.get(), 2);
}

/// Those that it has when it is encoded alone.
#[tokio::test]
async fn every_image_of_a_chunk_has_its_own_tokens_in_its_place() {
    let (ours, job) = (store(), job("a", 1));
    let encode = encoder(&ours, "http://a");
    // One of them is known already, and one comes twice.
    tokens(&encode, &job, &[3]).await.expect("encodes");
    let pictures = [4, 1, 3, 1, 2];
    let chunk = tokens(&encode, &job, &pictures).await.expect("encodes");
    assert_eq!(chunk.tokens.len(), pictures.len());
    for (entry, picture) in chunk.tokens.iter().zip(pictures) {
        let alone = encoder(&store(), "http://b");
        let alone = tokens(&alone, &job, &[picture]).await.expect("encodes");
        assert_eq!(*entry, alone.tokens[0], "{picture}");
        let digest = Digest::from_slice(&entry.digest).expect("a digest");
        let stored = ours.get(&job.tenant, BlobKind::Tokens, &digest).await;
        stored.expect("whole");
    }
}

/// What the tenant has of tokens and lists of them.
async fn stored(store: &BlobStore, job: &JobKey) -> usize {
    let tokens = store.list(&job.tenant, BlobKind::Tokens);
    let lists = store.list(&job.tenant, BlobKind::TokensOfChunk);
    tokens.chain(lists).count().await
}

#[tokio::test]
async fn nothing_comes_back_from_memory_that_was_erased() {
    let store = store();
    let encode = encoder(&store, "");
    let (one, two, three) = (job("a", 1), job("a", 2), job("a", 3));
    tokens(&encode, &one, &[1]).await.expect("encodes");
    tokens(&encode, &two, &[1]).await.expect("finds");
    let erase = async |key: &JobKey| {
        let erased = store.erase(&key.tenant, &key.job).await;
        erased.expect("erases")
    };
    // The second job relies on them still.
    assert_eq!((erase(&one).await.kept, stored(&store, &one).await), (2, 2));
    tokens(&encode, &three, &[1]).await.expect("finds");
    assert_eq!(encode.metrics.frames.get(), 1);
    erase(&two).await;
    assert_eq!(erase(&three).await.deleted, 2);
    assert_eq!(stored(&store, &one).await, 0);
    // This encoder was not told.
    assert_ne!(encode.cache.bytes().0, 0);
    let four = job("a", 4);
    let again = tokens(&encode, &four, &[1]).await.expect("encodes");
    assert_eq!(own(&store, &four, &again), [true]);
    assert_eq!(encode.metrics.frames.get(), 2);
}

#[tokio::test]
async fn what_is_erased_between_look_and_use_is_encoded_at_the_next_try() {
    let store = store();
    let encode = encoder(&store, "");
    let (one, two) = (job("a", 1), job("a", 2));
    tokens(&encode, &one, &[1, 2]).await.expect("encodes");
    let wanted = looked(&encode, &two, &[1, 3]).await.expect("looks");
    let erased = store.erase(&one.tenant, &one.job).await;
    erased.expect("erases");
    let refused = provide(&encode, &two, wanted).await;
    let is_missing = matches!(refused, Err(EncodeError::Store(StoreError::Missing { .. })));
    assert!(is_missing);
    let again = tokens(&encode, &two, &[1, 3]).await.expect("encodes");
    assert_eq!(own(&store, &two, &again), [true, true]);
    for entry in &again.tokens {
        let digest = Digest::from_slice(&entry.digest).expect("a digest");
        let there = store.get(&two.tenant, BlobKind::Tokens, &digest).await;
        there.expect("it is there");
    }
}

#[tokio::test]
async fn jobs_that_need_the_same_image_at_once_encode_it_once() {
    let store = store();
    let encode = encoder(&store, "");
    let (one, two, three) = (job("a", 1), job("a", 2), job("a", 3));
    // All have looked before anybody has encoded.
    let a = looked(&encode, &one, &[1, 2]).await.expect("looks");
    let b = looked(&encode, &two, &[2, 3]).await.expect("looks");
    let c = looked(&encode, &three, &[3, 1]).await.expect("looks");
    let made = tokio::try_join!(
        provide(&encode, &one, a),
        provide(&encode, &two, b),
        provide(&encode, &three, c),
    );
    let (a, b, c) = made.expect("encodes");
    assert_eq!(encode.metrics.frames.get(), 3);
    assert_eq!(a.tokens[1].digest, b.tokens[0].digest);
    assert_eq!(b.tokens[1].digest, c.tokens[0].digest);
    assert_eq!(c.tokens[1].digest, a.tokens[0].digest);
}

#[tokio::test]
async fn of_an_erased_job_no_tokens_stay_in_memory() {
    let store = store();
    let encode = encoder(&store, "");
    let (erased, other) = (job("a", 1), job("a", 2));
    let erasure = store.erase(&erased.tenant, &erased.job).await;
    erasure.expect("erases");
    let refused = tokens(&encode, &erased, &[1]).await;
    let is_erased = matches!(refused, Err(EncodeError::Store(StoreError::JobErased)));
    assert!(is_erased);
    assert_eq!(
        (encode.cache.bytes().0, stored(&store, &erased).await),
        (0, 0)
    );
    tokens(&encode, &other, &[1]).await.expect("encodes");
    assert_ne!(encode.cache.bytes().0, 0);
}
