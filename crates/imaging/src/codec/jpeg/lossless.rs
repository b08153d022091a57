//! The lossless process (ITU-T T.81 annex H): every predictor, precision, point transform and restart interval.

use super::huffman::{Bits, Table};
use super::{FrameHeader, ScanHeader, State, failed};
use crate::Refusal;

pub(super) fn scan(
    state: &State,
    frame: &FrameHeader,
    scan: &ScanHeader,
    bits: &mut Bits<'_>,
    planes: &mut [Option<Vec<u16>>],
) -> Result<(), Refusal> {
    // Subsampled components are legal and never used in DICOM.
    let subsampled = frame
        .components
        .iter()
        .any(|c| (c.horizontal, c.vertical) != (1, 1));
    let predictor_fits = (1..=7).contains(&scan.predictor);
    if subsampled
        || !predictor_fits
        || u32::from(scan.point_transform) >= u32::from(frame.precision)
    {
        return Err(failed());
    }
    let tables = scan
        .components
        .iter()
        .map(|(_, dc, _)| state.dc[*dc].as_ref().ok_or_else(failed))
        .collect::<Result<Vec<&Table>, _>>()?;
    let (width, height) = (frame.width as usize, frame.height as usize);
    let mut out: Vec<Vec<u16>> = vec![vec![0; width * height]; tables.len()];
    let first = 1i32 << (frame.precision - scan.point_transform - 1);
    let interval = state.restart_interval as usize;
    // A restart interval is a whole number of lines (H.1.1).
    if !interval.is_multiple_of(width) {
        return Err(failed());
    }
    let mut restarts = 0;
    // The line that starts a restart interval is predicted as the first line of the image is.
    let mut fresh = true;
    for y in 0..height {
        if interval != 0 && y != 0 && (y * width).is_multiple_of(interval) {
            bits.restart(restarts)?;
            restarts += 1;
            fresh = true;
        }
        for x in 0..width {
            for (plane, table) in out.iter_mut().zip(&tables) {
                let at = y * width + x;
                let predicted = match (fresh, x) {
                    (true, 0) => first,
                    (true, _) => i32::from(plane[at - 1]),
                    (false, 0) => i32::from(plane[at - width]),
                    _ => predict(
                        scan.predictor,
                        i32::from(plane[at - 1]),
                        i32::from(plane[at - width]),
                        i32::from(plane[at - width - 1]),
                    ),
                };
                let category = bits.symbol(table)?;
                let difference = bits.difference(category)?;
                // Modulo 65536 (H.1.2.1).
                plane[at] = (predicted + difference) as u16;
            }
        }
        fresh = false;
    }
    for (plane, (index, _, _)) in out.into_iter().zip(&scan.components) {
        let shifted = if scan.point_transform == 0 {
            plane
        } else {
            plane.iter().map(|v| v << scan.point_transform).collect()
        };
        if planes[*index].replace(shifted).is_some() {
            return Err(failed());
        }
    }
    Ok(())
}

/// Table H.1: `a` is left, `b` above, `c` above left.
fn predict(predictor: u8, a: i32, b: i32, c: i32) -> i32 {
    match predictor {
        1 => a,
        2 => b,
        3 => c,
        4 => a + b - c,
        5 => a + ((b - c) >> 1),
        6 => b + ((a - c) >> 1),
        _ => (a + b) >> 1,
    }
}
