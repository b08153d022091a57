//! Stored value → modality value (DICOM PS3.3 C.11.1): a line, or a lookup table.

use dicom_core::VR;
use dicom_dictionary_std::tags;

use crate::admission::Cell;
use crate::dataset::{DataSet, Value};
use crate::{Reason, Refusal};

/// What turns a stored value into a modality value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transform {
    Rescale(Rescale),
    Lut(Table),
}

/// `slope * stored + intercept`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rescale {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
}

impl Rescale {
    /// Stored values are modality values.
    const NONE: Self = Self {
        slope: 1.0,
        intercept: 0.0,
    };
}

/// A lookup table as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Input of the first entry.
    pub(crate) first: i32,
    pub(crate) values: Vec<u16>,
    /// 8 to 16 bits an entry.
    pub(crate) bits: u16,
}

impl Transform {
    /// From the data set or functional group that holds the elements.
    pub(crate) fn read(elements: &DataSet<'_>, cell: Cell) -> Result<Self, Refusal> {
        let line = rescale(elements)?;
        let Some(item) = elements.first_item(tags::MODALITY_LUT_SEQUENCE)? else {
            return Ok(Self::Rescale(line));
        };
        // There may be one of the two (C.11.1); which of them is meant, nothing says.
        if line != Rescale::NONE {
            return Err(Refusal::at(
                Reason::UnsupportedLut,
                tags::MODALITY_LUT_SEQUENCE,
            ));
        }
        Table::read(&item, cell.signed).map(Self::Lut)
    }

    pub(crate) fn apply(&self, stored: i64) -> f64 {
        match self {
            Self::Rescale(line) => stored as f64 * line.slope + line.intercept,
            Self::Lut(table) => {
                let last = table.values.len() as i64 - 1;
                f64::from(table.values[(stored - i64::from(table.first)).clamp(0, last) as usize])
            }
        }
    }

    /// The line, if it is one.
    pub(crate) fn line(&self) -> Option<Rescale> {
        match self {
            Self::Rescale(line) => Some(*line),
            Self::Lut(_) => None,
        }
    }

    /// Whether whole stored values become whole modality values.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Rescale(line) => line.slope.fract() == 0.0 && line.intercept.fract() == 0.0,
            Self::Lut(_) => true,
        }
    }

    /// Whether modality values can be negative.
    pub(crate) fn can_be_negative(&self, cell: Cell) -> bool {
        match self {
            Self::Rescale(line) => cell.signed || line.intercept < 0.0 || line.slope < 0.0,
            Self::Lut(_) => false,
        }
    }

    /// Whether modality values can be positive.
    pub(crate) fn can_be_positive(&self, cell: Cell) -> bool {
        match self {
            Self::Rescale(_) => {
                let (low, high) = cell.range();
                self.apply(low).max(self.apply(high)) > 0.0
            }
            Self::Lut(_) => true,
        }
    }
}

fn rescale(elements: &DataSet<'_>) -> Result<Rescale, Refusal> {
    let one = |tag| match elements
        .decimals(tag, Reason::RescaleUnknownType)?
        .as_slice()
    {
        [] => Ok(None),
        [number] => Ok(Some(*number)),
        _ => Err(Refusal::at(Reason::InvalidRescale, tag)),
    };
    match (one(tags::RESCALE_SLOPE)?, one(tags::RESCALE_INTERCEPT)?) {
        (None, None) => Ok(Rescale::NONE),
        (Some(slope), Some(intercept)) if slope != 0.0 => Ok(Rescale { slope, intercept }),
        (None, Some(_)) | (Some(_), Some(_)) => {
            Err(Refusal::at(Reason::InvalidRescale, tags::RESCALE_SLOPE))
        }
        (Some(_), None) => Err(Refusal::at(Reason::InvalidRescale, tags::RESCALE_INTERCEPT)),
    }
}

impl Table {
    /// `signed`: whether what the table is for can be negative.
    pub(crate) fn read(item: &DataSet<'_>, signed: bool) -> Result<Self, Refusal> {
        let refuse = |tag| Refusal::at(Reason::UnsupportedLut, tag);
        let descriptor = item
            .value(tags::LUT_DESCRIPTOR)
            .ok_or_else(|| refuse(tags::LUT_DESCRIPTOR))?;
        let numbers = descriptor
            .words(&[VR::US, VR::SS])
            .map_err(|_| refuse(tags::LUT_DESCRIPTOR))?;
        let &[entries, first, bits] = numbers.as_slice() else {
            return Err(refuse(tags::LUT_DESCRIPTOR));
        };
        let entries = entry_count(entries);
        let first =
            first_input(&descriptor, first, signed).ok_or_else(|| refuse(tags::LUT_DESCRIPTOR))?;
        if !(8..=16).contains(&bits) {
            return Err(refuse(tags::LUT_DESCRIPTOR).found(format_args!("{bits} bits")));
        }
        let data = item
            .value(tags::LUT_DATA)
            .ok_or_else(|| refuse(tags::LUT_DATA))?;
        // 16-bit words, or one byte each where there are only as many bytes as entries.
        let values =
            if data.bytes.len() == entries.next_multiple_of(2) && data.is(&[VR::OW, VR::OB]) {
                let bytes = data.packed().into_iter();
                bytes.take(entries).map(u16::from).collect()
            } else {
                data.words(&[VR::OW, VR::US, VR::SS, VR::OB])
                    .map_err(|_| refuse(tags::LUT_DATA))?
            };
        let largest = u16::MAX >> (16 - bits);
        if values.len() != entries || values.iter().any(|value| *value > largest) {
            return Err(refuse(tags::LUT_DATA));
        }
        Ok(Self {
            first,
            values,
            bits,
        })
    }

    /// Whether its entries fit into fewer bits than it says: writers put 8, 12 or 14 bits into tables of 16, and what is shown by
    /// them comes out black or dark.
    pub(crate) fn is_dim(&self) -> bool {
        is_dim(self.values.iter().copied().max().unwrap_or(0), self.bits)
    }
}

/// Whether the largest of a table's entries leaves the highest bit unused.
pub(crate) fn is_dim(most: u16, bits: u16) -> bool {
    u32::from(most) * 2 < u32::from(u16::MAX >> (16 - bits))
}

/// How many entries a table has by its descriptor, where 0 means 65536 (C.7.6.3.1.5, C.11.1.1.1).
pub(crate) fn entry_count(said: u16) -> usize {
    match said {
        0 => 65536,
        said => usize::from(said),
    }
}

/// The input of a table's first entry, as its descriptor has it: of the sign that the input has (C.11.1.1). `None` where it was
/// written with the other sign and would be another number: writers that know one sign only do so.
pub(crate) fn first_input(descriptor: &Value<'_>, first: u16, signed: bool) -> Option<i32> {
    let written = match descriptor.vr.as_ref() {
        Some(b"SS") => true,
        Some(b"US") => false,
        _ => signed,
    };
    let (as_signed, as_unsigned) = (i32::from(first as i16), i32::from(first));
    (written == signed || as_signed == as_unsigned).then_some(if signed {
        as_signed
    } else {
        as_unsigned
    })
}
