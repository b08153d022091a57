//! What the targets start from: written by code where a few lines make it, codestreams from `seeds` where it takes an encoder,
//! and whole files of imaging's own tests.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::{DeflateEncoder, GzEncoder};
use flate2::{Compression, Crc};
use medfleet_testkit::{tar, tar_member, tar_of};

use crate::dicom::{self, Header, element, sequence};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Files of a folder whose name ends so, in the order of their names.
fn of_folder(folder: &Path, ends: &[&str]) -> Vec<Vec<u8>> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{error}: {}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let chosen = paths.iter().filter(|path| {
        let name = path.to_string_lossy();
        ends.iter().any(|end| name.ends_with(end))
    });
    chosen
        .map(|path| fs::read(path).unwrap_or_else(|error| panic!("{error}: {}", path.display())))
        .collect()
}

/// What the hunt has found so far and was mended: the name of the target and the input.
pub fn found() -> Vec<(String, Vec<u8>)> {
    let folder = folder("seeds/found");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{error}: {}", folder.display()))
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".bin"))
        .collect();
    names.sort();
    let read = |name: &String| fs::read(folder.join(name)).expect("it was listed");
    names
        .iter()
        .filter_map(|name| Some((name.split_once('.')?.0.to_owned(), read(name))))
        .collect()
}

/// Codestreams.
pub fn streams(ends: &[&str]) -> Vec<Vec<u8>> {
    of_folder(&folder("seeds"), ends)
}

/// Whole DICOM files.
pub fn files() -> Vec<Vec<u8>> {
    let mut files = of_folder(
        &folder("../imaging/tests/golden"),
        &["8bit.dcm", "deflated.dcm", "voi-lut.dcm", "baseline.dcm"],
    );
    files.extend(of_folder(&folder("../imaging/tests/codecs"), &[".dcm"]));
    files.extend([enhanced(), palette(), implicit(), headless()]);
    files
}

fn pixels(header: &Header) -> Vec<u8> {
    let values =
        usize::from(header.rows) * usize::from(header.columns) * usize::from(header.frames);
    (0..values * usize::from(header.bits.div_ceil(8)))
        .map(|index| (index * 7 % 251) as u8)
        .collect()
}

/// An enhanced CT of three slices, with shared and per-frame groups.
fn enhanced() -> Vec<u8> {
    let header = Header {
        rows: 8,
        columns: 8,
        bits: 16,
        signed: true,
        frames: 3,
        ..Header::default()
    };
    let shared = [
        sequence(0x28, 0x9110, &[element(0x28, 0x30, b"DS", b"1\\1")]),
        sequence(
            0x20,
            0x9116,
            &[element(0x20, 0x37, b"DS", b"1\\0\\0\\0\\1\\0")],
        ),
        sequence(
            0x28,
            0x9145,
            &[[
                element(0x28, 0x1052, b"DS", b"-1024"),
                element(0x28, 0x1053, b"DS", b"1"),
                element(0x28, 0x1054, b"LO", b"HU"),
            ]
            .concat()],
        ),
    ]
    .concat();
    let frames: Vec<Vec<u8>> = (0..3)
        .map(|at| {
            let position = format!("0\\0\\{}", at * 2);
            sequence(
                0x20,
                0x9113,
                &[element(0x20, 0x32, b"DS", position.as_bytes())],
            )
        })
        .collect();
    let mut elements = dicom::head(&header);
    elements[2] = element(8, 0x60, b"CS", b"CT");
    elements.push(sequence(0x5200, 0x9229, &[shared]));
    elements.push(sequence(0x5200, 0x9230, &frames));
    elements.push(element(0x7fe0, 0x10, b"OW", &pixels(&header)));
    dicom::file("1.2.840.10008.1.2.1", &elements)
}

fn palette() -> Vec<u8> {
    let header = Header::default();
    let mut elements = dicom::head(&header);
    elements[4] = element(0x28, 4, b"CS", b"PALETTE COLOR");
    let words = |words: &[u16]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let table: Vec<u8> = (0..=255u16)
        .flat_map(|value| (value * 256).to_le_bytes())
        .collect();
    for channel in 0..3 {
        elements.push(element(
            0x28,
            0x1101 + channel,
            b"US",
            &words(&[256, 0, 16]),
        ));
    }
    for channel in 0..3 {
        elements.push(element(0x28, 0x1201 + channel, b"OW", &table));
    }
    elements.push(element(0x7fe0, 0x10, b"OW", &pixels(&header)));
    dicom::file("1.2.840.10008.1.2.1", &elements)
}

/// Implicit little endian: the same elements without their value representations.
fn implicit() -> Vec<u8> {
    let header = Header::default();
    let mut elements = Vec::new();
    for explicit in dicom::head(&header) {
        let mut bare = explicit[..4].to_vec();
        bare.extend((explicit.len() as u32 - 8).to_le_bytes());
        bare.extend(&explicit[8..]);
        elements.push(bare);
    }
    let data = pixels(&header);
    let mut bare = vec![0xe0, 0x7f, 0x10, 0x00];
    bare.extend((data.len() as u32).to_le_bytes());
    bare.extend(data);
    elements.push(bare);
    dicom::file("1.2.840.10008.1.2", &elements)
}

/// Without preamble and meta information, with windows, a modality table and padding.
fn headless() -> Vec<u8> {
    let header = Header::default();
    let mut elements = dicom::head(&header);
    elements.push(element(0x28, 0x120, b"US", &[0, 0]));
    elements.push(element(0x28, 0x1050, b"DS", b"100\\50"));
    elements.push(element(0x28, 0x1051, b"DS", b"200\\60"));
    elements.push(element(0x28, 0x1056, b"CS", b"SIGMOID"));
    let description: Vec<u8> = [4u16, 0, 16]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let table = [
        element(0x28, 0x3002, b"US", &description),
        element(0x28, 0x3006, b"OW", &[0, 0, 1, 0, 2, 0, 3, 0]),
    ];
    elements.push(sequence(0x28, 0x3000, &[table.concat()]));
    elements.push(element(0x7fe0, 0x10, b"OW", &pixels(&header)));
    elements.concat()
}

/// Uncompressed pixels behind the four bytes that say what they are.
pub fn native() -> Vec<Vec<u8>> {
    let of = |control: [u8; 4]| {
        let header = Header::of_control(control);
        let bytes = match header.bits {
            0..=8 => 1,
            9..=16 => 2,
            _ => 4,
        };
        let values =
            usize::from(header.rows) * usize::from(header.columns) * usize::from(header.samples);
        let mut out = control.to_vec();
        out.resize(4 + values * bytes * usize::from(header.frames), 1);
        out
    };
    vec![
        of([11, 15, 7, 0]),
        of([11, 15, 11, 2]),
        of([3, 4, 31, 0]),
        of([7, 7, 7, 1]),
        of([7, 7, 0, 8]),
    ]
}

/// RLE frames behind the four bytes.
pub fn rle() -> Vec<Vec<u8>> {
    let of = |control: [u8; 4], segments: &[&[u8]]| {
        let mut out = control.to_vec();
        out.extend((segments.len() as u32).to_le_bytes());
        let mut at = 64u32;
        for segment in segments {
            out.extend(at.to_le_bytes());
            at += segment.len() as u32;
        }
        out.resize(4 + 64, 0);
        out.extend(segments.concat());
        out
    };
    // 8 x 8 pixels: runs, and a literal.
    let runs: &[u8] = &[
        0xe1, 7, 0x0f, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xf1, 9,
    ];
    vec![
        of([7, 7, 7, 0], &[runs]),
        of([7, 7, 11, 0], &[runs, runs]),
        of([7, 7, 7, 1], &[runs, runs, runs]),
    ]
}

/// Pictures that are no DICOM.
pub fn pictures() -> Vec<Vec<u8>> {
    let mut pictures = streams(&["8.jpg", "progressive.jpg", "restarts.jpg"]);
    pictures.extend(of_folder(
        &folder("../imaging/tests/golden"),
        &["mono2-8bit.png"],
    ));
    pictures
}

/// TIFF in every layout and compression, of one page.
pub fn tiffs() -> Vec<Vec<u8>> {
    of_folder(
        &folder("../imaging/tests/golden/formats"),
        &[
            "strips.tif",
            "tiles.tif",
            "endian.tif",
            "packbits.tif",
            "big-tiff.tif",
            "lzw.tif",
            "planes.tif",
            "white.tif",
            "tables.tif",
        ],
    )
}

/// NIfTI volumes that say what they are.
pub fn volumes() -> Vec<Vec<u8>> {
    of_folder(
        &folder("../imaging/tests/golden/formats"),
        &["scaled.nii", "float.nii", "u8.nii", "i32.nii"],
    )
}

/// Archives of every kind.
pub fn archives() -> Vec<Vec<u8>> {
    let picture = streams(&["grey8.jpg"]).concat();
    let file = headless();
    let tar = tar(&[
        ("a.jpg", &picture),
        ("deep/b.dcm", &file),
        (".hidden", b"x"),
    ]);
    let packed = packed(&tar);
    let zip = zip(&[("a.jpg", &picture), ("b.dcm", &file)]);
    vec![tar, packed, zip]
}

/// Tars as several writers make them, not packed.
pub fn tars() -> Vec<Vec<u8>> {
    let picture = streams(&["grey8.jpg"]).concat();
    let file = headless();
    let plain = tar(&[("a.jpg", &picture), ("b.dcm", &file)]);
    // A folder, the long name and the extended header of the next file, links, and a file as tar had it before POSIX.
    let mixed = tar_of(&[
        tar_member("deep/", b'5', b""),
        tar_member("././@LongLink", b'L', &[b'n'; 600]),
        tar_member("PaxHeaders/b.dcm", b'x', b"20 path=deep/b.dcm\n\n"),
        tar_member("deep/b.dcm", b'0', &file),
        tar_member("hard", b'1', b""),
        tar_member("soft", b'2', b""),
        tar_member("old.jpg", 0, &picture),
        tar_member(".hidden", b'0', b"x"),
    ]);
    let mut padded = tar(&[("b.dcm", &file)]);
    // Writers of tapes fill their last record.
    padded.resize(padded.len().next_multiple_of(20 * 512), 0);
    vec![plain, mixed, padded]
}

/// Packed with gzip.
pub fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).expect("memory takes it");
    packer.finish().expect("memory takes it")
}

/// The first file stored, the others deflated.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (index, (name, bytes)) in files.iter().enumerate() {
        let (method, data) = if index == 0 {
            (0u16, bytes.to_vec())
        } else {
            let mut packer = DeflateEncoder::new(Vec::new(), Compression::best());
            packer.write_all(bytes).expect("memory takes it");
            (8, packer.finish().expect("memory takes it"))
        };
        let offset = out.len() as u32;
        let mut middle = Vec::new();
        middle.extend([20, 0, 0, 0]);
        middle.extend(method.to_le_bytes());
        middle.extend([0; 4]);
        let mut checksum = Crc::new();
        checksum.update(bytes);
        middle.extend(checksum.sum().to_le_bytes());
        middle.extend((data.len() as u32).to_le_bytes());
        middle.extend((bytes.len() as u32).to_le_bytes());
        middle.extend((name.len() as u16).to_le_bytes());
        middle.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&middle);
        out.extend(name.as_bytes());
        out.extend(data);
        central.extend(b"PK\x01\x02\x14\x00");
        central.extend(&middle);
        central.extend([0; 10]);
        central.extend(offset.to_le_bytes());
        central.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    let count = files.len() as u16;
    out.extend(&central);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend((central.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}
