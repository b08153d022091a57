//! One DICOM file: what its header says about every frame, and its frames as modality values or as grey levels.

use std::sync::OnceLock;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};

use crate::admission::{Cell, Image, admit, is_dct, missing};
use crate::burned_in::Annotation;
use crate::codec::{Cells, Frames};
use crate::dataset::DataSet;
use crate::groups::Groups;
use crate::header::{self, Header, Opened};
use crate::square::is_square;
use crate::transform::Transform;
use crate::{
    Age, ClinicalHeader, Limits, Modality, Note, Photometric, Reason, Refusal, Sex, ViewPosition,
    colour,
};

/// An admitted file.
#[derive(Debug)]
pub(crate) struct File<'a> {
    pub(crate) header: Header<'a>,
    pub(crate) image: Image,
    pub(crate) groups: Groups<'a>,
    /// Of the frames that have none of their own. Read once: what it is read from may be as large as a header.
    transform_of_all: OnceLock<Result<Transform, Refusal>>,
}

/// Values of one frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Modality values (DICOM PS3.3 C.11.1), one a pixel.
    Grey(Vec<f64>),
    /// Red, green, blue, interleaved.
    Colour {
        /// Three a pixel.
        samples: Vec<u32>,
        /// Bits of a sample.
        bits: u32,
    },
}

/// Decodes the first `frames_max` frames of a DICOM file to values, without any window: what other implementations can be
/// compared with. `each` gets the frame's index and its values. Returns the number of frames of the file.
pub fn decode_values(
    bytes: &[u8],
    limits: &Limits,
    frames_max: u32,
    mut each: impl FnMut(u32, Values),
) -> Result<u32, Refusal> {
    let opened = header::open(bytes, limits)?;
    let file = File::read(&opened, limits)?;
    let frames = file.frames()?;
    for index in 0..file.image.frames.min(frames_max) {
        let cells = frames.decode(index)?;
        each(index, file.values(cells, index)?);
    }
    Ok(file.image.frames)
}

impl<'a> File<'a> {
    pub(crate) fn read(opened: &'a Opened<'_>, limits: &Limits) -> Result<Self, Refusal> {
        let header = header::read(opened, limits)?;
        let image = admit(&header, limits)?;
        let groups = Groups::read(&header.elements, image.frames)?;
        Ok(Self {
            header,
            image,
            groups,
            transform_of_all: OnceLock::new(),
        })
    }

    pub(crate) fn frames(&self) -> Result<Frames<'_>, Refusal> {
        let value = self.header.pixel_data.map(|data| data.value);
        Frames::new(value.unwrap_or_default(), &self.image)
    }

    pub(crate) fn transform(&self, frame: u32) -> Result<Transform, Refusal> {
        let (group, cell) = (tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, self.image.cell);
        if let Some(own) = self.groups.own(frame, group)? {
            return Transform::read(&own, cell);
        }
        let of_all = || Transform::read(self.groups.of_all(group)?, cell);
        self.transform_of_all.get_or_init(of_all).clone()
    }

    /// Red, green and blue of a colour frame, interleaved, and the bits of a sample.
    pub(crate) fn colours(&self, cells: Cells) -> (Vec<u32>, u32) {
        let image = &self.image;
        let bits = u32::from(image.cell.bits_allocated);
        if let Some(palette) = &image.palette {
            let stored = cells.values.iter().map(|raw| image.cell.value(*raw));
            return (palette.apply(stored), palette.bits);
        }
        let mut values = cells.values;
        // What an embedded overlay draws above them is no colour.
        let mask = image.cell.mask();
        values.iter_mut().for_each(|value| *value &= mask);
        let ybr = matches!(
            image.photometric,
            Photometric::YbrFull | Photometric::YbrFull422
        );
        if ybr && !cells.rgb {
            colour::ybr_to_rgb(&mut values, u32::from(image.cell.bits_stored));
        }
        (values, bits)
    }

    fn values(&self, cells: Cells, frame: u32) -> Result<Values, Refusal> {
        if !self.image.photometric.is_grey() {
            let (samples, bits) = self.colours(cells);
            return Ok(Values::Colour { samples, bits });
        }
        let (transform, cell) = (self.transform(frame)?, self.image.cell);
        let values = cells.values.iter();
        Ok(Values::Grey(
            values
                .map(|raw| transform.apply(cell.value(*raw)))
                .collect(),
        ))
    }

    /// The modality, if it is one that becomes frames.
    pub(crate) fn modality(&self) -> Result<Modality, Refusal> {
        /// Defined terms of (0008,0060) that a refusal may name; any other text could be anything, so it is not repeated.
        const OTHER: &[&str] = &[
            "US", "XA", "RF", "NM", "PT", "OT", "SC", "IO", "PX", "OCT", "BMD", "IVUS", "BI", "DG",
            "LS", "RG", "HC", "ECG", "SEG", "SR", "PR", "KO", "DOC", "RTIMAGE", "RTDOSE", "RTPLAN",
            "RTSTRUCT", "REG",
        ];
        let text = self
            .header
            .text(tags::MODALITY, VR::CS)?
            .ok_or_else(|| missing(tags::MODALITY))?;
        if let Some(modality) = Modality::ALL.iter().find(|m| m.as_str() == text) {
            return Ok(*modality);
        }
        let known = OTHER
            .iter()
            .find(|other| **other == text)
            .unwrap_or(&"an unlisted modality");
        Err(Refusal::at(Reason::ModalityNotSupportedYet, tags::MODALITY).found(known))
    }

    /// Raw detector data is not meant to be looked at, and no model was trained on it.
    pub(crate) fn refuse_raw(&self) -> Result<(), Refusal> {
        let sop_class = self.header.text(tags::SOP_CLASS_UID, VR::UI)?;
        let intent = self.header.text(tags::PRESENTATION_INTENT_TYPE, VR::CS)?;
        let raw = [
            uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING,
            uids::DIGITAL_MAMMOGRAPHY_X_RAY_IMAGE_STORAGE_FOR_PROCESSING,
        ];
        if sop_class.is_some_and(|class| raw.contains(&class)) || intent == Some("FOR PROCESSING") {
            return Err(Refusal::at(
                Reason::NotForPresentation,
                tags::PRESENTATION_INTENT_TYPE,
            ));
        }
        Ok(())
    }

    /// The frames of a run are a film, not one study's views.
    pub(crate) fn refuse_several_frames(&self) -> Result<(), Refusal> {
        match self.image.frames {
            1 => Ok(()),
            frames => Err(
                Refusal::at(Reason::MultiFrameNotSupportedYet, tags::NUMBER_OF_FRAMES)
                    .found(frames),
            ),
        }
    }

    /// A model sees square pixels; a frame would come out stretched.
    pub(crate) fn refuse_non_square(&self, frame: u32) -> Result<(), Refusal> {
        let measures = self.groups.of(frame, tags::PIXEL_MEASURES_SEQUENCE)?;
        let top = &self.header.elements;
        let candidates: [(&DataSet<'_>, Tag, VR); 4] = [
            (&measures, tags::PIXEL_SPACING, VR::DS),
            (top, tags::IMAGER_PIXEL_SPACING, VR::DS),
            (top, tags::NOMINAL_SCANNED_PIXEL_SPACING, VR::DS),
            (top, tags::PIXEL_ASPECT_RATIO, VR::IS),
        ];
        for (elements, tag, vr) in candidates {
            let numbers = if vr == VR::IS {
                match elements.text(tag, vr)? {
                    Some(text) => text
                        .split('\\')
                        .map(|part| part.trim().parse())
                        .collect::<Result<Vec<f64>, _>>()
                        .map_err(|_| Refusal::at(Reason::InvalidAttribute, tag))?,
                    None => Vec::new(),
                }
            } else {
                elements.decimals(tag, Reason::InvalidAttribute)?
            };
            match numbers.as_slice() {
                // Writers that do not know the spacing leave it out or put zeros.
                [] | [0.0, 0.0] => {}
                [vertical, horizontal] if *vertical > 0.0 && *horizontal > 0.0 => {
                    if !is_square(*vertical, *horizontal) {
                        return Err(Refusal::at(Reason::NonSquarePixels, tag)
                            .found(format_args!("{vertical}:{horizontal}")));
                    }
                }
                _ => return Err(Refusal::at(Reason::InvalidAttribute, tag)),
            }
        }
        Ok(())
    }

    /// The windows of CT are in Hounsfield units. Maps of iodine, of density or of the effective atomic number are CT too, and a
    /// file that lost its rescale would be shown brighter by what was taken from it.
    pub(crate) fn refuse_not_hounsfield(&self, frame: u32) -> Result<(), Refusal> {
        /// The defined term, and what some write in its place.
        const UNITS: [&str; 4] = ["HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS"];
        let elements = self
            .groups
            .of(frame, tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE)?;
        let refuse = |tag| Err(Refusal::at(Reason::NotHounsfield, tag));
        // Whatever unit it names, its entries are never negative (C.11.1.1), and a CT image has a rescale (C.8.2.1).
        if elements.first_item(tags::MODALITY_LUT_SEQUENCE)?.is_some() {
            return refuse(tags::MODALITY_LUT_SEQUENCE);
        }
        // An element of blanks says as little as none.
        let intercept = elements.decimals(tags::RESCALE_INTERCEPT, Reason::RescaleUnknownType)?;
        // Air has -1000, and bone is above water's 0: values of which none can be either were shifted, or are no Hounsfield units. Who
        // packs 8 bits of a slice and leaves its rescale as it was writes nothing but air.
        if intercept.is_empty() {
            return refuse(tags::RESCALE_INTERCEPT);
        }
        let (transform, cell) = (self.transform(frame)?, self.image.cell);
        if !transform.can_be_negative(cell) || !transform.can_be_positive(cell) {
            return refuse(tags::RESCALE_INTERCEPT);
        }
        // It may only be left out of HU, and not of images of several energies (C.8.2.1).
        let several_energies = self.is(tags::MULTIENERGY_CT_ACQUISITION, "YES")?;
        match elements.text(tags::RESCALE_TYPE, VR::LO)? {
            Some(unit) if UNITS.iter().any(|one| one.eq_ignore_ascii_case(unit)) => Ok(()),
            None if !several_energies => Ok(()),
            // Unspecified: a slice that a scanner made of one energy has no unit but HU (C.8.2.1), what was derived has any.
            Some("US") if !several_energies && self.is_original()? => Ok(()),
            _ => refuse(tags::RESCALE_TYPE),
        }
    }

    fn is(&self, tag: Tag, word: &str) -> Result<bool, Refusal> {
        Ok(self.header.text(tag, VR::CS)? == Some(word))
    }

    /// Whether it is a slice whose values were measured, and not made of others (C.8.2.1.1.1). One that does not say so is not.
    fn is_original(&self) -> Result<bool, Refusal> {
        let kinds = self.header.text(tags::IMAGE_TYPE, VR::CS)?;
        let mut kinds = kinds.unwrap_or_default().split('\\').map(str::trim);
        Ok(kinds.next() == Some("ORIGINAL") && kinds.all(|kind| kind != "LOCALIZER"))
    }

    /// A chest film that says it is mirrored or lies on its side would have a heart on the right. What other parts of the body
    /// are shown like has no one way up; Field of View Horizontal Flip says what was done on the way, and not how it lies now.
    pub(crate) fn refuse_turned_chest(&self) -> Result<(), Refusal> {
        if !self.shows_chest() {
            return Ok(());
        }
        let Some(orientation) = self.header.text(tags::PATIENT_ORIENTATION, VR::CS)? else {
            return Ok(());
        };
        let view = self.word(tags::VIEW_POSITION);
        let frontal = view.starts_with("PA") || view.starts_with("AP");
        // The first letter of each is the main one (C.7.6.1.1.1). A word that is not made of such letters says no direction.
        let mut directions = orientation.split('\\').map(|direction| {
            let mut letters = direction.trim().chars();
            let is_direction = letters.clone().all(|letter| "APRLHF".contains(letter));
            letters.next().filter(|_| is_direction)
        });
        let (row, column) = (directions.next().flatten(), directions.next().flatten());
        let across = match row {
            None | Some('L') => true,
            Some('A' | 'P') => !frontal,
            Some(_) => false,
        };
        if across && matches!(column, None | Some('F')) {
            Ok(())
        } else {
            Err(Refusal::at(Reason::NotUpright, tags::PATIENT_ORIENTATION))
        }
    }

    /// Whether it is of the chest. Some add the view to the part's name, and a film of DX need not name a part: its region has a
    /// code (C.8.11.2).
    fn shows_chest(&self) -> bool {
        /// Chest, its cavity, lung, and chest with neck, abdomen or pelvis, of SNOMED CT and of the older SNOMED RT (PS3.16 annex L).
        const CODES: [&str; 17] = [
            "816094009",
            "51185008",
            "T-D3000",
            "43799004",
            "T-D3200",
            "39607008",
            "T-28000",
            "416550000",
            "R-FAB55",
            "416775004",
            "R-FAB56",
            "417437006",
            "R-FAB52",
            "416152001",
            "R-FAB53",
            "416319003",
            "R-FAB54",
        ];
        let part = self.word(tags::BODY_PART_EXAMINED).to_ascii_uppercase();
        if ["CHEST", "THORAX", "LUNG", "NECKCHEST"]
            .iter()
            .any(|name| part.starts_with(name))
        {
            return true;
        }
        let region = self
            .header
            .elements
            .first_item(tags::ANATOMIC_REGION_SEQUENCE);
        region.ok().flatten().is_some_and(|region| {
            let code = region.text(tags::CODE_VALUE, VR::SH).ok().flatten();
            code.is_some_and(|code| CODES.contains(&code))
        })
    }

    /// A word of a header. Some write it in their own language and character set, which is none that is known here.
    fn word(&self, tag: Tag) -> &str {
        let text = self.header.text(tag, VR::CS);
        text.ok().flatten().unwrap_or_default()
    }

    /// A presentation LUT other than the plain one has no known right place before a model.
    pub(crate) fn refuse_presentation_lut(&self) -> Result<(), Refusal> {
        if self.header.presentation_lut {
            return Err(Refusal::at(
                Reason::UnsupportedLut,
                tags::PRESENTATION_LUT_SEQUENCE,
            ));
        }
        // INVERSE goes with MONOCHROME1 and says the same thing (PS3.3 C.8.11.3.1.2), so it is not a second inversion;
        // where the two contradict each other, there is no known right reading.
        let shape = self.header.text(tags::PRESENTATION_LUT_SHAPE, VR::CS)?;
        match (self.image.photometric, shape) {
            (_, None)
            | (Photometric::Monochrome1, Some("INVERSE"))
            | (Photometric::Monochrome2, Some("IDENTITY")) => Ok(()),
            _ => Err(Refusal::at(
                Reason::UnsupportedLut,
                tags::PRESENTATION_LUT_SHAPE,
            )),
        }
    }

    /// By the standard only radiographs have a display shutter: how another image is shown by one, nothing says.
    pub(crate) fn refuse_shutter(&self) -> Result<(), Refusal> {
        let tag = tags::SHUTTER_SHAPE;
        match self.header.text(tag, VR::CS)? {
            Some(_) => Err(Refusal::at(Reason::UnsupportedShutter, tag)),
            None => Ok(()),
        }
    }

    /// Stored values, smallest to largest, that are padding.
    pub(crate) fn padding(&self) -> Result<Option<(i64, i64)>, Refusal> {
        let cell: Cell = self.image.cell;
        let value = |tag| -> Result<Option<i64>, Refusal> {
            let Some(value) = self.header.elements.value(tag) else {
                return Ok(None);
            };
            match value.words(&[VR::US, VR::SS])?.as_slice() {
                // Pixel Representation decides the sign, whatever the writer chose as VR; the bits are the same.
                [word] if cell.signed => Ok(Some(i64::from(*word as i16))),
                [word] => Ok(Some(i64::from(*word))),
                _ => Err(Refusal::at(Reason::InvalidAttribute, tag)),
            }
        };
        let first = value(tags::PIXEL_PADDING_VALUE)?;
        let last = value(tags::PIXEL_PADDING_RANGE_LIMIT)?;
        Ok(first.map(|first| {
            let last = last.unwrap_or(first);
            (first.min(last), first.max(last))
        }))
    }

    /// What a reader of the result should know about the file.
    pub(crate) fn notes(&self) -> Result<Vec<Note>, Refusal> {
        let mut notes = Vec::new();
        if !self.header.preamble {
            notes.push(Note::NoPreamble);
        }
        if !self.header.meta {
            notes.push(Note::NoMeta);
        }
        if matches!(
            self.header.text(tags::SOP_CLASS_UID, VR::UI)?,
            Some(
                uids::SECONDARY_CAPTURE_IMAGE_STORAGE
                    | uids::MULTI_FRAME_SINGLE_BIT_SECONDARY_CAPTURE_IMAGE_STORAGE
                    | uids::MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE_IMAGE_STORAGE
                    | uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE
                    | uids::MULTI_FRAME_TRUE_COLOR_SECONDARY_CAPTURE_IMAGE_STORAGE
            )
        ) {
            notes.push(Note::SecondaryCapture);
        }
        if self.is(tags::LOSSY_IMAGE_COMPRESSION, "01")? || is_dct(self.image.codec) {
            notes.push(Note::LossyCompressed);
        }
        notes.extend(Annotation::of(&self.header)?.note());
        if self.header.overlays {
            notes.push(Note::OverlaysNotDrawn);
        }
        if self.image.photometric == Photometric::Monochrome1 {
            notes.push(Note::Inverted);
        }
        Ok(notes)
    }

    /// The allow-listed values; one that is missing or unusable is left out, as no frame depends on it.
    pub(crate) fn clinical(&self) -> ClinicalHeader {
        let text = |tag, vr| self.header.text(tag, vr).ok().flatten();
        ClinicalHeader {
            age: text(tags::PATIENT_AGE, VR::AS).and_then(Age::parse),
            sex: text(tags::PATIENT_SEX, VR::CS).and_then(Sex::parse),
            view_position: text(tags::VIEW_POSITION, VR::CS).and_then(ViewPosition::parse),
        }
    }
}
