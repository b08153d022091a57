//! Which level of which slide is shown, and which of its patches.

use dicom_dictionary_std::tags;

use super::{Level, Mask};
use crate::conventions::SlideRule;
use crate::study::{Fate, SlicePlan, Unused};
use crate::{Convention, Note, Reason, Refusal, Slices};

/// A level whose spacing is off the wanted one by no more than this factor is shown as it is: scanners call 0.23 and 0.27
/// micrometres "40 times" alike.
const SPACING_FACTOR_MAX: f64 = 1.1;

/// Patches of a grid that are looked at for tissue; as many as a level may have tiles, which are smaller.
const CANDIDATES_MAX: u32 = 1 << 20;

/// How the patches of a plan lie on their level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PatchPlan {
    /// Which directory of the file holds the level.
    pub(crate) part: usize,
    /// Pixels of a patch on that level.
    pub(crate) side: u32,
    /// Patches in a row of the grid.
    pub(crate) columns: u32,
}

/// Plans the slide of a study's files. The study is one, and at least one file is of a slide.
///
/// # Errors
/// Files of slices among those of a slide; a slide without tissue, or without the magnification that the model takes.
pub(crate) fn plan(
    files: &[(usize, &Slices)],
    convention: &Convention,
) -> Result<SlicePlan, Refusal> {
    let (Some(rule), Some(parts)) = (
        &convention.slide,
        files
            .iter()
            .map(|(index, file)| file.slide.as_ref().map(|slide| (*index, *file, slide)))
            .collect::<Option<Vec<_>>>(),
    ) else {
        return Err(Refusal::at(Reason::MixedSeries, tags::MODALITY));
    };
    let with_levels = parts.iter().find(|(_, _, slide)| !slide.levels.is_empty());
    let Some((_, first, _)) = with_levels else {
        return Err(Refusal::new(Reason::NoTissue).found("labels and overviews only"));
    };
    let of_slide = || {
        parts
            .iter()
            .filter(|(_, file, _)| file.series == first.series)
    };
    let levels = || {
        of_slide().flat_map(|(index, _, slide)| slide.levels.iter().map(|level| (*index, level)))
    };
    let (chosen, level) = choose(levels(), rule)?;
    let mask = levels()
        .filter(|(_, other)| same_slide(other, (chosen, level)))
        .min_by_key(|(_, level)| u64::from(level.width) * u64::from(level.height))
        .and_then(|(_, level)| level.mask.as_ref())
        .ok_or_else(|| {
            Refusal::new(Reason::TooManyPixels)
                .found("no level small enough to look for tissue on; send every level")
        })?;
    let (side, columns, patches) = patches(level, mask, rule)?;
    let numbers = spread(&patches, rule.patches_max as usize);
    let mut notes = Vec::new();
    if numbers.len() < patches.len() {
        notes.push(Note::PatchesSelected);
    }
    let fates = parts.iter().map(|(index, file, slide)| {
        let fate = if *index == chosen {
            Fate::Used
        } else if slide.levels.is_empty() {
            Fate::Unused(Unused::LabelOrOverview)
        } else if file.series != first.series {
            Fate::Unused(Unused::OtherSlide)
        } else {
            Fate::Unused(Unused::OtherLevel)
        };
        (*index, fate)
    });
    Ok(SlicePlan {
        frames: numbers.into_iter().map(|number| (chosen, number)).collect(),
        fates: fates.collect(),
        range: None,
        notes,
        patches: Some(PatchPlan {
            part: level.part,
            side,
            columns,
        }),
    })
}

/// Whether two levels show the same part of the glass: sides in the same proportion, but for rounding.
fn same_slide(level: &Level, (_, other): (usize, &Level)) -> bool {
    let across = f64::from(level.width) / f64::from(other.width);
    let down = f64::from(level.height) / f64::from(other.height);
    (across / down - 1.0).abs() < 0.05
}

/// The coarsest level that still has the wanted magnification.
fn choose<'a>(
    levels: impl Iterator<Item = (usize, &'a Level)>,
    rule: &SlideRule,
) -> Result<(usize, &'a Level), Refusal> {
    let (mut best, mut finest): (Option<(usize, &Level, f64)>, Option<f64>) = (None, None);
    for (index, level) in levels {
        let Some(spacing) = level.spacing else {
            continue;
        };
        finest = Some(finest.map_or(spacing, |finest: f64| finest.min(spacing)));
        let fine = spacing <= rule.micrometres_per_pixel * SPACING_FACTOR_MAX;
        if fine && best.is_none_or(|(_, _, coarsest)| spacing > coarsest) {
            best = Some((index, level, spacing));
        }
    }
    let refusal = || {
        let refusal = Refusal::at(Reason::NoSuchMagnification, tags::PIXEL_SPACING);
        match finest {
            Some(spacing) => {
                refusal.found(format_args!("{spacing:.3} micrometres a pixel at best"))
            }
            None => refusal.found("no spacing"),
        }
    };
    best.map(|(index, level, _)| (index, level))
        .ok_or_else(refusal)
}

/// Side of a patch on the level, patches in a row, and the numbers of those with tissue, row by row.
fn patches(level: &Level, mask: &Mask, rule: &SlideRule) -> Result<(u32, u32, Vec<u32>), Refusal> {
    let ratio = rule.micrometres_per_pixel / level.spacing.unwrap_or(rule.micrometres_per_pixel);
    let side = if ratio <= SPACING_FACTOR_MAX {
        rule.patch_side
    } else {
        (f64::from(rule.patch_side) * ratio).round() as u32
    };
    let (columns, rows) = (level.width / side, level.height / side);
    let [width, height] = [level.width, level.height].map(f64::from);
    let has_tissue = |number: &u32| {
        let (left, top) = (number % columns * side, number / columns * side);
        let share = mask.share([
            f64::from(left) / width,
            f64::from(top) / height,
            f64::from(left + side) / width,
            f64::from(top + side) / height,
        ]);
        share >= rule.tissue_min
    };
    let all = columns
        .checked_mul(rows)
        .filter(|all| *all <= CANDIDATES_MAX)
        .ok_or_else(|| {
            Refusal::new(Reason::TooManyPixels)
                .found(format_args!("{columns} x {rows} patches of one level"))
        })?;
    let found: Vec<u32> = (0..all).filter(has_tissue).collect();
    if found.is_empty() {
        return Err(Refusal::new(Reason::NoTissue).found(format_args!("{all} patches")));
    }
    Ok((side, columns, found))
}

/// At most `most` of the patches, drawn by a chance that only their number decides, in their order.
fn spread(patches: &[u32], most: usize) -> Vec<u32> {
    if patches.len() <= most {
        return patches.to_vec();
    }
    let mut drawn = patches.to_vec();
    drawn.sort_by_key(|number| (mixed(u64::from(*number)), *number));
    drawn.truncate(most);
    drawn.sort_unstable();
    drawn
}

/// SplitMix64's output for a state (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slide::tiles::Tiles;
    use crate::slide::{Slide, whole};

    /// A level of one pixel.
    struct Pixel([u8; 3]);

    impl Tiles for Pixel {
        fn size(&self) -> (u32, u32) {
            (1, 1)
        }

        fn tile_size(&self) -> (u32, u32) {
            (1, 1)
        }

        fn tile(&self, _row: u32, _column: u32) -> Result<Option<Vec<u8>>, Refusal> {
            Ok(Some(self.0.to_vec()))
        }

        fn notes(&self) -> Result<Vec<Note>, Refusal> {
            Ok(Vec::new())
        }
    }

    const TISSUE: Pixel = Pixel([200, 40, 120]);
    const GLASS: Pixel = Pixel([255; 3]);

    fn rule() -> &'static SlideRule {
        Convention::newest().slide.as_ref().unwrap()
    }

    fn level((width, height): (u32, u32), spacing: f64, mask: Option<&Pixel>) -> Level {
        Level {
            part: 0,
            width,
            height,
            spacing: Some(spacing),
            mask: mask.and_then(|pixel| Mask::of(pixel, rule()).unwrap()),
        }
    }

    #[test]
    fn tissue_is_looked_for_on_the_same_part_of_the_glass() {
        let found = |same: &Pixel, another: &Pixel| {
            let levels = vec![
                level((4000, 4000), 1.0, None),
                level((1000, 1000), 4.0, Some(same)),
                // Smaller than any, of another shape.
                level((500, 100), 8.0, Some(another)),
            ];
            let slices = whole(Slide { levels });
            let plan = plan(&[(0, &slices)], Convention::newest());
            plan.map(|plan| plan.frames.len())
                .map_err(|refusal| refusal.reason)
        };
        assert_eq!(found(&TISSUE, &GLASS), Ok(16));
        assert_eq!(found(&GLASS, &TISSUE), Err(Reason::NoTissue));
    }

    #[test]
    fn the_number_of_candidates_has_a_limit() {
        let level = level((4_000_000, 4_000_000), 1.0, Some(&TISSUE));
        let refusal = patches(&level, level.mask.as_ref().unwrap(), rule()).unwrap_err();
        assert_eq!(refusal.reason, Reason::TooManyPixels);
    }

    #[test]
    fn patches_are_drawn_evenly_and_kept_in_order() {
        let all: Vec<u32> = (0..1000).collect();
        let drawn = spread(&all, 126);
        assert_eq!(drawn.len(), 126);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
        let first_half = drawn.iter().filter(|number| **number < 500).count();
        assert!((40..=86).contains(&first_half), "{first_half}");
        assert_eq!(spread(&all[..3], 126), [0, 1, 2]);
        // The first output of SplitMix64 seeded with 0, as its authors' program prints it.
        assert_eq!(mixed(0), 0xe220_a839_7b1d_cdaf);
    }

    #[track_caller]
    fn check(spacings: &[f64], expected: Result<(f64, u32), Reason>) {
        let levels: Vec<Level> = spacings
            .iter()
            .map(|spacing| level((4000, 4000), *spacing, None))
            .collect();
        let found = choose(levels.iter().map(|level| (0, level)), rule());
        let found = found.map(|(_, level)| (level.spacing.unwrap(), level.part as u32));
        assert_eq!(found.map_err(|refusal| refusal.reason), expected);
    }

    #[test]
    fn the_coarsest_level_that_is_fine_enough_is_shown() {
        check(&[0.25, 0.5, 1.0, 2.0], Ok((1.0, 0)));
        check(&[0.252, 1.008, 4.03], Ok((1.008, 0)));
        check(&[0.25, 4.0], Ok((0.25, 0)));
        check(&[2.0, 8.0], Err(Reason::NoSuchMagnification));
        check(&[], Err(Reason::NoSuchMagnification));
    }
}
