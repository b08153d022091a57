//! Which slices of a study a model sees, and in which order: one series, its slices along the normal, at even distances where
//! there are too many. Everything that is left out has a reason; what would make a wrong volume is refused.
//!
//! Pure: it looks at what the headers said, never at pixels.

use std::collections::{BTreeMap, BTreeSet};

use dicom_dictionary_std::tags;
use serde::Serialize;

use crate::geometry::Place;
use crate::slide::{self, PatchPlan};
use crate::voi::Curve;
use crate::{Convention, Modality, Note, Reason, Refusal, Slices};

/// A step between slices may be this much larger than the usual one.
const GAP_MAX: f64 = 1.5;
/// A slice of a CT may lie this much of the picture's side beside where those before it lead.
const SHIFT_MAX: f64 = 0.1;
/// Positions closer than this, in mm, are one position.
const SAME_POSITION_MM: f64 = 0.01;

/// Why a file of a volume is not used, wholly or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Unused {
    /// A localiser: a plan of the scan, not a part of it.
    Localiser,
    /// Derived from other images of the study.
    Derived,
    /// The same instance, at the same place, was sent before.
    Duplicate,
    /// A later acquisition of the series has the same slices.
    OtherAcquisition,
    /// Another series was chosen: more slices, or axial ones.
    OtherSeries,
    /// Left out so that the volume fits the model.
    NotSelected,
    /// Another magnification of the slide is shown.
    OtherLevel,
    /// The slide's label, or a picture of the whole glass with it.
    LabelOrOverview,
    /// Another slide of the study was chosen.
    OtherSlide,
}

impl Unused {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Localiser => "LOCALISER",
            Self::Derived => "DERIVED",
            Self::Duplicate => "DUPLICATE",
            Self::OtherAcquisition => "OTHER_ACQUISITION",
            Self::OtherSeries => "OTHER_SERIES",
            Self::NotSelected => "NOT_SELECTED",
            Self::OtherLevel => "OTHER_LEVEL",
            Self::LabelOrOverview => "LABEL_OR_OVERVIEW",
            Self::OtherSlide => "OTHER_SLIDE",
        }
    }

    /// What it means, and why the file is not shown.
    pub fn text(self) -> &'static str {
        match self {
            Self::Localiser => "a localiser plans the scan and is no part of it",
            Self::Derived => "it was derived from images that are here",
            Self::Duplicate => "the same instance is here already",
            Self::OtherAcquisition => "a later acquisition of the series is used",
            Self::OtherSeries => "the axial series with the most slices is used",
            Self::NotSelected => "slices at even distances are used, as the model takes no more",
            Self::OtherLevel => "another magnification of the slide is shown",
            Self::LabelOrOverview => {
                "the label of a slide, or a picture that has it, is never shown"
            }
            Self::OtherSlide => "the slide that came first is used",
        }
    }

    /// Every reason, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::Localiser,
        Self::Derived,
        Self::Duplicate,
        Self::OtherAcquisition,
        Self::OtherSeries,
        Self::NotSelected,
        Self::OtherLevel,
        Self::LabelOrOverview,
        Self::OtherSlide,
    ];
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Fate {
    /// At least one of its frames is shown.
    Used,
    /// None is.
    Unused(Unused),
}

/// The slices that are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct SlicePlan {
    /// Index of the file, as it was given, and frame within it; in the order the model sees them.
    pub frames: Vec<(usize, u32)>,
    /// What became of every file, in the order they were given.
    pub fates: Vec<(usize, Fate)>,
    /// MR: smallest and largest modality value of the volume.
    pub range: Option<(f64, f64)>,
    /// What is to be said of every frame.
    pub notes: Vec<Note>,
    /// Of a whole slide: how its patches, which are the frames, lie.
    pub(crate) patches: Option<PatchPlan>,
}

/// Plans the volume of one study's files, each with the index it goes by.
///
/// # Errors
/// Refuses files of several studies, and a series with mixed orientation, size, spacing or rescale, with gaps, with several
/// images at one position, or without positions.
pub fn plan_volume(
    files: &[(usize, &Slices)],
    convention: &Convention,
) -> Result<SlicePlan, Refusal> {
    let Some((_, first)) = files.first() else {
        return Err(Refusal::at(Reason::NoPixelData, tags::PIXEL_DATA));
    };
    if files.iter().any(|(_, file)| file.study != first.study) {
        return Err(Refusal::at(
            Reason::SeveralStudies,
            tags::STUDY_INSTANCE_UID,
        ));
    }
    if files.iter().any(|(_, file)| file.slide.is_some()) {
        return slide::plan(files, convention);
    }
    let mut choice = Choice::new(files);
    choice.drop_what_is_no_slice();
    choice.choose_series();
    choice.choose_acquisition();
    let chosen = choice.left();
    if let Some(refusal) = chosen.iter().find_map(|(_, file)| file.unusable.clone()) {
        return Err(refusal);
    }
    check_parts(&chosen)?;
    let sorted = sorted(&chosen)?;
    let range = range(&chosen);
    let selected = convention.selected(sorted.len());
    let frames: Vec<(usize, u32)> = selected.iter().map(|at| sorted[*at]).collect();
    let mut notes = Vec::new();
    if let Some(rule) = convention.volume {
        if sorted.len() > 1 && sorted.len() < rule.slices_min as usize {
            notes.push(Note::FewSlices);
        }
        if frames.len() < sorted.len() {
            notes.push(Note::SlicesSelected);
        }
    }
    for (index, _) in &chosen {
        if !frames.iter().any(|(used, _)| used == index) {
            choice.drop(*index, Unused::NotSelected);
        }
    }
    let fates = files.iter().map(|(index, _)| {
        let fate = choice.unused.get(index);
        (
            *index,
            fate.map_or(Fate::Used, |unused| Fate::Unused(*unused)),
        )
    });
    Ok(SlicePlan {
        fates: fates.collect(),
        frames,
        range,
        notes,
        patches: None,
    })
}

/// The files, and those that are out.
struct Choice<'a> {
    files: &'a [(usize, &'a Slices)],
    unused: BTreeMap<usize, Unused>,
}

impl<'a> Choice<'a> {
    fn new(files: &'a [(usize, &'a Slices)]) -> Self {
        Self {
            files,
            unused: BTreeMap::new(),
        }
    }

    fn drop(&mut self, index: usize, why: Unused) {
        self.unused.entry(index).or_insert(why);
    }

    fn left(&self) -> Vec<(usize, &'a Slices)> {
        let left = self
            .files
            .iter()
            .filter(|(index, _)| !self.unused.contains_key(index));
        left.copied().collect()
    }

    /// Drops files for a reason, unless it would drop all.
    fn drop_where(&mut self, why: Unused, is: impl Fn(&Slices) -> bool) {
        let left = self.left();
        if left.iter().all(|(_, file)| is(file)) {
            return;
        }
        for (index, file) in left {
            if is(file) {
                self.drop(index, why);
            }
        }
    }

    fn drop_what_is_no_slice(&mut self) {
        let mut seen = BTreeSet::new();
        for (index, file) in self.left() {
            let place = file.frames.first().and_then(|slice| slice.place);
            // What lies elsewhere, is of another series or acquisition, or has another number, as echoes of one position have, is
            // another slice: some that take names away give a whole study one.
            let position = place.map(|place| place.position_bits());
            let frames = file.frames.len();
            let of = (&file.series, file.acquisition, file.number, frames);
            if !file.instance.is_empty() && !seen.insert((&file.instance, position, of)) {
                self.drop(index, Unused::Duplicate);
            }
        }
        self.drop_where(Unused::Localiser, |file| file.localiser);
        let left = self.left();
        let originals: Vec<&Slices> = left
            .iter()
            .map(|(_, file)| *file)
            .filter(|file| !file.derived)
            .collect();
        let copies = lossy_series(&left, &originals);
        self.drop_where(Unused::Derived, |file| {
            file.derived
                && !is_lossy_slice(file, &originals)
                && !copies.contains(file.series.as_str())
        });
    }

    /// Axial ones that can be shown before others, then the most slices, then originals, then the lowest series number, then what was
    /// given first.
    fn choose_series(&mut self) {
        let mut series: Vec<(&str, bool, usize, bool, i64)> = Vec::new();
        let mut places = BTreeMap::new();
        for (_, file) in self.left() {
            let is_axial = |place: Place| place.is_axial();
            let mut places_of = file.frames.iter().map(|slice| slice.place);
            let axial =
                file.unusable.is_none() && places_of.all(|place| place.is_some_and(is_axial));
            let place = *places.entry(&file.series).or_insert(series.len());
            match series.get_mut(place) {
                Some((_, all_axial, slices, derived, _)) => {
                    *all_axial &= axial;
                    *slices += file.frames.len();
                    *derived &= file.derived;
                }
                None => {
                    let slices = file.frames.len();
                    series.push((
                        &file.series,
                        axial,
                        slices,
                        file.derived,
                        file.series_number,
                    ));
                }
            }
        }
        // The first of equals, as `min_by_key` gives it.
        let best = series
            .iter()
            .min_by_key(|(_, axial, slices, derived, number)| {
                (!axial, usize::MAX - slices, *derived, *number)
            })
            .map(|(uid, ..)| (*uid).to_owned());
        self.drop_where(Unused::OtherSeries, |file| {
            Some(&file.series) != best.as_ref()
        });
    }

    /// A series that was acquired more than once has each position more than once: the last acquisition is the good one, as long
    /// as it is a whole one.
    fn choose_acquisition(&mut self) {
        let left = self.left();
        let last = left
            .iter()
            .map(|(_, file)| file.acquisition)
            .max()
            .unwrap_or(0);
        let (of_last, of_others): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|(_, file)| file.acquisition == last);
        let Some(first) = places(&of_last).flatten().next() else {
            return;
        };
        let parallel = places(&of_last).flatten();
        let parallel = parallel.filter(|place| first.same_orientation(place));
        let mut heights: Vec<f64> = parallel.map(|place| first.along(&place)).collect();
        heights.sort_by(f64::total_cmp);
        let is_repeated = |place: Place| {
            let along = first.along(&place);
            let next = heights.partition_point(|height| *height <= along - SAME_POSITION_MM);
            let height = heights.get(next);
            first.same_orientation(&place)
                && height.is_some_and(|height| *height < along + SAME_POSITION_MM)
        };
        let repeated = places(&of_others).all(|place| place.is_some_and(is_repeated));
        // Where it has only some of their positions, which of two slices is shown at one is refused to be guessed.
        if repeated {
            self.drop_where(Unused::OtherAcquisition, |file| file.acquisition != last);
        }
    }
}

/// Whether it is derived only in that it was compressed with loss (PS3.3 C.7.6.1.1.2): without it the volume would have a hole,
/// or end early. It has originals of its own series, acquisition and kind beside it, and none of them lies where it does; an
/// average of them is of another kind, or was not compressed.
fn is_lossy_slice(file: &Slices, originals: &[&Slices]) -> bool {
    let of = |file: &Slices| (file.acquisition, file.frames.len());
    let mut beside = originals
        .iter()
        .filter(|other| of(other) == of(file))
        .filter(|other| other.kind == file.kind && other.series == file.series)
        .peekable();
    file.lossy && beside.peek().is_some() && beside.all(|other| lie_apart(file, other))
}

/// Series of nothing but slices that were compressed with loss, of the kind of originals that are here, and not all of which lie
/// where one of those does: of such a study the originals are a part, and the copies the volume.
fn lossy_series<'a>(left: &[(usize, &'a Slices)], originals: &[&Slices]) -> BTreeSet<&'a str> {
    let mut series: BTreeMap<&str, Vec<&Slices>> = BTreeMap::new();
    for &(_, file) in left {
        series.entry(&file.series).or_default().push(file);
    }
    series.retain(|_, files| {
        let is_copy = |file: &Slices| {
            file.derived && file.lossy && originals.iter().any(|other| other.kind == file.kind)
        };
        let is_apart = |file: &Slices| {
            let mut alike = originals.iter().filter(|other| other.kind == file.kind);
            alike.all(|other| lie_apart(file, other))
        };
        files.iter().all(|file| is_copy(file)) && files.iter().any(|file| is_apart(file))
    });
    series.into_keys().collect()
}

/// Whether no slice of one file is known to lie, or may lie, where one of the other does.
fn lie_apart(one: &Slices, other: &Slices) -> bool {
    one.frames.iter().all(|slice| {
        other.frames.iter().all(|other| {
            slice.place.zip(other.place).is_some_and(|(place, other)| {
                (place.along(&other) - place.along(&place)).abs() >= SAME_POSITION_MM
            })
        })
    })
}

/// Of every slice, also of files with several.
fn places(files: &[(usize, &Slices)]) -> impl Iterator<Item = Option<Place>> {
    let slices = files.iter().flat_map(|(_, file)| &file.frames);
    slices.map(|slice| slice.place)
}

/// Of a file that was cut into parts, all must be there: at an end nobody would miss the slices of one.
fn check_parts(chosen: &[(usize, &Slices)]) -> Result<(), Refusal> {
    let mut here: BTreeMap<&str, (usize, u16)> = BTreeMap::new();
    for (uid, parts) in chosen.iter().filter_map(|(_, file)| file.part_of.as_ref()) {
        let (count, of) = here.entry(uid).or_insert((0, *parts));
        *count += 1;
        *of = (*of).max(*parts);
    }
    match here.values().find(|(count, of)| *count < usize::from(*of)) {
        Some((count, of)) => Err(Refusal::at(
            Reason::SliceGap,
            tags::IN_CONCATENATION_TOTAL_NUMBER,
        )
        .found(format_args!("{count} of {of} parts"))),
        None => Ok(()),
    }
}

/// The slices in ascending order along their common normal.
fn sorted(chosen: &[(usize, &Slices)]) -> Result<Vec<(usize, u32)>, Refusal> {
    let mut slices = Vec::new();
    for (index, file) in chosen {
        for (frame, slice) in (0u32..).zip(&file.frames) {
            slices.push((*index, frame, *file, slice));
        }
    }
    let Some((_, _, first_file, first)) = slices.first().copied() else {
        return Err(Refusal::at(Reason::NoPixelData, tags::PIXEL_DATA));
    };
    if slices.len() == 1 {
        return Ok(vec![(slices[0].0, 0)]);
    }
    let mut places = Vec::with_capacity(slices.len());
    let mut lines = Vec::new();
    for (index, frame, file, slice) in &slices {
        let place = slice
            .place
            .ok_or_else(|| Refusal::at(Reason::MissingAttribute, tags::IMAGE_POSITION_PATIENT))?;
        let mixed = |reason, tag| Err(Refusal::at(reason, tag));
        // The first slice has one, or was refused before.
        let normal = first.place.unwrap_or(place);
        if !normal.same_orientation(&place) {
            return mixed(Reason::MixedOrientation, tags::IMAGE_ORIENTATION_PATIENT);
        }
        if (file.rows, file.columns) != (first_file.rows, first_file.columns) {
            return mixed(Reason::MixedSeries, tags::ROWS);
        }
        if file.modality != first_file.modality {
            return mixed(Reason::MixedSeries, tags::MODALITY);
        }
        if slice.spacing != first.spacing {
            return mixed(Reason::MixedSeries, tags::PIXEL_SPACING);
        }
        // MR scanners scale each slice by itself; CT has one unit.
        if file.modality == Modality::Ct && slice.rescale != first.rescale {
            return mixed(Reason::MixedSeries, tags::RESCALE_SLOPE);
        }
        if !place.is_axial() {
            return mixed(Reason::NotAxial, tags::IMAGE_ORIENTATION_PATIENT);
        }
        places.push((normal.along(&place), *index, *frame));
        if file.modality == Modality::Ct {
            lines.push((normal.along(&place), normal.across(&place)));
        }
    }
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    check_steps(&places)?;
    check_acquisitions(&places, chosen)?;
    if let &[vertical, horizontal] = first.spacing.as_slice() {
        let width = horizontal * f64::from(first_file.columns);
        let height = vertical * f64::from(first_file.rows);
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        check_shifts(&lines, [width, height])?;
    }
    Ok(places
        .into_iter()
        .map(|(_, index, frame)| (index, frame))
        .collect())
}

/// One slice at each position, and no step much larger than the median one.
fn check_steps(places: &[(f64, usize, u32)]) -> Result<(), Refusal> {
    let steps: Vec<f64> = places
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect();
    if steps.iter().any(|step| *step < SAME_POSITION_MM) {
        return Err(Refusal::at(
            Reason::SamePosition,
            tags::IMAGE_POSITION_PATIENT,
        ));
    }
    let mut ordered = steps.clone();
    ordered.sort_by(f64::total_cmp);
    let median = ordered[(ordered.len() - 1) / 2];
    match steps.iter().find(|step| **step > median * GAP_MAX) {
        Some(gap) => Err(
            Refusal::at(Reason::SliceGap, tags::IMAGE_POSITION_PATIENT).found(format_args!(
                "{gap:.2} mm between slices {median:.2} mm apart"
            )),
        ),
        None => Ok(()),
    }
}

/// Of a CT that was acquired in several parts, each is one stretch of the body. Slices of two that lie between each other are of two
/// times, as of two phases of contrast or of breath, and the model would be shown them in turns as one.
fn check_acquisitions(
    places: &[(f64, usize, u32)],
    chosen: &[(usize, &Slices)],
) -> Result<(), Refusal> {
    let of: BTreeMap<usize, i64> = chosen
        .iter()
        .filter(|(_, file)| file.modality == Modality::Ct)
        .map(|(index, file)| (*index, file.acquisition))
        .collect();
    let mut stretches: Vec<i64> = places
        .iter()
        .filter_map(|(_, index, _)| of.get(index).copied())
        .collect();
    stretches.dedup();
    let all = stretches.len();
    stretches.sort_unstable();
    stretches.dedup();
    if all == stretches.len() {
        return Ok(());
    }
    let acquisitions = stretches.len();
    Err(
        Refusal::at(Reason::MixedSeries, tags::ACQUISITION_NUMBER).found(format_args!(
            "slices of {acquisitions} acquisitions between each other"
        )),
    )
}

/// The slices of a CT lie one behind the other: where those of one acquisition show another part of the cross-section than those of
/// the next, the body would jump within the volume. A tilted gantry moves each beside the last by the same share of the step.
fn check_shifts(lines: &[(f64, [f64; 2])], sides: [f64; 2]) -> Result<(), Refusal> {
    for (axis, side) in sides.into_iter().enumerate() {
        let steps = lines
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0, pair[1].1[axis] - pair[0].1[axis]));
        // No step is zero, as no two slices have one position.
        let mut slopes: Vec<f64> = steps
            .clone()
            .map(|(along, beside)| beside / along)
            .collect();
        slopes.sort_by(f64::total_cmp);
        let Some(usual) = slopes.get(slopes.len().saturating_sub(1) / 2) else {
            continue;
        };
        let jumps = steps.map(|(along, beside)| (beside - usual * along).abs());
        let jump = jumps.fold(0.0, f64::max);
        if side > 0.0 && jump > side * SHIFT_MAX {
            let refusal = Refusal::at(Reason::MixedSeries, tags::IMAGE_POSITION_PATIENT);
            return Err(refusal.found(format_args!(
                "a slice {jump:.0} mm beside the one before it"
            )));
        }
    }
    Ok(())
}

/// Smallest and largest value over all slices of the chosen files; `None` for a flat volume and for CT.
fn range(chosen: &[(usize, &Slices)]) -> Option<(f64, f64)> {
    let ranges = chosen
        .iter()
        .flat_map(|(_, file)| file.frames.iter().filter_map(|slice| slice.range));
    ranges
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        .filter(|(low, high)| Curve::is_between(*low, *high))
}
