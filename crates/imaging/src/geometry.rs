//! Where slices lie in the patient: orientation, normal, position along it (DICOM PS3.3 C.7.6.2).

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::dataset::DataSet;
use crate::groups::Groups;
use crate::{Reason, Refusal};

/// Cosines of two directions or normals that count as the same: within about 0.8 degrees.
const SAME_DIRECTION: f64 = 0.9999;
/// Cosine between the normal and the body's long axis from which a slice is axial: within 30 degrees, gantry tilt included.
const AXIAL_COSINE: f64 = 0.866;

/// A slice's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    /// Directions of a row and of a column, unit vectors.
    row: [f64; 3],
    column: [f64; 3],
    /// Of the first pixel, in mm.
    position: [f64; 3],
}

impl Place {
    /// Of a frame; `None` if the header does not say.
    pub(crate) fn read(groups: &Groups<'_>, frame: u32) -> Result<Option<Self>, Refusal> {
        let numbers = |group, tag: Tag| -> Result<Vec<f64>, Refusal> {
            let item: DataSet<'_> = groups.of(frame, group)?;
            item.decimals(tag, Reason::InvalidAttribute)
        };
        let position = numbers(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT)?;
        let orientation = numbers(
            tags::PLANE_ORIENTATION_SEQUENCE,
            tags::IMAGE_ORIENTATION_PATIENT,
        )?;
        let (&[x, y, z], &[a, b, c, d, e, f]) = (position.as_slice(), orientation.as_slice())
        else {
            return if position.is_empty() || orientation.is_empty() {
                Ok(None)
            } else {
                Err(Refusal::at(
                    Reason::InvalidAttribute,
                    tags::IMAGE_ORIENTATION_PATIENT,
                ))
            };
        };
        let (row, column) = ([a, b, c], [d, e, f]);
        let unit = |v: [f64; 3]| (dot(v, v) - 1.0).abs() < 0.01;
        if !unit(row) || !unit(column) || dot(row, column).abs() > 0.01 {
            return Err(Refusal::at(
                Reason::InvalidAttribute,
                tags::IMAGE_ORIENTATION_PATIENT,
            ));
        }
        Ok(Some(Self {
            row,
            column,
            position: [x, y, z],
        }))
    }

    /// Whether a frame that says how it lies does so as such slices are looked at; it need not say where.
    pub(crate) fn refuse_turned(groups: &Groups<'_>, frame: u32) -> Result<(), Refusal> {
        let item = groups.of(frame, tags::PLANE_ORIENTATION_SEQUENCE)?;
        let tag = tags::IMAGE_ORIENTATION_PATIENT;
        let directions = item.decimals(tag, Reason::InvalidAttribute)?;
        let &[a, b, c, d, e, f] = directions.as_slice() else {
            return Ok(());
        };
        let place = Self {
            row: [a, b, c],
            column: [d, e, f],
            position: [0.0; 3],
        };
        if place.is_upright() {
            Ok(())
        } else {
            Err(Refusal::at(Reason::NotUpright, tag))
        }
    }

    /// A slice with columns to the left and rows to the back, at this height.
    pub(crate) fn axial(height: f64) -> Self {
        Self {
            row: [1.0, 0.0, 0.0],
            column: [0.0, 1.0, 0.0],
            position: [0.0, 0.0, height],
        }
    }

    /// How far along this slice's normal another one lies, in mm. Places are compared along one normal: directions that differ a
    /// little, each with its own, move slices by millimetres where they lie far from the axes' origin.
    pub(crate) fn along(&self, other: &Self) -> f64 {
        dot(cross(self.row, self.column), other.position)
    }

    /// How far along this slice's rows and columns another one's first pixel lies, in mm; only differences of it say anything.
    pub(crate) fn across(&self, other: &Self) -> [f64; 2] {
        [
            dot(self.row, other.position),
            dot(self.column, other.position),
        ]
    }

    /// The position, to tell places apart and not to measure.
    pub(crate) fn position_bits(&self) -> [u64; 3] {
        self.position.map(f64::to_bits)
    }

    pub(crate) fn same_orientation(&self, other: &Self) -> bool {
        dot(self.row, other.row) > SAME_DIRECTION && dot(self.column, other.column) > SAME_DIRECTION
    }

    pub(crate) fn is_axial(&self) -> bool {
        cross(self.row, self.column)[2].abs() > AXIAL_COSINE
    }

    /// Whether it lies as such slices are looked at: columns to the patient's left, of a sagittal one to the front or back, and
    /// rows to the feet, of an axial one to the back. In axes of the patient, +x is left, +y back, +z head (C.7.6.2.1.1).
    /// A slice that is none of the three has no one way up.
    fn is_upright(&self) -> bool {
        const LEFT: (usize, bool) = (0, true);
        let across = cross(self.row, self.column);
        let (normal, _) = main_axis(across);
        if across[normal].abs() <= AXIAL_COSINE {
            return true;
        }
        let row = main_axis(self.row);
        let down = if normal == 2 { (1, true) } else { (2, false) };
        main_axis(self.column) == down && (row == LEFT || normal == 0 && row.0 == 1)
    }
}

/// The axis that a direction lies along most, and whether it goes to its positive end.
fn main_axis(direction: [f64; 3]) -> (usize, bool) {
    let mut axis = 0;
    for other in [1, 2] {
        if direction[other].abs() > direction[axis].abs() {
            axis = other;
        }
    }
    (axis, direction[axis] > 0.0)
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(row: [f64; 3], column: [f64; 3], expected: bool) {
        let position = [0.0; 3];
        let place = Place {
            row,
            column,
            position,
        };
        assert_eq!(place.is_upright(), expected, "{place:?}");
    }

    #[test]
    fn slices_are_upright_or_mirrored_or_turned() {
        let (left, back, head) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]);
        let minus = |v: [f64; 3]| v.map(|number| -number);
        // Axial: as usual; mirrored, seen from behind, on the belly, on its side.
        check(left, back, true);
        check(minus(left), back, false);
        check(left, minus(back), false);
        check(minus(left), minus(back), false);
        check(back, minus(left), false);
        // Coronal, and sagittal from either side.
        check(left, minus(head), true);
        check(minus(left), minus(head), false);
        check(left, head, false);
        check(back, minus(head), true);
        check(minus(back), minus(head), true);
        check(back, head, false);
        // Tilted within its plane, and out of it.
        check([0.9, 0.436, 0.0], [-0.436, 0.9, 0.0], true);
        check([0.57, 0.82, 0.0], [0.0, 0.0, -1.0], true);
        check([-0.7, 0.714, 0.0], [0.0, 0.0, -1.0], true);
        check(left, [0.0, 0.9272, -0.3746], true);
    }
}
