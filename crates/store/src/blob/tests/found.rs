//! What was stored for other jobs is found, while those are erased.

use super::*;

/// Another job comes to rely on a blob just before an erasure deletes it.
#[derive(Debug)]
struct Late {
    finder: JobKey,
    blob: (BlobKind, Digest),
}

#[async_trait]
impl Watch for Late {
    async fn before(&self, place: &Place, call: Call, _: &Name) -> Result<(), BackendError> {
        if call == Call::Delete {
            let (store, blobs) = (over(place, LIMITS), [self.blob]);
            let found = store.keep_found(&self.finder, Vec::new(), &blobs);
            found.await.expect("it is there");
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_is_found_just_before_its_job_is_erased_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place: Arc<dyn Backend> = Arc::new(Folder::open(folder.path()).expect("opens"));
    let store = over(&place, LIMITS);
    let a = tenant("a");
    let blob = stored(&store, BlobKind::Tokens, b"tokens").await;
    refer(&store, 1, &[blob]).await;
    let finder = key(2);
    let late = watched(&place, Arc::new(Late { finder, blob }));
    let erased = over(&late, LIMITS).erase(&a, &job(1)).await;
    let kept = erasure(0, 1);
    assert_eq!(erased.expect("erases"), kept);
    assert!(is_there(&store, "a", blob).await);
    // As by the next sweep: now the other job's reference is seen.
    assert_eq!(store.erase(&a, &job(1)).await.expect("erases"), kept);
    let holders = store.holders(&a).await.expect("lists");
    assert_eq!(holders.into_keys().collect::<Vec<_>>(), [job(2)]);
    assert_eq!(store.erase(&a, &job(2)).await.expect("erases").deleted, 1);
    // Whoever finds what is gone is told so, and has nothing to wait for.
    let gone = store.keep_found(&key(3), Vec::new(), &[blob]).await;
    assert!(matches!(gone, Err(StoreError::Missing { .. })), "{gone:?}");
}

/// Texts under keys are kept like contents: they are found under their key, relied on, and erased with their job.
#[tokio::test]
async fn a_text_under_a_key_is_kept_and_erased_with_its_job() {
    let (store, _) = store();
    let a = tenant("a");
    let kind = BlobKind::TokensOfChunk;
    let text = Bytes::from_static(b"a list");
    let named = store.named(&a, kind, b"its key", &text).await;
    let name = store.name_of(&a, b"its key");
    assert_eq!(named.1, name);
    let kept = store.keep_found(&key(1), vec![named], &[]).await;
    kept.expect("keeps");
    let found = store.get_mutable(&a, kind, b"its key").await;
    assert_eq!(found.expect("reads"), Some(text));
    let other = (kind, store.name_of(&a, b"another"));
    let which = store.which_exist(&a, &[other, (kind, name)]).await;
    assert_eq!(which.expect("looks"), [false, true]);
    assert_eq!(store.erase(&a, &job(1)).await.expect("erases").deleted, 1);
    let found = store.get_mutable(&a, kind, b"its key").await;
    assert_eq!(found.expect("reads"), None);
}
