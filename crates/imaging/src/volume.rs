//! CT and MR slices: what is kept of a file until its study is complete, and the frames once the plan is made.
//!
//! CT: three windows of the model's convention become red, green and blue. MR: smallest to largest value of the whole volume
//! becomes black to white. Values are rounded half to even, as numpy does.

use dicom_core::VR;
use dicom_dictionary_std::tags;

use crate::admission::Cell;
use crate::ahead::in_order;
use crate::burned_in::Annotation;
use crate::dicom::File;
use crate::geometry::Place;
use crate::grey::{map, value_range, window};
use crate::slide::{self, Slide};
use crate::square::Picture;
use crate::study::SlicePlan;
use crate::transform::{Rescale, Transform};
use crate::voi::Curve;
use crate::{
    ClinicalHeader, Format, Frame, FrameInfo, Limits, Modality, Note, Options, Photometric, Reason,
    Refusal, Source, WindowSource, header, nifti, sniff,
};

/// The slices of one file, or its levels of a whole slide. It keeps identifiers to group by, which leave it only as equal or unequal.
#[derive(Clone, Debug)]
pub struct Slices {
    pub(crate) modality: Modality,
    pub(crate) study: String,
    pub(crate) series: String,
    pub(crate) series_number: i64,
    pub(crate) instance: String,
    /// Instance Number, where it is one.
    pub(crate) number: Option<i64>,
    pub(crate) acquisition: i64,
    pub(crate) localiser: bool,
    pub(crate) derived: bool,
    /// All of Image Type but its first value, which says whether it is derived.
    pub(crate) kind: String,
    /// Whether it was compressed with loss.
    pub(crate) lossy: bool,
    /// Of a file that is one part of a larger one: which one that is, and how many parts it has (PS3.3 C.7.6.16.2.2.4).
    pub(crate) part_of: Option<(String, u16)>,
    /// Why it cannot be shown, though it may be left out of a volume.
    pub(crate) unusable: Option<Refusal>,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) frames: Vec<Slice>,
    pub(crate) clinical: ClinicalHeader,
    /// Of a whole slide; then there are no slices.
    pub(crate) slide: Option<Box<Slide>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) place: Option<Place>,
    /// What makes modality values of stored ones; none for a table, which no usable CT has.
    pub(crate) rescale: Option<Rescale>,
    pub(crate) spacing: Vec<f64>,
    /// MR: smallest and largest modality value, padding left out; `None` if every pixel is padding.
    pub(crate) range: Option<(f64, f64)>,
}

impl Slices {
    /// Of a file that says nothing else.
    pub(crate) fn bare(modality: Modality) -> Self {
        Self {
            modality,
            study: String::new(),
            series: String::new(),
            series_number: 0,
            instance: String::new(),
            number: None,
            acquisition: 0,
            localiser: false,
            derived: false,
            kind: String::new(),
            lossy: false,
            part_of: None,
            unusable: None,
            rows: 0,
            columns: 0,
            frames: Vec::new(),
            clinical: ClinicalHeader::default(),
            slide: None,
        }
    }

    pub(crate) fn read(
        file: &File<'_>,
        modality: Modality,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let image = &file.image;
        limits.check_volume(
            image.frames.into(),
            pixels(modality, (image.rows, image.columns), image.frames),
        )?;
        let top = &file.header.elements;
        let text = |tag| -> Result<String, Refusal> {
            Ok(kept(top.text(tag, VR::UI)?.unwrap_or_default()))
        };
        let kind = top.text(tags::IMAGE_TYPE, VR::CS)?.unwrap_or_default();
        let kinds: Vec<&str> = kind.split('\\').map(str::trim).collect();
        let is = |word: &str| kinds.contains(&word);
        let number = |tag| Ok::<_, Refusal>(top.integer(tag)?.unwrap_or(0));
        Ok(Self {
            modality,
            study: text(tags::STUDY_INSTANCE_UID)?,
            series: text(tags::SERIES_INSTANCE_UID)?,
            series_number: number(tags::SERIES_NUMBER)?,
            instance: text(tags::SOP_INSTANCE_UID)?,
            number: top.integer(tags::INSTANCE_NUMBER).ok().flatten(),
            acquisition: number(tags::ACQUISITION_NUMBER)?,
            localiser: is("LOCALIZER"),
            derived: is("DERIVED"),
            kind: kept(&kinds[1..].join("\\")),
            lossy: top.text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS)? == Some("01"),
            part_of: top
                .u16(tags::IN_CONCATENATION_TOTAL_NUMBER)?
                .map(|parts| Ok::<_, Refusal>((text(tags::CONCATENATION_UID)?, parts)))
                .transpose()?,
            unusable: check_usable(file, modality).err(),
            rows: image.rows,
            columns: image.columns,
            frames: slices(file, modality, limits)?,
            clinical: file.clinical(),
            slide: None,
        })
    }

    /// Age, sex and view position, where the header has them.
    pub fn clinical(&self) -> ClinicalHeader {
        self.clinical
    }

    /// How many they are; one for a part of a whole slide.
    pub fn count(&self) -> u32 {
        // As many as Limits::frames_max, which has 32 bits, or as a 16-bit axis of NIfTI.
        self.frames.len().max(1) as u32
    }

    /// Pixels that were looked at before anything is planned: those of MR, for their range, and those of a slide's levels in
    /// which tissue was looked for, of which a bit each is kept.
    pub fn pixels(&self) -> u64 {
        let levels = self.slide.iter().flat_map(|slide| &slide.levels);
        let looked_at = levels.filter(|level| level.mask.is_some());
        let of_slide: u64 = looked_at
            .map(|level| u64::from(level.width) * u64::from(level.height))
            .sum();
        let frames = self.frames.len() as u32;
        of_slide + pixels(self.modality, (self.rows, self.columns), frames)
    }

    /// Whether both files are of one study.
    pub fn same_study(&self, other: &Self) -> bool {
        self.study == other.study
    }
}

/// Whether values are what the model's windows are for, and lie as they are looked at. A study may hold maps of something else,
/// and what was turned, beside its images.
fn check_usable(file: &File<'_>, modality: Modality) -> Result<(), Refusal> {
    file.refuse_shutter()?;
    let text = |tag| file.header.text(tag, VR::CS);
    // All slices of a volume side by side in one image, as scanners of one maker write diffusion and functional MR.
    let mut kinds = text(tags::IMAGE_TYPE)?.unwrap_or_default().split('\\');
    if kinds.any(|kind| kind.trim() == "MOSAIC") {
        return Err(
            Refusal::at(Reason::MultiFrameNotSupportedYet, tags::IMAGE_TYPE)
                .found("a mosaic of slices"),
        );
    }
    // The highest stored values are then numbers of colours in a supplemental palette (PS3.3 C.8.16.2.1.1, C.7.6.19).
    if text(tags::PIXEL_PRESENTATION)?.is_some_and(|word| word != "MONOCHROME") {
        return Err(Refusal::at(
            Reason::UnsupportedLut,
            tags::PIXEL_PRESENTATION,
        ));
    }
    let (is_mr, photometric) = (modality == Modality::Mr, file.image.photometric);
    // Without a unit, low values that are bright would come out dark.
    if is_mr {
        if photometric != Photometric::Monochrome2 {
            let tag = tags::PHOTOMETRIC_INTERPRETATION;
            return Err(Refusal::at(Reason::UnsupportedPhotometric, tag).found(photometric));
        }
        file.refuse_presentation_lut()?;
    }
    (0..file.image.frames).try_for_each(|frame| {
        if !is_mr {
            file.refuse_not_hounsfield(frame)?;
        }
        file.refuse_non_square(frame)?;
        Place::refuse_turned(&file.groups, frame)
    })
}

fn pixels(modality: Modality, (rows, columns): (u32, u32), frames: u32) -> u64 {
    if modality == Modality::Mr {
        // Rows and columns have 16 bits each.
        u64::from(rows) * u64::from(columns) * u64::from(frames)
    } else {
        0
    }
}

/// An identifier to compare: as it is, or its digest where it is longer than one can be (PS3.5 6.2). Thousands are held
/// together.
pub(crate) fn kept(identifier: &str) -> String {
    const BYTES_MAX: usize = 64;
    if identifier.len() <= BYTES_MAX {
        identifier.to_owned()
    } else {
        hex::encode(blake3::hash(identifier.as_bytes()).as_bytes())
    }
}

fn slices(file: &File<'_>, modality: Modality, limits: &Limits) -> Result<Vec<Slice>, Refusal> {
    let (image, padding) = (&file.image, file.padding()?);
    let frames = file.frames()?;
    let is_mr = modality == Modality::Mr;
    let slice = |index: usize| -> Result<Slice, Refusal> {
        // As many as Limits::frames_max at most, which has 32 bits.
        let index = index as u32;
        let transform = file.transform(index)?;
        let range = if is_mr {
            let cells = frames.decode(index)?;
            value_range(&cells.values, image.cell, &transform, padding).0
        } else {
            None
        };
        let measures = file.groups.of(index, tags::PIXEL_MEASURES_SEQUENCE)?;
        Ok(Slice {
            place: Place::read(&file.groups, index)?,
            rescale: transform.line(),
            spacing: measures.decimals(tags::PIXEL_SPACING, Reason::InvalidAttribute)?,
            range,
        })
    };
    // Of CT nothing is decoded yet.
    let threads = if is_mr {
        limits.threads(image.columns, image.rows)
    } else {
        1
    };
    let count = image.frames as usize;
    let mut slices = Vec::with_capacity(count);
    in_order(limits.codestreams, (threads, count), &slice, &mut |slice| {
        slices.push(slice);
    })?;
    Ok(slices)
}

/// Takes each frame as soon as it is there: those of a volume are hundreds of MiB together.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Frame, FrameInfo);

/// Decodes the `wanted` frames of a file, in that order, as the plan of their volume says.
///
/// # Errors
/// As [`crate::prepare`]; the file must be the one the plan was made with.
pub fn decode_slices(
    bytes: &[u8],
    wanted: &[u32],
    plan: &SlicePlan,
    options: &Options,
) -> Result<Vec<(Frame, FrameInfo)>, Refusal> {
    let mut frames = Vec::with_capacity(wanted.len());
    each_slice(bytes, wanted, plan, options, &mut |frame, info| {
        frames.push((frame, info));
    })?;
    Ok(frames)
}

/// As [`decode_slices`], each given away before many more are made.
pub(crate) fn each_slice(
    bytes: &[u8],
    wanted: &[u32],
    plan: &SlicePlan,
    options: &Options,
    each: Each<'_>,
) -> Result<(), Refusal> {
    if let Some(patches) = &plan.patches {
        return slide::decode(bytes, wanted, (plan, patches), options, each);
    }
    if sniff(bytes)? == Format::Nifti {
        return nifti::decode(bytes, wanted, plan, options, each);
    }
    let opened = header::open(bytes, options.limits())?;
    let file = File::read(&opened, options.limits())?;
    let modality = file.modality()?;
    let text = Annotation::of(&file.header)?.kind(modality);
    let source = Source::of(Format::Dicom, bytes).showing(Some(text));
    let frames = file.frames()?;
    let (image, mut notes) = (&file.image, file.notes()?);
    // Hounsfield units and intensities have one meaning whatever the photometric interpretation; it only says how to show them.
    notes.retain(|note| *note != Note::Inverted);
    notes.extend(&plan.notes);
    let curves = curves(modality, plan, options)?;
    let padding = file.padding()?;
    let make = |at: usize| -> Result<(Frame, FrameInfo), Refusal> {
        let index = wanted[at];
        let cells = frames.decode(index)?;
        let transform = file.transform(index)?;
        if modality == Modality::Ct {
            refuse_unshifted(&cells.values, image.cell, &transform, padding)?;
        }
        let padded = padding.and_then(|padding| bright(padding, &transform, &curves));
        let picture = Picture {
            width: image.columns,
            height: image.rows,
            channels: curves.len() as u32,
            pixels: channels(&curves, |curve| {
                map(&cells.values, image.cell, &transform, |x| match padded {
                    Some((low, high)) if (low..=high).contains(&x) => 0,
                    _ => curve.level(x),
                })
            }),
        };
        let (frame, mut info) = source.frame(&picture, index, notes.clone(), options)?;
        info.modality = Some(modality);
        info.photometric = Some(image.photometric);
        if modality == Modality::Ct {
            let is_padding =
                |stored: i64| padding.is_some_and(|(first, last)| (first..=last).contains(&stored));
            let mut stored = cells.values.iter().map(|raw| image.cell.value(*raw));
            let above = stored.any(|stored| !is_padding(stored) && transform.apply(stored) > 0.0);
            info.above_water = Some(above);
        }
        record(&mut info, &curves);
        Ok((frame, info))
    };
    let threads = source.threads((image.columns, image.rows), options);
    let decoder = options.limits().codestreams;
    let mut take = |(frame, info): (Frame, FrameInfo)| each(frame, info);
    in_order(decoder, (threads, wanted.len()), &make, &mut take)
}

/// Who lost the rescale of a CT and writes one that takes nothing away may store signed values all the same. Air, fat and noise are
/// below water: where no value is, the units are others, though a scanner may store Hounsfield units as they are.
fn refuse_unshifted(
    cells: &[u32],
    cell: Cell,
    transform: &Transform,
    padding: Option<(i64, i64)>,
) -> Result<(), Refusal> {
    if transform.line().is_none_or(|line| line.intercept < 0.0) {
        return Ok(());
    }
    match value_range(cells, cell, transform, padding) {
        (Some((low, _)), _) if low >= 0.0 => {
            let refusal = Refusal::at(Reason::NotHounsfield, tags::RESCALE_INTERCEPT);
            Err(refusal.found("no negative value"))
        }
        _ => Ok(()),
    }
}

/// Refuses a CT by what [`FrameInfo::above_water`] says of all of its slices that are shown. Blood, muscle and bone are above water,
/// so that without a value there is no body in them: who cuts values to eight bits and leaves the rescale as it was writes nothing
/// but air. One slice among others may lie beyond the body.
///
/// # Errors
/// [`Reason::NotHounsfield`] where there are slices of a CT and none of them has such a value.
pub fn refuse_air(above_water: impl IntoIterator<Item = Option<bool>>) -> Result<(), Refusal> {
    let above = above_water.into_iter().flatten();
    match above.reduce(|one, other| one || other) {
        Some(false) => {
            let refusal = Refusal::at(Reason::NotHounsfield, tags::RESCALE_INTERCEPT);
            Err(refusal.found("no slice with a value above 0 HU"))
        }
        _ => Ok(()),
    }
}

/// The modality values that are padding, if they lie above all that is white: around a MONOCHROME1 slice, where the brightest
/// value is to be black (PS3.3 C.7.5.1.1.2). Lower ones may be real, as writers name a value for padding that air or water has too.
fn bright(
    (first, last): (i64, i64),
    transform: &Transform,
    curves: &[Curve],
) -> Option<(f64, f64)> {
    let (first, last) = (transform.apply(first), transform.apply(last));
    let (low, high) = (first.min(last), first.max(last));
    let above = |curve: &Curve| low > curve.center + curve.width / 2.0;
    curves.iter().all(above).then_some((low, high))
}

/// What makes the channels of a slice: MR has one, from the volume's range, CT the convention's three.
pub(crate) fn curves(
    modality: Modality,
    plan: &SlicePlan,
    options: &Options,
) -> Result<Vec<Curve>, Refusal> {
    match (modality, plan.range) {
        (Modality::Mr, Some((low, high))) => Ok(vec![Curve::between(low, high)]),
        (Modality::Mr, None) => Err(Refusal::new(Reason::FlatImage)),
        _ => {
            let windows = options.convention().ct_windows.iter();
            Ok(windows
                .map(|(low, high)| Curve::between(*low, *high))
                .collect())
        }
    }
}

/// The levels of every curve, as channels of one picture.
pub(crate) fn channels(curves: &[Curve], levels: impl Fn(&Curve) -> Vec<u8>) -> Vec<u8> {
    interleaved(curves.iter().map(levels).collect())
}

/// Says which curves made a frame.
pub(crate) fn record(info: &mut FrameInfo, curves: &[Curve]) {
    match curves {
        [curve] => info.window = Some(window(*curve, WindowSource::Volume)),
        several => {
            info.channel_windows = several
                .iter()
                .map(|curve| window(*curve, WindowSource::Convention))
                .collect();
        }
    }
}

fn interleaved(channels: Vec<Vec<u8>>) -> Vec<u8> {
    match <[Vec<u8>; 3]>::try_from(channels) {
        Ok([red, green, blue]) => red
            .into_iter()
            .zip(green)
            .zip(blue)
            .flat_map(|((red, green), blue)| [red, green, blue])
            .collect(),
        Err(channels) => channels.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_stay_equal_or_unequal_however_long_they_are() {
        let long = "2.25.".repeat(100);
        let other = format!("{long}1");
        assert_eq!(kept("2.25.7"), "2.25.7");
        assert_eq!(kept(&long), kept(&long));
        assert_ne!(kept(&long), kept(&other));
        assert_eq!(kept(&long).len(), 64);
    }
}
