//! Pixel data → cells: one `u32` a sample as it was stored, row-major, samples of a pixel together.
//! Every codec gives exactly rows × columns × samples cells or refuses; none fills in for data that is missing.

mod fragments;
pub(crate) mod jpeg;
mod jpeg2000;
mod jpegls;
mod native;
mod rle;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_dictionary_std::tags;

use crate::admission::{Cell, Codec, Image};
use crate::{Photometric, Reason, Refusal};

/// The cells of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cells {
    pub(crate) values: Vec<u32>,
    /// Whether the codec has already turned colours into red, green and blue.
    pub(crate) rgb: bool,
}

/// The frames of a file's pixel data.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    image: &'a Image,
    /// The native value, or the fragments of each frame.
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    Native(&'a [u8]),
    Fragments(Vec<Vec<&'a [u8]>>),
}

impl<'a> Frames<'a> {
    /// Finds the frames in the value of the pixel data element.
    pub(crate) fn new(value: &'a [u8], image: &'a Image) -> Result<Self, Refusal> {
        let source = match image.codec {
            Codec::Native => Source::Native(value),
            _ => Source::Fragments(fragments::by_frame(value, image.frames as usize)?),
        };
        Ok(Self { image, source })
    }

    /// Decodes a frame, as long as somebody waits for it.
    pub(crate) fn decode(&self, index: u32) -> Result<Cells, Refusal> {
        let image = self.image;
        image.codestreams.check_wanted()?;
        let cells = match &self.source {
            Source::Native(value) => plain(native::decode(value, image, index as usize)),
            Source::Fragments(frames) => {
                let frame = frames
                    .get(index as usize)
                    .ok_or_else(|| Refusal::at(Reason::PixelDataMismatch, tags::PIXEL_DATA))?;
                packed(frame, image)?
            }
        };
        if cells.values.len() != image.values() {
            return Err(mismatch(format_args!("{} samples", cells.values.len())));
        }
        refuse_stray_bits(&cells.values, image)?;
        Ok(cells)
    }
}

fn packed(frame: &[&[u8]], image: &Image) -> Result<Cells, Refusal> {
    if image.codec == Codec::Rle {
        return rle::decode(frame, image).map(plain);
    }
    let bytes: Cow<'_, [u8]> = match frame {
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.concat()),
    };
    // One of them would be shown, and the others lost.
    if fragments::is_several(&bytes) {
        return Err(mismatch(format_args!("several images in one frame")));
    }
    guarded(|| match image.codec {
        Codec::Jpeg2000 => jpeg2000::decode(&bytes, image),
        Codec::JpegLs => {
            let header = jpegls::frame_header(&bytes)?;
            check_size(header.width as u32, header.height as u32, image)?;
            check_precision(header.precision as u16, image)?;
            refuse_made_of_8_bits(header.precision as u16, image)?;
            let cells = jpegls::decode(&bytes)?;
            refuse_unsure_sign(&cells.values, header.precision, image)?;
            Ok(cells)
        }
        _ => decode_jpeg(&bytes, image),
    })
}

fn decode_jpeg(bytes: &[u8], image: &Image) -> Result<Cells, Refusal> {
    let (width, height, components) = jpeg::size(bytes)?;
    check_size(width, height, image)?;
    if components != image.samples as usize {
        return Err(mismatch(format_args!(
            "{components} components in the JPEG"
        )));
    }
    let coded = jpeg::decode(bytes)?;
    if coded.lossless != (image.codec == Codec::JpegLossless) {
        return Err(mismatch(format_args!(
            "another JPEG process than the transfer syntax says"
        )));
    }
    let bits = u16::from(coded.precision);
    check_precision(bits, image)?;
    // Whoever packed 12 bits as 8 and left the header as it was has a window that shows nearly all of them black.
    if !coded.lossless && bits < image.cell.bits_stored {
        return Err(mismatch(format_args!(
            "{bits} bits in the compressed image"
        )));
    }
    if coded.lossless
        && matches!(
            coded.hint,
            jpeg::ColourHint::Rgb | jpeg::ColourHint::Contrary
        )
        && matches!(
            image.photometric,
            Photometric::YbrFull | Photometric::YbrFull422
        )
    {
        return Err(mismatch(format_args!("red, green and blue in the JPEG")));
    }
    let mut cells = interleave(&coded.components);
    refuse_unsure_sign(&cells.values, bits.into(), image)?;
    if image.samples == 3 && !coded.lossless {
        // What the stream says of itself goes before the header, as every other decoder would show it.
        let ybr = match coded.hint {
            jpeg::ColourHint::Ybr => true,
            jpeg::ColourHint::Rgb => false,
            jpeg::ColourHint::None => image.photometric != Photometric::Rgb,
            jpeg::ColourHint::Contrary => {
                return Err(mismatch(format_args!("two kinds of colours in the JPEG")));
            }
        };
        if ybr {
            crate::colour::ybr_to_rgb(&mut cells.values, coded.precision.into());
        }
        cells.rgb = true;
    }
    Ok(cells)
}

/// Samples of a JPEG stream within another format, interleaved, as red, green and blue where it holds luminance and
/// chrominance (`ybr`). A stream that says the contrary of its colours is refused, as is one of another shape.
pub(crate) fn jpeg_samples(
    bytes: &[u8],
    (width, height): (u32, u32),
    samples: usize,
    ybr: bool,
) -> Result<Vec<u16>, Refusal> {
    if jpeg::size(bytes)? != (width, height, samples) {
        return Err(mismatch(format_args!("another size in the JPEG")));
    }
    let coded = jpeg::decode(bytes)?;
    let contrary = match coded.hint {
        jpeg::ColourHint::Ybr => samples == 3 && !ybr,
        jpeg::ColourHint::Rgb => ybr,
        jpeg::ColourHint::Contrary => samples == 3,
        jpeg::ColourHint::None => false,
    };
    if contrary || coded.precision != 8 {
        return Err(mismatch(format_args!("other colours in the JPEG")));
    }
    let mut values = interleave(&coded.components).values;
    if ybr {
        crate::colour::ybr_to_rgb(&mut values, 8);
    }
    Ok(values.into_iter().map(|value| value as u16).collect())
}

fn plain(values: Vec<u32>) -> Cells {
    Cells { values, rgb: false }
}

/// Planes of one size to interleaved cells.
fn interleave(planes: &[Vec<u16>]) -> Cells {
    let length = planes.first().map_or(0, Vec::len);
    let values = match planes {
        [plane] => plane.iter().map(|value| u32::from(*value)).collect(),
        planes => (0..length)
            .flat_map(|at| planes.iter().map(move |plane| u32::from(plane[at])))
            .collect(),
    };
    plain(values)
}

fn check_size(width: u32, height: u32, image: &Image) -> Result<(), Refusal> {
    if (width, height) == (image.columns, image.rows) {
        Ok(())
    } else {
        Err(mismatch(format_args!(
            "{width} x {height} in the compressed image"
        )))
    }
}

fn check_precision(bits: u16, image: &Image) -> Result<(), Refusal> {
    if bits <= image.cell.bits_allocated {
        Ok(())
    } else {
        Err(mismatch(format_args!(
            "{bits} bits a sample in the compressed image"
        )))
    }
}

/// As of a JPEG, whoever packed more bits as 8 lost something, and a header that was left as it was shows them dark. Of nine and
/// more many writers store as many as the detector has under a header of 16, and of a syntax without loss as many as are used.
fn refuse_made_of_8_bits(bits: u16, image: &Image) -> Result<(), Refusal> {
    if image.may_lose && bits <= 8 && image.cell.bits_stored > 8 {
        return Err(mismatch(format_args!(
            "{bits} bits in the compressed image"
        )));
    }
    Ok(())
}

/// These streams have no sign of their own. Where they have fewer bits than a header of signed values stores, the highest of them
/// may be the sign, which nobody would extend, or not.
fn refuse_unsure_sign(cells: &[u32], bits: u32, image: &Image) -> Result<(), Refusal> {
    let Cell {
        bits_stored,
        signed,
        ..
    } = image.cell;
    let highest = 1u32 << (bits - 1);
    if signed && bits < u32::from(bits_stored) && cells.iter().any(|raw| raw & highest != 0) {
        return Err(mismatch(format_args!(
            "signed values in {bits} bits in the compressed image"
        )));
    }
    Ok(())
}

/// Bits above Bits Stored must be empty, the sign's, or those an embedded overlay declares. Otherwise the header is wrong
/// about the depth, and cutting them off would wrap bright values to dark ones. Nor may an embedded overlay declare a bit that is
/// stored: its drawing would be the brightest part of the image.
fn refuse_stray_bits(cells: &[u32], image: &Image) -> Result<(), Refusal> {
    let Cell {
        bits_allocated,
        bits_stored,
        signed,
    } = image.cell;
    let mask = image.cell.mask();
    let all = u32::MAX >> (32 - bits_allocated);
    let above = all & !mask & !image.overlay_bits;
    // Those of an overlay that lies outside the cells say bit 0.
    let overlaid = image.overlay_bits & mask & !1;
    if above | overlaid == 0 {
        return Ok(());
    }
    // One pass that never stops is quicker than one that may.
    let set = cells.iter().fold(0, |all, raw| all | raw);
    if set & overlaid != 0 {
        return Err(mismatch(format_args!("an overlay within the stored bits")));
    }
    if set & above == 0 {
        return Ok(());
    }
    let sign = 1 << (bits_stored - 1);
    let stray = |raw: u32| {
        let high = raw & above;
        high != 0 && !(signed && raw & sign != 0 && high == above)
    };
    if cells.iter().any(|raw| stray(*raw)) {
        return Err(mismatch(format_args!("values beyond {bits_stored} bits")));
    }
    Ok(())
}

fn mismatch(found: std::fmt::Arguments<'_>) -> Refusal {
    Refusal::at(Reason::PixelDataMismatch, tags::PIXEL_DATA).found(found)
}

/// Turns a codec library's panic on broken input into a refusal of that input, so that one file can't stop the service.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    // Callers use nothing that the closure has written to after a refusal, so nothing half-written outlives a panic.
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(Refusal::new(Reason::DecodeFailed)))
}
