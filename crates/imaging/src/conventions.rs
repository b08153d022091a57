//! What each model version was trained on, as data: CT windows, slices of a volume, frame side and resize.
//! A change that could change a frame is a new version string; the string travels with every frame and result.

use std::sync::LazyLock;

use serde::Deserialize;

/// The conventions of one model version.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convention {
    /// The model version, as configuration names it.
    pub name: String,
    /// Changes whenever a frame could change.
    pub version: String,
    /// Where the numbers are from.
    pub source: String,
    /// Width and height of a frame, in pixels.
    pub frame_side: u32,
    /// Whether pixels are averaged where a picture shrinks.
    pub antialias: bool,
    /// Black and white of the red, green and blue channel of a CT slice, in Hounsfield units.
    pub ct_windows: [(f64, f64); 3],
    /// How many slices of a volume a model takes; `None` where it takes single slices only.
    pub volume: Option<VolumeRule>,
    /// Which patches of a whole slide a model takes; `None` where it takes none.
    pub slide: Option<SlideRule>,
}

/// Which patches of a whole slide are shown.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlideRule {
    /// Width and height of a patch at the wanted spacing, in pixels; patches do not overlap.
    pub patch_side: u32,
    /// The wanted spacing: 1 is what microscopes call 10 times.
    pub micrometres_per_pixel: f64,
    /// Of more patches with tissue, this many are drawn.
    pub patches_max: u32,
    /// A pixel is tissue from this saturation on, 0 to 1,
    pub saturation_min: f64,
    /// and from this value on, 0 to 1: what is darker is no light.
    pub value_min: f64,
    /// A patch is shown from this share of tissue pixels on, 0 to 1.
    pub tissue_min: f64,
}

/// How many slices of a volume are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRule {
    /// Fewer make a frame each, with a note.
    pub slices_min: u32,
    /// Of more, this many are taken at even distances.
    pub slices_max: u32,
}

/// Every convention, the newest first.
static ALL: LazyLock<Vec<Convention>> = LazyLock::new(|| {
    [
        include_str!("conventions/medgemma-1.5.json"),
        include_str!("conventions/medgemma-1.0.json"),
        include_str!("conventions/medsiglip.json"),
    ]
    .iter()
    .map(|text| serde_json::from_str(text).expect("the embedded files are read by a test"))
    .collect()
});

impl Convention {
    /// The convention of a model version.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|convention| convention.name == name)
    }

    pub fn newest() -> &'static Self {
        &ALL[0]
    }

    /// Every convention, the newest first.
    pub fn all() -> &'static [Self] {
        &ALL
    }

    /// Which of `slices` slices are shown, in order: all, or `round(i / most * (slices - 1))` for i = 1 to most.
    pub fn selected(&self, slices: usize) -> Vec<usize> {
        match self.volume {
            Some(rule) if slices > rule.slices_max as usize => (1..=rule.slices_max)
                .map(|i| {
                    let share = f64::from(i) / f64::from(rule.slices_max);
                    // Half to even, as Python rounds.
                    (share * (slices - 1) as f64).round_ties_even() as usize
                })
                .collect(),
            _ => (0..slices).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_conventions_are_whole() {
        for convention in Convention::all() {
            assert_eq!(Convention::named(&convention.name), Some(convention));
            assert!(convention.ct_windows.iter().all(|(low, high)| low < high));
        }
        assert_eq!(Convention::newest().name, "medgemma-1.5");
        assert_eq!(Convention::named("medgemma-9"), None);
    }

    #[test]
    fn the_green_window_keeps_its_sign() {
        // Google's serving code shows 135 to 215 here; training and notebooks are -135 to 215.
        assert_eq!(Convention::newest().ct_windows[1], (-135.0, 215.0));
    }

    #[test]
    fn slices_are_taken_at_even_distances() {
        let convention = Convention::newest();
        assert_eq!(convention.selected(3), [0, 1, 2]);
        assert_eq!(convention.selected(85).len(), 85);
        let chosen = convention.selected(171);
        assert_eq!(
            (chosen.len(), chosen[0], chosen[1], chosen[84]),
            (85, 2, 4, 170)
        );
        // python3: [round(i / 85 * 99) for i in range(1, 86)][:5]
        assert_eq!(convention.selected(100)[..5], [1, 2, 3, 5, 6]);
    }
}
