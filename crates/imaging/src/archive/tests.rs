//! Archives as other programs write them, and as nobody should.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use medfleet_testkit::{tar_member, tar_of};

use super::*;

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
        deflated.write_all(content).unwrap();
        let packed = deflated.finish().unwrap();
        let local = out.len() as u32;
        let sizes = |into: &mut Vec<u8>| {
            let mut checksum = Crc::new();
            checksum.update(content);
            into.extend(checksum.sum().to_le_bytes());
            into.extend((packed.len() as u32).to_le_bytes());
            into.extend((content.len() as u32).to_le_bytes());
            into.extend((name.len() as u16).to_le_bytes());
            into.extend([0, 0]);
        };
        out.extend(b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0");
        sizes(&mut out);
        out.extend(name.as_bytes());
        out.extend(&packed);
        directory.extend(b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0");
        sizes(&mut directory);
        directory.extend([0; 10]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((members.len() as u16).to_le_bytes());
    out.extend((members.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[track_caller]
fn check(bytes: &[u8], limits: Limits, expected: Result<&[(&str, &[u8])], Reason>) {
    let mut found = Vec::new();
    let outcome = members(bytes, &limits, &mut |member| {
        found.push((member.name, member.bytes));
    });
    let outcome = outcome.map(|()| found).map_err(|refusal| refusal.reason);
    let expected = expected.map(|members| {
        let owned = members.iter();
        owned
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect::<Vec<_>>()
    });
    assert_eq!(outcome, expected);
}

#[test]
fn files_come_in_order_and_nothing_else_does() {
    let tar = tar_of(&[
        tar_member("study/", b'5', b""),
        tar_member("study/b", b'0', b"one"),
        tar_member("study/link", b'2', b""),
        tar_member("study/.hidden", b'0', b"x"),
        tar_member("../../etc/a", 0, b"two"),
    ]);
    let expected: &[(&str, &[u8])] = &[("study/b", b"one"), ("../../etc/a", b"two")];
    check(&tar, Limits::default(), Ok(expected));
    check(&gzipped(&tar), Limits::default(), Ok(expected));
    let zip = zipped(&[("study/", b""), ("study/b", b"one"), ("__MACOSX/b", b"x")]);
    check(&zip, Limits::default(), Ok(&[("study/b", b"one")]));
    check(&gzipped(b"alone"), Limits::default(), Ok(&[("", b"alone")]));
    check(&zipped(&[]), Limits::default(), Ok(&[]));
}

#[test]
fn archives_say_how_large_their_largest_file_is() {
    #[track_caller]
    fn check(bytes: &[u8], expected: u64) {
        assert_eq!(largest_member(bytes, &Limits::default()), expected);
    }
    let (small, large) = (vec![7; 300], vec![7; 3000]);
    let zip = zipped(&[("a", &small), ("b", &large), ("__MACOSX/b", &[7; 4000])]);
    check(&zip, 3000);
    check(&zip[..zip.len() - 30], 0);
    check(&gzipped(&large), 3000);
    let tar = tar_of(&[tar_member("a", b'0', &large), tar_member("b", b'0', &small)]);
    check(&tar, 3000);
    // Not all of the tar: its files are in memory one by one.
    check(&gzipped(&tar), 3000);
    check(b"no archive", 0);
    check(GZIP_MAGIC, 0);
    // What it says is no reason to set aside more than could ever come.
    let mut lies = gzipped(b"little");
    let (size, packed) = (lies.len() - 4, lies.len() as u64);
    lies[size..].fill(0xff);
    check(&lies, packed * 1000);
}

#[test]
fn gzip_streams_are_read_to_their_end() {
    let two = [gzipped(b"first, "), gzipped(b"second")].concat();
    check(&two, Limits::default(), Ok(&[("", b"first, second")]));
    check(
        &two[..two.len() - 4],
        Limits::default(),
        Err(Reason::Truncated),
    );
}

/// A packed tar is read file by file: it may be longer than a file may be, and its checksum counts all the same.
#[test]
fn a_packed_tar_is_a_stream() {
    let content = vec![7; 3000];
    let members: Vec<Vec<u8>> = ["a", "b", "c"]
        .map(|name| tar_member(name, b'0', &content))
        .to_vec();
    let expected: Vec<(&str, &[u8])> = ["a", "b", "c"]
        .map(|name| (name, content.as_slice()))
        .to_vec();
    let limits = Limits {
        file_bytes_max: 3000,
        unpacked_bytes_max: 3000,
        ..Limits::default()
    };
    let packed = gzipped(&tar_of(&members));
    check(&packed, limits, Ok(&expected));
    let less = |unpacked_bytes_max| Limits {
        unpacked_bytes_max,
        ..limits
    };
    check(&packed, less(2999), Err(Reason::UnpackedTooLarge));
    let less = Limits {
        archive_bytes_max: 8999,
        ..limits
    };
    check(&packed, less, Err(Reason::CompressionRatio));
    let mut flipped = packed.clone();
    let checksum = packed.len() - 8;
    flipped[checksum] ^= 1;
    check(&flipped, limits, Err(Reason::DecodeFailed));
    check(&packed[..checksum], limits, Err(Reason::Truncated));
    // No end, and a file that is not whole.
    check(&gzipped(&members.concat()), limits, Err(Reason::Truncated));
    check(
        &gzipped(&members[0][..2000]),
        limits,
        Err(Reason::Truncated),
    );
}

/// Its slice would be lost, and nobody would know.
#[test]
fn a_contiguous_file_is_a_file() {
    let tar = tar_of(&[tar_member("a.dcm", b'7', b"one")]);
    check(&tar, Limits::default(), Ok(&[("a.dcm", b"one")]));
}

#[test]
fn sparse_files_are_not_stepped_over() {
    let tar = tar_of(&[
        tar_member("a", b'0', b"one"),
        tar_member("b", b'S', b"holes"),
    ]);
    check(&tar, Limits::default(), Err(Reason::Malformed));
}

/// Where the central directory of an archive with one member begins.
fn directory_at(zip: &[u8]) -> usize {
    zip.windows(4).position(|four| four == ZIP_ENTRY).unwrap()
}

#[test]
fn members_are_what_the_directory_says() {
    let zip = zipped(&[("a", b"content")]);
    for field in [16, 24] {
        let mut changed = zip.clone();
        changed[directory_at(&zip) + field] ^= 1;
        check(&changed, Limits::default(), Err(Reason::DecodeFailed));
    }
}

#[test]
fn the_directory_is_as_long_as_its_count_says() {
    let zip = zipped(&[("a", b"one"), ("b", b"two")]);
    let end = zip.len() - 22;
    // One is what an archive of 65,537 files says.
    for count in [1, 3] {
        let mut changed = zip.clone();
        changed[end + 10] = count;
        check(&changed, Limits::default(), Err(Reason::Malformed));
    }
    let signature = b"PK\x05\x05\0\0".as_slice();
    let signed = [&zip[..end], signature, &zip[end..]].concat();
    check(
        &signed,
        Limits::default(),
        Ok(&[("a", b"one"), ("b", b"two")]),
    );
}

#[test]
fn limits_hold_before_anything_is_kept() {
    let zeros = vec![0; 200_000];
    let limits = Limits {
        compression_ratio_max: 10,
        ..Limits::default()
    };
    check(
        &zipped(&[("a", &zeros)]),
        limits,
        Err(Reason::CompressionRatio),
    );
    check(&gzipped(&zeros), limits, Err(Reason::CompressionRatio));
    let limits = Limits {
        archive_entries_max: 1,
        ..Limits::default()
    };
    check(
        &zipped(&[("a", b"1"), ("b", b"2")]),
        limits,
        Err(Reason::TooManyFiles),
    );
    let limits = Limits {
        archive_bytes_max: 5,
        ..Limits::default()
    };
    check(
        &zipped(&[("a", b"123"), ("b", b"456")]),
        limits,
        Err(Reason::CompressionRatio),
    );
}

#[test]
fn broken_archives_are_refused() {
    let zip = zipped(&[("a", b"content")]);
    check(
        &zip[..zip.len() - 30],
        Limits::default(),
        Err(Reason::Truncated),
    );
    let mut encrypted = zip.clone();
    encrypted[directory_at(&zip) + 8] = 1;
    check(&encrypted, Limits::default(), Err(Reason::Malformed));
    let tar = tar_of(&[tar_member("a", b'0', &[7; 600])]);
    check(&tar[..700], Limits::default(), Err(Reason::Truncated));
    check(b"no archive", Limits::default(), Err(Reason::NotAnImage));
}
