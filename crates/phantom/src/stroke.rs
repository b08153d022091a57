//! Lines of a width, painted on a grid: ribs, vessels, tubes and letters are all one of these.

use std::ops::Range;

use crate::grid::{Grid, View};

/// How strong a line is across its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Across {
    /// The same everywhere.
    Flat,
    /// Strongest in the middle, nothing at the edge: a full cylinder.
    Round,
    /// Strong along both edges: a bone with its cortex.
    Hollow,
    /// Soft from the middle on.
    Soft,
}

impl Across {
    /// Strength at `part` of the half width.
    #[inline]
    fn at(self, part: f32) -> f32 {
        let q = part * part;
        match self {
            Self::Flat => 1.0,
            Self::Round => 1.0 - 0.75 * q,
            Self::Hollow => {
                let edge = (1.0 - (part - 0.82).abs() * 5.5).max(0.0);
                0.62 - 0.12 * q + 0.38 * edge
            }
            Self::Soft => (1.0 - q) * (1.0 - q),
        }
    }
}

/// A line through points of anatomy; width and strength change evenly from point to point.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) points: Vec<[f32; 2]>,
    /// Half width at the first and the last point, in units of anatomy.
    pub(crate) radius: [f32; 2],
    /// Strength at the first and the last point.
    pub(crate) strength: [f32; 2],
    pub(crate) across: Across,
}

impl Line {
    /// A line of one width and of strength 1.
    pub(crate) const fn even(points: Vec<[f32; 2]>, radius: f32, across: Across) -> Self {
        Self {
            points,
            radius: [radius; 2],
            strength: [1.0; 2],
            across,
        }
    }
}

/// An end of a piece of a line, in pixels.
#[derive(Clone, Copy)]
struct End {
    x: f32,
    y: f32,
    radius: f32,
    strength: f32,
}

/// Paints `line`: where it is stronger than what is there, it takes its place, so that pieces of a line join without seams.
/// Gives the rows that the line lies in.
pub(crate) fn paint(grid: &mut Grid, view: &View, line: &Line) -> Range<usize> {
    let pieces = line.points.len() - 1;
    let end = |point: usize| {
        let part = point as f32 / pieces as f32;
        let [u, v] = line.points[point];
        let (x, y) = view.picture(u, v);
        let mix = |ends: [f32; 2]| ends[0] + (ends[1] - ends[0]) * part;
        End {
            x: grid.canvas.column(x),
            y: grid.canvas.row(y),
            radius: mix(line.radius) * view.scale() / grid.canvas.pixel,
            strength: mix(line.strength),
        }
    };
    let ends: Vec<End> = (0..=pieces).map(end).collect();
    let (mut top, mut bottom) = (usize::MAX, 0);
    for pair in ends.windows(2) {
        let rows = piece(grid, pair[0], pair[1], line.across);
        top = top.min(rows.start);
        bottom = bottom.max(rows.end);
    }
    top.min(bottom)..bottom
}

fn piece(grid: &mut Grid, from: End, to: End, across: Across) -> Range<usize> {
    let reach = from.radius.max(to.radius).max(0.5) + 1.0;
    let columns = range(
        from.x.min(to.x) - reach,
        from.x.max(to.x) + reach,
        grid.canvas.columns,
    );
    let rows = range(
        from.y.min(to.y) - reach,
        from.y.max(to.y) + reach,
        grid.canvas.rows,
    );
    let (along_x, along_y) = (to.x - from.x, to.y - from.y);
    let inverse = 1.0 / (along_x * along_x + along_y * along_y).max(1e-6);
    let width = grid.canvas.columns;
    // Half the length of a row inside a line without ends, and how far its middle moves from row to row.
    let length = (along_x * along_x + along_y * along_y).sqrt();
    let steep = along_y.abs() / length.max(1e-3);
    let (half, lean) = if steep > 0.05 {
        (reach / steep, along_x / along_y)
    } else {
        (f32::INFINITY, 0.0)
    };
    for row in rows.clone() {
        let dy = row as f32 - from.y;
        let middle = from.x + dy * lean;
        let inside = range(middle - half, middle + half, width);
        let start = columns.start.max(inside.start);
        let end = columns.end.min(inside.end).max(start);
        let line = &mut grid.values[row * width + start..row * width + end];
        for (value, column) in line.iter_mut().zip(start..end) {
            let dx = column as f32 - from.x;
            let part = ((dx * along_x + dy * along_y) * inverse).clamp(0.0, 1.0);
            let (ox, oy) = (dx - along_x * part, dy - along_y * part);
            let square = ox * ox + oy * oy;
            if square >= reach * reach {
                continue;
            }
            let radius = from.radius + (to.radius - from.radius) * part;
            let strength = from.strength + (to.strength - from.strength) * part;
            *value = value.max(strength * cover(square.sqrt(), radius, across));
        }
    }
    rows
}

/// The strength that a pixel sees at `distance` from the middle of a line of half width `radius`, in pixels. A line thinner
/// than a pixel is spread over one.
#[inline]
fn cover(distance: f32, radius: f32, across: Across) -> f32 {
    let wide = radius.max(0.6);
    let inside = (wide - distance + 0.5).clamp(0.0, 1.0);
    let part = (distance / wide).min(1.0);
    inside * across.at(part) * (radius / wide)
}

fn range(low: f32, high: f32, end: usize) -> Range<usize> {
    let start = low.max(0.0) as usize;
    let end = ((high + 2.0).max(0.0) as usize).min(end);
    start.min(end)..end
}
