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
    /// Distance along the normal, in mm.
    pub(crate) along: f64,
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
            along: dot(cross(row, column), [x, y, z]),
        }))
    }

    /// A slice with columns to the left and rows to the back, at this height.
    pub(crate) fn axial(along: f64) -> Self {
        Self {
            row: [1.0, 0.0, 0.0],
            column: [0.0, 1.0, 0.0],
            along,
        }
    }

    pub(crate) fn same_orientation(&self, other: &Self) -> bool {
        dot(self.row, other.row) > SAME_DIRECTION && dot(self.column, other.column) > SAME_DIRECTION
    }

    pub(crate) fn is_axial(&self) -> bool {
        cross(self.row, self.column)[2].abs() > AXIAL_COSINE
    }
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
