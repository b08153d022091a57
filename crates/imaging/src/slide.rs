//! Whole slides: the levels of a pyramid, in one TIFF or in one DICOM file each, and which patches of one level are shown.
//!
//! Only the coarsest level is ever looked at as a whole, tile by tile, for the mask of tissue; of the level that is shown,
//! only the tiles under a patch are unpacked. Labels and overviews carry names, and are never decoded.
//! Reading order: here (levels), `mask`, `plan` (level and patches), `tiles` (pixels), `dicom` and `tiff` (where tiles are).

mod dicom;
mod mask;
mod plan;
mod tiff;
mod tiles;

pub(crate) use mask::Mask;
pub(crate) use plan::{PatchPlan, plan};
use tiles::Shown;

use crate::burned_in::Annotation;
use crate::conventions::SlideRule;
use crate::study::SlicePlan;
use crate::volume::Each;
use crate::{Format, Modality, Options, Reason, Refusal, Slices, Source, header, sniff};

/// Pixels of the largest level that is looked at for tissue.
const MASK_PIXELS_MAX: u64 = 16 << 20;

/// One level of a slide.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    /// Which directory of its file; 0 in DICOM.
    pub(crate) part: usize,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Micrometres from pixel to pixel; `None` if the file does not say.
    pub(crate) spacing: Option<f64>,
    /// Where tissue is, of levels small enough to look at.
    pub(crate) mask: Option<Mask>,
}

/// What a file holds of a slide.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slide {
    /// Empty for a label or an overview.
    pub(crate) levels: Vec<Level>,
}

/// Whether a DICOM file is part of a whole slide, and not one photograph through a microscope.
pub(crate) fn is_tiled(header: &header::Header<'_>) -> bool {
    dicom::is_tiled(header)
}

/// Reads a DICOM file of a slide.
pub(crate) fn read_dicom(
    opened: &header::Opened<'_>,
    options: &Options,
) -> Result<Slices, Refusal> {
    let file = dicom::read(opened, options.limits())?;
    let top = &file.header.elements;
    let text = |tag| -> Result<String, Refusal> {
        let text = top.text(tag, dicom_core::VR::UI)?;
        Ok(crate::volume::kept(text.unwrap_or_default()))
    };
    let slide = match dicom::Tiled::read(&file)? {
        Some(tiled) => {
            let annotation = Annotation::of(&file.header)?;
            if let (true, Some(refusal)) = (options.refuses_burned_in(), annotation.refusal()) {
                return Err(refusal);
            }
            Slide {
                levels: vec![tiled.level(rule(options)?)?],
            }
        }
        None => Slide::default(),
    };
    Ok(Slices {
        study: text(dicom_dictionary_std::tags::STUDY_INSTANCE_UID)?,
        series: text(dicom_dictionary_std::tags::SERIES_INSTANCE_UID)?,
        instance: text(dicom_dictionary_std::tags::SOP_INSTANCE_UID)?,
        clinical: file.clinical(),
        ..whole(slide)
    })
}

/// Reads a TIFF if it is a pyramid of tiles.
pub(crate) fn read_tiff(
    bytes: &[u8],
    options: &Options,
    digest: &str,
) -> Result<Option<Slices>, Refusal> {
    let Some(pyramid) = tiff::Pyramid::read(bytes)? else {
        return Ok(None);
    };
    pyramid.admit(bytes, options.limits())?;
    let levels = pyramid.levels(rule(options)?)?;
    Ok(Some(Slices {
        series: digest.to_owned(),
        instance: digest.to_owned(),
        ..whole(Slide { levels })
    }))
}

/// A file of a slide, without what identifies it.
fn whole(slide: Slide) -> Slices {
    Slices {
        slide: Some(Box::new(slide)),
        ..Slices::bare(Modality::Sm)
    }
}

/// The convention's numbers.
///
/// # Errors
/// Models that were not trained on slides.
fn rule(options: &Options) -> Result<&'static SlideRule, Refusal> {
    options.convention().slide.as_ref().ok_or_else(|| {
        Refusal::at(
            Reason::ModalityNotSupportedYet,
            dicom_dictionary_std::tags::MODALITY,
        )
        .found("SM, which the model's convention has no patches for")
    })
}

/// The `wanted` patches of the level that the plan chose, by their number in its grid, row by row.
pub(crate) fn decode(
    bytes: &[u8],
    wanted: &[u32],
    (plan, patches): (&SlicePlan, &PatchPlan),
    options: &Options,
    each: Each<'_>,
) -> Result<(), Refusal> {
    // The same answer as when the plan was made, also for a DICOM file that begins as a TIFF does.
    if sniff(bytes)? == Format::Tiff {
        let pyramid = tiff::Pyramid::read(bytes)?.ok_or_else(|| Refusal::new(Reason::Malformed))?;
        pyramid.admit(bytes, options.limits())?;
        let level = pyramid.level(patches.part)?;
        // A patch of tissue holds no text; what does is never shown.
        let source = Source::of(Format::Tiff, bytes).showing(None);
        let shown = Shown {
            level: &level,
            source: &source,
            photometric: None,
        };
        return tiles::frames(&shown, wanted, (plan, patches), options, each);
    }
    let opened = header::open(bytes, options.limits())?;
    let file = dicom::read(&opened, options.limits())?;
    let level = dicom::Tiled::read(&file)?.ok_or_else(|| Refusal::new(Reason::Malformed))?;
    let source = Source::of(Format::Dicom, bytes).showing(None);
    let shown = Shown {
        level: &level,
        source: &source,
        photometric: Some(file.image.photometric),
    };
    tiles::frames(&shown, wanted, (plan, patches), options, each)
}
