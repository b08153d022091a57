//! DICOM objects that may leave: the Basic Application Level Confidentiality Profile of PS3.15 with three of its options, over
//! files of any transfer syntax of the standard. Pixel data is copied byte for byte; it is decoded only where text is looked for in it.
//!
//! It fails closed. What the standard's dictionary does not know is removed, text that is kept is screened for the header's own
//! names and numbers, and an object is refused whose pixels may carry text or that is no image.
//!
//! Identifiers are mapped with a key: the same key gives the same pseudonyms, UIDs and shift of dates, over any set of files and
//! at any time; without it they lead nowhere.
//!
//! Reading order: this file, `profile` (the standard's table), `rewrite` (element by element), `replace` (what stands instead),
//! `text` (text that is cleaned), `patterns` (what looks like an identifier), `terms` (words that stay), `pixels` (text in frames),
//! `write` (elements and file meta information); `whose` (the pseudonyms alone).

mod patterns;
mod pixels;
mod profile;
mod replace;
mod rewrite;
mod terms;
mod text;
mod whose;
mod write;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use serde::Serialize;

use crate::burned_in::Annotation;
use crate::charset::CharacterSet;
use crate::elements::{Elements, VrEncoding};
use crate::header::{self, Header, Opened};
use crate::{BurnedIn, Format, Identifiers, Limits, Reason, Refusal, TextCheck, sniff};

use replace::Pseudonyms;
use rewrite::Rewriter;

pub use replace::{DeidentificationKey, KeyError};
pub use whose::Whose;

/// Which options of PS3.15 are used besides the Basic Profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Retain Longitudinal Temporal Information with Modified Dates: dates go back by a number of days that is each patient's
    /// own, times stay. Without it they are removed or replaced.
    pub modified_dates: bool,
    /// Clean Descriptors: descriptions and comments stay, screened. Without it they are removed or replaced.
    pub clean_descriptors: bool,
    /// Retain Patient Characteristics: age (90 is the highest), sex, size, weight and the like stay.
    pub patient_characteristics: bool,
    /// Objects whose pixels may carry text.
    pub burned_in: BurnedIn,
}

/// Makes objects that may leave.
#[derive(Clone, Debug)]
pub struct Deidentifier {
    key: DeidentificationKey,
    profile: Profile,
    text_check: Option<TextCheck>,
}

/// An object that may leave.
#[derive(Clone, Debug)]
pub struct Deidentified {
    pub bytes: Vec<u8>,
    /// Its new SOP Instance UID.
    pub instance: String,
    /// What was done.
    pub changes: Changes,
}

/// How many elements were treated how, items of sequences included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Left as they were.
    pub kept: u32,
    /// Taken away.
    pub removed: u32,
    /// Left without a value.
    pub emptied: u32,
    /// Given a value that says nothing.
    pub replaced: u32,
    /// UIDs mapped with the key.
    pub mapped: u32,
    /// Dates moved.
    pub shifted: u32,
    /// Texts in which something was masked.
    pub cleaned: u32,
}

impl Deidentifier {
    pub fn new(key: DeidentificationKey, profile: Profile) -> Self {
        Self {
            key,
            profile,
            text_check: None,
        }
    }

    /// The same, with text looked for in every frame, whatever the header says. An object in which some is found is refused,
    /// and one that can't be decoded.
    #[must_use]
    pub fn checking_text(self, text_check: Option<TextCheck>) -> Self {
        Self { text_check, ..self }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Makes an object that may leave.
    ///
    /// # Errors
    /// What is no DICOM image, what the burned-in gate refuses, and every file that can't be read to its end.
    pub fn deidentify(&self, bytes: &[u8], limits: &Limits) -> Result<Deidentified, Refusal> {
        let opened = open(bytes, limits)?;
        let header = header::read(&opened, limits)?;
        self.judge(&header)?;
        if let Some(check) = &self.text_check {
            pixels::refuse_text(&opened, limits, check)?;
        }
        let (data_set, encoding) = opened.data_set();
        let required = |tag| {
            let text = header.text(tag, VR::UI)?;
            text.ok_or_else(|| Refusal::at(Reason::MissingAttribute, tag))
        };
        // As in the data set: one of the standard stays, another could be any text.
        let class = self.key.uid(required(tags::SOP_CLASS_UID)?);
        let syntax = write::transfer_syntax(header.transfer_syntax).ok_or_else(|| {
            Refusal::at(Reason::UnsupportedTransferSyntax, tags::TRANSFER_SYNTAX_UID)
        })?;
        let instance = self.key.uid(required(tags::SOP_INSTANCE_UID)?);
        let mut identifiers = Identifiers::default();
        identifiers.read(data_set, encoding, CharacterSet::unnamed(), 0)?;
        if identifiers.too_many() {
            return Err(Refusal::new(Reason::TooLarge).found("too many identifiers"));
        }
        let mut rewriter = Rewriter {
            pseudonyms: Pseudonyms::new(&self.key, &patient(data_set, encoding)?),
            profile: self.profile,
            identifiers,
            changes: Changes::default(),
            dummies: false,
        };
        let mut elements = rewriter.data_set(data_set, encoding, CharacterSet::unnamed(), 0)?;
        elements.extend(write::statements(&self.profile, encoding));
        elements.sort_by_key(|(tag, _)| *tag);
        let mut bytes = write::file_meta(&class, &instance, syntax);
        for (_, element) in elements {
            bytes.extend(element);
        }
        Ok(Deidentified {
            bytes,
            instance,
            changes: rewriter.changes,
        })
    }

    /// The gate: only images, and none whose pixels may carry text.
    fn judge(&self, header: &Header<'_>) -> Result<(), Refusal> {
        if header.pixel_data.is_none() {
            return Err(Refusal::at(Reason::NoPixelData, tags::PIXEL_DATA));
        }
        if self.profile.burned_in == BurnedIn::Allow {
            return Ok(());
        }
        if let Some(refusal) = Annotation::of(header)?.refusal() {
            return Err(refusal);
        }
        if header.overlay_bits != 0 {
            return Err(Refusal::at(Reason::BurnedInAnnotation, tags::PIXEL_DATA)
                .found("an overlay in the pixel cells"));
        }
        Ok(())
    }
}

/// Opens a DICOM file of a size that is allowed, and nothing else.
fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Opened<'a>, Refusal> {
    if bytes.len() as u64 > limits.file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    if sniff(bytes)? != Format::Dicom {
        return Err(Refusal::new(Reason::NotDicom));
    }
    header::open(bytes, limits)
}

/// Whom dates and pseudonyms go by: the patient's id, else name and birth date, else the study.
fn patient(data_set: &[u8], encoding: VrEncoding) -> Result<Vec<u8>, Refusal> {
    const CHOICES: [&[Tag]; 3] = [
        &[tags::PATIENT_ID],
        &[tags::PATIENT_NAME, tags::PATIENT_BIRTH_DATE],
        &[tags::STUDY_INSTANCE_UID],
    ];
    let mut values: Vec<(Tag, &[u8])> = Vec::new();
    for element in Elements::new(data_set, encoding) {
        let element = element?;
        if element.tag == tags::PIXEL_DATA {
            break;
        }
        if CHOICES.iter().any(|choice| choice.contains(&element.tag)) {
            let value = &data_set[element.value.clone()];
            let end = value.iter().rposition(|byte| !matches!(byte, b' ' | 0));
            values.push((element.tag, &value[..end.map_or(0, |end| end + 1)]));
        }
    }
    for (number, choice) in (0..).zip(CHOICES) {
        let of = values.iter().filter(|(tag, _)| choice.contains(tag));
        let joined = of.map(|(_, value)| *value).collect::<Vec<_>>().join(&0);
        if joined.iter().any(|byte| *byte != 0) {
            return Ok([&[number], joined.as_slice()].concat());
        }
    }
    Ok(Vec::new())
}
