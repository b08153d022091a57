//! The tests that every backend must pass, as one function, so that the owner of a backend in another crate runs the same.
//! It is test code: it panics when the contract is broken.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::backend::{Backend, BackendError, Name};

/// More than the largest message of NATS and than one part of most stores.
const LARGE_BYTES: usize = 3 << 20;

/// Runs the whole contract on an empty backend, and leaves it empty.
///
/// # Panics
/// When the backend breaks the contract; the message says where.
pub async fn run(backend: Arc<dyn Backend>) {
    let backend = backend.as_ref();
    reads_what_was_written(backend).await;
    writes_several(backend).await;
    lists_by_whole_segments(backend).await;
    refreshes_what_is_there(backend).await;
    deletes_one_version_only(backend).await;
    survives_concurrent_writers(backend).await;
    let left = names(backend, "").await;
    assert!(
        left.is_empty(),
        "the contract removes what it made, left: {left:?}"
    );
}

fn name(text: &str) -> Name {
    text.parse().expect("the contract uses good names")
}

async fn get(backend: &dyn Backend, text: &str) -> Option<Bytes> {
    backend.get(&name(text), u64::MAX).await.expect("get works")
}

async fn put(backend: &dyn Backend, text: &str, bytes: Bytes) {
    backend.put(&name(text), bytes).await.expect("put works");
}

async fn delete(backend: &dyn Backend, text: &str) -> bool {
    backend.delete(&name(text)).await.expect("delete works")
}

async fn names(backend: &dyn Backend, prefix: &str) -> Vec<String> {
    let entries = backend.list(prefix).map_ok(|entry| entry.name.to_string());
    let mut names: Vec<String> = entries.try_collect().await.expect("list works");
    names.sort();
    names
}

async fn reads_what_was_written(backend: &dyn Backend) {
    assert_eq!(
        get(backend, "t/frame/a").await,
        None,
        "nothing is there at first"
    );
    assert_eq!(
        backend.head(&name("t/frame/a")).await.expect("head works"),
        None
    );
    assert!(
        !delete(backend, "t/frame/a").await,
        "deleting nothing says so"
    );
    let large: Bytes = (0..LARGE_BYTES).map(|i| (i % 251) as u8).collect();
    for content in [Bytes::new(), Bytes::from_static(b"x"), large] {
        put(backend, "t/frame/a", content.clone()).await;
        assert_eq!(get(backend, "t/frame/a").await.as_ref(), Some(&content));
        let head = backend.head(&name("t/frame/a")).await.expect("head works");
        let head = head.expect("head finds what put wrote");
        assert_eq!(
            (head.bytes, head.name.as_str()),
            (content.len() as u64, "t/frame/a")
        );
        assert!(
            head.modified.0 > 1_735_689_600_000,
            "times are real: {:?}",
            head.modified
        );
    }
    let refused = backend
        .get(&name("t/frame/a"), LARGE_BYTES as u64 - 1)
        .await;
    assert!(
        matches!(refused, Err(BackendError::TooLarge { .. })),
        "{refused:?}"
    );
    reads_several(backend).await;
    put(backend, "t/frame/a", Bytes::from_static(b"short")).await;
    assert_eq!(
        get(backend, "t/frame/a").await,
        Some(Bytes::from_static(b"short")),
        "a put replaces"
    );
    assert!(
        delete(backend, "t/frame/a").await,
        "deleting something says so"
    );
    assert_eq!(
        get(backend, "t/frame/a").await,
        None,
        "what was deleted is gone"
    );
}

/// Beside the large one that is there.
async fn reads_several(backend: &dyn Backend) {
    let names = ["t/text/b", "t/frame/a", "t/text/c", "t/text/b"].map(name);
    let small = Bytes::from_static(b"small");
    put(backend, "t/text/b", small.clone()).await;
    let read = backend.get_all(&names, u64::MAX).await.expect("reads");
    let found: Vec<_> = read
        .iter()
        .map(|found| found.as_ref().map(Bytes::len))
        .collect();
    assert_eq!(found, [Some(5), Some(LARGE_BYTES), None, Some(5)]);
    assert_eq!((&read[0], &read[3]), (&Some(small.clone()), &Some(small)));
    let refused = backend.get_all(&names, 5).await;
    assert!(
        matches!(refused, Err(BackendError::TooLarge { .. })),
        "{refused:?}"
    );
    let none = backend.get_all(&[], u64::MAX).await.expect("reads");
    assert!(none.is_empty(), "{none:?}");
    delete(backend, "t/text/b").await;
}

async fn writes_several(backend: &dyn Backend) {
    let texts = ["t/text/a", "t/text/b", "u/frame/a"];
    put(backend, "t/text/b", Bytes::from_static(b"before")).await;
    let objects = texts.map(|text| (name(text), Bytes::from(text)));
    backend.put_all(objects.into()).await.expect("puts");
    backend.put_all(Vec::new()).await.expect("puts nothing");
    for text in texts {
        assert_eq!(get(backend, text).await, Some(Bytes::from(text)));
        delete(backend, text).await;
    }
}

async fn lists_by_whole_segments(backend: &dyn Backend) {
    let all = [
        "t/frame/a",
        "t/frame/b",
        "t/frames/a",
        "t/refs/job/1",
        "tt/frame/a",
    ];
    for text in all {
        put(backend, text, Bytes::from_static(b"four")).await;
    }
    assert_eq!(names(backend, "").await, all);
    assert_eq!(names(backend, "t").await, all[..4]);
    assert_eq!(names(backend, "t/frame").await, all[..2]);
    assert_eq!(names(backend, "t/refs").await, all[3..4]);
    assert_eq!(names(backend, "nobody").await, Vec::<String>::new());
    let by_owner = backend.used_by_owner().await;
    let by_owner = by_owner.expect("used_by_owner works").into_iter();
    let by_owner: Vec<(String, u64)> = by_owner.collect();
    assert_eq!(
        by_owner,
        [("t".to_owned(), 16), ("tt".to_owned(), 4)],
        "contents are counted for whose they are"
    );
    if let Some(used) = backend.used_bytes().await.expect("used_bytes works") {
        assert!(
            used >= 4 * all.len() as u64,
            "used bytes count contents: {used}"
        );
    }
    for text in all {
        assert!(delete(backend, text).await);
    }
}

async fn refreshes_what_is_there(backend: &dyn Backend) {
    let nothing = backend
        .refresh(&name("t/frame/a"))
        .await
        .expect("refresh works");
    assert!(!nothing, "there is nothing to refresh");
    put(backend, "t/frame/a", Bytes::from_static(b"x")).await;
    let before = backend
        .head(&name("t/frame/a"))
        .await
        .expect("head works")
        .expect("is there");
    let refreshed = backend.refresh(&name("t/frame/a")).await;
    assert_eq!(
        refreshed.expect("refresh works"),
        backend.refreshes(),
        "what a place can do it says"
    );
    let after = backend
        .head(&name("t/frame/a"))
        .await
        .expect("head works")
        .expect("is there");
    assert!(after.modified >= before.modified);
    assert_eq!(
        get(backend, "t/frame/a").await,
        Some(Bytes::from_static(b"x"))
    );
    assert!(delete(backend, "t/frame/a").await);
}

async fn deletes_one_version_only(backend: &dyn Backend) {
    let name = name("t/frame/a");
    let version = async || backend.version(&name).await.expect("version works");
    assert_eq!(version().await, None, "nothing has no version");
    put(backend, "t/frame/a", Bytes::from_static(b"damaged")).await;
    let first = version().await.expect("is there");
    assert_eq!(version().await.as_ref(), Some(&first), "a look changes it");
    let mut older = vec![first];
    // As long as the one before.
    put(backend, "t/frame/a", Bytes::from_static(b"as once")).await;
    if backend.refreshes() {
        older.push(version().await.expect("is there"));
        let refreshed = backend.refresh(&name).await;
        assert!(refreshed.expect("refresh works"));
    }
    for older in older {
        let deleted = backend.delete_version(&name, &older).await;
        assert!(!deleted.expect("works"), "a newer version was deleted");
        assert_eq!(
            get(backend, "t/frame/a").await,
            Some(Bytes::from_static(b"as once"))
        );
    }
    let last = version().await.expect("is there");
    let deleted = backend.delete_version(&name, &last).await;
    assert!(deleted.expect("works"), "it was there");
    assert_eq!(get(backend, "t/frame/a").await, None);
    let deleted = backend.delete_version(&name, &last).await;
    assert!(!deleted.expect("works"), "it was gone");
}

async fn survives_concurrent_writers(backend: &dyn Backend) {
    let content = |n: usize| Bytes::from(vec![u8::try_from(n).expect("small"); 100_000]);
    // Same name, different contents: one of them wins whole.
    let puts = (0..8).map(|n| put(backend, "t/text/same", content(n)));
    futures::future::join_all(puts).await;
    let found = get(backend, "t/text/same")
        .await
        .expect("one of them is there");
    assert_eq!(found.len(), 100_000);
    assert!(
        found.iter().all(|byte| *byte == found[0]),
        "contents of two writers are mixed"
    );
    assert!(delete(backend, "t/text/same").await);
    // Writing and deleting side by side in one place: nothing fails, and everything is gone at the end.
    futures::stream::iter(0..32)
        .for_each_concurrent(8, |n| async move {
            let text = format!("t/refs/job/{n}");
            put(backend, &text, content(n)).await;
            assert!(delete(backend, &text).await);
        })
        .await;
}
