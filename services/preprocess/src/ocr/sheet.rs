//! A picture as Tesseract gets it: over its own negative, as it finds dark letters on bright ground and images have both; and
//! small ones at twice their size, since it wants letters of twenty rows.

use medfleet_imaging::{Area, Page, Word};

/// Longer side, in pixels, up to which a picture is enlarged. Larger ones have larger letters, and the smooth texture of an MR of
/// 1024 pixels, enlarged, is taken for letters here and there, and takes ten times as long.
const ENLARGED_SIDE_MAX: u32 = 800;
/// White rows between the picture and its negative, so that no line of text spans both.
const GAP_ROWS: u32 = 32;

/// A grey picture in the form that every reader of pictures knows (PGM), and the way back from its places.
pub(super) struct Sheet {
    pub(super) bytes: Vec<u8>,
    times: u32,
    width: u32,
    height: u32,
}

impl Sheet {
    /// Of a picture with any channels: the darkest of a pixel counts, and for the negative the brightest, so that coloured text
    /// is as far from its ground as it can be.
    pub(super) fn of(page: &Page<'_>) -> Self {
        let enlarged = page.width.max(page.height) <= ENLARGED_SIDE_MAX;
        let times = if enlarged { 2 } else { 1 };
        let pixels = page.pixels.chunks_exact(page.channels as usize);
        let darkest = pixels.clone().map(|pixel| pixel.iter().copied().min());
        let brightest = pixels.map(|pixel| pixel.iter().copied().max());
        let darkest: Vec<u8> = darkest.map(Option::unwrap_or_default).collect();
        let negative: Vec<u8> = brightest.map(|v| 255 - v.unwrap_or_default()).collect();
        let (width, height) = (page.width, page.height);
        let (columns, rows) = (width * times, height * times);
        let head = format!("P5\n{columns} {}\n255\n", rows * 2 + GAP_ROWS);
        let half = columns as usize * rows as usize;
        let gap = columns as usize * GAP_ROWS as usize;
        let mut bytes = Vec::with_capacity(head.len() + half * 2 + gap);
        bytes.extend(head.into_bytes());
        let put = |levels: &[u8], bytes: &mut Vec<u8>| {
            if enlarged {
                doubled(levels, width as usize, bytes);
            } else {
                bytes.extend(levels);
            }
        };
        put(&darkest, &mut bytes);
        bytes.resize(bytes.len() + gap, 255);
        put(&negative, &mut bytes);
        Self {
            bytes,
            times,
            width,
            height,
        }
    }

    /// The words where they are in the picture.
    pub(super) fn placed(&self, words: Vec<Word>) -> Vec<Word> {
        let placed = words.into_iter().map(|word| Word {
            area: self.back(word.area),
            line: self.back(word.line),
            ..word
        });
        placed.collect()
    }

    fn back(&self, area: Area) -> Area {
        let second = self.height * self.times + GAP_ROWS;
        let top = area.top.checked_sub(second).unwrap_or(area.top);
        let span = |from: u32, length: u32, most: u32| {
            let end = from.saturating_add(length).div_ceil(self.times).min(most);
            let from = (from / self.times).min(most);
            (from, end.saturating_sub(from))
        };
        let (left, width) = span(area.left, area.width, self.width);
        let (top, height) = span(top, area.height, self.height);
        Area {
            left,
            top,
            width,
            height,
        }
    }
}

/// Twice as wide and high: each new pixel lies a quarter from its own old one and three from the next.
fn doubled(levels: &[u8], width: usize, into: &mut Vec<u8>) {
    let rows: Vec<&[u8]> = levels.chunks_exact(width).collect();
    // The next one towards the side on which the new one lies, or itself at the edge.
    let beside = |at: usize, count: usize| {
        let next = if at.is_multiple_of(2) {
            (at / 2).saturating_sub(1)
        } else {
            (at / 2 + 1).min(count - 1)
        };
        (at / 2, next)
    };
    for y in 0..rows.len() * 2 {
        let (near_row, far_row) = beside(y, rows.len());
        let (near_row, far_row) = (rows[near_row], rows[far_row]);
        into.extend((0..width * 2).map(|x| {
            let (near, far) = beside(x, width);
            let of = |row: &[u8]| u32::from(row[near]) * 3 + u32::from(row[far]);
            // At most 255.
            ((of(near_row) * 3 + of(far_row) + 8) / 16) as u8
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: u32, channels: u32, pixels: &[u8]) -> Page<'_> {
        Page {
            width,
            height: pixels.len() as u32 / width / channels,
            channels,
            pixels,
        }
    }

    #[test]
    fn a_large_picture_stands_over_its_negative() {
        let width = ENLARGED_SIDE_MAX + 1;
        let pixels: Vec<u8> = (0..width).flat_map(|_| [10, 200, 30]).collect();
        let sheet = Sheet::of(&page(width, 3, &pixels));
        let (columns, gap) = (width as usize, GAP_ROWS as usize);
        let head = format!("P5\n{width} {}\n255\n", 2 + GAP_ROWS);
        let rest = sheet.bytes.strip_prefix(head.as_bytes()).unwrap();
        assert_eq!(rest.len(), columns * (2 + gap));
        assert!(rest[..columns].iter().all(|level| *level == 10));
        let (middle, negative) = rest[columns..].split_at(columns * gap);
        assert!(middle.iter().all(|level| *level == 255));
        assert!(negative.iter().all(|level| *level == 255 - 200));
    }

    #[test]
    fn a_small_picture_is_enlarged() {
        let sheet = Sheet::of(&page(2, 1, &[0, 160, 0, 160]));
        let head = format!("P5\n4 {}\n255\n", 8 + GAP_ROWS);
        let rest = sheet.bytes.strip_prefix(head.as_bytes()).unwrap();
        for row in rest[..16].chunks_exact(4) {
            assert_eq!(row, [0, 40, 120, 160]);
        }
        assert_eq!(rest.len(), 4 * (8 + GAP_ROWS as usize));
    }

    #[test]
    fn places_lead_back_to_the_picture() {
        let area = |left, top, width, height| Area {
            left,
            top,
            width,
            height,
        };
        let sheet = Sheet::of(&page(100, 1, &[0; 100 * 50]));
        let check = |found, expected| assert_eq!(sheet.back(found), expected);
        check(area(20, 10, 31, 8), area(10, 5, 16, 4));
        // In the negative, which begins below the picture's 100 rows and the gap.
        check(area(20, 100 + GAP_ROWS + 10, 31, 8), area(10, 5, 16, 4));
        check(area(0, 0, u32::MAX, u32::MAX), area(0, 0, 100, 50));
        check(area(u32::MAX, u32::MAX, 1, 1), area(100, 50, 0, 0));
    }
}
