//! Slides as TIFF: tiled directories of one slide at several sizes, as Aperio and generic pyramids have them.

use super::tiles::Tiles;
use super::{Level, Mask};
use crate::conventions::SlideRule;
use crate::tiff::{Directory, Ink, Reader, chunk, directories, levels};
use crate::{Limits, Note, Reason, Refusal, icc};

/// Spacings beyond these, in micrometres, are a printer's and not a microscope's.
const SPACING: std::ops::RangeInclusive<f64> = 0.02..=100.0;

/// How far a level's height may be off the one that its width and the largest level make, as a share or in whole pixels.
const SHAPE_ERROR_MAX: f64 = 0.02;

/// The tiled directories of a TIFF, and where each was in the file.
pub(super) struct Pyramid<'a> {
    reader: Reader<'a>,
    /// The largest level first.
    tiled: Vec<(usize, Directory<'a>)>,
}

/// One level of the pyramid.
pub(super) struct TiffLevel<'a> {
    reader: Reader<'a>,
    directory: &'a Directory<'a>,
}

impl<'a> Pyramid<'a> {
    /// `None` for a TIFF that is a picture: not tiled, or one size only and not Aperio's. Labels and overviews beside a pyramid
    /// are in strips, and so they are not even looked at.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Option<Self>, Refusal> {
        let (reader, all) = directories(bytes)?;
        let first_tiled = all.first().is_some_and(|first| first.tiled);
        let mut tiled: Vec<_> = all
            .into_iter()
            .enumerate()
            .filter(|(_, directory)| directory.tiled)
            .collect();
        let aperio = tiled.first().is_some_and(|(_, first)| {
            first
                .description
                .is_some_and(|text| text.starts_with(b"Aperio"))
        });
        if !first_tiled || (tiled.len() < 2 && !aperio) {
            return Ok(None);
        }
        tiled.sort_by_key(|(_, directory)| std::cmp::Reverse(directory.width));
        for pair in tiled.windows(2) {
            let [larger, smaller] = [&pair[0].1, &pair[1].1];
            if !is_level(smaller, larger, &tiled[0].1) {
                return Err(Refusal::new(Reason::MultiFrameNotSupportedYet)
                    .found("tiled pictures that are not one at several sizes"));
            }
        }
        Ok(Some(Self { reader, tiled }))
    }

    /// Before any tile is unpacked. A level that cannot be decoded makes the slide one that cannot.
    pub(super) fn admit(&self, bytes: &[u8], limits: &Limits) -> Result<(), Refusal> {
        for (_, directory) in &self.tiled {
            directory.admit()?;
            directory.admit_size(bytes.len() as u64, limits)?;
            let colour = matches!(directory.ink, Some(Ink::Rgb | Ink::Ybr));
            if !colour || directory.bits != Some(8) || directory.planar {
                return Err(Refusal::new(Reason::UnsupportedColour)
                    .found("a slide that is not RGB of 8 bits"));
            }
        }
        Ok(())
    }

    pub(super) fn levels(&self, rule: &SlideRule) -> Result<Vec<Level>, Refusal> {
        let Some((_, finest)) = self.tiled.first() else {
            return Ok(Vec::new());
        };
        let spacing = spacing(finest);
        let mut levels = Vec::with_capacity(self.tiled.len());
        for (at, (part, directory)) in self.tiled.iter().enumerate() {
            // Only the smallest is looked at as a whole.
            let mask = if at + 1 == self.tiled.len() {
                Mask::of(&self.level(*part)?, rule)?
            } else {
                None
            };
            let shrunk = f64::from(finest.width) / f64::from(directory.width);
            levels.push(Level {
                part: *part,
                width: directory.width,
                height: directory.height,
                spacing: spacing.map(|spacing| spacing * shrunk),
                mask,
            });
        }
        Ok(levels)
    }

    pub(super) fn level(&self, part: usize) -> Result<TiffLevel<'_>, Refusal> {
        let found = self.tiled.iter().find(|(at, _)| *at == part);
        let (_, directory) = found.ok_or_else(|| Refusal::new(Reason::Malformed))?;
        Ok(TiffLevel {
            reader: self.reader,
            directory,
        })
    }
}

/// Whether a directory is the next larger one made smaller, in the shape of the largest.
fn is_level(smaller: &Directory<'_>, larger: &Directory<'_>, largest: &Directory<'_>) -> bool {
    let [width, height, whole_width, whole_height] =
        [smaller.width, smaller.height, largest.width, largest.height].map(f64::from);
    let expected = whole_height * width / whole_width;
    smaller.width < larger.width
        && smaller.height < larger.height
        && (height - expected).abs() <= (expected * SHAPE_ERROR_MAX).max(1.0)
}

impl Tiles for TiffLevel<'_> {
    fn size(&self) -> (u32, u32) {
        (self.directory.width, self.directory.height)
    }

    fn tile_size(&self) -> (u32, u32) {
        (self.directory.chunk_width, self.directory.chunk_height)
    }

    fn tile(&self, row: u32, column: u32) -> Result<Option<Vec<u8>>, Refusal> {
        let (across, _) = self.directory.grid();
        let at = row as usize * across as usize + column as usize;
        // A tile without bytes was not scanned.
        if self.directory.lengths.get(at) == Some(&0) {
            return Ok(None);
        }
        let chunk =
            crate::codec::guarded(|| chunk(&self.reader, self.directory, (row, column), 0))?;
        Ok(Some(levels(self.directory, &chunk, &mut false)))
    }

    fn notes(&self) -> Result<Vec<Note>, Refusal> {
        let mut notes = Vec::new();
        if self.directory.is_jpeg() {
            notes.push(Note::LossyCompressed);
        }
        if let Some(profile) = self.directory.profile {
            notes.extend(icc::judge(profile)?);
        }
        Ok(notes)
    }
}

/// Micrometres a pixel: as Aperio writes them, or from the resolution.
fn spacing(directory: &Directory<'_>) -> Option<f64> {
    let text = directory
        .description
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    let aperio = text.split('|').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        (name.trim() == "MPP").then(|| {
            value
                .trim_matches(|c: char| c.is_whitespace() || c == '\0')
                .parse::<f64>()
                .ok()
        })?
    });
    let by_resolution = || {
        let (across, down) = directory.resolution?;
        // Pixels that are not square have no one spacing.
        let square = (across / down - 1.0).abs() < 0.01;
        square.then_some(directory.resolution_unit_mm? * 1000.0 / across)
    };
    aperio
        .or_else(by_resolution)
        .filter(|spacing| SPACING.contains(spacing))
}
