//! Where tissue is on a level: pixels with enough colour that are not black, by hue, saturation and value.

use super::MASK_PIXELS_MAX;
use super::tiles::Tiles;
use crate::Refusal;
use crate::conventions::SlideRule;

/// Pixels of all tiles of a level that is looked at, each of which is unpacked whole however little of it lies on the level.
/// Where one tile holds all of the smallest level, it is often larger than that.
const TILES_PIXELS_MAX: u64 = 4 * MASK_PIXELS_MAX;

/// One bit a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    width: u32,
    height: u32,
    bits: Vec<u64>,
}

impl Mask {
    /// Looks at a level tile by tile; `None` where it is too large to look at.
    pub(crate) fn of(level: &dyn Tiles, rule: &SlideRule) -> Result<Option<Self>, Refusal> {
        let (width, height) = level.size();
        let pixels = u64::from(width) * u64::from(height);
        let (tile_width, tile_height) = level.tile_size();
        let (across, down) = (width.div_ceil(tile_width), height.div_ceil(tile_height));
        let of_tiles = |count: u32, side: u32| u64::from(count) * u64::from(side);
        let in_tiles = of_tiles(across, tile_width).saturating_mul(of_tiles(down, tile_height));
        if pixels > MASK_PIXELS_MAX || in_tiles > TILES_PIXELS_MAX {
            return Ok(None);
        }
        let mut mask = Self {
            width,
            height,
            bits: vec![0; pixels.div_ceil(64) as usize],
        };
        for row in 0..down {
            for column in 0..across {
                let Some(tile) = level.tile(row, column)? else {
                    continue;
                };
                mask.add(
                    &tile,
                    (column * tile_width, row * tile_height),
                    tile_width,
                    rule,
                );
            }
        }
        Ok(Some(mask))
    }

    /// A tile's pixels, red, green and blue, at this place.
    fn add(&mut self, tile: &[u8], (left, top): (u32, u32), tile_width: u32, rule: &SlideRule) {
        let rows = tile.chunks_exact(tile_width as usize * 3);
        for (y, row) in (top..self.height).zip(rows) {
            for (x, rgb) in (left..self.width).zip(row.chunks_exact(3)) {
                if is_tissue([rgb[0], rgb[1], rgb[2]], rule) {
                    let at = u64::from(y) * u64::from(self.width) + u64::from(x);
                    self.bits[at as usize / 64] |= 1 << (at % 64);
                }
            }
        }
    }

    /// The share of tissue in a part of the slide, given in shares of its width and height.
    pub(crate) fn share(&self, [left, top, right, bottom]: [f64; 4]) -> f64 {
        let scaled = |share: f64, side: u32| share * f64::from(side);
        let columns = scaled(left, self.width).floor() as u64
            ..(scaled(right, self.width).ceil() as u64).min(u64::from(self.width));
        let rows = scaled(top, self.height).floor() as u64
            ..(scaled(bottom, self.height).ceil() as u64).min(u64::from(self.height));
        let all = columns.clone().count() * rows.clone().count();
        let is = |x: u64, y: u64| {
            let at = y * u64::from(self.width) + x;
            self.bits[at as usize / 64] >> (at % 64) & 1 == 1
        };
        let tissue = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
        let tissue = tissue.filter(|(x, y)| is(*x, *y)).count();
        tissue as f64 / all.max(1) as f64
    }
}

/// Saturation is (largest - smallest) / largest, value is the largest of red, green and blue.
fn is_tissue(rgb: [u8; 3], rule: &SlideRule) -> bool {
    let (largest, smallest) = (rgb.iter().max(), rgb.iter().min());
    let [largest, smallest] =
        [largest, smallest].map(|level| f64::from(level.copied().unwrap_or(0)));
    largest >= rule.value_min * 255.0 && largest - smallest >= rule.saturation_min * largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Convention, Note};

    /// A level of one column in tiles of this side, none of which is to be unpacked.
    struct Column(u32);

    impl Tiles for Column {
        fn size(&self) -> (u32, u32) {
            (1, 1 << 20)
        }

        fn tile_size(&self) -> (u32, u32) {
            (self.0, self.0)
        }

        fn tile(&self, _row: u32, _column: u32) -> Result<Option<Vec<u8>>, Refusal> {
            assert!(self.0 <= 64, "a tile was unpacked");
            Ok(None)
        }

        fn notes(&self) -> Result<Vec<Note>, Refusal> {
            Ok(Vec::new())
        }
    }

    /// Its few pixels in tiles of 64 Mi pixels each would take hours.
    #[test]
    fn a_level_is_not_looked_at_whose_tiles_are_far_larger_than_it() {
        let rule = Convention::newest().slide.as_ref().unwrap();
        let is_looked_at = |side| Mask::of(&Column(side), rule).unwrap().is_some();
        assert!(is_looked_at(1) && is_looked_at(64));
        assert!(!is_looked_at(65) && !is_looked_at(8192));
    }
}
