//! The pseudonyms of a file's patient and study, without the rest of the object: what [`Deidentifier`] would write.
//!
//! [`Deidentifier`]: super::Deidentifier

use std::fmt;

use dicom_core::VR;
use dicom_dictionary_std::tags;

use super::replace::{DeidentificationKey, Pseudonyms};
use crate::{Limits, Reason, Refusal, header};

/// Whose a DICOM file is, for those who have the key. Shows nothing by itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Whose {
    /// Pseudonym of the patient, as [`Deidentifier`](super::Deidentifier) writes it in the place of the patient's id.
    pub patient: String,
    /// The mapped Study Instance UID.
    pub study: String,
}

impl fmt::Debug for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Whose(hidden)")
    }
}

impl DeidentificationKey {
    /// The pseudonyms of a DICOM file's patient and study. The same key gives the same ones for every file of theirs.
    /// A patient without an id goes by name and birth date, and without these by the study.
    ///
    /// # Errors
    /// What is not DICOM, cannot be read, or names no study.
    pub fn whose(&self, bytes: &[u8], limits: &Limits) -> Result<Whose, Refusal> {
        let opened = super::open(bytes, limits)?;
        let header = header::read(&opened, limits)?;
        let study = header.text(tags::STUDY_INSTANCE_UID, VR::UI)?;
        let study =
            study.ok_or_else(|| Refusal::at(Reason::MissingAttribute, tags::STUDY_INSTANCE_UID))?;
        let (data_set, encoding) = opened.data_set();
        let patient = super::patient(data_set, encoding)?;
        Ok(Whose {
            patient: Pseudonyms::new(self, &patient).patient,
            study: self.uid(study),
        })
    }
}
