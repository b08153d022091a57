//! Reads the values of measured elements: text, numbers and the items of sequences, in every encoding that DICOM has.
//! Only the elements of [`KEPT`] are ever looked at; names, identifiers and private elements are stepped over unread (`screen` looks for them by itself).

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use crate::elements::{Elements, Extent, VrEncoding, items};
use crate::{Reason, Refusal};

/// The elements that are read, at the top and inside sequences.
pub(crate) const KEPT: &[Tag] = &[
    tags::IMAGE_TYPE,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::MODALITY,
    tags::CONVERSION_TYPE,
    tags::PRESENTATION_INTENT_TYPE,
    tags::PIXEL_PRESENTATION,
    tags::PATIENT_SEX,
    tags::PATIENT_AGE,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::SERIES_NUMBER,
    tags::ACQUISITION_NUMBER,
    tags::INSTANCE_NUMBER,
    tags::IMAGE_POSITION_PATIENT,
    tags::IMAGE_ORIENTATION_PATIENT,
    tags::IMAGER_PIXEL_SPACING,
    tags::VIEW_POSITION,
    tags::BODY_PART_EXAMINED,
    tags::ANATOMIC_REGION_SEQUENCE,
    tags::CODE_VALUE,
    tags::PATIENT_ORIENTATION,
    tags::NOMINAL_SCANNED_PIXEL_SPACING,
    tags::SHUTTER_SHAPE,
    tags::SHUTTER_LEFT_VERTICAL_EDGE,
    tags::SHUTTER_RIGHT_VERTICAL_EDGE,
    tags::SHUTTER_UPPER_HORIZONTAL_EDGE,
    tags::SHUTTER_LOWER_HORIZONTAL_EDGE,
    tags::CENTER_OF_CIRCULAR_SHUTTER,
    tags::RADIUS_OF_CIRCULAR_SHUTTER,
    tags::VERTICES_OF_THE_POLYGONAL_SHUTTER,
    tags::SHUTTER_PRESENTATION_VALUE,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::PLANAR_CONFIGURATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::PIXEL_SPACING,
    tags::PIXEL_ASPECT_RATIO,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::PIXEL_PADDING_VALUE,
    tags::PIXEL_PADDING_RANGE_LIMIT,
    tags::BURNED_IN_ANNOTATION,
    tags::SPECIMEN_LABEL_IN_IMAGE,
    tags::WINDOW_CENTER,
    tags::WINDOW_WIDTH,
    tags::RESCALE_INTERCEPT,
    tags::RESCALE_SLOPE,
    tags::RESCALE_TYPE,
    tags::MULTIENERGY_CT_ACQUISITION,
    tags::VOILUT_FUNCTION,
    tags::LOSSY_IMAGE_COMPRESSION,
    tags::MODALITY_LUT_SEQUENCE,
    tags::VOILUT_SEQUENCE,
    tags::LUT_DESCRIPTOR,
    tags::LUT_DATA,
    tags::PRESENTATION_LUT_SHAPE,
    tags::ICC_PROFILE,
    tags::COLOR_SPACE,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::SEGMENTED_RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::SEGMENTED_GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::SEGMENTED_BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
    tags::FRAME_VOILUT_SEQUENCE,
    tags::PLANE_POSITION_SEQUENCE,
    tags::PLANE_ORIENTATION_SEQUENCE,
    tags::PIXEL_MEASURES_SEQUENCE,
    tags::DIMENSION_ORGANIZATION_TYPE,
    tags::CONCATENATION_UID,
    tags::IN_CONCATENATION_TOTAL_NUMBER,
    tags::TOTAL_PIXEL_MATRIX_COLUMNS,
    tags::TOTAL_PIXEL_MATRIX_ROWS,
    tags::OPTICAL_PATH_SEQUENCE,
    tags::NUMBER_OF_OPTICAL_PATHS,
    tags::TOTAL_PIXEL_MATRIX_FOCAL_PLANES,
    tags::PLANE_POSITION_SLIDE_SEQUENCE,
    tags::COLUMN_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX,
    tags::ROW_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX,
];

/// Adds an element of `bytes` to the kept ones, if it is one of those that are read.
///
/// # Errors
/// One that is there already with another value: some readers take the first, some the last.
pub(crate) fn keep(kept: &mut Vec<Extent>, element: &Extent, bytes: &[u8]) -> Result<(), Refusal> {
    if !KEPT.contains(&element.tag) {
        return Ok(());
    }
    let value = |extent: &Extent| &bytes[extent.value.clone()];
    match kept.iter().find(|one| one.tag == element.tag) {
        Some(one) if value(one) != value(element) => {
            Err(Refusal::at(Reason::Malformed, element.tag).found("two values of one element"))
        }
        Some(_) => Ok(()),
        None => {
            kept.push(element.clone());
            Ok(())
        }
    }
}

/// The kept elements of a data set or of an item, where they lie.
#[derive(Clone, Debug)]
pub(crate) struct DataSet<'a> {
    bytes: &'a [u8],
    encoding: VrEncoding,
    elements: Vec<Extent>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub(crate) tag: Tag,
    /// As written; `None` in implicit encoding.
    pub(crate) vr: Option<[u8; 2]>,
    pub(crate) bytes: &'a [u8],
    encoding: VrEncoding,
}

impl<'a> DataSet<'a> {
    /// Of extents into `bytes`, which the caller has chosen.
    pub(crate) fn new(bytes: &'a [u8], encoding: VrEncoding, elements: Vec<Extent>) -> Self {
        Self {
            bytes,
            encoding,
            elements,
        }
    }

    /// Walks an item.
    fn read(bytes: &'a [u8], encoding: VrEncoding) -> Result<Self, Refusal> {
        let mut elements = Vec::new();
        for element in Elements::new(bytes, encoding) {
            keep(&mut elements, &element?, bytes)?;
        }
        Ok(Self::new(bytes, encoding, elements))
    }

    fn extent(&self, tag: Tag) -> Option<&Extent> {
        self.elements.iter().find(|element| element.tag == tag)
    }

    /// The value, if the element is there and has one.
    pub(crate) fn value(&self, tag: Tag) -> Option<Value<'a>> {
        let extent = self.extent(tag)?;
        let bytes = &self.bytes[extent.value.clone()];
        (!bytes.is_empty()).then_some(Value {
            tag,
            vr: extent.vr,
            bytes,
            encoding: self.encoding,
        })
    }

    /// Trimmed text of an element with VR `vr`; `None` if absent or empty.
    pub(crate) fn text(&self, tag: Tag, vr: VR) -> Result<Option<&'a str>, Refusal> {
        let Some(value) = self.value(tag) else {
            return Ok(None);
        };
        if !value.is(&[vr]) {
            return Err(Refusal::at(Reason::InvalidAttribute, tag));
        }
        let text = value.str()?;
        Ok((!text.is_empty()).then_some(text))
    }

    /// The whole number of an element of text.
    pub(crate) fn integer(&self, tag: Tag) -> Result<Option<i64>, Refusal> {
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        self.text(tag, VR::IS)?
            .map(|text| text.parse().map_err(|_| invalid()))
            .transpose()
    }

    /// The single unsigned 16-bit value of an element; `None` if absent or empty.
    pub(crate) fn u16(&self, tag: Tag) -> Result<Option<u16>, Refusal> {
        let Some(value) = self.value(tag) else {
            return Ok(None);
        };
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        match value.words(&[VR::US])?.as_slice() {
            [word] => Ok(Some(*word)),
            _ => Err(invalid()),
        }
    }

    /// The single 32-bit value of an element, which is never negative; `None` if absent or empty.
    pub(crate) fn u32(&self, tag: Tag) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.value(tag) else {
            return Ok(None);
        };
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        let bytes: [u8; 4] = value.bytes.try_into().map_err(|_| invalid())?;
        let number = self.encoding.u32(bytes);
        if !value.is(&[VR::UL, VR::SL]) || i32::try_from(number).is_err() {
            return Err(invalid());
        }
        Ok(Some(number))
    }

    /// The numbers of an element of decimal text; empty if absent or empty.
    pub(crate) fn decimals(&self, tag: Tag, wrong_vr: Reason) -> Result<Vec<f64>, Refusal> {
        let Some(value) = self.value(tag) else {
            return Ok(Vec::new());
        };
        // A writer that did not know the element wrote UN; the dictionary knows it as decimal text (PS3.5 6.2.2).
        if !value.is(&[VR::DS]) {
            return Err(Refusal::at(wrong_vr, tag));
        }
        let text = value.str()?;
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let number = |part: &str| {
            part.trim()
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .ok_or_else(|| Refusal::at(Reason::InvalidAttribute, tag))
        };
        text.split('\\').map(number).collect()
    }

    /// The items of a sequence; none if it is absent or empty.
    pub(crate) fn items(&self, tag: Tag) -> Result<Vec<DataSet<'a>>, Refusal> {
        let Some(extent) = self.extent(tag) else {
            return Ok(Vec::new());
        };
        if !(extent.sequence || extent.undefined_length || extent.vr == Some(*b"UN")) {
            return Err(Refusal::at(Reason::Malformed, tag));
        }
        let value = &self.bytes[extent.value.clone()];
        items(value, tag, extent.inner)?
            .into_iter()
            .map(|item| DataSet::read(item, extent.inner))
            .collect()
    }

    /// The first item of a sequence.
    pub(crate) fn first_item(&self, tag: Tag) -> Result<Option<DataSet<'a>>, Refusal> {
        Ok(self.items(tag)?.into_iter().next())
    }
}

impl<'a> Value<'a> {
    /// Whether the value representation is one of these, or is not said.
    pub(crate) fn is(&self, vrs: &[VR]) -> bool {
        match self.vr {
            None => true,
            Some(vr) => &vr == b"UN" || vrs.iter().any(|one| one.to_bytes() == vr),
        }
    }

    /// Text of the default character set, trimmed. What is read as text has a length of 16 bits where its VR is written (PS3.5
    /// 7.1.2); without that it could be as long as a header, and every frame asks for some of it.
    fn str(&self) -> Result<&'a str, Refusal> {
        if self.bytes.len() > usize::from(u16::MAX) {
            return Err(Refusal::at(Reason::InvalidAttribute, self.tag));
        }
        std::str::from_utf8(self.bytes)
            .map(|text| text.trim_matches(|c: char| c.is_whitespace() || c == '\0'))
            .map_err(|_| Refusal::at(Reason::InvalidAttribute, self.tag))
    }

    /// Bytes, also of what was written as words: two in each, the first one in its low byte.
    pub(crate) fn packed(&self) -> Vec<u8> {
        let swapped = self.encoding == VrEncoding::ExplicitBigEndian && self.vr == Some(*b"OW");
        let at = |at: usize| if swapped { at ^ 1 } else { at };
        let bytes = (0..self.bytes.len()).filter_map(|index| self.bytes.get(at(index)));
        bytes.copied().collect()
    }

    /// 16-bit words.
    pub(crate) fn words(&self, vrs: &[VR]) -> Result<Vec<u16>, Refusal> {
        if !self.is(vrs) || !self.bytes.len().is_multiple_of(2) {
            return Err(Refusal::at(Reason::InvalidAttribute, self.tag));
        }
        // What is written as UN is written in little endian (PS3.5 6.2.2).
        let encoding = if self.vr == Some(*b"UN") {
            VrEncoding::Implicit
        } else {
            self.encoding
        };
        Ok(self
            .bytes
            .chunks_exact(2)
            .map(|pair| encoding.u16([pair[0], pair[1]]))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> DataSet<'_> {
        DataSet::read(bytes, VrEncoding::Explicit).unwrap()
    }

    #[test]
    fn decimal_text_is_read_whatever_says_so() {
        for bytes in [
            &b"\x28\0\x52\x10DS\x06\0-1024 "[..],
            b"\x28\0\x52\x10UN\0\0\x06\0\0\0-1024 ",
        ] {
            assert_eq!(
                read(bytes)
                    .decimals(tags::RESCALE_INTERCEPT, Reason::InvalidRescale)
                    .unwrap(),
                [-1024.0]
            );
        }
        let wrong = b"\x28\0\x52\x10US\x02\0\x05\0";
        assert_eq!(
            read(wrong)
                .decimals(tags::RESCALE_INTERCEPT, Reason::RescaleUnknownType)
                .unwrap_err()
                .reason,
            Reason::RescaleUnknownType
        );
    }

    #[test]
    fn a_text_is_no_longer_than_its_length_can_be_written() {
        let found = |length: u16, more: usize| {
            let mut bytes = b"\x28\0\x52\x10UN\0\0".to_vec();
            let length = usize::from(length) + more;
            bytes.extend((length as u32).to_le_bytes());
            bytes.resize(bytes.len() + length, b' ');
            let set = DataSet::read(&bytes, VrEncoding::Explicit).unwrap();
            let decimals = set.decimals(tags::RESCALE_INTERCEPT, Reason::InvalidRescale);
            decimals.map_err(|refusal| refusal.reason)
        };
        assert_eq!(found(u16::MAX, 0), Ok(Vec::new()));
        assert_eq!(found(u16::MAX, 1), Err(Reason::InvalidAttribute));
    }

    #[test]
    fn numbers_follow_the_byte_order() {
        let bytes = b"\0\x28\0\x10US\0\x02\x01\x02";
        let set = DataSet::read(bytes, VrEncoding::ExplicitBigEndian).unwrap();
        assert_eq!(set.u16(tags::ROWS).unwrap(), Some(0x0102));
    }

    #[test]
    fn what_is_not_kept_is_not_there() {
        let bytes = b"\x10\0\x10\0PN\x04\0Name\x28\0\x10\0US\x02\0\x05\0";
        let set = read(bytes);
        assert!(set.value(tags::PATIENT_NAME).is_none() && set.value(tags::ROWS).is_some());
    }
}
