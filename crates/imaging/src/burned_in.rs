//! Whether the pixels of a file may carry text: names and numbers that no header rule can take away. The header's own word
//! counts first; where it says nothing, the kind of source decides.
//!
//! Radiographs and slices as their devices make them pass, since hardly any of them says a word about annotation. What was drawn
//! on a screen, photographed or scanned does not: ultrasound, secondary captures, screen shots, digitised film, slide labels.

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};
use serde::{Deserialize, Serialize};

use crate::header::Header;
use crate::{Modality, Note, Reason, Refusal, TextKind};

/// What is done with files whose pixels may carry text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BurnedIn {
    /// They are refused with [`Reason::BurnedInAnnotation`].
    #[default]
    Refuse,
    /// They are used, and a note says so.
    Allow,
}

/// What is known about text in the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Annotation {
    /// The header says that there is none.
    None,
    /// The header says nothing, and the source is not one that writes any.
    Unlikely,
    /// The header says nothing, and the source usually writes some; which kind of source that is.
    Likely(&'static str),
    /// The header says that there is some, or anything else than that there is none.
    Stated,
}

/// Modalities whose devices draw text into their images, and the ones that say nothing about a device.
const MODALITIES: &[(&str, &str)] = &[
    ("US", "an ultrasound image"),
    ("IVUS", "an ultrasound image"),
    ("BDUS", "an ultrasound image"),
    ("ES", "an endoscopic image"),
    ("SC", "a secondary capture"),
    ("OT", "an image of another modality"),
    ("DG", "a diaphanograph"),
    ("DOC", "a document"),
];

const SOP_CLASSES: &[(&str, &str)] = &[
    (uids::ULTRASOUND_IMAGE_STORAGE, "an ultrasound image"),
    (
        uids::ULTRASOUND_MULTI_FRAME_IMAGE_STORAGE,
        "an ultrasound image",
    ),
    // The retired classes of both (PS3.6).
    ("1.2.840.10008.5.1.4.1.1.6", "an ultrasound image"),
    ("1.2.840.10008.5.1.4.1.1.3", "an ultrasound image"),
    (uids::SECONDARY_CAPTURE_IMAGE_STORAGE, "a secondary capture"),
    (
        uids::MULTI_FRAME_SINGLE_BIT_SECONDARY_CAPTURE_IMAGE_STORAGE,
        "a secondary capture",
    ),
    (
        uids::MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE_IMAGE_STORAGE,
        "a secondary capture",
    ),
    (
        uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE,
        "a secondary capture",
    ),
    (
        uids::MULTI_FRAME_TRUE_COLOR_SECONDARY_CAPTURE_IMAGE_STORAGE,
        "a secondary capture",
    ),
    (uids::VL_ENDOSCOPIC_IMAGE_STORAGE, "an endoscopic image"),
];

/// Conversion Type (PS3.3 C.8.6.1): how an image came to be that no device made directly.
const CONVERSIONS: &[(&str, &str)] = &[
    ("DV", "digitised video"),
    ("DF", "digitised film"),
    ("SD", "a scanned document"),
    ("SI", "a scanned image"),
    ("WSD", "a workstation's screen"),
    ("DRW", "a drawing"),
];

/// Words of Image Type with which scanners mark what they draw for people: dose sheets and screens; slide labels.
const IMAGE_TYPES: &[(&str, &str)] = &[
    ("SCREEN SAVE", "a screen shot"),
    ("SCREEN_SAVE", "a screen shot"),
    ("SCREENSAVE", "a screen shot"),
    ("SCREEN CAPTURE", "a screen shot"),
    ("DOSE_INFO", "a dose sheet"),
    ("DOSE REPORT", "a dose sheet"),
    ("REPORT", "a report"),
    ("LABEL", "a slide label"),
    ("OVERVIEW", "a slide with its label"),
];

impl Annotation {
    /// What the header says, or lets expect.
    pub(crate) fn of(header: &Header<'_>) -> Result<Self, Refusal> {
        match header.text(tags::BURNED_IN_ANNOTATION, VR::CS)? {
            Some("NO") => return Ok(Self::None),
            // YES, or a word that DICOM does not have: whoever wrote it did not say that there is none.
            Some(_) => return Ok(Self::Stated),
            None => {}
        }
        let one_of = |tag, vr, list: &[(&str, &'static str)]| -> Result<_, Refusal> {
            let text = header.text(tag, vr)?.unwrap_or_default();
            let found = text.split('\\').find_map(|word| {
                let word = word.trim();
                list.iter().find(|(known, _)| *known == word)
            });
            Ok(found.map(|(_, source)| *source))
        };
        let sources = [
            (tags::SOP_CLASS_UID, VR::UI, SOP_CLASSES),
            (tags::MODALITY, VR::CS, MODALITIES),
            (tags::CONVERSION_TYPE, VR::CS, CONVERSIONS),
            (tags::IMAGE_TYPE, VR::CS, IMAGE_TYPES),
        ];
        for (tag, vr, list) in sources {
            if let Some(source) = one_of(tag, vr, list)? {
                return Ok(Self::Likely(source));
            }
        }
        let label = header.text(tags::SPECIMEN_LABEL_IN_IMAGE, VR::CS)?;
        Ok(match label {
            Some("YES") => Self::Likely("a slide with its label"),
            _ => Self::Unlikely,
        })
    }

    /// Why the file is refused where nobody allows such files.
    pub(crate) fn refusal(self) -> Option<Refusal> {
        let found = match self {
            Self::None | Self::Unlikely => return None,
            Self::Likely(source) => format!("nothing said by {source}"),
            Self::Stated => "YES, or a word other than NO".to_owned(),
        };
        Some(Refusal::at(Reason::BurnedInAnnotation, tags::BURNED_IN_ANNOTATION).found(found))
    }

    /// What to tell the reader where the file is used all the same.
    pub(crate) fn note(self) -> Option<Note> {
        match self {
            Self::None | Self::Unlikely => None,
            Self::Likely(_) => Some(Note::BurnedInPossible),
            Self::Stated => Some(Note::BurnedInAnnotation),
        }
    }
    /// Which of the pictures it is that a reader of text may be shown.
    pub(crate) fn kind(self, modality: Modality) -> TextKind {
        match (self, modality) {
            (Self::None, _) => TextKind::Vouched,
            (Self::Unlikely, Modality::Ct | Modality::Mr) => TextKind::Slice,
            (Self::Unlikely, _) => TextKind::Unsaid,
            (Self::Likely(_) | Self::Stated, _) => TextKind::Allowed,
        }
    }
}
