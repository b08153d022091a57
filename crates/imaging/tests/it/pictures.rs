//! PNG and JPEG: depths, transparency, orientation, and what is refused.

use std::io::Cursor;

use flate2::Crc;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use medfleet_imaging::{
    Format, Frame, Limits, Modality, Note, Options, Reason, decode_file, frame_to_png, sniff,
};

use crate::{decode, find, reason, refusal};

fn png(width: u32, height: u32, color: ExtendedColorType, bytes: &[u8]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    PngEncoder::new(&mut out)
        .write_image(bytes, width, height, color)
        .unwrap();
    out.into_inner()
}

fn jpeg(
    width: u32,
    height: u32,
    color: ExtendedColorType,
    bytes: &[u8],
    exif: Option<Vec<u8>>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut out, 100);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).unwrap();
    }
    encoder.write_image(bytes, width, height, color).unwrap();
    out
}

/// A 2 × 2 PNG of this colour type becomes this frame.
#[track_caller]
fn check(color: ExtendedColorType, bytes: &[u8], channels: u32, pixels: &[u8], notes: &[Note]) {
    let decoded = decode(&png(2, 2, color, bytes), 2);
    let (frame, info) = &decoded.frames[0];
    assert_eq!(
        (
            frame.channels,
            frame.pixels.as_slice(),
            info.notes.as_slice()
        ),
        (channels, pixels, notes)
    );
    assert_eq!(
        (info.format, info.window, info.modality),
        (Format::Png, None, None)
    );
}

#[test]
fn grey_and_colour() {
    check(
        ExtendedColorType::L8,
        &[0, 1, 254, 255],
        1,
        &[0, 1, 254, 255],
        &[],
    );
    let colour = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    check(ExtendedColorType::Rgb8, &colour, 3, &colour, &[]);
    check(
        ExtendedColorType::Rgb8,
        &[5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8],
        1,
        &[5, 6, 7, 8],
        &[],
    );
}

#[test]
fn sixteen_bits_use_the_full_range() {
    let samples: Vec<u8> = [0u16, 128, 129, 65535]
        .iter()
        .flat_map(|sample| sample.to_ne_bytes())
        .collect();
    check(
        ExtendedColorType::L16,
        &samples,
        1,
        &[0, 0, 1, 255],
        &[Note::SixteenBitPicture],
    );
}

/// Values of 12 or 14 bits in a picture of 16 would be nearly black.
#[test]
fn sixteen_bits_that_nobody_scaled_are_refused() {
    let of = |color: ExtendedColorType, samples: &[u16]| {
        let bytes = samples.iter().flat_map(|sample| sample.to_ne_bytes());
        let bytes = png(2, 2, color, &bytes.collect::<Vec<_>>());
        let decoded = decode_file(&bytes, &Options::new(2, Limits::default()).unwrap());
        decoded.err().map(|refusal| {
            let text = refusal.to_string();
            assert!(text.contains("spread over all 16"), "{text}");
            refusal.reason
        })
    };
    let refused = Some(Reason::UnsupportedColour);
    assert_eq!(of(ExtendedColorType::L16, &[0, 9, 99, 4095]), refused);
    assert_eq!(of(ExtendedColorType::L16, &[0, 9, 99, 16_383]), refused);
    assert_eq!(of(ExtendedColorType::L16, &[0, 9, 99, 16_384]), None);
    let opaque = [0, u16::MAX, 9, u16::MAX, 99, u16::MAX, 4095, u16::MAX];
    assert_eq!(of(ExtendedColorType::La16, &opaque), refused);
}

#[test]
fn transparency_is_laid_over_black() {
    check(
        ExtendedColorType::La8,
        &[200, 255, 200, 0, 200, 128, 0, 0],
        1,
        &[200, 0, 100, 0],
        &[Note::AlphaOverBlack],
    );
    check(
        ExtendedColorType::La8,
        &[1, 255, 2, 255, 3, 255, 4, 255],
        1,
        &[1, 2, 3, 4],
        &[],
    );
}

#[test]
fn a_jpeg_is_taken_as_it_is() {
    let bytes = jpeg(16, 16, ExtendedColorType::L8, &[90; 256], None);
    let decoded = decode(&bytes, 16);
    let (frame, info) = &decoded.frames[0];
    assert_eq!(
        (info.format, info.notes.as_slice()),
        (Format::Jpeg, &[Note::LossyCompressed][..])
    );
    assert!(frame.pixels.iter().all(|pixel| pixel.abs_diff(90) <= 1));
}

/// Adobe's segment goes before the numbers of the components, as Pillow 13 and every browser have it: (82, 104, 212) was shown as the
/// colour that it would be as luminance and chrominance.
#[test]
fn a_jpeg_of_red_green_and_blue_is_not_turned_into_them_again() {
    let colour = [200_u8, 30, 40];
    let whole = jpeg(8, 8, ExtendedColorType::Rgb8, &colour.repeat(64), None);
    // Its first segment is JFIF's.
    let jfif = &whole[2..4 + usize::from(u16::from_be_bytes([whole[4], whole[5]]))];
    let body = &whole[2 + jfif.len()..];
    let adobe = |transform: u8| {
        let head = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0";
        [&head[..], &[transform]].concat()
    };
    let with = |segments: &[&[u8]]| [&whole[..2], &segments.concat(), body].concat();
    let check = |segments: &[&[u8]], expected: [u8; 3]| {
        let frame = decode(&with(segments), 8).frames.remove(0).0;
        let pixels = frame.pixels.chunks_exact(3);
        let apart = pixels.flat_map(|found| {
            let pairs = found.iter().zip(expected);
            pairs.map(|(found, expected)| found.abs_diff(expected))
        });
        assert!(apart.max().unwrap() <= 3, "{segments:?}");
    };
    check(&[jfif], colour);
    check(&[], colour);
    check(&[&adobe(1)], colour);
    check(&[jfif, &adobe(1)], colour);
    check(&[&adobe(0)], [82, 104, 212]);
    // Which of the two counts, decoders do not agree on.
    let refused = reason(&with(&[jfif, &adobe(0)]));
    assert_eq!(refused, Reason::UnsupportedColour);
}

/// libjpeg 9 names its components so, behind JFIF's segment: by that alone they were shown as luminance and chrominance.
#[test]
fn a_jpeg_of_a_wider_gamut_is_refused() {
    let colour = [200_u8, 30, 40];
    let whole = jpeg(8, 8, ExtendedColorType::Rgb8, &colour.repeat(64), None);
    for names in [b"rgb", &[1, 34, 35]] {
        let mut bytes = whole.clone();
        // Where the first one is named, and how far from it the next, in the headers of the frame and of the scan.
        for (marker, first, step) in [(b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)] {
            let at = find(&bytes, marker) + first;
            for (index, name) in names.iter().enumerate() {
                bytes[at + index * step] = *name;
            }
        }
        assert_eq!(reason(&bytes), Reason::UnsupportedColour, "{names:?}");
    }
}

/// Of other bits each pixel was shown as two, and luminance and chrominance as red, green and blue.
#[test]
fn a_lossless_jpeg_has_8_bits_and_says_that_it_is_red_green_and_blue() {
    let file = "pydicom-3.0.2/test_files/SC_rgb_jpeg_gdcm.dcm";
    let file = std::fs::read(crate::corpus::cache().join(file)).unwrap();
    // Adobe's segment, then the headers, whose components are called R, G and B.
    let good = &file[find(&file, b"\xff\xd8\xff\xee")..];
    let (frame, scan) = (find(good, b"\xff\xc3"), find(good, b"\xff\xda"));
    assert_eq!(decode(good, 100).frames[0].0.channels, 3);
    for bits in [7, 12, 16] {
        let mut bytes = good.to_vec();
        bytes[frame + 4] = bits;
        assert_eq!(reason(&bytes), Reason::UnsupportedColour, "{bits} bits");
    }
    let mut numbered = good.to_vec();
    for number in 1..=3_u8 {
        let at = usize::from(number - 1);
        numbered[frame + 10 + 3 * at] = number;
        numbered[scan + 5 + 2 * at] = number;
    }
    assert_eq!(decode(&numbered, 100).frames[0].0.channels, 3);
    // Without Adobe's segment.
    numbered.drain(2..frame);
    assert_eq!(reason(&numbered), Reason::UnsupportedColour);
}

/// A profile of these colours, with nothing in it that makes them sRGB's.
fn profile(space: &[u8; 4]) -> Vec<u8> {
    let mut profile = vec![0; 132];
    profile[16..20].copy_from_slice(space);
    profile[36..40].copy_from_slice(b"acsp");
    profile
}

#[test]
fn a_profile_that_is_not_applied_is_said() {
    let colours: Vec<u8> = (0..12).collect();
    let of_png = |space: &[u8; 4]| {
        let mut out = Vec::new();
        let mut encoder = PngEncoder::new(&mut out);
        encoder.set_icc_profile(profile(space)).unwrap();
        encoder
            .write_image(&colours, 2, 2, ExtendedColorType::Rgb8)
            .unwrap();
        out
    };
    let of_jpeg = |space: &[u8; 4]| {
        let mut out = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut out, 100);
        encoder.set_icc_profile(profile(space)).unwrap();
        encoder
            .write_image(&colours, 2, 2, ExtendedColorType::Rgb8)
            .unwrap();
        out
    };
    for bytes in [of_png(b"RGB "), of_jpeg(b"RGB ")] {
        let notes = &decode(&bytes, 2).frames[0].1.notes;
        assert!(notes.contains(&Note::ProfileNotApplied), "{notes:?}");
    }
    for bytes in [of_png(b"CMYK"), of_jpeg(b"CMYK")] {
        assert_eq!(reason(&bytes), Reason::UnsupportedColour);
    }
}

/// A browser shows it lighter than the model sees it.
#[test]
fn a_png_of_another_gamma_than_srgb_s_says_so() {
    let plain = png(2, 2, ExtendedColorType::L8, &[1, 20, 30, 40]);
    // Behind the signature and the image header.
    let (head, rest) = plain.split_at(33);
    let noted = |chunks: &[Vec<u8>]| {
        let bytes = [head, &chunks.concat(), rest].concat();
        let notes = &decode(&bytes, 2).frames[0].1.notes;
        notes.contains(&Note::ProfileNotApplied)
    };
    let gamma = |gamma: u32| png_chunk(b"gAMA", &gamma.to_be_bytes());
    let points = |points: [u8; 4]| png_chunk(b"cICP", &points);
    assert!(!noted(&[]));
    assert!(!noted(&[gamma(45_455)]) && !noted(&[gamma(45_454)]) && !noted(&[gamma(0)]));
    assert!(noted(&[gamma(100_000)]) && noted(&[gamma(55_556)]));
    // sRGB goes before it.
    assert!(!noted(&[png_chunk(b"sRGB", &[0]), gamma(100_000)]));
    // As of a picture of high dynamic range.
    assert!(noted(&[points([9, 16, 0, 1])]) && !noted(&[points([1, 13, 0, 1])]));
}

/// A few bytes of a file would take memory without end, before its size is known.
#[test]
fn a_profile_is_unpacked_up_to_a_limit() {
    let mut large = profile(b"CMYK");
    large.resize(1 << 20, 0);
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(large).unwrap();
    let colours: Vec<u8> = (0..12).collect();
    encoder
        .write_image(&colours, 2, 2, ExtendedColorType::Rgb8)
        .unwrap();
    let notes = |header_bytes_max: u64| {
        let limits = Limits {
            header_bytes_max,
            ..Limits::default()
        };
        let decoded = decode_file(&bytes, &Options::new(2, limits).unwrap());
        decoded.map(|decoded| decoded.frames[0].1.notes.clone())
    };
    let refused = notes(2 << 20).unwrap_err();
    assert_eq!(refused.reason, Reason::UnsupportedColour);
    assert_eq!(notes(1 << 16), Ok(vec![Note::ProfileNotApplied]));
}

/// A chunk of a PNG.
fn png_chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let named = [&name[..], content].concat();
    let mut checksum = Crc::new();
    checksum.update(&named);
    let length = (content.len() as u32).to_be_bytes();
    [&length[..], &named, &checksum.sum().to_be_bytes()].concat()
}

/// It may stand behind the pixels, where some programs append it.
#[test]
fn a_png_is_turned_by_its_orientation_wherever_that_stands() {
    const IEND_BYTES: usize = 12;
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let plain = png(4, 8, ExtendedColorType::L8, &(0..32).collect::<Vec<u8>>());
    for at in [33, plain.len() - IEND_BYTES] {
        let mut bytes = plain.clone();
        drop(bytes.splice(at..at, png_chunk(b"eXIf", exif)));
        let info = &decode(&bytes, 8).frames[0].1;
        assert_eq!((info.original_width, info.original_height), (8, 4), "{at}");
        assert_eq!(info.notes, [Note::ExifOrientation]);
    }
}

#[test]
fn exif_orientation_is_applied() {
    // TIFF header, one entry: Orientation (0x0112) SHORT = 6, "turn by 90° clockwise to view".
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let mut pixels = vec![0; 16 * 32];
    pixels[..16 * 8].fill(255);
    let decoded = decode(
        &jpeg(16, 32, ExtendedColorType::L8, &pixels, Some(exif)),
        32,
    );
    let (frame, info) = &decoded.frames[0];
    assert_eq!((info.original_width, info.original_height), (32, 16));
    assert!(info.notes.contains(&Note::ExifOrientation));
    // The bright rows at the top are now columns on the right.
    assert!(frame.pixels[16 * 32 + 28] > 200 && frame.pixels[16 * 32 + 3] < 50);
}

/// The pixels of a DICOM file lie as they are coded: its header says how, and other readers turn nothing either.
#[test]
fn exif_orientation_within_dicom_turns_nothing() {
    let good = include_bytes!("../golden/mono2-jpeg-baseline.dcm");
    let modality = find(good, b"\x08\0\x60\0CS\x02\0CR") + 8;
    let start = find(good, b"\xff\xd8\xff");
    let photograph = |segment: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[modality..modality + 2].copy_from_slice(b"XC");
        let length = u32::from_le_bytes(good[start - 4..start].try_into().unwrap());
        let length = length + segment.len() as u32;
        bytes[start - 4..start].copy_from_slice(&length.to_le_bytes());
        bytes.splice(start + 2..start + 2, segment.iter().copied());
        decode(&bytes, 32).frames.remove(0)
    };
    let exif =
        b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let (frame, info) = photograph(exif);
    assert_eq!(info.modality, Some(Modality::Xc));
    assert!(!info.notes.contains(&Note::ExifOrientation));
    assert_eq!(frame, photograph(&[]).0);
}

#[test]
fn broken_pictures_are_refused() {
    let noise: Vec<u8> = (0..64 * 64u32)
        .map(|i| (i.wrapping_mul(2654435761) >> 24) as u8)
        .collect();
    let whole_png = png(64, 64, ExtendedColorType::L8, &noise);
    let whole_jpeg = jpeg(64, 64, ExtendedColorType::L8, &noise, None);
    for end in [4, 20, 60, whole_png.len() / 2, whole_png.len() - 20] {
        assert_eq!(reason(&whole_png[..end]), Reason::Truncated, "PNG at {end}");
    }
    for end in [2, 20, 60, whole_jpeg.len() / 2, whole_jpeg.len() - 1] {
        assert_eq!(
            reason(&whole_jpeg[..end]),
            Reason::Truncated,
            "JPEG at {end}"
        );
    }
    // Entropy data that ends early, under an end marker.
    let mut ended = whole_jpeg[..whole_jpeg.len() / 2 + whole_jpeg.len() / 4].to_vec();
    while ended.last() == Some(&0xff) {
        ended.pop();
    }
    ended.extend([0xff, 0xd9]);
    assert_eq!(reason(&ended), Reason::Truncated);
    let mut flipped = whole_png.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert_eq!(reason(&flipped), Reason::DecodeFailed);
}

/// An end marker in the place of its last scans leaves a blurred image.
#[test]
fn a_progressive_jpeg_has_all_of_its_scans() {
    let whole = include_bytes!("../../../fuzz/seeds/colour8-progressive.jpg");
    decode(whole, 8);
    let scans = whole.windows(2).enumerate();
    let scans: Vec<usize> = scans
        .filter(|(_, marker)| *marker == [0xff, 0xda])
        .map(|(at, _)| at)
        .collect();
    assert_eq!(scans.len(), 10);
    for scan in &scans[1..] {
        let cut = [&whole[..*scan], &[0xff, 0xd9]].concat();
        assert_eq!(reason(&cut), Reason::Truncated, "{scan}");
    }
}

/// Frames of a video on a disc, 720 by 576 for 4:3 or 16:9.
#[test]
fn pixels_that_are_not_square_are_refused() {
    let noise: Vec<u8> = (0..64 * 64u32).map(|at| (at % 251) as u8).collect();
    let whole = jpeg(64, 64, ExtendedColorType::L8, &noise, None);
    let of_jpeg = |across: u16, down: u16| {
        let mut bytes = whole.clone();
        bytes[14..16].copy_from_slice(&across.to_be_bytes());
        bytes[16..18].copy_from_slice(&down.to_be_bytes());
        refusal(&bytes)
    };
    let of_png = |across: u32, down: u32| {
        let content = [across.to_be_bytes(), down.to_be_bytes()].concat();
        let chunk = png_chunk(b"pHYs", &[&content[..], &[0]].concat());
        let mut bytes = png(64, 64, ExtendedColorType::L8, &noise);
        // Behind the signature and the header.
        drop(bytes.splice(33..33, chunk));
        refusal(&bytes)
    };
    for (across, down) in [(1, 1), (0, 0), (0, 72), (3000, 3010)] {
        assert_eq!(of_jpeg(across, down), None, "{across}:{down}");
        assert_eq!(of_png(across.into(), down.into()), None, "{across}:{down}");
    }
    let refused = Some(Reason::NonSquarePixels);
    for (across, down) in [(16, 15), (64, 45), (72, 36)] {
        assert_eq!(of_jpeg(across, down), refused, "{across}:{down}");
        assert_eq!(of_png(across.into(), down.into()), refused);
    }
}

#[test]
fn sizes_are_checked_from_the_header_alone() {
    let limits = Limits {
        frame_pixels_max: 64 * 64 - 1,
        ..Limits::default()
    };
    let options = Options::new(8, limits).unwrap();
    for bytes in [
        png(64, 1, ExtendedColorType::L8, &[0; 64]),
        jpeg(64, 1, ExtendedColorType::L8, &[0; 64], None),
    ] {
        assert_eq!(
            decode_file(&bytes, &options).unwrap_err().reason,
            Reason::TooManyPixels
        );
    }
}

#[test]
fn a_frame_survives_as_png() {
    let frame = Frame {
        side: 2,
        channels: 3,
        pixels: (0..12).collect(),
    };
    let bytes = frame_to_png(&frame).unwrap();
    assert_eq!(sniff(&bytes).unwrap(), Format::Png);
    assert_eq!(decode(&bytes, 2).frames[0].0, frame);
    assert!(frame_to_png(&Frame { side: 3, ..frame }).is_err());
}
