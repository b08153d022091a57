//! The few header values that may go into a prompt: age, sex and view position, each as a type and never as text.
//! Everything else in a header stays in the file.

use serde::Serialize;

/// What a prompt may say about the patient and the picture. Absent or unusable values are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClinicalHeader {
    /// From (0010,1010).
    pub age: Option<Age>,
    /// From (0010,0040).
    pub sex: Option<Sex>,
    /// From (0018,5101).
    pub view_position: Option<ViewPosition>,
}

/// An age. Years above 89 are given as 90, which means "90 or older" (the HIPAA safe-harbour rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Age {
    pub value: u16,
    pub unit: AgeUnit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AgeUnit {
    Days,
    Weeks,
    Months,
    Years,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Sex {
    /// `F`.
    Female,
    /// `M`.
    Male,
    /// `O`.
    Other,
}

/// The view of a radiograph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ViewPosition {
    /// Anterior to posterior.
    Ap,
    /// Posterior to anterior.
    Pa,
    /// Left lateral.
    Ll,
    /// Right lateral.
    Rl,
    /// Lateral, side not said.
    Lateral,
}

impl Age {
    /// Reads a DICOM age string such as `045Y`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (digits, unit) = text.split_at_checked(3)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let value: u16 = digits.parse().ok()?;
        match unit {
            "D" => Some(Self {
                value,
                unit: AgeUnit::Days,
            }),
            "W" => Some(Self {
                value,
                unit: AgeUnit::Weeks,
            }),
            "M" => Some(Self {
                value,
                unit: AgeUnit::Months,
            }),
            "Y" => Some(Self {
                value: value.min(90),
                unit: AgeUnit::Years,
            }),
            _ => None,
        }
    }
}

impl Sex {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "F" => Some(Self::Female),
            "M" => Some(Self::Male),
            "O" => Some(Self::Other),
            _ => None,
        }
    }
}

impl ViewPosition {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "AP" => Some(Self::Ap),
            "PA" => Some(Self::Pa),
            "LL" => Some(Self::Ll),
            "RL" => Some(Self::Rl),
            "LATERAL" | "LAT" => Some(Self::Lateral),
            _ => None,
        }
    }
}
