//! The sequential DCT processes (ITU-T T.81 annex F) with 8 and 12 bits, interleaved or not, with restarts.
//! The inverse transform is the definition itself in 32-bit floating point, rounded once.

use std::f64::consts::PI;

use super::huffman::{Bits, Table};
use super::{Component, FrameHeader, ScanHeader, State, failed};
use crate::Refusal;

/// Position in the block of the coefficient that comes as the nth (figure A.6).
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A component while its scan is decoded.
struct Part<'a> {
    component: &'a Component,
    dc: &'a Table,
    ac: &'a Table,
    quantiser: &'a [u16; 64],
    prediction: i32,
    /// Samples a row, whole blocks and whole MCUs.
    stride: usize,
    samples: Vec<u16>,
}

pub(super) fn scan(
    state: &State,
    frame: &FrameHeader,
    scan: &ScanHeader,
    bits: &mut Bits<'_>,
    planes: &mut [Option<Vec<u16>>],
) -> Result<(), Refusal> {
    if (
        scan.predictor,
        scan.end_of_spectrum,
        scan.approximation_high,
        scan.point_transform,
    ) != (0, 63, 0, 0)
    {
        return Err(failed());
    }
    let layout = Layout::new(frame);
    let mut parts = layout.parts(state, frame, scan)?;
    let idct = Idct::new(frame.precision);
    let (columns, rows, alone) = layout.units(frame, &parts);
    let interval = state.restart_interval as usize;
    for mcu in 0..columns * rows {
        if interval != 0 && mcu != 0 && mcu % interval == 0 {
            bits.restart((mcu / interval - 1) as u32)?;
            for part in &mut parts {
                part.prediction = 0;
            }
        }
        let (x, y) = (mcu % columns, mcu / columns);
        for part in &mut parts {
            let (across, down) = if alone {
                (1, 1)
            } else {
                (
                    part.component.horizontal as usize,
                    part.component.vertical as usize,
                )
            };
            for block in 0..across * down {
                let (column, row) = (x * across + block % across, y * down + block / across);
                part.block(bits, &idct, column, row)?;
            }
        }
    }
    for (part, (index, _, _)) in parts.into_iter().zip(&scan.components) {
        let plane = part.upsampled(frame, &layout);
        if planes[*index].replace(plane).is_some() {
            return Err(failed());
        }
    }
    Ok(())
}

/// How the image is divided (A.1, A.2).
struct Layout {
    h_max: u32,
    v_max: u32,
    mcus_x: usize,
    mcus_y: usize,
}

impl Layout {
    fn new(frame: &FrameHeader) -> Self {
        let largest =
            |of: fn(&Component) -> u32| frame.components.iter().map(of).max().unwrap_or(1);
        let (h_max, v_max) = (largest(|c| c.horizontal), largest(|c| c.vertical));
        Self {
            h_max,
            v_max,
            mcus_x: frame.width.div_ceil(8 * h_max) as usize,
            mcus_y: frame.height.div_ceil(8 * v_max) as usize,
        }
    }

    fn parts<'a>(
        &self,
        state: &'a State,
        frame: &'a FrameHeader,
        scan: &ScanHeader,
    ) -> Result<Vec<Part<'a>>, Refusal> {
        let part = |(index, dc, ac): &(usize, usize, usize)| {
            let component = &frame.components[*index];
            let stride = self.mcus_x * component.horizontal as usize * 8;
            let lines = self.mcus_y * component.vertical as usize * 8;
            Ok(Part {
                component,
                dc: state.dc[*dc].as_ref().ok_or_else(failed)?,
                ac: state.ac[*ac].as_ref().ok_or_else(failed)?,
                quantiser: state.quantisers[component.quantiser]
                    .as_ref()
                    .ok_or_else(failed)?,
                prediction: 0,
                stride,
                samples: vec![0; stride * lines],
            })
        };
        scan.components.iter().map(part).collect()
    }

    /// Columns and rows of the units that the scan codes. A scan of one component has its blocks in raster order, and only
    /// those that hold samples (A.2.2).
    fn units(&self, frame: &FrameHeader, parts: &[Part<'_>]) -> (usize, usize, bool) {
        let [part] = parts else {
            return (self.mcus_x, self.mcus_y, false);
        };
        let blocks =
            |size: u32, factor: u32, most: u32| (size * factor).div_ceil(most).div_ceil(8) as usize;
        (
            blocks(frame.width, part.component.horizontal, self.h_max),
            blocks(frame.height, part.component.vertical, self.v_max),
            true,
        )
    }
}

impl Part<'_> {
    /// Decodes one block (F.2.2) and puts its samples in place.
    fn block(
        &mut self,
        bits: &mut Bits<'_>,
        idct: &Idct,
        column: usize,
        row: usize,
    ) -> Result<(), Refusal> {
        let mut coefficients = [0f32; 64];
        let category = bits.symbol(self.dc)?;
        self.prediction = self.prediction.wrapping_add(bits.difference(category)?);
        coefficients[0] = self.prediction as f32 * f32::from(self.quantiser[0]);
        let mut index = 1;
        while index < 64 {
            let symbol = bits.symbol(self.ac)?;
            let (run, size) = (usize::from(symbol >> 4), symbol & 0x0f);
            if size == 0 {
                if run != 15 {
                    break;
                }
                index += 16;
                continue;
            }
            index += run;
            let place = *ZIGZAG.get(index).ok_or_else(failed)?;
            coefficients[usize::from(place)] =
                bits.difference(size)? as f32 * f32::from(self.quantiser[index]);
            index += 1;
        }
        let start = row * 8 * self.stride + column * 8;
        idct.block(&coefficients, &mut self.samples[start..], self.stride);
        Ok(())
    }

    /// The component at the image's size: replicated, or interpolated where it is half as fine.
    fn upsampled(&self, frame: &FrameHeader, layout: &Layout) -> Vec<u16> {
        let Layout { h_max, v_max, .. } = *layout;
        let (width, height) = (frame.width as usize, frame.height as usize);
        let component = self.component;
        let columns = (frame.width * component.horizontal).div_ceil(h_max) as usize;
        let rows = (frame.height * component.vertical).div_ceil(v_max) as usize;
        let source = |x: usize, y: usize| f32::from(self.samples[y * self.stride + x]);
        let (across, down) = (
            component.horizontal as f32 / h_max as f32,
            component.vertical as f32 / v_max as f32,
        );
        if columns == width && rows == height {
            return (0..height)
                .flat_map(|y| &self.samples[y * self.stride..][..width])
                .copied()
                .collect();
        }
        let mut out = Vec::with_capacity(width * height);
        for y in 0..height {
            let (y0, y1, fy) = neighbours(y, down, rows);
            for x in 0..width {
                let (x0, x1, fx) = neighbours(x, across, columns);
                let above = source(x0, y0) * (1.0 - fx) + source(x1, y0) * fx;
                let below = source(x0, y1) * (1.0 - fx) + source(x1, y1) * fx;
                out.push((above * (1.0 - fy) + below * fy).round() as u16);
            }
        }
        out
    }
}

/// The two coarse samples around a fine one, whose centres are half-way between the fine ones', and the second's share.
fn neighbours(fine: usize, scale: f32, coarse: usize) -> (usize, usize, f32) {
    let centre = ((fine as f32 + 0.5) * scale - 0.5).max(0.0);
    let first = (centre as usize).min(coarse - 1);
    (first, (first + 1).min(coarse - 1), centre - first as f32)
}

/// The inverse transform (A.3.3) as two passes of an 8 × 8 matrix.
struct Idct {
    /// By frequency, then position: `C(u) / 2 * cos((2 x + 1) u π / 16)`.
    basis: [[f32; 8]; 8],
    shift: f32,
    largest: f32,
}

impl Idct {
    fn new(precision: u8) -> Self {
        let mut basis = [[0f32; 8]; 8];
        for (u, row) in basis.iter_mut().enumerate() {
            let scale = if u == 0 { 0.5f64.sqrt() } else { 1.0 } / 2.0;
            for (x, value) in row.iter_mut().enumerate() {
                *value = (scale * ((2 * x + 1) as f64 * u as f64 * PI / 16.0).cos()) as f32;
            }
        }
        Self {
            basis,
            shift: (1u32 << (precision - 1)) as f32,
            largest: ((1u32 << precision) - 1) as f32,
        }
    }

    fn block(&self, coefficients: &[f32; 64], out: &mut [u16], stride: usize) {
        // Columns of frequencies to rows of samples.
        let mut half = [[0f32; 8]; 8];
        for v in 0..8 {
            let row = &coefficients[v * 8..v * 8 + 8];
            if row.iter().all(|c| *c == 0.0) {
                continue;
            }
            for (c, basis) in row.iter().zip(&self.basis) {
                for (sum, value) in half[v].iter_mut().zip(basis) {
                    *sum += c * value;
                }
            }
        }
        for y in 0..8 {
            let mut row = [0f32; 8];
            for (v, line) in half.iter().enumerate() {
                let weight = self.basis[v][y];
                for (sum, value) in row.iter_mut().zip(line) {
                    *sum += weight * value;
                }
            }
            for (sample, value) in out[y * stride..][..8].iter_mut().zip(row) {
                *sample = (value + self.shift).round().clamp(0.0, self.largest) as u16;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_block_comes_out_constant() {
        let mut coefficients = [0f32; 64];
        coefficients[0] = 80.0;
        let mut out = [0; 64];
        Idct::new(8).block(&coefficients, &mut out, 8);
        assert_eq!(out, [138; 64]);
        Idct::new(12).block(&coefficients, &mut out, 8);
        assert_eq!(out, [2058; 64]);
    }

    #[test]
    fn half_as_fine_samples_lie_between() {
        assert_eq!(neighbours(0, 0.5, 4), (0, 1, 0.0));
        assert_eq!(neighbours(1, 0.5, 4), (0, 1, 0.25));
        assert_eq!(neighbours(2, 0.5, 4), (0, 1, 0.75));
        assert_eq!(neighbours(7, 0.5, 4), (3, 3, 0.25));
    }
}
