//! Noise in units of the picture: lattices of random numbers, coarse to fine, the same lattices at every size of the
//! picture. A picture made large and brought down looks like one made small.

use crate::chance::Chance;
use crate::grid::{Canvas, Grid, Stretch};

/// Nodes across the longer side of the lattice that a 224-pixel picture sees as white noise.
const WHITE: usize = 224;

/// One lattice: how fine and how strong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Octave {
    pub(crate) nodes: usize,
    /// Standard deviation at the nodes.
    pub(crate) deviation: f32,
}

/// The sum of `octaves` over `canvas`, interpolated between the nodes. Lattices finer than a pixel are left out, and the
/// finest that remains is smoothed as the pixel's own size would.
pub(crate) fn field(octaves: &[Octave], seed: u64, canvas: Canvas) -> Grid {
    let mut sum = Grid::new(canvas);
    add(&mut sum, octaves, seed);
    sum
}

/// Adds the noise that [`field`] makes.
pub(crate) fn add(sum: &mut Grid, octaves: &[Octave], seed: u64) {
    let canvas = sum.canvas;
    let mut row_values = vec![0.0; canvas.columns];
    for (number, octave) in octaves.iter().enumerate() {
        // In units of the lattice's cells: 1 when a pixel is as large as a cell.
        let pixel = canvas.pixel * octave.nodes as f32;
        if pixel > 1.001 {
            continue;
        }
        let lattice = lattice(*octave, seed.wrapping_add(number as u64), pixel);
        let stretch = Stretch::new(lattice.canvas, canvas);
        for (row, out) in sum.values.chunks_exact_mut(canvas.columns).enumerate() {
            lattice.stretch_row(&stretch, row, &mut row_values);
            for (out, value) in out.iter_mut().zip(&row_values) {
                *out += value;
            }
        }
    }
}

/// The values of one octave, number `number` of its list, at its nodes: [nodes, nodes].
pub(crate) fn nodes(octave: Octave, number: u64, seed: u64) -> Grid {
    lattice(octave, seed.wrapping_add(number), 0.0)
}

fn lattice(octave: Octave, seed: u64, pixel: f32) -> Grid {
    let mut chance = Chance::from_seed(seed);
    let mut grid = Grid::new(Canvas::square(octave.nodes));
    for value in &mut grid.values {
        *value = chance.bell() * octave.deviation;
    }
    // A triangle of half width `pixel` that covers nodes with tents: at 1 exactly the cubic spline's 1/6, 2/3, 1/6.
    let side = pixel * pixel / 6.0;
    if side > 0.02 {
        smooth(&mut grid, side);
    }
    grid
}

/// Mixes each value with its neighbours on either side, across and down; at the border with itself.
fn smooth(grid: &mut Grid, side: f32) {
    let width = grid.canvas.columns;
    let middle = 1.0 - 2.0 * side;
    for row in grid.values.chunks_exact_mut(width) {
        let mut before = row[0];
        for column in 0..width {
            let (here, after) = (row[column], row[(column + 1).min(width - 1)]);
            row[column] = here * middle + (before + after) * side;
            before = here;
        }
    }
    let mut above = grid.values[..width].to_vec();
    for row in 0..grid.canvas.rows {
        let start = row * width;
        let next = (row + 1).min(grid.canvas.rows - 1) * width;
        for (column, above) in above.iter_mut().enumerate() {
            let here = grid.values[start + column];
            let below = grid.values[next + column];
            grid.values[start + column] = here * middle + (*above + below) * side;
            *above = here;
        }
    }
}

/// Number of the octave of [`film`] that only pictures larger than the smooth layers show.
pub(crate) const FINEST: usize = 3;

/// Quantum and film noise of deviation `deviation` in a 224-pixel picture: a part that spans a few pixels and a part that
/// grows stronger towards the size of the detector's cells.
pub(crate) fn film(deviation: f32) -> Vec<Octave> {
    // Smoothing leaves half of the white part's deviation, and finer lattices reach 224 pixels faintly; measured.
    let white = deviation * 1.7;
    [
        (WHITE / 2, deviation * 0.55),
        (WHITE, white),
        (WHITE * 2, white * 0.6),
        (WHITE * 4, white * 0.5),
    ]
    .map(|(nodes, deviation)| Octave { nodes, deviation })
    .to_vec()
}

/// The lung's own grain, of deviation `deviation`.
pub(crate) fn grain(deviation: f32) -> Vec<Octave> {
    [(24, 0.75), (48, 0.65), (96, 0.6)]
        .map(|(nodes, part)| Octave {
            nodes,
            deviation: deviation * part * 1.4,
        })
        .to_vec()
}
