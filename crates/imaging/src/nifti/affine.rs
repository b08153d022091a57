//! Which axis of a NIfTI-1 volume goes to the left, to the back and up, from its sform or its qform.

use crate::square::is_square;
use crate::{Reason, Refusal};

/// Cosine between an axis of the volume and the body's from which they are the same: within 30 degrees, as for DICOM.
const SAME_AXIS_COSINE: f64 = 0.866;
/// The square of a rotation's vector part: one at most, and what 32 bits round off.
const QUATERNION_SQUARE_MAX: f64 = 1.0 + 1e-3;

/// The axes in the order in which they are shown: columns, rows, slices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axes {
    /// Which axis of the file.
    pub(super) order: [usize; 3],
    /// Whether it is shown from its end.
    pub(super) turned: [bool; 3],
    /// Distance of neighbours, in the file's unit, which is millimetres wherever it is known.
    pub(super) spacing: [f64; 3],
}

impl Axes {
    /// `i16` and `f32` read header fields by their place.
    pub(super) fn read(
        i16: &dyn Fn(usize) -> i16,
        f32: &dyn Fn(usize) -> f64,
    ) -> Result<Self, Refusal> {
        let (qform, sform) = (i16(252) > 0, i16(254) > 0);
        let by_sform = [280, 296, 312].map(|row| [0, 4, 8].map(|column| f32(row + column)));
        let found = match (sform, qform) {
            (true, false) => Self::of(by_sform)?,
            (false, true) => Self::of(quaternion(f32)?)?,
            (true, true) => {
                let axes = Self::of(by_sform)?;
                let other = Self::of(quaternion(f32)?)?;
                // A mirrored patient is a wrong report; nothing says which of the two is right.
                if (other.order, other.turned) != (axes.order, axes.turned) {
                    return Err(Refusal::new(Reason::MixedOrientation)
                        .found("sform and qform that contradict each other"));
                }
                axes
            }
            (false, false) => {
                return Err(Refusal::new(Reason::OrientationUnknown));
            }
        };
        let [columns, rows, _] = found.spacing;
        if !is_square(columns, rows) {
            return Err(
                Refusal::new(Reason::NonSquarePixels).found(format_args!("{rows:.3}:{columns:.3}"))
            );
        }
        Ok(found)
    }

    /// Of a matrix whose column j says where axis j goes: right, front, up.
    fn of(matrix: [[f64; 3]; 3]) -> Result<Self, Refusal> {
        let column = |axis: usize| [matrix[0][axis], matrix[1][axis], matrix[2][axis]];
        let length = |axis: usize| column(axis).iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut found = Self {
            order: [0; 3],
            turned: [false; 3],
            spacing: [0.0; 3],
        };
        for (shown, row) in matrix.iter().enumerate() {
            let cosine = |axis: usize| row[axis] / length(axis);
            let axis = (0..3).find(|axis| cosine(*axis).abs() > SAME_AXIS_COSINE);
            let axis = axis.ok_or_else(|| Refusal::new(Reason::NotAxial))?;
            found.order[shown] = axis;
            // Columns go to the left and rows to the back, against the matrix's right and front; slices go up with it.
            found.turned[shown] = (row[axis] > 0.0) != (shown == 2);
            found.spacing[shown] = length(axis);
        }
        let [a, b, c] = found.order;
        if a == b || b == c || a == c || !found.spacing.iter().all(|mm| mm.is_finite() && *mm > 0.0)
        {
            return Err(Refusal::new(Reason::NotAxial));
        }
        Ok(found)
    }
}

/// The rotation of the header's quaternion, times the voxels' size (NIfTI-1, method 2).
fn quaternion(f32: &dyn Fn(usize) -> f64) -> Result<[[f64; 3]; 3], Refusal> {
    let [b, c, d] = [256, 260, 264].map(f32);
    let square = b * b + c * c + d * d;
    // What is no rotation would still come out as axes, and nothing says of which.
    if !square.is_finite() || square > QUATERNION_SQUARE_MAX {
        return Err(Refusal::new(Reason::Malformed).found("a quaternion that is no rotation"));
    }
    let size = [80, 84, 88].map(f32);
    // A negative size would mirror an axis, which pixdim[0] alone may do, and only the third.
    if !size.iter().all(|mm| mm.is_finite() && *mm > 0.0) {
        return Err(Refusal::new(Reason::Malformed).found("an unusable pixdim"));
    }
    let a = (1.0 - square).max(0.0).sqrt();
    let rotation = [
        [
            a * a + b * b - c * c - d * d,
            2.0 * (b * c - a * d),
            2.0 * (b * d + a * c),
        ],
        [
            2.0 * (b * c + a * d),
            a * a + c * c - b * b - d * d,
            2.0 * (c * d - a * b),
        ],
        [
            2.0 * (b * d - a * c),
            2.0 * (c * d + a * b),
            a * a + d * d - c * c - b * b,
        ],
    ];
    // pixdim[0] says whether the third axis is mirrored.
    let mirrored = if f32(76) < 0.0 { -1.0 } else { 1.0 };
    let scale = [size[0], size[1], size[2] * mirrored];
    Ok(rotation.map(|row| [row[0] * scale[0], row[1] * scale[1], row[2] * scale[2]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(matrix: [[f64; 3]; 3], order: [usize; 3], turned: [bool; 3]) {
        let axes = Axes::of(matrix).unwrap();
        assert_eq!((axes.order, axes.turned), (order, turned));
    }

    #[test]
    fn axes_are_found_and_turned() {
        // As DICOM has them: left, back, up.
        check(
            [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 2.0]],
            [0, 1, 2],
            [false; 3],
        );
        // Right, front, up.
        check(
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]],
            [0, 1, 2],
            [true, true, false],
        );
        // Sagittal slices: front, up, right; downwards.
        check(
            [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
            [2, 0, 1],
            [true, true, true],
        );
    }

    /// A header with a qform: the quaternion's b, c and d, and the voxels' size.
    #[track_caller]
    fn check_qform(vector: [f64; 3], size: [f64; 3], expected: Option<Reason>) {
        let f32 = |at: usize| match at {
            256 | 260 | 264 => vector[(at - 256) / 4],
            80 | 84 | 88 => size[(at - 80) / 4],
            _ => 0.0,
        };
        let axes = Axes::read(&|at| i16::from(at == 252), &f32);
        assert_eq!(axes.err().map(|refusal| refusal.reason), expected);
    }

    #[test]
    fn qforms_are_rotations_of_voxels_with_a_size() {
        let (unit, malformed) = ([1.0; 3], Some(Reason::Malformed));
        check_qform([0.0; 3], [1.0, 1.0, 2.0], None);
        check_qform([0.0, 0.0, 1.0], unit, None);
        check_qform([0.0, 0.0, 1.0001], unit, None);
        check_qform([0.0, 0.0, 1.01], unit, malformed);
        check_qform([f64::NAN, 0.0, 0.0], unit, malformed);
        check_qform([0.0; 3], [-1.0, 1.0, 1.0], malformed);
        check_qform([0.0; 3], [1.0, 0.0, 1.0], malformed);
        check_qform([0.0; 3], [1.0, 1.0, f64::INFINITY], malformed);
    }

    #[test]
    fn oblique_axes_are_refused() {
        let (sin, cos) = 0.7_f64.sin_cos();
        let oblique = [[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]];
        assert_eq!(Axes::of(oblique).unwrap_err().reason, Reason::NotAxial);
        assert_eq!(
            Axes::of([[0.0; 3]; 3]).unwrap_err().reason,
            Reason::NotAxial
        );
    }
}
