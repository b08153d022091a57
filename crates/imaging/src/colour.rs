//! Colours: luminance and chrominance to red, green and blue, and palettes (DICOM PS3.3 C.7.6.3.1.2 and C.7.9).

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use crate::dataset::{DataSet, Value};
use crate::transform::{entry_count, first_input, is_dim};
use crate::{Reason, Refusal};

/// YBR_FULL to RGB in place, interleaved, rounded half up. `bits`: depth of a sample.
pub(crate) fn ybr_to_rgb(values: &mut [u32], bits: u32) {
    let (centre, largest) = ((1u64 << (bits - 1)) as f32, ((1u64 << bits) - 1) as f32);
    // The inverse of the standard's matrix, from its luminance weights.
    let (red, green, blue) = (0.299, 0.587, 0.114);
    let from_cr = (2.0 - 2.0 * red) as f32;
    let from_cb = (2.0 - 2.0 * blue) as f32;
    let green_cb = (-blue * (2.0 - 2.0 * blue) / green) as f32;
    let green_cr = (-red * (2.0 - 2.0 * red) / green) as f32;
    for pixel in values.chunks_exact_mut(3) {
        let (y, cb, cr) = (
            pixel[0] as f32,
            pixel[1] as f32 - centre,
            pixel[2] as f32 - centre,
        );
        let level = |value: f32| (value + 0.5).floor().clamp(0.0, largest) as u32;
        pixel[0] = level(y + from_cr * cr);
        pixel[1] = level(y + green_cb * cb + green_cr * cr);
        pixel[2] = level(y + from_cb * cb);
    }
}

/// The tables of PALETTE COLOR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Palette {
    /// Stored value of the first entry.
    first: i64,
    /// Bits of an entry, 8 or 16.
    pub(crate) bits: u32,
    entries: Vec<[u16; 3]>,
}

const TABLES: [(Tag, Tag, Tag); 3] = [
    (
        tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
        tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        tags::SEGMENTED_RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    ),
    (
        tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
        tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        tags::SEGMENTED_GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    ),
    (
        tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
        tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        tags::SEGMENTED_BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    ),
];

impl Palette {
    /// `signed`: whether stored values can be negative.
    pub(crate) fn read(elements: &DataSet<'_>, signed: bool) -> Result<Self, Refusal> {
        let (mut shape, mut columns) = (None, Vec::with_capacity(3));
        for (descriptor, data, segmented) in TABLES {
            let refuse = |tag| Refusal::at(Reason::UnsupportedLut, tag);
            let described = elements
                .value(descriptor)
                .ok_or_else(|| refuse(descriptor))?;
            let numbers = described.words(&[VR::US, VR::SS])?;
            let &[entries, first, bits] = numbers.as_slice() else {
                return Err(refuse(descriptor));
            };
            let first = first_input(&described, first, signed).ok_or_else(|| refuse(descriptor))?;
            // The three tables describe the same stored values.
            if *shape.get_or_insert((entries, first, bits)) != (entries, first, bits)
                || !matches!(bits, 8 | 16)
            {
                return Err(refuse(descriptor));
            }
            let entries = entry_count(entries);
            let column = if let Some(value) = elements.value(data) {
                plain(&value, entries, bits)?
            } else if let Some(value) = elements.value(segmented) {
                expand(&value.words(&[VR::OW])?, entries).ok_or_else(|| refuse(segmented))?
            } else {
                return Err(refuse(data));
            };
            if column.len() != entries {
                return Err(refuse(data).found(format_args!("{} entries", column.len())));
            }
            // Cut off, they would be other colours.
            let largest = u16::MAX >> (16 - bits);
            if column.iter().any(|entry| *entry > largest) {
                return Err(refuse(data).found(format_args!("entries beyond {bits} bits")));
            }
            columns.push(column);
        }
        let (_, first, bits) = shape.unwrap_or_default();
        let most = columns.iter().flatten().copied().max().unwrap_or(0);
        if bits == 16 && is_dim(most, bits) {
            let tag = tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA;
            return Err(Refusal::at(Reason::UnsupportedLut, tag)
                .found("entries of fewer bits than the table says"));
        }
        let entries =
            (0..columns[0].len()).map(|at| [columns[0][at], columns[1][at], columns[2][at]]);
        Ok(Self {
            first: i64::from(first),
            bits: u32::from(bits),
            entries: entries.collect(),
        })
    }

    /// Colours of stored values, interleaved; values beyond an end take the entry at that end.
    pub(crate) fn apply(&self, stored: impl Iterator<Item = i64>) -> Vec<u32> {
        let last = self.entries.len() as i64 - 1;
        stored
            .flat_map(|value| self.entries[(value - self.first).clamp(0, last) as usize])
            .map(u32::from)
            .collect()
    }
}

/// Entries as words, or as bytes where there are only as many bytes as entries.
fn plain(value: &Value<'_>, entries: usize, bits: u16) -> Result<Vec<u16>, Refusal> {
    let bytes = value.bytes.len();
    if bits == 8 && bytes == entries.next_multiple_of(2) && bytes != entries * 2 {
        let bytes = value.packed().into_iter();
        return Ok(bytes.take(entries).map(u16::from).collect());
    }
    value.words(&[VR::OW, VR::US])
}

/// Segments: 0 discrete, 1 linear, 2 a repeat of earlier ones (C.7.9.2).
fn expand(words: &[u16], entries: usize) -> Option<Vec<u16>> {
    let mut out = Vec::with_capacity(entries.min(65536));
    let mut at = 0;
    while at < words.len() && out.len() < entries {
        let (kind, length) = (*words.get(at)?, usize::from(*words.get(at + 1)?));
        match kind {
            0 => {
                out.extend_from_slice(words.get(at + 2..at + 2 + length)?);
                at += 2 + length;
            }
            1 => {
                let (from, to) = (f64::from(*out.last()?), f64::from(*words.get(at + 2)?));
                let steps = (1..=length)
                    .map(|step| (from + (to - from) * step as f64 / length as f64).round() as u16);
                out.extend(steps);
                at += 3;
            }
            // No file with indirect segments was there to check them with.
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chrominance_follows_the_standard() {
        let mut pixels = [128, 128, 128, 76, 85, 255, 255, 0, 0];
        ybr_to_rgb(&mut pixels, 8);
        assert_eq!(pixels, [128, 128, 128, 254, 0, 0, 76, 255, 28]);
    }

    #[test]
    fn segments_expand() {
        assert_eq!(
            expand(&[0, 2, 10, 20, 1, 2, 40], 4).unwrap(),
            [10, 20, 30, 40]
        );
        assert!(expand(&[1, 2, 40], 2).is_none());
        assert!(expand(&[2, 1, 0, 0], 2).is_none());
    }
}
