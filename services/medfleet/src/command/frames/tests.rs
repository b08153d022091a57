//! What is written of files, and what is taken back when more is known.

use medfleet_testkit::tar;

use super::*;
use crate::command::bench::frames::film;

#[test]
fn a_slice_of_an_archive_that_is_refused_takes_no_other_with_it() {
    let mut files = [0, 1, 2].map(film::slice);
    // A bit that its header says there is none of, which is only seen where the slice is decoded.
    let last = files[1].last_mut().expect("pixels");
    *last = 0x50;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("study.tar");
    let archive = tar(&[("1", &files[0]), ("2", &files[1]), ("3", &files[2])]);
    std::fs::write(&path, archive).expect("a file");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("a folder");
    let options = Options::new(64, Limits::default()).expect("a side in range");
    let mut set = Set::new(&options, &out, false);
    set.path(path).expect("an archive");
    let entries = set.finish().expect("entries");
    let refused = entries.iter();
    let refused = refused.map(|(_, entry)| entry["refused"]["reason"].as_str());
    let expected = [None, Some("PIXEL_DATA_MISMATCH"), None];
    assert_eq!(refused.collect::<Vec<_>>(), expected);
    for (_, entry) in [&entries[0], &entries[2]] {
        assert_eq!(entry["fate"], "USED");
        let name = entry["frames"][0]["file"].as_str().expect("its frame");
        assert!(out.join(name).is_file());
    }
    assert_eq!(std::fs::read_dir(&out).expect("a folder").count(), 2);
}

#[test]
fn a_ct_of_nothing_but_air_is_refused_as_a_whole() {
    // Eight bits of each value are left, and the rescale of twelve.
    let cut = |slice: u16| {
        let mut file = film::slice(slice);
        let pixels = file.len() - 512 * 512 * 2;
        for high in file[pixels..].iter_mut().skip(1).step_by(2) {
            *high = 0;
        }
        file
    };
    let refused = |files: [Vec<u8>; 2]| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options::new(64, Limits::default()).expect("a side in range");
        let mut set = Set::new(&options, folder.path(), false);
        let paths = ["1.dcm", "2.dcm"].map(|name| folder.path().join(name));
        for (path, file) in paths.iter().zip(&files) {
            std::fs::write(path, file).expect("a file");
            set.path(path.clone()).expect("a slice");
        }
        let entries = set.finish().expect("entries");
        let pictures = std::fs::read_dir(folder.path()).expect("a folder").count() - 2;
        let reasons = entries.iter();
        let reasons = reasons.filter_map(|(_, entry)| entry["refused"]["reason"].as_str());
        (reasons.map(str::to_owned).collect::<Vec<_>>(), pictures)
    };
    assert_eq!(
        refused([cut(0), cut(1)]),
        (vec!["NOT_HOUNSFIELD".to_owned(); 2], 0)
    );
    assert_eq!(refused([cut(0), film::slice(1)]), (Vec::new(), 2));
}

#[test]
fn a_file_that_is_no_picture_is_refused_in_the_manifest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "hello").expect("a file");
    let options = Options::new(64, Limits::default()).expect("a side in range");
    let mut set = Set::new(&options, folder.path(), false);
    set.path(path.clone()).expect("a file");
    let entries = set.finish().expect("an entry");
    let (shown, entry) = &entries[0];
    assert!(entry.get("refused").is_some());
    assert!(line(shown, entry).contains("refused"), "{entry:?}");
}

#[test]
fn what_an_archive_calls_its_files_moves_no_cursor() {
    let shown = line(Path::new("a.tar/\u{1b}[2J\r1.dcm"), &json!({"frames": []}));
    assert_eq!(shown, "a.tar/?[2J?1.dcm: 0 frame(s), first -");
}

/// A film that was written goes when the state that turns it comes.
#[test]
fn a_film_that_a_state_shows_mirrored_is_refused() {
    let film = include_bytes!("../../../../../crates/imaging/tests/golden/mono2-8bit.dcm");
    let refused = |named: &[u8; 6]| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options::new(64, Limits::default()).expect("a side in range");
        let mut set = Set::new(&options, folder.path(), false);
        let paths = ["1.dcm", "2.dcm"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], film).expect("a film");
        std::fs::write(&paths[1], state(named)).expect("a state");
        for path in &paths {
            set.path(path.clone()).expect("a file");
        }
        let entries = set.finish().expect("entries");
        let pictures = std::fs::read_dir(folder.path()).expect("a folder").count() - 2;
        let reason = entries[0].1["refused"]["reason"].as_str();
        (reason.map(str::to_owned), pictures)
    };
    assert_eq!(refused(b"2.25.1"), (Some("SHOWN_TURNED".to_owned()), 0));
    assert_eq!(refused(b"2.25.9"), (None, 1));
}

/// As a fleet refuses it: which films it mirrors nobody knows.
#[test]
fn a_state_that_cannot_be_read_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options::new(64, Limits::default()).expect("a side in range");
    let mut set = Set::new(&options, folder.path(), false);
    let state = [
        &b"\x08\0\x16\0UI\x1c\x001.2.840.10008.5.1.4.1.1.11.1"[..],
        b"\x08\0\x60\0CS\x02\0PR",
        // No items, where nothing says that it has some.
        b"\x08\0\x15\x11UN\0\0\x08\0\0\0no items",
        b"\x70\0\x41\0CS\x02\0Y ",
    ];
    for (name, file) in [("1.dcm", film::slice(1)), ("2.dcm", state.concat())] {
        let path = folder.path().join(name);
        std::fs::write(&path, file).expect("a file");
        set.path(path).expect("a file");
    }
    let entries = set.finish().expect("entries");
    let reasons = entries.iter();
    let reasons = reasons.map(|(_, entry)| entry["refused"]["reason"].as_str());
    assert_eq!(reasons.collect::<Vec<_>>(), [None, Some("MALFORMED")]);
}

/// A presentation state that mirrors the image of this name.
fn state(named: &[u8; 6]) -> Vec<u8> {
    let sequence = |tag: [u8; 4], content: &[u8]| {
        let length = (content.len() as u32).to_le_bytes();
        let whole = (content.len() as u32 + 8).to_le_bytes();
        let head = [&tag[..], b"SQ\0\0", &whole, b"\xfe\xff\0\xe0", &length];
        [&head.concat()[..], content].concat()
    };
    let image = [&b"\x08\0\x55\x11UI\x06\0"[..], named].concat();
    let series = sequence([0x08, 0, 0x40, 0x11], &image);
    [
        &b"\x08\0\x16\0UI\x1c\x001.2.840.10008.5.1.4.1.1.11.1"[..],
        b"\x08\0\x60\0CS\x02\0PR",
        &sequence([0x08, 0, 0x15, 0x11], &series)[..],
        b"\x70\0\x41\0CS\x02\0Y ",
    ]
    .concat()
}
