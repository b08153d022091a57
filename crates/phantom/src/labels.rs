//! The words of the phantom world: findings, sides, zones and sizes, with the names that records carry.

use serde::Serialize;

/// A finding, in the order in which records and reports list them. None of them is a normal picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The heart takes more than half of the chest's width.
    Cardiomegaly,
    /// Fluid at the base of a lung.
    PleuralEffusion,
    /// Air between a lung and its wall.
    Pneumothorax,
    /// A fluffy patch.
    Consolidation,
    /// A round spot.
    Nodule,
    /// A plate of collapsed lung.
    Atelectasis,
    /// Haze about both hila.
    Oedema,
    /// A tube, a catheter or a pacemaker.
    SupportDevice,
    /// A broken rib.
    Fracture,
}

impl Label {
    pub const ALL: [Self; 9] = [
        Self::Cardiomegaly,
        Self::PleuralEffusion,
        Self::Pneumothorax,
        Self::Consolidation,
        Self::Nodule,
        Self::Atelectasis,
        Self::Oedema,
        Self::SupportDevice,
        Self::Fracture,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Cardiomegaly => "cardiomegaly",
            Self::PleuralEffusion => "pleural_effusion",
            Self::Pneumothorax => "pneumothorax",
            Self::Consolidation => "consolidation",
            Self::Nodule => "nodule",
            Self::Atelectasis => "atelectasis",
            Self::Oedema => "oedema",
            Self::SupportDevice => "support_device",
            Self::Fracture => "fracture",
        }
    }

    /// Whether it lies on one side of the patient.
    pub const fn is_sided(self) -> bool {
        !matches!(
            self,
            Self::Cardiomegaly | Self::Oedema | Self::SupportDevice
        )
    }

    pub const fn is_counted(self) -> bool {
        !matches!(
            self,
            Self::Cardiomegaly | Self::Consolidation | Self::Atelectasis | Self::Oedema
        )
    }

    pub const fn is_sized(self) -> bool {
        !matches!(self, Self::SupportDevice | Self::Fracture)
    }

    /// Whether it makes its region darker.
    pub const fn is_dark(self) -> bool {
        matches!(self, Self::Pneumothorax | Self::Fracture)
    }
}

/// Where a finding lies. Sides are the patient's: their left is on the right of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The right of the picture.
    Left,
    /// The left of the picture.
    Right,
    Bilateral,
    /// Neither.
    Midline,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Bilateral => "bilateral",
            Self::Midline => "midline",
        }
    }

    /// The other side; neither and both stay what they are.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            other => other,
        }
    }
}

/// Third of a lung, from the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Zone {
    Upper,
    Mid,
    Lower,
}

impl Zone {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upper => "upper",
            Self::Mid => "mid",
            Self::Lower => "lower",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    Small,
    Moderate,
    Large,
}

impl Size {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Moderate => "moderate",
            Self::Large => "large",
        }
    }

    /// The word for what has a degree rather than a size: an enlarged heart, oedema.
    pub const fn degree(self) -> &'static str {
        match self {
            Self::Small => "mild",
            Self::Moderate => "moderate",
            Self::Large => "severe",
        }
    }

    /// One step larger, if there is one.
    #[must_use]
    pub const fn larger(self) -> Option<Self> {
        match self {
            Self::Small => Some(Self::Moderate),
            Self::Moderate => Some(Self::Large),
            Self::Large => None,
        }
    }

    /// One step smaller, if there is one.
    #[must_use]
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Small => None,
            Self::Moderate => Some(Self::Small),
            Self::Large => Some(Self::Moderate),
        }
    }

    /// A fraction `within` 0..1 of this third, on a scale of all sizes from 0 to 1.
    pub(crate) const fn along(self, within: f32) -> f32 {
        let third = match self {
            Self::Small => 0.0,
            Self::Moderate => 1.0,
            Self::Large => 2.0,
        };
        (third + within) / 3.0
    }
}
