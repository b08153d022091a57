//! Headers that contradict themselves or their pixels, each of which another reader shows in one way or another: what is not
//! known to come out right is refused, and what is right comes out.

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use medfleet_imaging::{Limits, Modality, Note, Reason, Values, decode_values};

use crate::refusals::with_transfer_syntax;
use crate::synthetic::{file, file_as, put, put_cells, put_sequence, set};
use crate::{decode, find, reason, refusal};

/// Retired, so that it is not among the names.
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

pub(crate) fn refused(change: impl FnOnce(&mut InMemDicomObject)) -> Option<Reason> {
    refusal(&file(change))
}

/// Why the values of a file's first frame are refused, if they are.
fn values_refused(bytes: &[u8]) -> Option<Reason> {
    let decoded = decode_values(bytes, &Limits::default(), 1, |_, _| {});
    decoded.err().map(|refusal| refusal.reason)
}

fn words(words: &[u16]) -> PrimitiveValue {
    PrimitiveValue::U16(words.to_vec().into())
}

/// An item of a lookup table: its descriptor, and its entries as they are written.
fn table(descriptor: (VR, [u16; 3]), data: &[u16]) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    let (vr, numbers) = descriptor;
    put(&mut item, tags::LUT_DESCRIPTOR, vr, words(&numbers));
    put(&mut item, tags::LUT_DATA, VR::OW, words(data));
    item
}

#[test]
fn a_modality_table_beside_a_rescale_is_refused() {
    let with = |slope: &str| {
        refused(|object| {
            let item = table((VR::US, [4, 0, 16]), &[0, 100, 200, 300]);
            put_sequence(object, tags::MODALITY_LUT_SEQUENCE, item);
            set(object, tags::RESCALE_SLOPE, slope);
            set(object, tags::RESCALE_INTERCEPT, "0");
        })
    };
    assert_eq!(with("1"), None);
    assert_eq!(with("2"), Some(Reason::UnsupportedLut));
}

/// Without a window all of its values are shown, wherever in the table the largest stands.
#[test]
fn a_modality_table_may_go_down_again() {
    let bytes = file(|object| {
        put_cells(object, (0..30).collect());
        let mut values: Vec<u16> = (0..30).map(|at: u16| at * 100).collect();
        values[29] = 1;
        let item = table((VR::US, [30, 0, 16]), &values);
        put_sequence(object, tags::MODALITY_LUT_SEQUENCE, item);
    });
    let frame = &decode(&bytes, 6).frames[0].0;
    // numpy: round(2500 / 2800 * 255) = 228.
    assert_eq!(frame.pixels[30..35], [228, 237, 246, 255, 0]);
}

/// Writers that know one sign only write -1024 as 64512, from which on no value comes.
#[test]
fn the_first_value_of_a_table_has_the_sign_of_its_input() {
    let with = |signed: u16, vr: VR| {
        refused(|object| {
            set(object, tags::PIXEL_REPRESENTATION, signed);
            let item = table((vr, [4, 64_512, 12]), &[0, 1000, 2000, 3000]);
            put_sequence(object, tags::VOILUT_SEQUENCE, item);
        })
    };
    assert_eq!(with(1, VR::SS), None);
    // Taken, and all of this picture is below it.
    assert_eq!(with(0, VR::US), Some(Reason::FlatImage));
    assert_eq!(with(1, VR::US), Some(Reason::UnsupportedLut));
    assert_eq!(with(0, VR::SS), Some(Reason::UnsupportedLut));
}

/// Two entries in a word, the first one in the low byte whatever the byte order.
#[test]
fn tables_of_bytes_come_out_the_same_in_either_byte_order() {
    let frame = |syntax: &str| {
        let bytes = file_as(syntax, |object| {
            let entries: Vec<u16> = (0..30).map(|at: u16| at * 8).collect();
            let pairs = entries.chunks_exact(2);
            let pairs: Vec<u16> = pairs.map(|pair| pair[0] | pair[1] << 8).collect();
            set(object, tags::BITS_STORED, 16_u16);
            set(object, tags::HIGH_BIT, 15_u16);
            put_cells(object, (0..30).collect());
            let item = table((VR::US, [30, 0, 8]), &pairs);
            put_sequence(object, tags::VOILUT_SEQUENCE, item);
        });
        decode(&bytes, 6).frames[0].0.clone()
    };
    let little = frame(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_eq!(little.pixels[..5], [0, 8, 16, 24, 32]);
    assert_eq!(frame(BIG_ENDIAN), little);
}

/// Sixteen cells in a word, the first one in its lowest bit whatever the byte order.
#[test]
fn cells_of_one_bit_come_out_the_same_in_either_byte_order() {
    let frame = |syntax: &str| {
        let bytes = file_as(syntax, |object| {
            set(object, tags::BITS_ALLOCATED, 1_u16);
            set(object, tags::BITS_STORED, 1_u16);
            set(object, tags::HIGH_BIT, 0_u16);
            put_cells(object, vec![0x0f05, 3]);
        });
        decode(&bytes, 6).frames[0].0.clone()
    };
    let little = frame(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_eq!(little.pixels[..5], [255, 0, 255, 0, 0]);
    assert_eq!(frame(BIG_ENDIAN), little);
}

/// A photograph whose stored values go from -3 on, with four colours from `first` on.
fn palette(vr: VR, first: u16, bits: u16, entries: &[u16]) -> Vec<u8> {
    file(|object| {
        set(object, tags::MODALITY, Modality::Xc.as_str());
        set(object, tags::PHOTOMETRIC_INTERPRETATION, "PALETTE COLOR");
        set(object, tags::PIXEL_REPRESENTATION, 1_u16);
        let cells = (0..30_i16).map(|at| (at - 3).cast_unsigned());
        put_cells(object, cells.collect());
        put_palette(object, (vr, [4, first, bits]), entries);
    })
}

/// The same entries for red, green and blue.
fn put_palette(object: &mut InMemDicomObject, (vr, numbers): (VR, [u16; 3]), entries: &[u16]) {
    for (descriptor, data) in [
        (
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        ),
        (
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        ),
        (
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        ),
    ] {
        put(object, descriptor, vr, words(&numbers));
        put(object, data, VR::OW, words(entries));
    }
}

/// A photograph whose header says this of its colours, in a transfer syntax that its fragments need not be of.
fn packed(syntax: &str, photometric: &str) -> Vec<u8> {
    let bytes = include_bytes!("../golden/mono2-jpeg-baseline.dcm");
    let mut object = dicom_object::from_reader(&bytes[..]).unwrap();
    set(&mut object, tags::MODALITY, Modality::Xc.as_str());
    set(&mut object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
    if photometric == "PALETTE COLOR" {
        let entries: Vec<u16> = (0..256).map(|at: u16| at * 257).collect();
        put_palette(&mut object, (VR::US, [256, 0, 16]), &entries);
    } else {
        set(&mut object, tags::SAMPLES_PER_PIXEL, 3_u16);
    }
    let mut packed = Vec::new();
    object.write_all(&mut packed).unwrap();
    with_transfer_syntax(&packed, syntax)
}

#[test]
fn numbers_of_colours_lose_nothing() {
    let refused = |syntax: &str| reason(&packed(syntax, "PALETTE COLOR"));
    for syntax in [
        uids::JPEG_BASELINE8_BIT,
        uids::JPEGLS_NEAR_LOSSLESS,
        uids::JPEG2000,
        uids::HTJ2K,
    ] {
        assert_eq!(refused(syntax), Reason::UnsupportedPhotometric, "{syntax}");
    }
    // What they hold is another codec's, which is seen later.
    for syntax in [uids::JPEGLS_LOSSLESS, uids::JPEG2000_LOSSLESS] {
        assert_ne!(refused(syntax), Reason::UnsupportedPhotometric, "{syntax}");
    }
}

/// Elsewhere they were shown as if they were red, green and blue.
#[test]
fn colours_of_jpeg_2000_are_in_no_other_syntax() {
    let native = |photometric: &str| {
        refused(|object| {
            set(object, tags::MODALITY, Modality::Xc.as_str());
            set(object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
            set(object, tags::SAMPLES_PER_PIXEL, 3_u16);
            set(object, tags::BITS_ALLOCATED, 8_u16);
            set(object, tags::BITS_STORED, 8_u16);
            set(object, tags::HIGH_BIT, 7_u16);
            let samples: Vec<u8> = (0..90).collect();
            let samples = PrimitiveValue::U8(samples.into());
            put(object, tags::PIXEL_DATA, VR::OB, samples);
        })
    };
    assert_eq!(native("RGB"), None);
    let expected = Reason::UnsupportedPhotometric;
    for photometric in ["YBR_RCT", "YBR_ICT"] {
        assert_eq!(native(photometric), Some(expected), "{photometric}");
        for syntax in [
            uids::RLE_LOSSLESS,
            uids::JPEG_BASELINE8_BIT,
            uids::JPEG_LOSSLESS_SV1,
            uids::JPEGLS_LOSSLESS,
        ] {
            let refused = reason(&packed(syntax, photometric));
            assert_eq!(refused, expected, "{syntax}");
        }
    }
}

#[test]
fn a_palette_of_signed_values_begins_below_zero() {
    let minus_two = (-2_i16).cast_unsigned();
    let mut reds = Vec::new();
    let entries = [0x0a00, 0x1400, 0x1e00, 0xff00];
    let bytes = palette(VR::SS, minus_two, 16, &entries);
    let each = |_: u32, values: Values| {
        if let Values::Colour { samples, .. } = values {
            reds = samples.into_iter().step_by(3).take(6).collect();
        }
    };
    decode_values(&bytes, &Limits::default(), 1, each).unwrap();
    let [a, b, c, d] = entries.map(u32::from);
    assert_eq!(reds, [a, a, b, c, d, d]);
    let written_unsigned = palette(VR::US, minus_two, 16, &entries);
    assert_eq!(reason(&written_unsigned), Reason::UnsupportedLut);
    // Cut off to eight bits, 300 would be dark.
    let beyond = palette(VR::SS, 0, 8, &[10, 20, 30, 300]);
    assert_eq!(reason(&beyond), Reason::UnsupportedLut);
    // Eight bits in a table of 16: as they are said to be, all is black.
    let dim = palette(VR::SS, 0, 16, &[10, 80, 160, 255]);
    assert_eq!(reason(&dim), Reason::UnsupportedLut);
    let whole = palette(VR::SS, 0, 8, &[1, 2, 3, 4]);
    assert_eq!(values_refused(&whole), None);
}

/// Twelve bits in a table of 16 would show a film of which nothing is brighter than a 16th, in one of 13 than a half.
#[test]
fn a_window_table_that_stays_dark_is_refused() {
    let with = |bits: u16| {
        refused(|object| {
            let item = table((VR::US, [4, 0, bits]), &[0, 1000, 2000, 4095]);
            put_sequence(object, tags::VOILUT_SEQUENCE, item);
        })
    };
    assert_eq!(with(12), None);
    for bits in [13, 14, 16] {
        assert_eq!(with(bits), Some(Reason::UnsupportedLut), "{bits}");
    }
}

#[test]
fn a_photograph_by_a_slope_beyond_all_numbers_is_refused() {
    let by = |slope: &str| {
        refused(|object| {
            set(object, tags::MODALITY, Modality::Xc.as_str());
            set(object, tags::RESCALE_SLOPE, slope);
            set(object, tags::RESCALE_INTERCEPT, "0");
        })
    };
    assert_eq!(by("1"), None);
    assert_eq!(by("1e306"), Some(Reason::FlatImage));
}

#[test]
fn a_digitised_film_has_square_pixels_too() {
    let spacing =
        |text: &str| refused(|object| set(object, tags::NOMINAL_SCANNED_PIXEL_SPACING, text));
    assert_eq!(spacing("0.1\\0.1"), None);
    assert_eq!(spacing("0.1\\0.2"), Some(Reason::NonSquarePixels));
}

/// One of the two would be believed.
#[test]
fn a_functional_group_is_shared_or_of_each_frame() {
    let group = |intercept: &str| {
        let mut values = InMemDicomObject::new_empty();
        set(&mut values, tags::RESCALE_INTERCEPT, intercept);
        set(&mut values, tags::RESCALE_SLOPE, "1");
        let mut item = InMemDicomObject::new_empty();
        let transformation: Tag = tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE;
        put_sequence(&mut item, transformation, values);
        item
    };
    let with = |shared: Option<&str>, own: Option<&str>| {
        refused(|object| {
            if let Some(intercept) = shared {
                let tag = tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE;
                put_sequence(object, tag, group(intercept));
            }
            if let Some(intercept) = own {
                let tag = tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE;
                put_sequence(object, tag, group(intercept));
            }
        })
    };
    assert_eq!(with(Some("0"), None), None);
    assert_eq!(with(None, Some("-1024")), None);
    let refusal = Some(Reason::InvalidAttribute);
    assert_eq!(with(Some("0"), Some("-1024")), refusal);
    // Said twice, and the same.
    assert_eq!(with(Some("-1024"), Some("-1024")), None);
}

/// The frames without it would be shown as they are stored, beside others that are not.
#[test]
fn a_functional_group_is_of_every_frame_or_of_none() {
    let found = |intercepts: [Option<&str>; 2]| {
        let items = intercepts.map(|intercept| {
            let mut item = InMemDicomObject::new_empty();
            if let Some(intercept) = intercept {
                let mut values = InMemDicomObject::new_empty();
                set(&mut values, tags::RESCALE_INTERCEPT, intercept);
                set(&mut values, tags::RESCALE_SLOPE, "2");
                let transformation = tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE;
                put_sequence(&mut item, transformation, values);
            }
            item
        });
        let bytes = file(|object| {
            set(object, tags::NUMBER_OF_FRAMES, "2");
            set(object, tags::ROWS, 3_u16);
            let sequence = DataSetSequence::from(items.to_vec());
            let tag = tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE;
            object.put(DataElement::new(tag, VR::SQ, sequence));
        });
        let decoded = decode_values(&bytes, &Limits::default(), 2, |_, _| {});
        decoded.map_err(|refusal| refusal.reason)
    };
    assert_eq!(found([Some("0"), Some("5")]), Ok(2));
    assert_eq!(found([None, None]), Ok(2));
    for some in [[Some("0"), None], [None, Some("5")]] {
        assert_eq!(found(some), Err(Reason::InvalidAttribute));
    }
}

#[test]
fn a_codestream_that_transforms_its_colours_is_called_so() {
    let good = include_bytes!("../golden/slides/full-j2k.dcm");
    let name = b"YBR_RCT ";
    let at = find(good, name);
    let found = |photometric: &[u8; 8]| {
        let mut bytes = good.to_vec();
        bytes[at..at + 8].copy_from_slice(photometric);
        values_refused(&bytes)
    };
    assert_eq!(found(name), None);
    assert_eq!(found(b"YBR_FULL"), Some(Reason::PixelDataMismatch));
}

/// Its components are called R, G and B, and would be turned from what the header says into something else.
#[test]
fn a_lossless_jpeg_of_red_green_and_blue_is_called_so() {
    let file = "pydicom-3.0.2/test_files/SC_rgb_jpeg_gdcm.dcm";
    let good = std::fs::read(crate::corpus::cache().join(file)).unwrap();
    let found = |photometric: &str, segment: &[u8]| {
        let mut object = dicom_object::from_reader(&good[..]).unwrap();
        set(&mut object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
        let mut bytes = Vec::new();
        object.write_all(&mut bytes).unwrap();
        // Into the only fragment, behind its start of image.
        let at = find(&bytes, b"\xff\xd8\xff");
        let length = u32::from_le_bytes(bytes[at - 4..at].try_into().unwrap());
        let length = length + segment.len() as u32;
        bytes[at - 4..at].copy_from_slice(&length.to_le_bytes());
        bytes.splice(at + 2..at + 2, segment.iter().copied());
        values_refused(&bytes)
    };
    let jfif = b"\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0";
    assert_eq!(found("RGB", &[]), None);
    assert_eq!(found("RGB", jfif), None);
    let refused = Some(Reason::PixelDataMismatch);
    assert_eq!(found("YBR_FULL", &[]), refused);
    // It says both of itself.
    assert_eq!(found("YBR_FULL", jfif), refused);
}

#[test]
fn what_an_embedded_overlay_draws_is_no_colour() {
    let frame = |drawn: u16| {
        let bytes = file(|object| {
            set(object, tags::MODALITY, Modality::Xc.as_str());
            set(object, tags::PHOTOMETRIC_INTERPRETATION, "RGB");
            set(object, tags::SAMPLES_PER_PIXEL, 3_u16);
            put_cells(object, (0..90).map(|at| (at * 40) | drawn).collect());
            put(object, Tag(0x6000, 0x0102), VR::US, 12_u16);
        });
        decode(&bytes, 6).frames.remove(0).0
    };
    assert_eq!(frame(1 << 12), frame(0));
}

/// A photograph has no window, and shows all that the header stores.
#[test]
fn a_photograph_of_fewer_bits_than_the_header_stores_is_refused() {
    let of = |stored: u16, window: bool| {
        refused(|object| {
            set(object, tags::MODALITY, Modality::Opt.as_str());
            set(object, tags::BITS_STORED, stored);
            set(object, tags::HIGH_BIT, stored - 1);
            if window {
                set(object, tags::WINDOW_CENTER, "1450");
                set(object, tags::WINDOW_WIDTH, "2900");
            }
        })
    };
    // Its values go to 2900.
    assert_eq!(of(12, false), None);
    assert_eq!(of(13, false), None);
    assert_eq!(of(14, false), Some(Reason::PixelDataMismatch));
    assert_eq!(of(16, false), Some(Reason::PixelDataMismatch));
    assert_eq!(of(16, true), None);
}

/// Viewers show their background there, and some films have it white by their window.
#[test]
fn padding_of_a_film_that_is_not_black_is_said() {
    let noted = |photometric: &str, padding: u16| {
        let bytes = file(|object| {
            set(object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
            put(object, tags::PIXEL_PADDING_VALUE, VR::US, padding);
            set(object, tags::WINDOW_CENTER, "1450");
            set(object, tags::WINDOW_WIDTH, "2900");
        });
        let notes = &decode(&bytes, 6).frames[0].1.notes;
        notes.contains(&Note::PaddingShown)
    };
    // Its values go from 0 to 2900 in steps of 100.
    assert!(!noted("MONOCHROME2", 0) && noted("MONOCHROME2", 2900));
    assert!(noted("MONOCHROME1", 0) && !noted("MONOCHROME1", 2900));
    // No pixel has it.
    assert!(!noted("MONOCHROME2", 2950));
}

/// By a header of 12 bits a stream of 8 would be dark.
#[test]
fn a_jpeg_has_all_bits_that_the_header_stores() {
    let good = include_bytes!("../golden/mono2-jpeg-baseline.dcm");
    let found = |bits: [u8; 3]| {
        let mut bytes = good.to_vec();
        // Bits Allocated, Bits Stored, High Bit.
        for (element, value) in (0..).zip(bits) {
            let head = [0x28, 0, element, 1, b'U', b'S', 2, 0];
            let at = find(&bytes, &head) + 8;
            bytes[at] = value;
        }
        refusal(&bytes)
    };
    assert_eq!(found([8, 8, 7]), None);
    assert_eq!(found([16, 8, 7]), None);
    assert_eq!(found([16, 12, 11]), Some(Reason::PixelDataMismatch));
}

/// The same of a stream of another kind, where what loses nothing may have as few bits as its values use.
#[test]
fn what_may_have_lost_something_is_not_of_8_bits_where_more_are_stored() {
    let found = |bytes: &[u8], syntax: &str| values_refused(&with_transfer_syntax(bytes, syntax));
    let refused = Some(Reason::PixelDataMismatch);
    let of_8_bits = jpeg_ls_of_8_bits(12, 0);
    assert_eq!(found(&of_8_bits, uids::JPEGLS_LOSSLESS), None);
    assert_eq!(found(&of_8_bits, uids::JPEGLS_NEAR_LOSSLESS), refused);
    let as_stored = jpeg_ls_of_8_bits(8, 0);
    assert_eq!(found(&as_stored, uids::JPEGLS_NEAR_LOSSLESS), None);
    let mut codestream = include_bytes!("../golden/mono2-j2k.dcm").to_vec();
    // Its twelve bits, less one.
    let depth = find(&codestream, &[0xff, 0x4f, 0xff, 0x51]) + 42;
    assert_eq!(codestream[depth], 11);
    for syntax in [uids::JPEG2000, uids::HTJ2K] {
        assert_eq!(found(&codestream, syntax), None, "{syntax}");
        codestream[depth] = 7;
        assert_eq!(found(&codestream, syntax), refused, "{syntax}");
        codestream[depth] = 11;
    }
}

/// A file whose JPEG-LS stream has eight bits a sample, of which some have the highest.
fn jpeg_ls_of_8_bits(stored: u16, signed: u16) -> Vec<u8> {
    let good = include_bytes!("../codecs/jpeg-ls.dcm");
    let pixel_data = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff";
    let at = find(good, pixel_data);
    let item = |bytes: &[u8]| {
        let length = bytes.len() as u32;
        [&b"\xfe\xff\0\xe0"[..], &length.to_le_bytes(), bytes].concat()
    };
    let mut stream = include_bytes!("../codecs/restarts-eight-bits.jls").to_vec();
    stream.resize(stream.len().next_multiple_of(2), 0);
    let fragments = [
        item(&[]),
        item(&stream),
        b"\xfe\xff\xdd\xe0\0\0\0\0".to_vec(),
    ]
    .concat();
    let mut bytes = [&good[..at], pixel_data, &fragments].concat();
    // Bits Stored, High Bit, Pixel Representation.
    for (element, value) in (1..).zip([stored, stored - 1, signed]) {
        let head = [0x28, 0, element, 1, b'U', b'S', 2, 0];
        let at = find(&bytes, &head) + 8;
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// In 16 bits, -1 of eight would be 255.
#[test]
fn a_compressed_image_of_signed_values_has_all_bits_that_the_header_stores() {
    let mut smallest = 0.0;
    let mut refused = |stored: u16, signed: u16| {
        let bytes = jpeg_ls_of_8_bits(stored, signed);
        let decoded = decode_values(&bytes, &Limits::default(), 1, |_, values| {
            if let Values::Grey(values) = values {
                smallest = values.into_iter().fold(f64::INFINITY, f64::min);
            }
        });
        (decoded.err().map(|refusal| refusal.reason), smallest)
    };
    assert_eq!(refused(16, 0), (None, 31.0));
    let (none, smallest) = refused(8, 1);
    assert!(none.is_none() && smallest < 0.0, "{smallest}");
    for stored in [9, 12, 16] {
        let (reason, _) = refused(stored, 1);
        assert_eq!(reason, Some(Reason::PixelDataMismatch), "{stored}");
    }
}

#[test]
fn an_element_that_is_there_twice_has_one_value() {
    let good = file(|_| {});
    let at = find(&good, b"\xe0\x7f\x10\0OW");
    let with_rows = |rows: u8| {
        let again = [&b"\x28\0\x10\0US\x02\0"[..], &[rows, 0]].concat();
        let bytes = [&good[..at], &again, &good[at..]].concat();
        refusal(&bytes)
    };
    assert_eq!(with_rows(6), None);
    assert_eq!(with_rows(5), Some(Reason::Malformed));
}
