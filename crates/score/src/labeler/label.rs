//! The labels that the labeler knows: the 14 of CheXpert, nine of which are also the phantoms'.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// A mediastinum that is too wide.
    EnlargedCardiomediastinum,
    Cardiomegaly,
    /// Any opacity of the lung.
    LungOpacity,
    /// A nodule or mass.
    LungLesion,
    /// Fluid in the lung.
    Edema,
    /// A filled airspace.
    Consolidation,
    /// An infection.
    Pneumonia,
    /// A collapsed part of the lung.
    Atelectasis,
    /// Air between lung and wall.
    Pneumothorax,
    /// Fluid between lung and wall.
    PleuralEffusion,
    /// Another change of the pleura.
    PleuralOther,
    Fracture,
    /// Tubes, lines, wires, pacemakers.
    SupportDevices,
    /// None of the above but devices.
    NoFinding,
}

/// Label, CheXpert's name, the phantoms' name, and other names that sets use.
const NAMES: &[(Label, &str, Option<&str>, &[&str])] = &[
    (
        Label::EnlargedCardiomediastinum,
        "Enlarged Cardiomediastinum",
        None,
        &["enlarged_cardiomediastinal_silhouette"],
    ),
    (
        Label::Cardiomegaly,
        "Cardiomegaly",
        Some("cardiomegaly"),
        &["enlarged_heart"],
    ),
    (
        Label::LungOpacity,
        "Lung Opacity",
        None,
        &["airspace_opacity", "infiltration", "opacity"],
    ),
    (
        Label::LungLesion,
        "Lung Lesion",
        Some("nodule"),
        &["mass", "nodule_mass", "lung_nodule"],
    ),
    (
        Label::Edema,
        "Edema",
        Some("oedema"),
        &["pulmonary_edema", "pulmonary_oedema"],
    ),
    (
        Label::Consolidation,
        "Consolidation",
        Some("consolidation"),
        &[],
    ),
    (Label::Pneumonia, "Pneumonia", None, &[]),
    (Label::Atelectasis, "Atelectasis", Some("atelectasis"), &[]),
    (
        Label::Pneumothorax,
        "Pneumothorax",
        Some("pneumothorax"),
        &[],
    ),
    (
        Label::PleuralEffusion,
        "Pleural Effusion",
        Some("pleural_effusion"),
        &["effusion"],
    ),
    (
        Label::PleuralOther,
        "Pleural Other",
        None,
        &["pleural_thickening"],
    ),
    (
        Label::Fracture,
        "Fracture",
        Some("fracture"),
        &["rib_fracture"],
    ),
    (
        Label::SupportDevices,
        "Support Devices",
        Some("support_device"),
        &[],
    ),
    (Label::NoFinding, "No Finding", Some("normal"), &[]),
];

impl Label {
    /// All, in CheXpert's order.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(label, ..)| *label)
    }

    /// By any of its names; case, spaces, dashes and underscores don't matter.
    pub fn named(name: &str) -> Option<Self> {
        let plain = |name: &str| name.to_lowercase().replace([' ', '-'], "_");
        let name = plain(name.trim());
        let is = |other: &str| plain(other) == name;
        let row = NAMES.iter().find(|(_, chexpert, phantom, others)| {
            is(chexpert) || phantom.is_some_and(is) || others.iter().any(|other| is(other))
        });
        row.map(|(label, ..)| *label)
    }

    /// CheXpert's name.
    pub(crate) fn chexpert(self) -> &'static str {
        NAMES
            .iter()
            .find(|(label, ..)| *label == self)
            .map_or("", |(_, name, ..)| name)
    }

    /// The name in phantom sets, for those labels that these have.
    pub fn phantom(self) -> Option<&'static str> {
        NAMES
            .iter()
            .find(|(label, ..)| *label == self)
            .and_then(|(_, _, name, _)| *name)
    }

    /// Whether it lies on one side of the patient, so that a report is to name that.
    pub const fn is_sided(self) -> bool {
        matches!(
            self,
            Self::LungOpacity
                | Self::LungLesion
                | Self::Consolidation
                | Self::Pneumonia
                | Self::Atelectasis
                | Self::Pneumothorax
                | Self::PleuralEffusion
                | Self::PleuralOther
                | Self::Fracture
        )
    }
}
