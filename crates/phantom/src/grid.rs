//! Grids of values and where their pixels lie: in the picture, and through the view in the patient.

/// A grid of pixels centred on the picture. Picture coordinates: the longer side of the picture is 1, the centre 0, x to
/// the right and y down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Canvas {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    /// Side of a pixel in picture coordinates.
    pub(crate) pixel: f32,
}

impl Canvas {
    /// A picture of its own size.
    pub(crate) fn picture(columns: usize, rows: usize) -> Self {
        let pixel = 1.0 / columns.max(rows) as f32;
        Self {
            columns,
            rows,
            pixel,
        }
    }

    /// A picture padded to a square of `side` pixels.
    pub(crate) fn square(side: usize) -> Self {
        Self::picture(side, side)
    }

    /// The same area with at most `longest` pixels along the longer side.
    pub(crate) fn at_most(self, longest: usize) -> Self {
        let long = self.columns.max(self.rows);
        if long <= longest {
            return self;
        }
        let scale = longest as f32 / long as f32;
        let shrink = |pixels: usize| ((pixels as f32 * scale).ceil() as usize).max(2);
        Self {
            columns: shrink(self.columns),
            rows: shrink(self.rows),
            pixel: self.pixel / scale,
        }
    }

    /// Picture coordinate of the centre of column `column`.
    pub(crate) fn x(self, column: usize) -> f32 {
        (column as f32 + 0.5 - self.columns as f32 * 0.5) * self.pixel
    }

    /// Picture coordinate of the centre of row `row`.
    pub(crate) fn y(self, row: usize) -> f32 {
        (row as f32 + 0.5 - self.rows as f32 * 0.5) * self.pixel
    }

    /// Column, with a fraction, of a picture coordinate: the centre of column 0 is 0.
    pub(crate) fn column(self, x: f32) -> f32 {
        x / self.pixel + self.columns as f32 * 0.5 - 0.5
    }

    /// Row, with a fraction, of a picture coordinate.
    pub(crate) fn row(self, y: f32) -> f32 {
        y / self.pixel + self.rows as f32 * 0.5 - 0.5
    }
}

/// Values [rows, columns] of a canvas, row-major.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) canvas: Canvas,
    pub(crate) values: Vec<f32>,
}

impl Grid {
    pub(crate) fn new(canvas: Canvas) -> Self {
        Self {
            canvas,
            values: vec![0.0; canvas.columns * canvas.rows],
        }
    }

    /// Adds `scale` times another grid of the same canvas.
    pub(crate) fn add(&mut self, other: &Self, scale: f32) {
        for (value, more) in self.values.iter_mut().zip(&other.values) {
            *value += more * scale;
        }
    }

    /// The values of a row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.canvas.columns..(row + 1) * self.canvas.columns]
    }

    /// Row `row` of `canvas`, interpolated linearly from this coarser grid of the same area, into `out`.
    pub(crate) fn stretch_row(&self, stretch: &Stretch, row: usize, out: &mut [f32]) {
        let columns = self.canvas.columns;
        let (top, down) = stretch.rows[row];
        let top = top as usize * columns;
        let upper = &self.values[top..top + columns];
        let lower = &self.values[top + columns..top + 2 * columns];
        let mixed: Vec<f32> = upper
            .iter()
            .zip(lower)
            .map(|(a, b)| a + (b - a) * down)
            .collect();
        for (out, &(left, along)) in out.iter_mut().zip(&stretch.columns) {
            let pair = &mixed[left as usize..left as usize + 2];
            *out = pair[0] + (pair[1] - pair[0]) * along;
        }
    }
}

/// The first of two neighbours and the weight of the second.
type Place = (u32, f32);

/// Where the pixels of a fine canvas lie in a coarse one, which has two columns and rows or more.
#[derive(Debug)]
pub(crate) struct Stretch {
    columns: Vec<Place>,
    rows: Vec<Place>,
}

impl Stretch {
    pub(crate) fn new(coarse: Canvas, fine: Canvas) -> Self {
        let place = |at: f32, count: usize| {
            let at = at.clamp(0.0, (count - 1) as f32);
            let low = (at as u32).min(count as u32 - 2);
            (low, at - low as f32)
        };
        let columns = (0..fine.columns)
            .map(|column| place(coarse.column(fine.x(column)), coarse.columns))
            .collect();
        let rows = (0..fine.rows)
            .map(|row| place(coarse.row(fine.y(row)), coarse.rows))
            .collect();
        Self { columns, rows }
    }
}

/// How the patient stands in the picture. Anatomy coordinates: u to the patient's left (the picture's right), v down, 0 in
/// the middle of the chest, the lungs between about -0.37 and 0.37 in both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    sine: f32,
    cosine: f32,
    shift: [f32; 2],
    scale: f32,
}

impl View {
    /// Turned by `turn` radians, moved by `shift` (picture coordinates), `scale` picture units to a unit of anatomy.
    pub(crate) fn new(turn: f32, shift: [f32; 2], scale: f32) -> Self {
        let (sine, cosine) = turn.sin_cos();
        Self {
            sine,
            cosine,
            shift,
            scale,
        }
    }

    /// Anatomy coordinates of a place in the picture.
    #[inline]
    pub(crate) fn anatomy(&self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = (x - self.shift[0], y - self.shift[1]);
        (
            (self.cosine * x + self.sine * y) / self.scale,
            (self.cosine * y - self.sine * x) / self.scale,
        )
    }

    /// Picture coordinates of a place in the patient.
    pub(crate) fn picture(&self, u: f32, v: f32) -> (f32, f32) {
        let (u, v) = (u * self.scale, v * self.scale);
        (
            self.cosine * u - self.sine * v + self.shift[0],
            self.sine * u + self.cosine * v + self.shift[1],
        )
    }

    /// Picture units to a unit of anatomy.
    pub(crate) const fn scale(&self) -> f32 {
        self.scale
    }
}
