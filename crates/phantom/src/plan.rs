//! Which findings a picture has, before they have a shape; and what became of those of the picture before.

use crate::chance::{Chance, Purpose};
use crate::labels::{Label, Side, Size, Zone};

/// Contrast-to-noise ratios are drawn from this range.
pub(crate) const CONTRAST: [f32; 2] = [1.0, 5.0];
/// A heart must look like one: below this it is haze.
const CONTRAST_HEART: f32 = 2.5;
/// A device is never faint.
const CONTRAST_DEVICE: f32 = 3.0;

/// One finding to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) label: Label,
    pub(crate) side: Side,
    pub(crate) zone: Option<Zone>,
    pub(crate) size: Option<Size>,
    /// Contrast-to-noise ratio.
    pub(crate) contrast: f32,
    /// Where in its zone it lies and what it looks like; the same in a later picture of the patient.
    pub(crate) shape_seed: u64,
}

impl Plan {
    /// Which device it is, if it is one.
    pub(crate) const fn device(&self) -> Device {
        match self.shape_seed % 3 {
            0 => Device::Tube,
            1 => Device::Catheter,
            _ => Device::Pacemaker,
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.label == other.label && self.side == other.side
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Tube,
    Catheter,
    Pacemaker,
}

impl Device {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tube => "endotracheal tube",
            Self::Catheter => "central venous catheter",
            Self::Pacemaker => "pacemaker",
        }
    }
}

/// What became of a finding since the picture before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    New,
    Worse,
    Better,
    Unchanged,
    Resolved,
}

/// How often a finding is one of those that are to be drawn more often, where there are such.
const OFTEN: f64 = 0.7;

/// The findings of picture `index` of the set `seed`, and with `pairs` what changed since the picture before.
/// Of new findings, 7 of 10 are from `often` if it names any.
pub(crate) fn plan(
    seed: u64,
    index: u64,
    pairs: bool,
    often: &[Label],
) -> (Vec<Plan>, Option<Vec<(Plan, Change)>>) {
    let mut chance = Chance::new(seed, index, Purpose::Findings);
    let count = count(&mut chance);
    if !pairs || index.is_multiple_of(2) {
        return (fill(Vec::new(), count, &[], often, &mut chance), None);
    }
    let (before, _) = plan(seed, index - 1, pairs, often);
    let mut kept = Vec::new();
    let mut changes = Vec::new();
    // At most as many as this picture has, so that numbers of findings are distributed as in other pictures.
    for old in &before {
        if kept.len() < count && chance.happens(0.7) {
            let (new, change) = follow(old, &mut chance);
            changes.push((new.clone(), change));
            kept.push(new);
        } else {
            changes.push((old.clone(), Change::Resolved));
        }
    }
    let plans = fill(kept, count, &before, often, &mut chance);
    for new in &plans {
        if !before.iter().any(|old| old.is(new)) {
            changes.push((new.clone(), Change::New));
        }
    }
    changes.sort_by_key(|(plan, _)| (plan.label, plan.side));
    (plans, Some(changes))
}

/// 0 to 3 findings, 30, 35, 25 and 10 of a hundred times.
fn count(chance: &mut Chance) -> usize {
    match chance.below(100) {
        0..30 => 0,
        30..65 => 1,
        65..90 => 2,
        _ => 3,
    }
}

/// Adds new findings until there are `count`, none twice and none that `before` had.
fn fill(
    mut plans: Vec<Plan>,
    count: usize,
    before: &[Plan],
    often: &[Label],
    chance: &mut Chance,
) -> Vec<Plan> {
    while plans.len() < count {
        let new = if !often.is_empty() && chance.happens(OFTEN) {
            invented_of(*chance.one(often), chance)
        } else {
            invented(chance)
        };
        if !plans.iter().chain(before).any(|old| old.is(&new)) {
            plans.push(new);
        }
    }
    plans.sort_by_key(|plan| (plan.label, plan.side));
    plans
}

/// A finding, everything of chance.
pub(crate) fn invented(chance: &mut Chance) -> Plan {
    let label = *chance.one(&Label::ALL);
    invented_of(label, chance)
}

/// A finding of a label, everything else of chance.
pub(crate) fn invented_of(label: Label, chance: &mut Chance) -> Plan {
    let side = match label {
        Label::Cardiomegaly | Label::SupportDevice => Side::Midline,
        Label::Oedema => Side::Bilateral,
        _ => *chance.one(&[Side::Left, Side::Right]),
    };
    let zone = match label {
        Label::Consolidation | Label::Nodule => {
            Some(*chance.one(&[Zone::Upper, Zone::Mid, Zone::Lower]))
        }
        Label::Atelectasis | Label::Fracture => Some(*chance.one(&[Zone::Mid, Zone::Lower])),
        Label::Pneumothorax => Some(Zone::Upper),
        Label::PleuralEffusion => Some(Zone::Lower),
        Label::Cardiomegaly | Label::Oedema | Label::SupportDevice => None,
    };
    let size = *chance.one(&[Size::Small, Size::Moderate, Size::Large]);
    let low = match label {
        Label::Cardiomegaly => CONTRAST_HEART,
        Label::SupportDevice => CONTRAST_DEVICE,
        _ => CONTRAST[0],
    };
    Plan {
        label,
        side,
        zone,
        size: label.is_sized().then_some(size),
        contrast: chance.between(low, CONTRAST[1]),
        shape_seed: chance.seed(),
    }
}

/// The same finding at a later time.
fn follow(old: &Plan, chance: &mut Chance) -> (Plan, Change) {
    let change = *chance.one(&[Change::Worse, Change::Better, Change::Unchanged]);
    let size = match (change, old.size) {
        (Change::Worse, Some(size)) => size.larger(),
        (Change::Better, Some(size)) => size.smaller(),
        _ => None,
    };
    let mut new = old.clone();
    let Some(size) = size else {
        return (new, Change::Unchanged);
    };
    let more = if change == Change::Worse { 0.8 } else { -0.8 };
    new.size = Some(size);
    new.contrast = (old.contrast + more).clamp(CONTRAST[0], CONTRAST[1]);
    (new, change)
}
