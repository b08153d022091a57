//! What is asked of the place while many jobs are erased, and when the time of a reference is not known.

use std::sync::Mutex;

use super::*;

/// What is read and what is made young in a folder, which may not tell the time of what it writes.
#[derive(Debug)]
struct Noted {
    _folder: tempfile::TempDir,
    tells_times: bool,
    read: Mutex<Vec<Name>>,
    refreshed: Mutex<Vec<Name>>,
}

impl Noted {
    fn new(tells_times: bool) -> (Arc<Self>, BlobStore) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place: Place = Arc::new(Folder::open(folder.path()).expect("opens"));
        let noted = Arc::new(Self {
            _folder: folder,
            tells_times,
            read: Mutex::default(),
            refreshed: Mutex::default(),
        });
        let place = watched(&place, noted.clone());
        (noted, over(&place, LIMITS))
    }

    /// Lists of references that were read, oldest first.
    fn lists_read(&self) -> Vec<Name> {
        let read = self.read.lock().expect("nobody panicked");
        let lists = read.iter().filter(|name| name.as_str().contains("/refs/"));
        lists.cloned().collect()
    }
}

#[async_trait]
impl Watch for Noted {
    async fn before(&self, _: &Place, call: Call, name: &Name) -> Result<(), BackendError> {
        let noted = match call {
            Call::Get => &self.read,
            Call::Refresh => &self.refreshed,
            Call::Put | Call::Delete => return Ok(()),
        };
        noted.lock().expect("nobody panicked").push(name.clone());
        Ok(())
    }

    fn puts_tell_time(&self) -> bool {
        self.tells_times
    }
}

async fn frame(store: &BlobStore, content: &'static [u8]) -> (BlobKind, Digest) {
    stored(store, BlobKind::Frame, content).await
}

#[tokio::test]
async fn a_reference_taken_at_an_unknown_time_makes_its_blobs_young() {
    let (noted, store) = Noted::new(false);
    let blob = frame(&store, b"pixels").await;
    noted.refreshed.lock().expect("nobody panicked").clear();
    refer(&store, 1, &[blob]).await;
    let refreshed = noted.refreshed.lock().expect("nobody panicked").clone();
    assert_eq!(refreshed, [blob_name(&tenant("a"), blob.0, &blob.1)]);
    // One that is known to be young needs no write.
    let (noted, store) = Noted::new(true);
    let blob = frame(&store, b"pixels").await;
    refer(&store, 1, &[blob]).await;
    assert!(noted.refreshed.lock().expect("nobody panicked").is_empty());
}

#[tokio::test]
async fn erasing_many_reads_each_list_once_and_sees_what_changes_meanwhile() {
    let (noted, store) = Noted::new(true);
    let a = tenant("a");
    let shared = frame(&store, b"of all").await;
    let own: [(BlobKind, Digest); 4] = [
        frame(&store, b"one").await,
        frame(&store, b"two").await,
        frame(&store, b"three").await,
        frame(&store, b"four").await,
    ];
    for (number, own) in (1..).zip(own) {
        refer(&store, number, &[shared, own]).await;
    }
    let there = async |blob: (BlobKind, Digest)| is_there(&store, "a", blob).await;
    let mut relied = Relied::default();
    let mut erase = async |number| {
        let erased = store.erase_among(&a, &job(number), &mut relied).await;
        let erased = erased.expect("erases");
        (erased.deleted, erased.kept)
    };
    assert_eq!(erase(1).await, (1, 1));
    assert_eq!(noted.lists_read().len(), 4, "each once");
    // Another job comes to rely on what the second alone relied on, and the third lets go of everything.
    refer(&store, 5, &[own[1]]).await;
    store.release(&a, &job(3)).await.expect("releases");
    assert_eq!(erase(2).await, (0, 2));
    assert!(there(own[1]).await && there(shared).await);
    assert_eq!(
        erase(4).await,
        (2, 0),
        "nobody else relies on the shared one any more"
    );
    assert!(!there(shared).await);
    assert_eq!(erase(5).await, (1, 0));
    let read = noted.lists_read();
    assert_eq!(read.len(), 5, "only what came since: {read:?}");
}
