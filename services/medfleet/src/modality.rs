//! What a person says that files show whose format does not say it.

use clap::ValueEnum;
use medfleet_imaging::Modality;

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VolumeModality {
    /// Hounsfield units
    Ct,
    /// Intensities without a unit
    Mr,
}

impl VolumeModality {
    pub(crate) fn of_imaging(self) -> Modality {
        match self {
            Self::Ct => Modality::Ct,
            Self::Mr => Modality::Mr,
        }
    }
}

/// What an image is, as DICOM calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageModality {
    /// A CT volume, or slices as pictures
    Ct,
    /// An MR volume, or slices as pictures
    Mr,
    /// A radiograph from a plate
    Cr,
    /// A radiograph from a detector
    Dx,
    /// A mammogram
    Mg,
    /// An ultrasound image
    Us,
    /// A photograph of a patient: skin, wounds
    Xc,
    /// A photograph of an eye: fundus
    Op,
    /// Ophthalmic tomography
    Opt,
    /// Endoscopy
    Es,
    /// A dermoscopic image
    Dms,
    /// Pathology
    Sm,
    /// Other microscopy
    Gm,
    /// The retired word for other microscopy
    Dm,
}

impl ImageModality {
    /// The word of the API.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ct => "CT",
            Self::Mr => "MR",
            Self::Cr => "CR",
            Self::Dx => "DX",
            Self::Mg => "MG",
            Self::Us => "US",
            Self::Xc => "XC",
            Self::Op => "OP",
            Self::Opt => "OPT",
            Self::Es => "ES",
            Self::Dms => "DMS",
            Self::Sm => "SM",
            Self::Gm => "GM",
            Self::Dm => "DM",
        }
    }
}

#[cfg(test)]
mod tests {
    use medfleet_engine::{Images, Question};

    use super::*;

    #[test]
    fn prompts_have_words_for_all_that_can_be_said() {
        let report = Question::Report {
            clinical_context: String::new(),
        };
        let asked = |modality: &str| report.prompt(&Images::of(modality, 1)).expect("words");
        let all = ImageModality::value_variants().iter();
        let headers = Modality::ALL.iter().map(|modality| modality.as_str());
        for word in all.map(|modality| modality.word()).chain(headers) {
            assert_ne!(asked(word), asked(""), "{word}");
        }
    }
}
