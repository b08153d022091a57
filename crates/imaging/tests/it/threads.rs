//! Frames of one file, and files of an archive, on one thread and on several: the same frames, the same first refusal, and an
//! end when nobody waits.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use medfleet_imaging::{
    CodestreamError, Codestreams, Convention, Decoded, Decoder, Frame, FrameInfo, Here, Limits,
    Options, Patients, Plane, Prepared, Reason, Refusal, SlicePlan, decode_parts, files_beside,
    plan_volume, prepare, prepare_parts, read_input,
};
use medfleet_testkit::tar;

use crate::codecs::Left;
use crate::find;

const THREADS: [u32; 3] = [1, 2, 7];
const FRAMES: usize = 9;

const NUMBER_OF_FRAMES: &[u8] = b"\x28\0\x08\0IS\x02\0";
/// Intercept and slope, which a CT has.
const RESCALE: &[u8] = b"\x28\0\x52\x10DS\x02\x00-1\x28\0\x53\x10DS\x02\x001 ";
const ROWS: &[u8] = b"\x28\0\x10\0US\x02\0";
const MODALITY: &[u8] = b"\x08\0\x60\0CS\x02\0";
const PIXEL_DATA: &[u8] = b"\xe0\x7f\x10\0";
const ITEM: &[u8] = b"\xfe\xff\0\xe0";
const LAST_ITEM: &[u8] = b"\xfe\xff\xdd\xe0\0\0\0\0";

/// One grey image of a file in explicit little endian: its pixels, packed or not, and everything before them.
struct One {
    head: Vec<u8>,
    pixels: Vec<u8>,
    packed: bool,
}

fn length(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl One {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let bytes = std::fs::read(folder.join(format!("{name}.dcm"))).unwrap();
        let at = find(&bytes, &[PIXEL_DATA, b"O"].concat());
        let packed = length(&bytes, at + 8) == u32::MAX as usize;
        let first = at + 12;
        // The offset table comes first.
        let value = if packed {
            first + 8 + length(&bytes, first + 4) + 8
        } else {
            first
        };
        let pixels = bytes[value..value + length(&bytes, value - 4)].to_vec();
        Self {
            head: bytes[..at].to_vec(),
            pixels,
            packed,
        }
    }

    /// A file of another modality with these frames.
    fn file(&self, modality: &[u8; 2], frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = self.head.clone();
        let at = find(&out, MODALITY) + MODALITY.len();
        out[at..at + 2].copy_from_slice(modality);
        let number = format!("{:<2}", frames.len());
        let number = [NUMBER_OF_FRAMES, number.as_bytes(), RESCALE].concat();
        let at = find(&out, ROWS);
        drop(out.splice(at..at, number));
        out.extend_from_slice(PIXEL_DATA);
        let length = |bytes: usize| (bytes as u32).to_le_bytes();
        if !self.packed {
            let all = frames.concat();
            out.extend_from_slice(b"OW\0\0");
            out.extend_from_slice(&length(all.len()));
            out.extend(all);
            return out;
        }
        out.extend_from_slice(b"OB\0\0\xff\xff\xff\xff");
        // No offset table: each frame is one fragment.
        for fragment in std::iter::once(&Vec::new()).chain(frames) {
            out.extend_from_slice(ITEM);
            out.extend_from_slice(&length(fragment.len()));
            out.extend_from_slice(fragment);
        }
        out.extend_from_slice(LAST_ITEM);
        out
    }

    /// As many frames, of which no two are the same where they are not packed.
    fn frames(&self, count: usize) -> Vec<Vec<u8>> {
        let frames = (0..count).map(|index| {
            let mut pixels = self.pixels.clone();
            if !self.packed {
                // The smallest value is another one too.
                let by = index * 520 % pixels.len();
                pixels.rotate_left(by);
                pixels[..2].copy_from_slice(&[index as u8, 0]);
            }
            pixels
        });
        frames.collect()
    }

    /// What is shown of one such image as CT goes for all of its frames.
    fn plan(&self) -> SlicePlan {
        let file = self.file(b"CT", &self.frames(1));
        let prepared = prepare(&file, &options(1)).unwrap();
        let Prepared::Slices(slices) = prepared else {
            panic!("{prepared:?}")
        };
        plan_volume(&[(0, &slices)], Convention::newest()).unwrap()
    }
}

fn options(threads: u32) -> Options {
    let options = Options::new(16, Limits::default()).unwrap();
    options.on_threads(threads)
}

type Came = (Result<(), Reason>, Vec<(Frame, FrameInfo)>);

/// All of a file's frames, the last one first, until one is refused.
fn backwards(bytes: &[u8], plan: &SlicePlan, options: &Options) -> Came {
    let wanted = [(None, (0..FRAMES as u32).rev().collect::<Vec<u32>>())];
    let mut came = Vec::new();
    let mut each =
        |_: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| -> Result<(), Refusal> {
            came.push(slice?);
            Ok(())
        };
    let all = decode_parts(bytes, &wanted, plan, options, &mut each);
    (all.map_err(|refusal| refusal.reason), came)
}

#[test]
fn frames_of_every_codec_are_the_same_on_any_number_of_threads() {
    for name in [
        "codecs/native",
        "codecs/rle",
        "codecs/jpeg-lossless-sv1",
        "codecs/jpeg-ls",
        "codecs/j2k",
        "codecs/htj2k",
        "golden/mono2-jpeg-baseline",
    ] {
        let one = One::read(name);
        let (file, plan) = (one.file(b"CT", &one.frames(FRAMES)), one.plan());
        let [first, others @ ..] =
            THREADS.map(|threads| backwards(&file, &plan, &options(threads)));
        assert_eq!((first.0, first.1.len()), (Ok(()), FRAMES), "{name}");
        assert_eq!(first.1[0].1.frame_index as usize, FRAMES - 1, "{name}");
        assert!(others.iter().all(|other| *other == first), "{name}");
        if !one.packed {
            assert!(first.1.windows(2).all(|pair| pair[0].0 != pair[1].0));
        }
    }
}

/// All of them are decoded for the range of each, before anything is shown.
#[test]
fn mr_slices_are_measured_the_same_on_any_number_of_threads() {
    let one = One::read("codecs/native");
    let file = one.file(b"MR", &one.frames(FRAMES));
    let [first, others @ ..] = THREADS.map(|threads| {
        let prepared = prepare(&file, &options(threads)).unwrap();
        assert!(matches!(&prepared, Prepared::Slices(slices) if slices.count() == 9));
        format!("{prepared:?}")
    });
    assert!(first.contains("Some((-1.0, ") && first.contains("Some((7.0, "));
    assert_eq!(others, [first.clone(), first]);
}

#[test]
fn the_first_frame_that_is_refused_says_why() {
    let one = One::read("codecs/j2k");
    let cut = one.pixels[..200].to_vec();
    let junk = [&[7_u8; 100][..], b"\xff\xd9"].concat();
    // Backwards, the fourth of nine frames is number 5.
    for (fourth, sixth, reason) in [
        (&cut, &junk, Reason::Truncated),
        (&junk, &cut, Reason::DecodeFailed),
    ] {
        let mut frames = one.frames(FRAMES);
        frames[5].clone_from(fourth);
        frames[3].clone_from(sixth);
        let file = one.file(b"CT", &frames);
        for threads in THREADS {
            let (all, came) = backwards(&file, &one.plan(), &options(threads));
            assert_eq!((all, came.len()), (Err(reason), 3), "{threads}");
        }
    }
}

#[test]
fn threads_end_when_nobody_waits_for_their_frames() {
    let one = One::read("codecs/native");
    let (file, plan) = (one.file(b"CT", &one.frames(60)), one.plan());
    for threads in THREADS {
        let left: &'static Left = Box::leak(Box::<Left>::default());
        let limits = Limits {
            codestreams: Decoder::new(left),
            threads_max: threads,
            ..Limits::default()
        };
        let options = Options::new(16, limits).unwrap();
        let mut came = 0;
        let mut each =
            |_: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| -> Result<(), Refusal> {
                slice?;
                came += 1;
                left.0.store(true, Ordering::Relaxed);
                Ok(())
            };
        let wanted = [(None, (0..60).collect::<Vec<u32>>())];
        let all = decode_parts(&file, &wanted, &plan, &options, &mut each);
        let reason = all.map_err(|refusal| refusal.reason);
        assert_eq!(reason, Err(Reason::DecoderUnavailable), "{threads}");
        // What was made until then, and is taken in order: one on each thread at work, and one that waits.
        assert!((1..=1 + 2 * threads).contains(&came), "{threads}: {came}");
    }
}

/// All of these files, one frame of each, as an archive gives them.
fn archived(archive: &[u8], files: usize, plan: &SlicePlan, options: &Options) -> FilesCame {
    let wanted: Vec<_> = (0..files as u32).map(|at| (Some(at), vec![0])).collect();
    let mut came = Vec::new();
    let mut each =
        |member: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| -> Result<(), Refusal> {
            came.push((member, slice?.0));
            Ok(())
        };
    let all = decode_parts(archive, &wanted, plan, options, &mut each);
    (all.map_err(|refusal| refusal.reason), came)
}

type FilesCame = (Result<(), Reason>, Vec<(Option<u32>, Frame)>);

/// A tar of files that have no name worth a word.
fn archive(files: &[Vec<u8>]) -> Vec<u8> {
    let named: Vec<(&str, &[u8])> = files.iter().map(|file| ("x", file.as_slice())).collect();
    tar(&named)
}

/// Files of one frame each, of which no two are the same where they are not packed.
fn slices(one: &One, count: usize) -> Vec<Vec<u8>> {
    let frames = one.frames(count).into_iter();
    frames.map(|frame| one.file(b"CT", &[frame])).collect()
}

#[test]
fn files_of_an_archive_are_the_same_on_any_number_of_threads() {
    for name in ["codecs/native", "codecs/jpeg-ls", "codecs/j2k"] {
        let one = One::read(name);
        let mut files = slices(&one, FRAMES);
        // One that is made alone, on threads of its own.
        files[4] = one.file(b"CT", &one.frames(3));
        let (whole, plan) = (archive(&files), one.plan());
        let [first, others @ ..] =
            THREADS.map(|threads| archived(&whole, FRAMES, &plan, &options(threads)));
        assert_eq!(first.0, Ok(()), "{name}");
        let members: Vec<_> = first.1.iter().map(|(member, _)| *member).collect();
        let expected: Vec<_> = (0..FRAMES as u32).map(Some).collect();
        assert_eq!(members, expected, "{name}");
        assert!(others.iter().all(|other| *other == first), "{name}");
        if !one.packed {
            assert!(first.1.windows(2).all(|pair| pair[0].1 != pair[1].1));
        }
    }
}

#[test]
fn the_first_file_that_is_refused_says_why_and_so_does_an_archive_that_ends() {
    let one = One::read("codecs/jpeg-ls");
    let plan = one.plan();
    let mut files = slices(&one, FRAMES);
    let whole = archive(&files);
    // Within the seventh of nine files.
    let cut = &whole[..whole.len() / FRAMES * 6 + whole.len() / FRAMES / 2];
    for threads in THREADS {
        let (all, came) = archived(cut, FRAMES, &plan, &options(threads));
        assert_eq!((all, came.len()), (Err(Reason::Truncated), 6), "{threads}");
    }
    // A codestream that ends too early, and a file that does: the one is found on a thread, the other before.
    let stream = one.file(b"CT", &[one.pixels[..one.pixels.len() / 2].to_vec()]);
    let file = files[3][..files[3].len() - 40].to_vec();
    files[5] = b"no image".to_vec();
    for broken in [stream, file] {
        files[3] = broken;
        let whole = archive(&files);
        let [first, others @ ..] =
            THREADS.map(|threads| archived(&whole, FRAMES, &plan, &options(threads)));
        assert_eq!(first.1.len(), 3);
        assert!(first.0.is_err() && first.0 != Err(Reason::NotAnImage));
        assert!(others.iter().all(|other| *other == first));
    }
}

/// Everything that becomes of an archive before its study is known.
#[test]
fn an_archive_is_read_the_same_on_any_number_of_threads() {
    let (native, packed) = (One::read("codecs/native"), One::read("codecs/jpeg-ls"));
    let film = |one: &One, at: usize| one.file(b"CR", &one.frames(at + 1)[at..]);
    let files = [
        film(&native, 0),
        b"no image".to_vec(),
        native.file(b"MR", &native.frames(3)),
        film(&packed, 0),
        include_bytes!("../golden/formats/gm-grey.png").to_vec(),
        native.file(b"MR", &native.frames(1)),
        film(&native, 1),
        film(&native, 2),
    ];
    let whole = archive(&files);
    let [first, others @ ..] = THREADS.map(|threads| {
        let parts = prepare_parts(&whole, &options(threads), 128).unwrap();
        format!("{parts:?}")
    });
    assert_eq!(others, [first.clone(), first]);
    let came = |bytes: &[u8], most: u32, threads: u32| {
        let mut came = Vec::new();
        let mut each = |member: Option<u32>, decoded: Decoded| came.push((member, decoded.frames));
        let read = read_input(bytes, &options(threads), most, Patients::Any, &mut each);
        (read.err().map(|refusal| refusal.reason), came)
    };
    for (bytes, most, refused, frames) in [
        (&whole[..], 128, None, 5),
        (&whole[..], 3, Some(Reason::TooManyFrames), 3),
        (
            &whole[..whole.len() - 4096],
            128,
            Some(Reason::Truncated),
            4,
        ),
    ] {
        let [first, others @ ..] = THREADS.map(|threads| came(bytes, most, threads));
        assert_eq!((first.0, first.1.len()), (refused, frames), "{most}");
        assert!(others.iter().all(|other| *other == first), "{most}");
    }
}

/// Of what hangs when it is wrong, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Decodes nothing until two threads are at it.
#[derive(Debug, Default)]
struct Meet(AtomicUsize);

impl Codestreams for Meet {
    fn decode(&self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
        let begun = Instant::now();
        self.0.fetch_add(1, Ordering::Relaxed);
        while self.0.load(Ordering::Relaxed) < 2 {
            if begun.elapsed() > PATIENCE {
                return Err(CodestreamError::Overdue);
            }
            std::thread::yield_now();
        }
        Here.decode(codestream)
    }
}

#[test]
fn files_of_an_archive_are_made_at_the_same_time() {
    let one = One::read("codecs/j2k");
    let meet: &'static Meet = Box::leak(Box::<Meet>::default());
    let limits = Limits {
        codestreams: Decoder::new(meet),
        threads_max: 2,
        ..Limits::default()
    };
    let options = Options::new(16, limits).unwrap();
    let whole = archive(&slices(&one, 3));
    let (all, came) = archived(&whole, 3, &one.plan(), &options);
    assert_eq!((all, came.len()), (Ok(()), 3));
}

#[test]
fn small_files_of_one_frame_share_the_room_of_a_large_one() {
    let one = One::read("codecs/native");
    let (single, several) = (
        one.file(b"CT", &one.frames(1)),
        one.file(b"CT", &one.frames(2)),
    );
    let side = {
        let at = find(&single, ROWS) + ROWS.len();
        // Rows, then columns.
        let value = |at: usize| u16::from_le_bytes([single[at], single[at + 1]]);
        u64::from(value(at).max(value(at + 2 + ROWS.len())))
    };
    let picture = include_bytes!("../golden/formats/gm-grey.png");
    let check = |bytes: &[u8], frame_pixels_max: u64, expected: u32| {
        let limits = Limits {
            frame_pixels_max,
            threads_max: 4,
            ..Limits::default()
        };
        let options = Options::new(16, limits).unwrap();
        assert_eq!(
            files_beside(bytes, &options),
            expected,
            "{frame_pixels_max}"
        );
    };
    let pixels = side * side;
    check(&single, pixels * 9, 4);
    check(&single, pixels * 3, 3);
    check(&single, pixels - 1, 1);
    check(&several, pixels * 9, 1);
    check(picture, 1 << 26, 4);
    // What unpacks something, and what is no image.
    check(include_bytes!("../codecs/deflated.dcm"), 1 << 26, 1);
    check(&archive(&[single]), 1 << 26, 1);
    check(b"no image", 1 << 26, 1);
}
