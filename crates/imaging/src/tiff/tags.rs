//! What one directory says of its picture (TIFF 6.0, 8 and the extensions of part 2).

use super::{Entries, malformed};
use crate::{Limits, Reason, Refusal};

const SUBFILE: u16 = 254;
const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const DESCRIPTION: u16 = 270;
const STRIP_OFFSETS: u16 = 273;
const ORIENTATION: u16 = 274;
const SAMPLES: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_BYTES: u16 = 279;
const X_RESOLUTION: u16 = 282;
const Y_RESOLUTION: u16 = 283;
const PLANAR: u16 = 284;
const RESOLUTION_UNIT: u16 = 296;
const PREDICTOR: u16 = 317;
const COLOUR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTES: u16 = 325;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;
const PROFILE: u16 = 34_675;

/// Bits of the subfile tag: a smaller copy of another picture, a mask of one.
const REDUCED: u64 = 1;
const MASK: u64 = 4;

/// Samples beyond the colours that a pixel may have: transparency and one more.
const EXTRA_SAMPLES_MAX: usize = 2;
/// Samples of a strip or tile, for each pixel that an image may have: three colours and transparency.
const CHUNK_SAMPLES_MAX: u64 = 4;

/// How colours are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Grey, the smallest value is white.
    WhiteIsZero,
    /// Grey, the smallest value is black.
    BlackIsZero,
    Rgb,
    Palette,
    /// Luminance and chrominance, in JPEG only.
    Ybr,
}

/// How strips and tiles are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Lzw,
    Deflate,
    PackBits,
    Jpeg,
    /// Tag values that are not decoded; a thumbnail may have one, and the picture beside it still be good.
    Unknown(u64),
}

/// What the samples beyond the colours are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extra {
    None,
    /// Ones that say nothing about colours; this many.
    Ignored(usize),
    /// Transparency that the colours are already multiplied by.
    Associated,
    /// Transparency that they are not.
    Unassociated,
}

#[derive(Clone, Debug)]
pub(crate) struct Directory<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// A smaller copy or a mask of another picture.
    pub(crate) secondary: bool,
    /// Of a sample; `None` where samples differ or are not whole numbers.
    pub(crate) bits: Option<u32>,
    pub(crate) ink: Option<Ink>,
    pub(super) packing: Packing,
    /// Whether samples are differences to their left neighbour; `None` for another prediction.
    pub(crate) differences: Option<bool>,
    pub(crate) samples: usize,
    pub(super) extra: Extra,
    /// Samples lie plane by plane.
    pub(crate) planar: bool,
    /// Whether pixels are in tiles and not in strips.
    pub(crate) tiled: bool,
    /// Of a strip or tile.
    pub(crate) chunk_width: u32,
    pub(crate) chunk_height: u32,
    pub(crate) offsets: Vec<u64>,
    pub(crate) lengths: Vec<u64>,
    /// As Exif has it, 1 to 8.
    pub(crate) orientation: u8,
    pub(crate) palette: Vec<u16>,
    pub(crate) jpeg_tables: Option<&'a [u8]>,
    pub(crate) profile: Option<&'a [u8]>,
    pub(crate) description: Option<&'a [u8]>,
    /// Pixels a unit, across and down.
    pub(crate) resolution: Option<(f64, f64)>,
    /// Millimetres of that unit, where it is one of length.
    pub(crate) resolution_unit_mm: Option<f64>,
}

impl<'a> Directory<'a> {
    pub(super) fn read(entries: &Entries<'a>) -> Result<Self, Refusal> {
        let side = |tag| -> Result<u32, Refusal> {
            let value = entries.number(tag)?.ok_or_else(malformed)?;
            u32::try_from(value)
                .ok()
                .filter(|side| *side > 0)
                .ok_or_else(malformed)
        };
        let word = |tag, default| Ok::<_, Refusal>(entries.number(tag)?.unwrap_or(default));
        let (width, height) = (side(WIDTH)?, side(HEIGHT)?);
        let subfile = word(SUBFILE, 0)?;
        let tiled = entries.has(TILE_OFFSETS);
        let (chunk_width, chunk_height) = if tiled {
            (side(TILE_WIDTH)?, side(TILE_HEIGHT)?)
        } else {
            let rows = word(ROWS_PER_STRIP, u64::from(height))?.clamp(1, u64::from(height));
            (width, rows as u32)
        };
        let [offsets, lengths] = if tiled {
            [TILE_OFFSETS, TILE_BYTES]
        } else {
            [STRIP_OFFSETS, STRIP_BYTES]
        };
        let samples = word(SAMPLES, 1)?;
        let samples = usize::try_from(samples)
            .ok()
            .filter(|n| (1..=16).contains(n));
        let samples = samples.ok_or_else(malformed)?;
        let ink = ink(word(PHOTOMETRIC, u64::MAX)?);
        let resolution = entries.ratio(X_RESOLUTION).zip(entries.ratio(Y_RESOLUTION));
        Ok(Self {
            width,
            height,
            secondary: subfile & (REDUCED | MASK) != 0,
            bits: if word(FILL_ORDER, 1)? == 1 {
                bits(entries)?
            } else {
                None
            },
            ink,
            packing: packing(word(COMPRESSION, 1)?),
            differences: match word(PREDICTOR, 1)? {
                1 => Some(false),
                2 => Some(true),
                _ => None,
            },
            samples,
            extra: extra(entries, ink, samples)?,
            planar: word(PLANAR, 1)? == 2 && samples > 1,
            tiled,
            chunk_width,
            chunk_height,
            offsets: entries.numbers(offsets)?.unwrap_or_default(),
            lengths: entries.numbers(lengths)?.unwrap_or_default(),
            // A value out of range means nothing (TIFF 6.0, 8).
            orientation: u8::try_from(word(ORIENTATION, 1)?).unwrap_or(1),
            palette: palette(entries)?,
            jpeg_tables: entries.bytes(JPEG_TABLES),
            profile: entries.bytes(PROFILE),
            description: entries.bytes(DESCRIPTION),
            resolution: resolution.filter(|(x, y)| *x > 0.0 && *y > 0.0),
            resolution_unit_mm: match word(RESOLUTION_UNIT, 2)? {
                2 => Some(25.4),
                3 => Some(10.0),
                _ => None,
            },
        })
    }

    /// Strips or tiles across and down.
    pub(crate) fn grid(&self) -> (u32, u32) {
        (
            self.width.div_ceil(self.chunk_width),
            self.height.div_ceil(self.chunk_height),
        )
    }

    pub(crate) fn is_jpeg(&self) -> bool {
        self.packing == Packing::Jpeg
    }

    /// Samples of a colour, 1 or 3, once the palette is looked up.
    pub(crate) fn channels(&self) -> u32 {
        match self.ink {
            Some(Ink::WhiteIsZero | Ink::BlackIsZero) => 1,
            _ => 3,
        }
    }

    /// Refuses what is not known to come out right, before anything is unpacked.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        let colour = |found: &str| Err(Refusal::new(Reason::UnsupportedColour).found(found));
        let Some(ink) = self.ink else {
            return colour("another photometric interpretation");
        };
        match self.bits {
            Some(8) => {}
            Some(16)
                if !matches!(ink, Ink::Palette | Ink::Ybr) && self.packing != Packing::Jpeg => {}
            Some(bits) => {
                return Err(
                    Refusal::new(Reason::UnsupportedColour).found(format_args!("{bits} bits"))
                );
            }
            None => return colour("samples that are not whole numbers of one size"),
        }
        let inks = if matches!(ink, Ink::Rgb | Ink::Ybr) {
            3
        } else {
            1
        };
        if self.samples < inks || (ink == Ink::Palette && self.palette.len() != 3 * 256) {
            return colour("too few samples");
        }
        // Some writers put 8 bits into the tables of 16, and all of the picture would be black.
        if ink == Ink::Palette && self.palette.iter().all(|entry| *entry <= 0xff) {
            return colour("a palette of 8 bits where there are 16");
        }
        if self.samples > inks + EXTRA_SAMPLES_MAX {
            return colour("more samples than colours and transparency");
        }
        // Channels of a microscope, or colours that are called grey: the first would be shown for all.
        if inks == 1 && matches!(self.extra, Extra::Ignored(_)) {
            return colour(
                "several samples a pixel that are not said to be colours or transparency",
            );
        }
        match self.packing {
            Packing::Unknown(value) => {
                return Err(Refusal::new(Reason::UnsupportedCompression).found(value));
            }
            Packing::Jpeg if self.samples != inks || self.planar => {
                return colour("planes in JPEG");
            }
            Packing::Jpeg => {}
            _ if ink == Ink::Ybr => return colour("luminance and chrominance outside JPEG"),
            _ => {}
        }
        let packed = matches!(self.packing, Packing::Lzw | Packing::Deflate);
        if self.differences.is_none() || (self.differences == Some(true) && !packed) {
            return Err(Refusal::new(Reason::UnsupportedCompression).found("another prediction"));
        }
        let (across, down) = self.grid();
        let planes = if self.planar { self.samples as u64 } else { 1 };
        let chunks = u64::from(across) * u64::from(down) * planes;
        if self.offsets.len() as u64 != chunks || self.lengths.len() as u64 != chunks {
            return Err(malformed());
        }
        Ok(())
    }

    /// Refuses what takes too much memory once unpacked: a strip or tile is unpacked whole, also where it reaches over the
    /// edge, and no writer makes one much larger than the picture. `packed` is the whole file.
    pub(crate) fn admit_size(&self, packed: u64, limits: &Limits) -> Result<(), Refusal> {
        limits.check_pixels(self.chunk_width, self.chunk_height)?;
        let [width, height] = [self.chunk_width, self.chunk_height].map(u64::from);
        let samples = self.samples as u64;
        let of_chunk = (width * height).saturating_mul(samples);
        if of_chunk > limits.frame_pixels_max.saturating_mul(CHUNK_SAMPLES_MAX) {
            return Err(Refusal::new(Reason::TooManyPixels)
                .found(format_args!("{width} x {height} x {samples} in one piece")));
        }
        let (across, down) = self.grid();
        // The last strip is only as high as what is left.
        let whole_height = if self.tiled {
            u64::from(down) * height
        } else {
            u64::from(self.height)
        };
        let bytes = (u64::from(across) * width)
            .saturating_mul(whole_height)
            .saturating_mul(samples)
            .saturating_mul(u64::from(self.bits.unwrap_or(8).div_ceil(8)));
        limits.check_ratio(packed, bytes)
    }
}

fn ink(word: u64) -> Option<Ink> {
    match word {
        0 => Some(Ink::WhiteIsZero),
        1 => Some(Ink::BlackIsZero),
        2 => Some(Ink::Rgb),
        3 => Some(Ink::Palette),
        6 => Some(Ink::Ybr),
        _ => None,
    }
}

fn packing(word: u64) -> Packing {
    match word {
        1 => Packing::None,
        5 => Packing::Lzw,
        7 => Packing::Jpeg,
        8 | 32_946 => Packing::Deflate,
        32_773 => Packing::PackBits,
        other => Packing::Unknown(other),
    }
}

/// Bits of every sample, if all are unsigned whole numbers of one size.
fn bits(entries: &Entries<'_>) -> Result<Option<u32>, Refusal> {
    let formats = entries.numbers(SAMPLE_FORMAT)?.unwrap_or_default();
    let all = entries.numbers(BITS)?.unwrap_or_else(|| vec![1]);
    let same = all.iter().all(|bits| *bits == all[0]) && formats.iter().all(|format| *format == 1);
    Ok(all
        .first()
        .filter(|_| same)
        .and_then(|bits| u32::try_from(*bits).ok()))
}

fn extra(entries: &Entries<'_>, ink: Option<Ink>, samples: usize) -> Result<Extra, Refusal> {
    let inks = if matches!(ink, Some(Ink::Rgb | Ink::Ybr)) {
        3
    } else {
        1
    };
    let more = samples.saturating_sub(inks);
    let said = entries.numbers(EXTRA_SAMPLES)?.unwrap_or_default();
    Ok(match (more, said.as_slice()) {
        (0, _) => Extra::None,
        (1, [1]) => Extra::Associated,
        (1, [2]) => Extra::Unassociated,
        (more, _) => Extra::Ignored(more),
    })
}

/// Red, green and blue tables one behind the other, 16 bits an entry.
fn palette(entries: &Entries<'_>) -> Result<Vec<u16>, Refusal> {
    let values = entries.numbers(COLOUR_MAP)?.unwrap_or_default();
    Ok(values.into_iter().map(|value| value as u16).collect())
}
