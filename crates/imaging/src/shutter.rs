//! Display shutters: which part of a radiograph its header lets a viewer show (DICOM PS3.3 C.7.6.11).
//!
//! What the shutter covers is no part of the picture: it takes no part in a range, and is one level instead.
//! Rows and columns count from 1, whose pixel has its middle there; an edge is still shown.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use crate::dataset::DataSet;
use crate::{Reason, Refusal};

/// One of each kind.
const SHAPES_MAX: usize = 3;
/// Corners of a polygon, each of which costs time in every row.
const CORNERS_MAX: usize = 1024;
/// P-values to a grey level.
const P_VALUES: f64 = 257.0;

/// A shutter that leaves something of its picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shutter {
    /// At most one of each kind; what lies within all of them is shown.
    shapes: Vec<Shape>,
    columns: usize,
    /// Of what is covered.
    level: u8,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Rectangle {
        rows: (f64, f64),
        columns: Span,
    },
    Circle {
        row: f64,
        column: f64,
        radius: f64,
    },
    /// Rows and columns of its corners.
    Polygon(Vec<(f64, f64)>),
}

/// First and last column of what is shown of a row, both included.
type Span = (f64, f64);

impl Shutter {
    /// The shutter of a picture of `rows` and `columns`; `None` if its header has none.
    ///
    /// # Errors
    /// Another shape than the three, one without its numbers, and a shutter that covers all of the picture.
    pub(crate) fn read(
        elements: &DataSet<'_>,
        (rows, columns): (u32, u32),
    ) -> Result<Option<Self>, Refusal> {
        let Some(shapes) = elements.text(tags::SHUTTER_SHAPE, VR::CS)? else {
            return Ok(None);
        };
        let shapes = shapes
            .split('\\')
            .map(|shape| Shape::read(shape.trim(), elements))
            .collect::<Result<Vec<Shape>, _>>()?;
        if shapes.len() > SHAPES_MAX {
            return Err(refusal(tags::SHUTTER_SHAPE).found(format_args!("{} shapes", shapes.len())));
        }
        // Where the header has no value any will do (C.7.6.11); black is what lies around the picture too.
        let value = elements.u16(tags::SHUTTER_PRESENTATION_VALUE)?;
        let level = f64::from(value.unwrap_or(0)) / P_VALUES;
        let shutter = Self {
            shapes,
            columns: columns as usize,
            level: level.round_ties_even() as u8,
        };
        let shows = |row| shutter.shown(row).contains(&true);
        if (1..=rows).any(shows) {
            Ok(Some(shutter))
        } else {
            Err(refusal(tags::SHUTTER_SHAPE).found("a shutter that covers all"))
        }
    }

    /// What is not covered of a picture with one value a pixel.
    pub(crate) fn uncovered<T: Copy>(&self, pixels: &[T]) -> Vec<T> {
        let rows = (1..).zip(pixels.chunks_exact(self.columns));
        rows.flat_map(|(row, pixels)| {
            let shown = self.shown(row).into_iter();
            shown
                .zip(pixels)
                .filter_map(|(shown, pixel)| shown.then_some(*pixel))
        })
        .collect()
    }

    /// Covers the rest of it, once its levels are final.
    pub(crate) fn cover(&self, levels: &mut [u8]) {
        for (row, levels) in (1..).zip(levels.chunks_exact_mut(self.columns)) {
            for (level, shown) in levels.iter_mut().zip(self.shown(row)) {
                if !shown {
                    *level = self.level;
                }
            }
        }
    }

    /// Which pixels of a row are shown.
    fn shown(&self, row: u32) -> Vec<bool> {
        let mut shown = vec![true; self.columns];
        for shape in &self.shapes {
            let mut within = vec![false; self.columns];
            for (first, last) in shape.spans(f64::from(row)) {
                // What lies beside the picture is cut off, as no float becomes a negative index.
                let (first, end) = ((first.ceil() - 1.0) as usize, last.floor() as usize);
                if let Some(part) = within.get_mut(first..end.min(self.columns)) {
                    part.fill(true);
                }
            }
            for (shown, within) in shown.iter_mut().zip(within) {
                *shown &= within;
            }
        }
        shown
    }
}

impl Shape {
    fn read(name: &str, elements: &DataSet<'_>) -> Result<Self, Refusal> {
        let one = |tag| match numbers(elements, tag)?.as_slice() {
            [number] => Ok(*number),
            _ => Err(refusal(tag)),
        };
        match name {
            "RECTANGULAR" => Ok(Self::Rectangle {
                rows: (
                    one(tags::SHUTTER_UPPER_HORIZONTAL_EDGE)?,
                    one(tags::SHUTTER_LOWER_HORIZONTAL_EDGE)?,
                ),
                columns: (
                    one(tags::SHUTTER_LEFT_VERTICAL_EDGE)?,
                    one(tags::SHUTTER_RIGHT_VERTICAL_EDGE)?,
                ),
            }),
            "CIRCULAR" => {
                let tag = tags::CENTER_OF_CIRCULAR_SHUTTER;
                let &[row, column] = numbers(elements, tag)?.as_slice() else {
                    return Err(refusal(tag));
                };
                Ok(Self::Circle {
                    row,
                    column,
                    radius: one(tags::RADIUS_OF_CIRCULAR_SHUTTER)?,
                })
            }
            "POLYGONAL" => {
                let tag = tags::VERTICES_OF_THE_POLYGONAL_SHUTTER;
                let numbers = numbers(elements, tag)?;
                let corners = numbers.len() / 2;
                if !numbers.len().is_multiple_of(2) || !(3..=CORNERS_MAX).contains(&corners) {
                    return Err(refusal(tag).found(format_args!("{} numbers", numbers.len())));
                }
                let pairs = numbers.chunks_exact(2);
                Ok(Self::Polygon(
                    pairs.map(|pair| (pair[0], pair[1])).collect(),
                ))
            }
            // A bitmap is an overlay of a presentation state (C.7.6.15); any other word could be anything.
            _ => Err(refusal(tags::SHUTTER_SHAPE).found("another shape")),
        }
    }

    /// The parts of a row that lie within it.
    fn spans(&self, row: f64) -> Vec<Span> {
        match self {
            Self::Rectangle { rows, columns } => {
                let within = (rows.0..=rows.1).contains(&row);
                within.then_some(*columns).into_iter().collect()
            }
            // A pixel is square where a radiograph is taken, so that it is as wide as it is high.
            Self::Circle {
                row: middle,
                column,
                radius,
            } => {
                let half = (radius * radius - (row - middle) * (row - middle)).sqrt();
                // Of a row beside it a root of what is negative is no number.
                let within = *radius >= 0.0 && half >= 0.0;
                within
                    .then_some((column - half, column + half))
                    .into_iter()
                    .collect()
            }
            Self::Polygon(corners) => polygon(corners, row),
        }
    }
}

/// Even and odd crossings of a row with the edges, each from one corner to the next and the last to the first.
fn polygon(corners: &[(f64, f64)], row: f64) -> Vec<Span> {
    let (mut spans, mut crossings) = (Vec::new(), Vec::new());
    for (one, other) in corners.iter().zip(corners.iter().cycle().skip(1)) {
        let (top, bottom) = if one.0 <= other.0 {
            (one, other)
        } else {
            (other, one)
        };
        if top.0 == bottom.0 {
            if top.0 == row {
                spans.push((top.1.min(bottom.1), top.1.max(bottom.1)));
            }
            continue;
        }
        // A corner counts for the edge below it alone, and is a part of the edge all the same.
        if bottom.0 == row {
            spans.push((bottom.1, bottom.1));
        } else if (top.0..bottom.0).contains(&row) {
            crossings.push(top.1 + (row - top.0) * (bottom.1 - top.1) / (bottom.0 - top.0));
        }
    }
    crossings.sort_by(f64::total_cmp);
    spans.extend(crossings.chunks_exact(2).map(|pair| (pair[0], pair[1])));
    spans
}

/// The whole numbers of an element.
fn numbers(elements: &DataSet<'_>, tag: Tag) -> Result<Vec<f64>, Refusal> {
    let text = elements.text(tag, VR::IS)?.ok_or_else(|| refusal(tag))?;
    text.split('\\')
        .map(|part| part.trim().parse::<i32>().map(f64::from))
        .collect::<Result<Vec<f64>, _>>()
        .map_err(|_| refusal(tag))
}

fn refusal(tag: Tag) -> Refusal {
    Refusal::at(Reason::UnsupportedShutter, tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of a picture of 5 × 7 pixels through shutters of these shapes: `#` where it is shown.
    #[track_caller]
    fn check(shapes: &[Shape], expected: [&str; 5]) {
        let shutter = Shutter {
            shapes: shapes.to_vec(),
            columns: 7,
            level: 9,
        };
        let row = |row: u32| -> String {
            let shown = shutter.shown(row).into_iter();
            shown.map(|shown| if shown { '#' } else { '.' }).collect()
        };
        let rows: Vec<String> = (1..=5).map(row).collect();
        assert_eq!(rows, expected, "{shapes:?}");
        let mut levels: Vec<u8> = vec![1; 35];
        shutter.cover(&mut levels);
        let drawn: String = expected.concat();
        let expected: Vec<u8> = drawn
            .chars()
            .map(|shown| if shown == '#' { 1 } else { 9 })
            .collect();
        assert_eq!(levels, expected, "{shapes:?}");
        let shown: Vec<char> = shutter.uncovered(&drawn.chars().collect::<Vec<char>>());
        assert!(shown.iter().all(|shown| *shown == '#'));
        assert_eq!(shown.len(), drawn.matches('#').count());
    }

    fn rectangle(rows: (i32, i32), columns: (i32, i32)) -> Shape {
        let pair = |(one, other): (i32, i32)| (f64::from(one), f64::from(other));
        Shape::Rectangle {
            rows: pair(rows),
            columns: pair(columns),
        }
    }

    fn circle(row: i32, column: i32, radius: i32) -> Shape {
        let [row, column, radius] = [row, column, radius].map(f64::from);
        Shape::Circle {
            row,
            column,
            radius,
        }
    }

    fn corners(corners: &[(i32, i32)]) -> Shape {
        let corners = corners.iter();
        let corners = corners.map(|(row, column)| (f64::from(*row), f64::from(*column)));
        Shape::Polygon(corners.collect())
    }

    const ALL: [&str; 5] = ["#######"; 5];
    const NOTHING: [&str; 5] = ["......."; 5];

    #[test]
    fn rectangles() {
        let middle = [".......", ".###...", ".###...", ".###...", "......."];
        check(&[rectangle((2, 4), (2, 4))], middle);
        check(&[rectangle((1, 5), (1, 7))], ALL);
        // Edges may lie beside the picture.
        check(&[rectangle((-3, 90), (0, 8))], ALL);
        check(&[rectangle((6, 9), (1, 7))], NOTHING);
        check(&[rectangle((1, 5), (-9, 0))], NOTHING);
        check(&[rectangle((1, 5), (8, 20))], NOTHING);
        // The other way round.
        check(&[rectangle((1, 5), (5, 2))], NOTHING);
        check(&[rectangle((4, 2), (1, 7))], NOTHING);
        check(
            &[rectangle((3, 3), (7, 7))],
            [".......", ".......", "......#", ".......", "......."],
        );
    }

    #[test]
    fn circles() {
        check(
            &[circle(3, 4, 2)],
            ["...#...", "..###..", ".#####.", "..###..", "...#..."],
        );
        check(
            &[circle(3, 4, 0)],
            [".......", ".......", "...#...", ".......", "......."],
        );
        check(&[circle(3, 4, -2)], NOTHING);
        check(
            &[circle(1, 1, 1)],
            ["##.....", "#......", ".......", ".......", "......."],
        );
        check(&[circle(3, 4, 100)], ALL);
        check(&[circle(-50, 4, 20)], NOTHING);
    }

    #[test]
    fn polygons() {
        let diamond = ["...#...", "..###..", ".#####.", "..###..", "...#..."];
        check(&[corners(&[(1, 4), (3, 2), (5, 4), (3, 6)])], diamond);
        // From another corner, and the other way round.
        check(&[corners(&[(3, 6), (5, 4), (3, 2), (1, 4)])], diamond);
        check(
            &[corners(&[(2, 2), (2, 4), (4, 4), (4, 2)])],
            [".......", ".###...", ".###...", ".###...", "......."],
        );
        // Open above, with a bay between its arms.
        let arms = [(1, 1), (5, 1), (5, 7), (1, 7), (1, 6), (4, 4), (1, 2)];
        check(
            &[corners(&arms)],
            ["##...##", "##...##", "###.###", "#######", "#######"],
        );
        check(&[corners(&[(-8, -8), (-8, 20), (20, 20), (20, -8)])], ALL);
        check(&[corners(&[(7, 1), (9, 1), (9, 7)])], NOTHING);
    }

    /// The least of the picture remains.
    #[test]
    fn several_shapes() {
        check(
            &[rectangle((1, 3), (1, 7)), circle(3, 4, 2)],
            ["...#...", "..###..", ".#####.", ".......", "......."],
        );
        let half = corners(&[(1, 4), (5, 4), (5, 7), (1, 7)]);
        let all = [rectangle((1, 3), (1, 7)), circle(3, 4, 2), half];
        check(
            &all,
            ["...#...", "...##..", "...###.", ".......", "......."],
        );
    }
}
