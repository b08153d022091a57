//! Slides as DICOM whole-slide microscopy (PS3.3 A.32.8): one level a file, its tiles as frames, in order or with a place each.

use std::collections::HashMap;

use dicom_core::VR;
use dicom_dictionary_std::tags;

use super::tiles::Tiles;
use super::{Level, Mask};
use crate::codec::Frames;
use crate::conventions::SlideRule;
use crate::dicom::File;
use crate::header::{Header, Opened};
use crate::{Limits, Note, Reason, Refusal, icc, photograph};

/// Tiles of one level; a slide of 100 000 by 100 000 pixels has 152 881 of 256 by 256.
const TILES_MAX: u32 = 1 << 20;

pub(super) fn is_tiled(header: &Header<'_>) -> bool {
    header
        .elements
        .value(tags::TOTAL_PIXEL_MATRIX_COLUMNS)
        .is_some()
}

/// Admits a file whose frames are tiles: their number has its own limit.
pub(super) fn read<'a>(opened: &'a Opened<'_>, limits: &Limits) -> Result<File<'a>, Refusal> {
    let limits = Limits {
        frames_max: TILES_MAX,
        ..*limits
    };
    File::read(opened, &limits)
}

/// A level and where its tiles are.
pub(super) struct Tiled<'a> {
    file: &'a File<'a>,
    frames: Frames<'a>,
    width: u32,
    height: u32,
    /// Of tiles that are not in order: the frame at a row and column.
    places: Option<HashMap<(u32, u32), u32>>,
}

impl<'a> Tiled<'a> {
    /// `None` for a label or an overview.
    pub(super) fn read(file: &'a File<'a>) -> Result<Option<Self>, Refusal> {
        let top = &file.header.elements;
        let kind = top.text(tags::IMAGE_TYPE, VR::CS)?.unwrap_or_default();
        // Anything that hints at a label keeps the file from being shown: labels carry names.
        let label = kind
            .split('\\')
            .any(|value| matches!(value.trim(), "LABEL" | "OVERVIEW"));
        let specimen_label = top.text(tags::SPECIMEN_LABEL_IN_IMAGE, VR::CS)?;
        if label || specimen_label.map(str::trim) == Some("YES") {
            return Ok(None);
        }
        if file.image.photometric.is_grey() {
            return Err(Refusal::at(
                Reason::UnsupportedPhotometric,
                tags::PHOTOMETRIC_INTERPRETATION,
            )
            .found(file.image.photometric));
        }
        refuse_several(file)?;
        let side = |tag| -> Result<u32, Refusal> {
            top.u32(tag)?
                .filter(|side| *side > 0)
                .ok_or_else(|| Refusal::at(Reason::MissingAttribute, tag))
        };
        let (width, height) = (
            side(tags::TOTAL_PIXEL_MATRIX_COLUMNS)?,
            side(tags::TOTAL_PIXEL_MATRIX_ROWS)?,
        );
        let mut tiled = Self {
            file,
            frames: file.frames()?,
            width,
            height,
            places: None,
        };
        let full = top.text(tags::DIMENSION_ORGANIZATION_TYPE, VR::CS)? == Some("TILED_FULL");
        let (across, down) = tiled.grid();
        let whole = u64::from(across) * u64::from(down);
        // Tiles that were not scanned are gone through too.
        if whole > u64::from(TILES_MAX) {
            return Err(
                Refusal::at(Reason::TooManyFrames, tags::TOTAL_PIXEL_MATRIX_COLUMNS)
                    .found(format_args!("{whole} tiles")),
            );
        }
        if full {
            if whole != u64::from(file.image.frames) {
                return Err(
                    Refusal::at(Reason::PixelDataMismatch, tags::NUMBER_OF_FRAMES).found(
                        format_args!("{} frames for {whole} tiles", file.image.frames),
                    ),
                );
            }
        } else {
            tiled.places = Some(tiled.read_places()?);
        }
        Ok(Some(tiled))
    }

    fn grid(&self) -> (u32, u32) {
        let (tile_width, tile_height) = self.tile_size();
        (
            self.width.div_ceil(tile_width),
            self.height.div_ceil(tile_height),
        )
    }

    /// Where each frame lies (PS3.3 C.8.12.6.1): the column and row of its first pixel, from 1.
    fn read_places(&self) -> Result<HashMap<(u32, u32), u32>, Refusal> {
        let image = &self.file.image;
        // A thumbnail is one frame, and need not say where.
        if image.frames == 1 && self.grid() == (1, 1) {
            return Ok(HashMap::from([((0, 0), 0)]));
        }
        let mut places = HashMap::with_capacity(image.frames as usize);
        for frame in 0..image.frames {
            let item = self
                .file
                .groups
                .of(frame, tags::PLANE_POSITION_SLIDE_SEQUENCE)?;
            let index = |tag, tile: u32, side: u32| -> Result<u32, Refusal> {
                let first = item
                    .u32(tag)?
                    .ok_or_else(|| Refusal::at(Reason::MissingAttribute, tag))?;
                let first = first
                    .checked_sub(1)
                    .filter(|first| *first < side && first % tile == 0);
                // Tiles that overlap have no grid.
                first
                    .map(|first| first / tile)
                    .ok_or_else(|| Refusal::at(Reason::InvalidAttribute, tag))
            };
            let column = index(
                tags::COLUMN_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX,
                image.columns,
                self.width,
            )?;
            let row = index(
                tags::ROW_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX,
                image.rows,
                self.height,
            )?;
            if places.insert((row, column), frame).is_some() {
                return Err(Refusal::at(
                    Reason::SamePosition,
                    tags::PLANE_POSITION_SLIDE_SEQUENCE,
                ));
            }
        }
        Ok(places)
    }

    /// Micrometres a pixel; the shared pixel measures have millimetres.
    fn spacing(&self) -> Result<Option<f64>, Refusal> {
        self.file.refuse_non_square(0)?;
        let measures = self.file.groups.of(0, tags::PIXEL_MEASURES_SEQUENCE)?;
        let spacing = measures.decimals(tags::PIXEL_SPACING, Reason::InvalidAttribute)?;
        Ok(spacing
            .first()
            .filter(|spacing| **spacing > 0.0)
            .map(|spacing| spacing * 1000.0))
    }

    pub(super) fn level(&self, rule: &SlideRule) -> Result<Level, Refusal> {
        Ok(Level {
            part: 0,
            width: self.width,
            height: self.height,
            spacing: self.spacing()?,
            mask: Mask::of(self, rule)?,
        })
    }
}

/// Of several optical paths, focal planes or files of one level, nobody says which is the picture.
fn refuse_several(file: &File<'_>) -> Result<(), Refusal> {
    let top = &file.header.elements;
    for tag in [
        tags::NUMBER_OF_OPTICAL_PATHS,
        tags::TOTAL_PIXEL_MATRIX_FOCAL_PLANES,
    ] {
        if let Some(several) = top.u32(tag)?.filter(|count| *count > 1) {
            return Err(Refusal::at(Reason::MultiFrameNotSupportedYet, tag).found(several));
        }
    }
    if top.value(tags::CONCATENATION_UID).is_some() {
        return Err(Refusal::at(
            Reason::MultiFrameNotSupportedYet,
            tags::CONCATENATION_UID,
        ));
    }
    Ok(())
}

impl Tiles for Tiled<'_> {
    fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn tile_size(&self) -> (u32, u32) {
        (self.file.image.columns, self.file.image.rows)
    }

    fn tile(&self, row: u32, column: u32) -> Result<Option<Vec<u8>>, Refusal> {
        let frame = match &self.places {
            Some(places) => places.get(&(row, column)).copied(),
            // Checked to be as many as frames.
            None => Some(row * self.grid().0 + column),
        };
        let Some(frame) = frame else {
            return Ok(None);
        };
        let cells = self.frames.decode(frame)?;
        let picture = photograph::colour(self.file, cells, &mut Vec::new());
        if picture.channels == 3 {
            return Ok(Some(picture.pixels));
        }
        Ok(Some(
            picture
                .pixels
                .iter()
                .flat_map(|level| [*level; 3])
                .collect(),
        ))
    }

    fn notes(&self) -> Result<Vec<Note>, Refusal> {
        let mut notes = self.file.notes()?;
        let path = self
            .file
            .header
            .elements
            .first_item(tags::OPTICAL_PATH_SEQUENCE)?;
        match path.and_then(|path| path.value(tags::ICC_PROFILE)) {
            Some(profile) => notes.extend(icc::judge(profile.bytes)?),
            None => notes.extend(photograph::profile(self.file)?),
        }
        Ok(notes)
    }
}
