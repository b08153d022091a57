//! The folder: its contract, who may read it, whose it is, and what crashed writers leave.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a good name")
}

#[tokio::test]
async fn keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path().join("deep/blobs")).expect("opens");
    crate::contract::run(Arc::new(backend)).await;
}

#[tokio::test]
async fn files_are_private_and_nothing_temporary_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    backend
        .put(&name("a/frame/00"), Bytes::from_static(b"x"))
        .await
        .expect("puts");
    let mode = |path: &str| {
        let metadata = fs::metadata(folder.path().join(path)).expect("exists");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("a/frame/00"), mode("a/frame"), mode("a")),
        (0o600, 0o700, 0o700)
    );
    let left = fs::read_dir(folder.path().join(TEMPORARY))
        .expect("lists")
        .count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_folder_is_its_first_owners_and_the_note_of_it_is_no_blob() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    let owns = |owner: &str| backend.belongs_to(owner).expect("is told");
    let is_untouched = || Folder::is_untouched(folder.path()).expect("is told");
    assert!(
        is_untouched(),
        "a folder for what is half-written says nothing"
    );
    assert!(owns("a"));
    assert!(owns("a") && !owns("b") && !is_untouched());
    assert_eq!(backend.list("").collect::<Vec<_>>().await.len(), 0);
    assert_eq!(backend.used_bytes().await.expect("counts"), Some(0));
    // An empty note is an operator's word that the folder is meant.
    fs::write(folder.path().join(OWNER), "").expect("writes");
    assert!(!is_untouched() && owns("b") && !owns("a"));
}

#[tokio::test]
async fn a_folder_with_blobs_and_without_a_note_is_not_untouched() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("blobs");
    assert!(Folder::is_untouched(&path).expect("is told"), "not there");
    let backend = Folder::open(&path).expect("opens");
    let first = name("a/frame/00");
    let put = backend.put(&first, Bytes::from_static(b"x"));
    put.await.expect("puts");
    assert!(!Folder::is_untouched(&path).expect("is told"));
}

#[tokio::test]
async fn used_bytes_are_those_of_all_objects() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    for text in ["a/frame/00", "b/text/01"] {
        let name = name(text);
        let put = backend.put(&name, Bytes::from_static(b"four"));
        put.await.expect("puts");
    }
    assert_eq!(backend.used_bytes().await.expect("counts"), Some(8));
}

#[test]
fn a_folder_is_known_by_number_and_birth_and_only_when_it_is_old_enough() {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let folder = PathBuf::from("tenant");
    let entered = Entered::default();
    let add = |identity, now| entered.add(vec![(folder.clone(), identity)], at(now));
    let first = (7, Some(at(100)));
    add(first, 101);
    assert!(
        !entered.has(&folder, first),
        "another may still be made in its place"
    );
    add(first, 102);
    assert!(entered.has(&folder, first));
    // The number is used again at once.
    assert!(!entered.has(&folder, (7, Some(at(103)))));
    assert!(!entered.has(&folder, (8, Some(at(100)))));
    // Where the file system does not say when a folder was made, none is ever known.
    add((7, None), 200);
    assert!(!entered.has(&folder, (7, None)));
    assert!(entered.has(&folder, first));
}

#[tokio::test]
async fn leftovers_and_strangers_are_not_listed_and_old_leftovers_go() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Folder::open(folder.path()).expect("opens");
    let (old, young) = (
        folder.path().join(".tmp/1-0"),
        folder.path().join(".tmp/1-1"),
    );
    for path in [&old, &young] {
        fs::write(path, b"half").expect("writes");
    }
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    File::options()
        .write(true)
        .open(&old)
        .and_then(|f| f.set_modified(long_ago))
        .expect("ages");
    fs::write(folder.path().join("README"), b"hello").expect("writes");
    let backend = Folder::open(folder.path()).expect("opens");
    assert!(!old.exists() && young.exists());
    assert_eq!(backend.list("").collect::<Vec<_>>().await.len(), 0);
}

/// It may be a film of a patient who was erased, and the process runs on for months.
#[tokio::test]
async fn what_a_crashed_writer_left_goes_without_a_new_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    let blob = name("a/frame/00");
    let put = backend.put(&blob, Bytes::from_static(b"x")).await;
    put.expect("puts");
    let left = folder.path().join(".tmp/1-7");
    fs::write(&left, b"half").expect("writes");
    let at = modified(&fs::metadata(&left).expect("is there")).expect("has a time");
    let reclaim = async |before| backend.reclaim(before).await.expect("looks");
    assert_eq!(reclaim(at).await, 0);
    assert!(left.exists(), "it may still be written");
    assert_eq!(reclaim(UnixMillis(at.0 + 1)).await, 1);
    assert!(!left.exists());
    let there = backend.head(&blob).await.expect("looks");
    assert!(there.is_some(), "a blob is no leftover");
}

fn batch(contents: &[(&str, &'static [u8])]) -> Batch {
    let contents = contents.iter();
    let contents = contents.map(|&(path, bytes)| (name(path), Bytes::from_static(bytes)));
    Batch {
        contents: contents.collect(),
        list: (name("a/refs/job/00"), Bytes::from_static(b"list")),
        unless: name("a/erased/job"),
    }
}

#[tokio::test]
async fn a_batch_writes_what_is_not_there_and_makes_the_rest_young() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    let path = |text: &str| folder.path().join(text);
    for (text, bytes) in [("a/frame/00", b"same"), ("a/frame/01", b"hurt")] {
        let name = name(text);
        let put = backend.put(&name, Bytes::from_static(bytes));
        put.await.expect("puts");
    }
    let number = |text: &str| fs::metadata(path(text)).expect("there").ino();
    let before = number("a/frame/00");
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    let old = File::options().write(true).open(path("a/frame/00"));
    old.and_then(|file| file.set_modified(long_ago))
        .expect("ages");
    let contents: [(&str, &[u8]); 3] = [
        ("a/frame/00", b"same"),
        // As long as what is there, and another.
        ("a/frame/01", b"good"),
        ("b/study/02", b"new"),
    ];
    let landed = backend.put_batch(batch(&contents)).await.expect("lands");
    let landed = landed.expect("nothing speaks against it");
    assert_eq!(landed.written_bytes, 4 + 3 + 4);
    assert_eq!((landed.unless, landed.contents.len()), (None, 3));
    for ((text, bytes), entry) in contents.iter().zip(landed.contents) {
        let entry = entry.expect("it was looked at when it was there");
        assert_eq!(
            (entry.name.as_str(), entry.bytes),
            (*text, bytes.len() as u64)
        );
        assert!(entry.modified.0 > 1_000, "{entry:?}");
        assert_eq!(fs::read(path(text)).expect("reads"), *bytes);
    }
    assert_eq!(number("a/frame/00"), before, "it was not written again");
    let list = backend.head(&name("a/refs/job/00")).await.expect("looks");
    assert_eq!(list.expect("there").modified, landed.listed);
    assert_eq!(fs::read_dir(path(TEMPORARY)).expect("lists").count(), 0);
}

#[tokio::test]
async fn a_batch_is_not_begun_where_something_speaks_against_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Folder::open(folder.path()).expect("opens");
    let erased = name("a/erased/job");
    backend.put(&erased, Bytes::new()).await.expect("puts");
    let landed = backend.put_batch(batch(&[("a/frame/00", &b"x"[..])])).await;
    assert_eq!(landed.expect("works"), None);
    assert_eq!(backend.list("").collect::<Vec<_>>().await.len(), 1);
}
