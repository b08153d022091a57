//! Pixels of a level, tile by tile, and the patches that they make.

use super::PatchPlan;
use crate::ahead::in_order;
use crate::frame::Region;
use crate::square::Picture;
use crate::study::SlicePlan;
use crate::volume::Each;
use crate::{Frame, FrameInfo, Modality, Note, Options, Photometric, Reason, Refusal, Source};

/// A level as it lies in its file; its patches are made on several threads.
pub(crate) trait Tiles: Sync {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    fn tile_size(&self) -> (u32, u32);
    /// Red, green and blue of a whole tile, 8 bits; `None` where nothing was scanned.
    fn tile(&self, row: u32, column: u32) -> Result<Option<Vec<u8>>, Refusal>;
    /// What is to be said of every patch.
    fn notes(&self) -> Result<Vec<Note>, Refusal>;
}

/// What was not scanned is as light as glass.
const GLASS: u8 = 255;

/// A level that is shown: its pixels, its file, and how they are stored where the format has a word for it.
pub(super) struct Shown<'a> {
    pub(super) level: &'a dyn Tiles,
    pub(super) source: &'a Source,
    pub(super) photometric: Option<Photometric>,
}

/// The patches with these numbers.
pub(super) fn frames(
    shown: &Shown<'_>,
    wanted: &[u32],
    (plan, patches): (&SlicePlan, &PatchPlan),
    options: &Options,
    each: Each<'_>,
) -> Result<(), Refusal> {
    let level = shown.level;
    options.limits().check_pixels(patches.side, patches.side)?;
    let (level_width, level_height) = level.size();
    let mut notes = level.notes()?;
    notes.extend(&plan.notes);
    let decoder = options.limits().codestreams;
    let make = |at: usize| -> Result<(Frame, FrameInfo), Refusal> {
        let number = wanted[at];
        decoder.check_wanted()?;
        let place = |at: u32| at.checked_mul(patches.side);
        let gone = || Refusal::new(Reason::Malformed).found("a patch that is not there");
        let columns = patches.columns.max(1);
        let left = place(number % columns).ok_or_else(gone)?;
        let top = place(number / columns).ok_or_else(gone)?;
        let inside =
            |from: u32, side: u32| from.checked_add(patches.side).is_some_and(|to| to <= side);
        if !inside(left, level_width) || !inside(top, level_height) {
            return Err(gone());
        }
        let picture = Picture {
            width: patches.side,
            height: patches.side,
            channels: 3,
            pixels: patch(level, (left, top), patches.side)?,
        };
        let (frame, mut info) = shown
            .source
            .frame(&picture, number, notes.clone(), options)?;
        info.modality = Some(Modality::Sm);
        info.photometric = shown.photometric;
        info.region = Some(Region {
            left,
            top,
            level_width,
            level_height,
        });
        Ok((frame, info))
    };
    // Of each patch one tile is there besides.
    let (tile_width, tile_height) = level.tile_size();
    let side = patches.side.max(tile_width).max(tile_height);
    let threads = shown.source.threads((side, side), options);
    let mut take = |(frame, info): (Frame, FrameInfo)| each(frame, info);
    in_order(decoder, (threads, wanted.len()), &make, &mut take)
}

/// Red, green and blue of a square; only tiles that reach into it are unpacked, one at a time.
fn patch(level: &dyn Tiles, (left, top): (u32, u32), side: u32) -> Result<Vec<u8>, Refusal> {
    let (tile_width, tile_height) = level.tile_size();
    let stride = side as usize * 3;
    let mut pixels = vec![GLASS; stride * side as usize];
    for row in top / tile_height..=(top + side - 1) / tile_height {
        for column in left / tile_width..=(left + side - 1) / tile_width {
            let Some(tile) = level.tile(row, column)? else {
                continue;
            };
            let (tile_left, tile_top) = (column * tile_width, row * tile_height);
            let from = left.max(tile_left);
            let to = (left + side).min(tile_left.saturating_add(tile_width));
            let bytes = (to - from) as usize * 3;
            for y in top.max(tile_top)..(top + side).min(tile_top.saturating_add(tile_height)) {
                let source = ((y - tile_top) as usize * tile_width as usize
                    + (from - tile_left) as usize)
                    * 3;
                let target = (y - top) as usize * stride + (from - left) as usize * 3;
                let line = tile.get(source..source + bytes);
                let line = line.ok_or_else(|| Refusal::new(Reason::PixelDataMismatch))?;
                pixels[target..target + bytes].copy_from_slice(line);
            }
        }
    }
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A level of 10 000 tiles whose pixels say which tile they are of.
    #[derive(Default)]
    struct Counted {
        read: Mutex<Vec<(u32, u32)>>,
    }

    impl Tiles for Counted {
        fn size(&self) -> (u32, u32) {
            (51_200, 51_200)
        }

        fn tile_size(&self) -> (u32, u32) {
            (512, 512)
        }

        fn tile(&self, row: u32, column: u32) -> Result<Option<Vec<u8>>, Refusal> {
            self.read.lock().unwrap().push((row, column));
            let rgb = [row as u8, column as u8, 7];
            Ok((row != 3).then(|| rgb.repeat(512 * 512)))
        }

        fn notes(&self) -> Result<Vec<Note>, Refusal> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_patch_reads_only_the_tiles_under_it() {
        let level = Counted::default();
        let pixels = patch(&level, (896, 896), 896).unwrap();
        // Pixels 896 to 1791: tiles 1, 2 and 3 of 100 in either direction.
        let expected: Vec<_> = (1..=3)
            .flat_map(|row| (1..=3).map(move |column| (row, column)))
            .collect();
        assert_eq!(*level.read.lock().unwrap(), expected);
        assert_eq!(pixels.len(), 896 * 896 * 3);
        assert_eq!(pixels[..3], [1, 1, 7]);
        // 128 pixels to the right the second tile begins.
        assert_eq!(pixels[127 * 3..129 * 3], [1, 1, 7, 1, 2, 7]);
        // Tile row 3 was not scanned.
        assert_eq!(pixels[pixels.len() - 3..], [GLASS; 3]);
    }
}
