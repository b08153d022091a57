//! What is refused, and with which reason: each file is one change away from a good one.

use dicom_core::value::PrimitiveValue;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use medfleet_imaging::{Limits, Note, Options, Reason, decode_file};

use crate::synthetic::{file, file_as, put, put_cells, put_sequence, set};
use crate::{decode, find, options, reason};

#[track_caller]
fn check(change: impl FnOnce(&mut InMemDicomObject), expected: Reason) {
    let refusal = decode_file(&file(change), &options(8)).unwrap_err();
    assert_eq!(refusal.reason, expected, "{refusal}");
    assert!(!refusal.to_string().contains("Planted"), "{refusal}");
}

#[track_caller]
fn check_value(tag: Tag, value: impl Into<PrimitiveValue>, expected: Reason) {
    check(|object| set(object, tag, value), expected);
}

#[test]
fn the_unchanged_file_is_good() {
    let decoded = decode(&file(|_| {}), 8);
    assert_eq!(decoded.frames[0].1.notes, [Note::NoWindow]);
}

#[test]
fn a_file_without_preamble_is_good() {
    let whole = file(|_| {});
    for start in [128, 132] {
        let decoded = decode(&whole[start..], 8);
        assert_eq!(
            decoded.frames[0].1.notes,
            [Note::NoPreamble, Note::NoWindow]
        );
        assert_eq!(decoded.frames[0].0, decode(&whole, 8).frames[0].0);
    }
}

#[test]
fn other_modalities_say_which() {
    for modality in ["US", "RF", "PT", "NM", "SC", "XA"] {
        let bytes = file(|object| set(object, tags::MODALITY, modality));
        let refusal = decode_file(&bytes, &options(8)).unwrap_err();
        assert_eq!(refusal.reason, Reason::ModalityNotSupportedYet);
        let text = refusal.to_string();
        assert!(
            text.contains(&format!("found {modality} in (0008,0060)"))
                && text.contains("this version"),
            "{text}"
        );
    }
    check_value(tags::MODALITY, "PLANTED", Reason::ModalityNotSupportedYet);
    check(
        |object| drop(object.take_element(tags::MODALITY)),
        Reason::MissingAttribute,
    );
}

#[test]
fn transfer_syntaxes_that_are_not_known_to_be_right() {
    for (syntax, expected) in [
        ("1.2.840.10008.1.2.4.110", Reason::UnsupportedTransferSyntax),
        ("1.2.840.10008.1.2.4.92", Reason::UnsupportedTransferSyntax),
        ("1.2.3.4", Reason::UnsupportedTransferSyntax),
        (uids::MPEG4HP41, Reason::VideoNotSupported),
        // Native data under a syntax that promises compression.
        (uids::RLE_LOSSLESS, Reason::Malformed),
        (uids::JPEG_EXTENDED12_BIT, Reason::Malformed),
        (uids::JPEGLS_LOSSLESS, Reason::Malformed),
        (uids::HTJ2K, Reason::Malformed),
        // Little endian under a syntax that promises the other order.
        ("1.2.840.10008.1.2.2", Reason::Truncated),
    ] {
        // The syntax is replaced in the bytes, as the writer would refuse to write some of them.
        let bytes = with_transfer_syntax(&file(|_| {}), syntax);
        assert_eq!(reason(&bytes), expected, "{syntax}");
    }
}

/// Rewrites the transfer syntax in the meta group, lengths included.
pub(crate) fn with_transfer_syntax(bytes: &[u8], syntax: &str) -> Vec<u8> {
    let at = find(bytes, b"\x02\0\x10\0UI");
    let old = usize::from(u16::from_le_bytes([bytes[at + 6], bytes[at + 7]]));
    let mut value = syntax.as_bytes().to_vec();
    value.resize(value.len().next_multiple_of(2), 0);
    let mut out = bytes[..at + 6].to_vec();
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(&value);
    out.extend(&bytes[at + 8 + old..]);
    let group =
        u32::from_le_bytes(bytes[140..144].try_into().unwrap()) as usize + value.len() - old;
    out[140..144].copy_from_slice(&(group as u32).to_le_bytes());
    out
}

#[test]
fn colour_and_depth() {
    check_value(
        tags::PHOTOMETRIC_INTERPRETATION,
        "PALETTE COLOR",
        Reason::UnsupportedLut,
    );
    for photometric in ["RGB", "YBR_PARTIAL_420", "YBR_FULL_422"] {
        check_value(
            tags::PHOTOMETRIC_INTERPRETATION,
            photometric,
            Reason::UnsupportedPhotometric,
        );
    }
    check_value(
        tags::SAMPLES_PER_PIXEL,
        3_u16,
        Reason::UnsupportedPhotometric,
    );
    check_value(tags::BITS_ALLOCATED, 24_u16, Reason::UnsupportedBits);
    check_value(tags::BITS_STORED, 17_u16, Reason::UnsupportedBits);
    check_value(tags::HIGH_BIT, 15_u16, Reason::UnsupportedBits);
    check_value(tags::PIXEL_REPRESENTATION, 2_u16, Reason::UnsupportedBits);
    check(
        |object| drop(object.take_element(tags::PIXEL_REPRESENTATION)),
        Reason::MissingAttribute,
    );
}

#[test]
fn values_beyond_the_stored_bits() {
    // Cutting 2900 off at 11 bits would give 852: dark instead of bright.
    check(
        |object| {
            set(object, tags::BITS_STORED, 11u16);
            set(object, tags::HIGH_BIT, 10u16);
        },
        Reason::PixelDataMismatch,
    );
}

/// Bit 12 set in every cell of a 12-bit image, beside an overlay of which `elements` are the parts.
fn overlaid(elements: &[(u16, u16)]) -> Vec<u8> {
    file(|object| {
        let cells = (0..30).map(|index| (index * 100) | (1 << 12));
        put_cells(object, cells.collect());
        for (element, value) in elements {
            let vr = if *element == 0x3000 { VR::OW } else { VR::US };
            put(
                object,
                Tag(0x6002, *element),
                vr,
                PrimitiveValue::U16(vec![*value].into()),
            );
        }
    })
}

#[test]
fn only_embedded_overlays_use_the_bit_they_declare() {
    let decoded = decode(&overlaid(&[(0x0102, 12)]), 8);
    assert!(decoded.frames[0].1.notes.contains(&Note::HighBitsIgnored));
    for elements in [
        &[(0x0010, 6)][..],
        &[(0x0102, 13)],
        &[(0x0102, 16)],
        &[(0x0102, 12), (0x3000, 0)],
    ] {
        assert_eq!(
            reason(&overlaid(elements)),
            Reason::PixelDataMismatch,
            "{elements:?}"
        );
    }
    // One that is a part of the stored values, and one whose plane was taken away.
    let stored = |position: u16| {
        let bytes = file(|object| {
            put(object, Tag(0x6002, 0x0102), VR::US, position);
        });
        decode_file(&bytes, &options(8)).map_err(|refusal| refusal.reason)
    };
    assert_eq!(stored(11).unwrap_err(), Reason::PixelDataMismatch);
    assert!(stored(0).is_ok());
}

#[test]
fn jpeg_data_that_ends_early_with_an_end_marker_is_refused() {
    for bytes in [
        &include_bytes!("../golden/mono2-jpeg-baseline.dcm")[..],
        include_bytes!("../golden/mono2-jpeg-lossless.dcm"),
        include_bytes!("../golden/mono2-jpeg-lossless-sv1.dcm"),
    ] {
        decode(bytes, 8);
        for share in [2, 3, 5] {
            let scan = bytes
                .windows(2)
                .rposition(|pair| pair == [0xff, 0xda])
                .unwrap();
            let end = bytes.len() - 8;
            let mut cut = scan + 14 + (end - scan) / share;
            // Not between a 0xFF and its stuffing.
            while bytes[cut - 1] == 0xff {
                cut += 1;
            }
            let mut bytes = bytes.to_vec();
            bytes[cut..end].fill(0);
            bytes[cut..cut + 2].copy_from_slice(&[0xff, 0xd9]);
            assert_eq!(reason(&bytes), Reason::Truncated, "{share}");
        }
    }
}

#[test]
fn lossless_jpeg_with_a_stray_restart_or_a_false_point_transform_is_refused() {
    let good = include_bytes!("../golden/mono2-jpeg-lossless-sv1.dcm");
    let scan = good
        .windows(2)
        .rposition(|pair| pair == [0xff, 0xda])
        .unwrap();
    let mut transformed = good.to_vec();
    // Marker, length 8, one component of two bytes, predictor, end of spectrum, point transform.
    transformed[scan + 9] = 2;
    assert_eq!(reason(&transformed), Reason::PixelDataMismatch);
    let mut restarting = good.to_vec();
    restarting[scan + 50..scan + 52].copy_from_slice(&[0xff, 0xd0]);
    assert_eq!(reason(&restarting), Reason::Truncated);
}

#[test]
fn sizes_and_frames() {
    check_value(tags::ROWS, 0_u16, Reason::InvalidAttribute);
    check_value(tags::ROWS, 7_u16, Reason::PixelDataMismatch);
    check_value(tags::COLUMNS, 60000_u16, Reason::TooManyPixels);
    check_value(tags::NUMBER_OF_FRAMES, "2", Reason::PixelDataMismatch);
    check_value(tags::NUMBER_OF_FRAMES, "4097", Reason::TooManyFrames);
    check(
        |object| {
            set(object, tags::NUMBER_OF_FRAMES, "2");
            set(object, tags::ROWS, 3u16);
        },
        Reason::MultiFrameNotSupportedYet,
    );
    check_value(tags::PIXEL_SPACING, "0.2\\0.3", Reason::NonSquarePixels);
    check(
        |object| drop(object.take_element(tags::PIXEL_DATA)),
        Reason::NoPixelData,
    );
}

/// It was one more file without an image, though a viewer may show the film that it is of turned by it.
#[test]
fn a_presentation_state_is_called_one_and_left_out() {
    let bytes = file(|object| {
        let class = uids::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE;
        set(object, tags::SOP_CLASS_UID, class);
        set(object, tags::MODALITY, "PR");
        drop(object.take_element(tags::PIXEL_DATA));
    });
    let refusal = decode_file(&bytes, &options(8)).unwrap_err();
    assert_eq!(refusal.reason, Reason::PresentationState);
    assert!(refusal.leaves_out());
}

#[test]
fn rescale() {
    check(
        |object| {
            put(object, tags::RESCALE_SLOPE, VR::US, 1u16);
            put(object, tags::RESCALE_INTERCEPT, VR::US, 0u16);
        },
        Reason::RescaleUnknownType,
    );
    check_value(tags::RESCALE_SLOPE, "1", Reason::InvalidRescale);
    check_value(tags::RESCALE_INTERCEPT, "0", Reason::InvalidRescale);
    check(
        |object| {
            set(object, tags::RESCALE_SLOPE, "0");
            set(object, tags::RESCALE_INTERCEPT, "0");
        },
        Reason::InvalidRescale,
    );
}

#[test]
fn a_rescale_that_the_writer_did_not_know_is_read_as_text() {
    let with = |vr: VR| {
        let bytes = file(|object| {
            put(object, tags::RESCALE_SLOPE, vr, PrimitiveValue::from("-2"));
            put(
                object,
                tags::RESCALE_INTERCEPT,
                vr,
                PrimitiveValue::from("-1024"),
            );
            window(object, "-3000", "4000");
        });
        decode(&bytes, 8).frames[0].0.clone()
    };
    assert_eq!(with(VR::UN), with(VR::DS));
}

fn window(object: &mut InMemDicomObject, center: &str, width: &str) {
    set(object, tags::WINDOW_CENTER, center);
    set(object, tags::WINDOW_WIDTH, width);
}

#[test]
fn windows() {
    check(|object| window(object, "100", "0"), Reason::InvalidWindow);
    check(
        |object| window(object, "100\\200", "50"),
        Reason::InvalidWindow,
    );
    check(
        |object| window(object, "abc", "50"),
        Reason::InvalidAttribute,
    );
    check(
        |object| {
            window(object, "100", "50");
            set(object, tags::VOILUT_FUNCTION, "PLANTED");
        },
        Reason::InvalidWindow,
    );
}

#[test]
fn lookup_tables() {
    check(
        |object| {
            put_sequence(
                object,
                tags::MODALITY_LUT_SEQUENCE,
                InMemDicomObject::new_empty(),
            )
        },
        Reason::UnsupportedLut,
    );
    check(
        |object| put_sequence(object, tags::VOILUT_SEQUENCE, InMemDicomObject::new_empty()),
        Reason::UnsupportedLut,
    );
    check_value(
        tags::PRESENTATION_LUT_SHAPE,
        "INVERSE",
        Reason::UnsupportedLut,
    );
}

#[test]
fn raw_detector_data() {
    check_value(
        tags::PRESENTATION_INTENT_TYPE,
        "FOR PROCESSING",
        Reason::NotForPresentation,
    );
    check_value(
        tags::SOP_CLASS_UID,
        uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING,
        Reason::NotForPresentation,
    );
}

#[test]
fn a_flat_image_without_a_window_or_by_one() {
    for center in ["9000", "-9000"] {
        check(|object| window(object, center, "100"), Reason::FlatImage);
    }
    check(|object| put_cells(object, vec![7; 30]), Reason::FlatImage);
}

#[test]
fn broken_files() {
    let whole = file(|_| {});
    assert_eq!(reason(b""), Reason::Empty);
    assert_eq!(reason(b"GIF89a, not a picture we take"), Reason::NotAnImage);
    assert_eq!(reason(&whole[..whole.len() - 2]), Reason::Truncated);
    // No prefix of a file is ever decoded, and none panics.
    for end in 0..whole.len() {
        let reason = reason(&whole[..end]);
        assert!(
            matches!(
                reason,
                Reason::Empty
                    | Reason::Truncated
                    | Reason::NotAnImage
                    | Reason::NoPixelData
                    | Reason::Malformed
            ),
            "{end}: {reason}"
        );
    }
}

#[test]
fn no_single_flipped_byte_panics() {
    for syntax in [
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        uids::IMPLICIT_VR_LITTLE_ENDIAN,
    ] {
        let whole = file_as(syntax, |object| window(object, "100", "50"));
        for at in 0..whole.len() {
            for value in [0x00, 0xff, whole[at] ^ 0x01, whole[at] ^ 0x80] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                // Either outcome is fine here; that it returns is the point.
                if let Ok(decoded) = decode_file(&bytes, &options(8)) {
                    assert_eq!(decoded.frames.len(), 1);
                }
            }
        }
    }
}

#[test]
fn limits() {
    let whole = file(|_| {});
    let refused = |limits| {
        decode_file(&whole, &Options::new(8, limits).unwrap())
            .unwrap_err()
            .reason
    };
    let defaults = Limits::default();
    assert_eq!(
        refused(Limits {
            file_bytes_max: whole.len() as u64 - 1,
            ..defaults
        }),
        Reason::TooLarge
    );
    assert_eq!(
        refused(Limits {
            frame_pixels_max: 35,
            ..defaults
        }),
        Reason::TooManyPixels
    );
    assert_eq!(
        refused(Limits {
            header_bytes_max: 100,
            ..defaults
        }),
        Reason::TooLarge
    );
    assert!(Options::new(0, defaults).is_err());
}

#[test]
fn a_deflated_file_unpacks_no_further_than_its_limit() {
    let bytes = include_bytes!("../golden/mono2-deflated.dcm");
    let limits = Limits {
        file_bytes_max: bytes.len() as u64,
        ..Limits::default()
    };
    let refusal = decode_file(bytes, &Options::new(8, limits).unwrap()).unwrap_err();
    assert_eq!(refusal.reason, Reason::CompressionRatio);
}

#[test]
fn compressed_data_that_ends_early_is_refused() {
    for (name, bytes) in [
        ("rle", &include_bytes!("../golden/mono2-rle.dcm")[..]),
        ("j2k", include_bytes!("../golden/mono2-j2k.dcm")),
        (
            "baseline",
            include_bytes!("../golden/mono2-jpeg-baseline.dcm"),
        ),
        (
            "lossless",
            include_bytes!("../golden/mono2-jpeg-lossless.dcm"),
        ),
    ] {
        // The last 1500 bytes of the fragment are zeros, its lengths are right.
        let mut bytes = bytes.to_vec();
        let end = bytes.len() - 8;
        bytes[end - 1500..end].fill(0);
        let reason = reason(&bytes);
        assert!(
            matches!(reason, Reason::Truncated | Reason::DecodeFailed),
            "{name}: {reason}"
        );
    }
}

#[test]
fn codes_are_unique_and_stable_in_form() {
    let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    assert!(
        codes
            .iter()
            .all(|code| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
    );
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), Reason::ALL.len());
}
