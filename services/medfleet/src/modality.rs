//! What a person says that files show whose format does not say it.

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use medfleet_core::GivenModality;
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

/// Reads a word of the API, in either case.
pub(crate) fn given() -> impl TypedValueParser<Value = GivenModality> {
    let known = GivenModality::ALL.iter();
    let words = known.map(|known| PossibleValue::new(known.as_str()).help(meaning(*known)));
    PossibleValuesParser::new(words)
        .try_map(|word| word.to_ascii_uppercase().parse::<GivenModality>())
}

const fn meaning(modality: GivenModality) -> &'static str {
    match modality {
        GivenModality::Ct => "A CT volume, or slices as pictures",
        GivenModality::Mr => "An MR volume, or slices as pictures",
        GivenModality::Cr => "A radiograph from a plate",
        GivenModality::Dx => "A radiograph from a detector",
        GivenModality::Mg => "A mammogram",
        GivenModality::Us => "An ultrasound image",
        GivenModality::Xc => "A photograph of a patient: skin, wounds",
        GivenModality::Op => "A photograph of an eye: fundus",
        GivenModality::Opt => "Ophthalmic tomography",
        GivenModality::Es => "Endoscopy",
        GivenModality::Gm => "Other microscopy",
        GivenModality::Dms => "A dermoscopic image",
        GivenModality::Sm => "Pathology",
        GivenModality::Dm => "The retired word for other microscopy",
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
        let given = GivenModality::ALL.iter().map(|modality| modality.as_str());
        let headers = Modality::ALL.iter().map(|modality| modality.as_str());
        for word in given.chain(headers) {
            assert_ne!(asked(word), asked(""), "{word}");
        }
    }
}
