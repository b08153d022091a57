//! Pixel data → stored cells: one `u16` a pixel, row-major, high bits as they were written.
//! Every codec gives exactly rows × columns cells or refuses; none fills in for data that is missing.

pub(crate) mod jpeg;
mod jpeg2000;
mod rle;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_dictionary_std::tags;

use crate::admission::{Cell, Codec, Plan};
use crate::elements::fragments;
use crate::{Reason, Refusal};

/// What a codec has to give.
#[derive(Clone, Copy, Debug)]
struct Shape {
    width: u32,
    height: u32,
    cell: Cell,
}

impl Shape {
    fn pixels(self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// Decodes the value of the pixel data element as planned.
pub(crate) fn decode(value: &[u8], plan: &Plan) -> Result<Vec<u16>, Refusal> {
    let shape = Shape {
        width: plan.columns,
        height: plan.rows,
        cell: plan.cell,
    };
    let cells = match plan.codec {
        Codec::Native => native(value, shape),
        Codec::Rle => rle::decode(&fragments(value)?, shape)?,
        Codec::JpegBaseline => {
            let bytes = fragments(value)?.concat();
            guarded(|| jpeg::decode_grey(&bytes, shape, jpeg::Process::Baseline))?
        }
        Codec::JpegLossless => {
            let bytes = fragments(value)?.concat();
            guarded(|| jpeg::decode_grey(&bytes, shape, jpeg::Process::Lossless))?
        }
        Codec::Jpeg2000 => {
            let bytes = fragments(value)?.concat();
            guarded(|| jpeg2000::decode(&bytes, shape))?
        }
    };
    if cells.len() != shape.pixels() {
        return Err(mismatch(format_args!("{} pixels", cells.len())));
    }
    refuse_stray_bits(&cells, plan)?;
    Ok(cells)
}

fn native(value: &[u8], shape: Shape) -> Vec<u16> {
    // Admission has compared the length with rows × columns; an odd length may carry one byte of padding.
    if shape.cell.bits_allocated == 8 {
        value
            .iter()
            .take(shape.pixels())
            .map(|byte| u16::from(*byte))
            .collect()
    } else {
        value
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    }
}

/// Bits above Bits Stored must be empty, the sign's, or those an embedded overlay declares. Otherwise the header is wrong about the depth,
/// and cutting them off would wrap bright values to dark ones.
fn refuse_stray_bits(cells: &[u16], plan: &Plan) -> Result<(), Refusal> {
    let Cell {
        bits_allocated,
        bits_stored,
        signed,
    } = plan.cell;
    let mask = plan.cell.mask();
    let all = u16::MAX >> (16 - bits_allocated);
    let above = all & !mask & !plan.overlay_bits;
    let sign = 1 << (bits_stored - 1);
    let stray = |raw: u16| {
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
