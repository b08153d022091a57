//! The modality that a person says of volumes whose format has none.

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
    /// The word of the API.
    pub(crate) fn word(self) -> &'static str {
        self.of_imaging().as_str()
    }

    pub(crate) fn of_imaging(self) -> Modality {
        match self {
            Self::Ct => Modality::Ct,
            Self::Mr => Modality::Mr,
        }
    }
}
