//! One picture of a set: drawn from its number, then rendered at any size.

use crate::chance::{Chance, Purpose};
use crate::dicom::{self, DicomError};
use crate::grid::Canvas;
use crate::labels::Label;
use crate::plan::plan;
use crate::questions::questions;
use crate::record::{Changed, Finding, Labels, Prior, Record};
use crate::render::{Picture, render};
use crate::report::{comparison, report};
use crate::scene::Scene;

/// The name of picture `index` of the set `seed`.
fn name(seed: u64, index: u64) -> String {
    format!("phantom-{seed}-{index}")
}

/// A picture that can be made, and what is known of it.
#[derive(Clone, Debug)]
pub struct Phantom {
    seed: u64,
    record: Record,
    scene: Scene,
}

impl Phantom {
    /// Picture `index` of the set `seed`; with `pairs` each odd picture is a later one of the patient before it.
    pub fn draw(seed: u64, index: u64, pairs: bool) -> Self {
        Self::draw_often(seed, index, pairs, &[])
    }

    /// As [`Self::draw`], but of new findings 7 of 10 are from `often` if it names any.
    pub fn draw_often(seed: u64, index: u64, pairs: bool, often: &[Label]) -> Self {
        let (plans, changes) = plan(seed, index, pairs, often);
        let patient = if pairs { index / 2 } else { index };
        let scene = Scene::new(seed, index, patient, plans);
        let plans: Vec<_> = scene
            .lesions
            .iter()
            .map(|lesion| lesion.plan.clone())
            .collect();
        let findings: Vec<Finding> = scene
            .lesions
            .iter()
            .map(|lesion| Finding {
                label: lesion.plan.label,
                side: lesion.plan.side,
                zone: lesion.plan.zone,
                size: lesion.plan.size,
                cnr: (f64::from(lesion.plan.contrast) * 100.0).round() / 100.0,
                area: lesion.area,
                cells: lesion.cells,
            })
            .collect();
        let mut words = Chance::new(seed, index, Purpose::Report);
        let report = report(&plans, &mut words);
        let prior = changes.map(|changes| Prior {
            index: index - 1,
            id: name(seed, index - 1),
            report: comparison(&changes, &mut words),
            changes: changes
                .iter()
                .map(|(plan, change)| Changed {
                    label: plan.label,
                    side: plan.side,
                    change: *change,
                })
                .collect(),
        });
        let record = Record {
            id: name(seed, index),
            image: None,
            modality: "DX",
            index,
            rows: scene.acquisition.rows,
            cols: scene.acquisition.columns,
            labels: Labels::of(&findings),
            findings,
            report,
            questions: questions(&plans, &mut Chance::new(seed, index, Purpose::Questions)),
            prior,
        };
        Self {
            seed,
            record,
            scene,
        }
    }

    /// What is known of the picture; rows and columns are those that it has by itself.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The record of this picture as a file of `columns`.
    pub fn record_at(&self, columns: u32, image: Option<String>) -> Record {
        Record {
            image,
            rows: self.scene.acquisition.rows_at(columns),
            cols: columns,
            ..self.record.clone()
        }
    }

    /// The picture, `columns` wide; its height follows from its own shape.
    pub fn render(&self, columns: u32) -> Picture {
        let rows = self.scene.acquisition.rows_at(columns);
        render(
            &self.scene,
            Canvas::picture(columns as usize, rows as usize),
        )
    }

    /// The picture padded with black to a square and brought to `side` pixels.
    pub fn render_square(&self, side: u32) -> Picture {
        render(&self.scene, Canvas::square(side as usize))
    }

    /// The same picture without its findings, for comparison; the record stays. The diaphragm stays where it is.
    #[must_use]
    pub fn without_findings(&self) -> Self {
        Self {
            scene: self.scene.without_findings(),
            ..self.clone()
        }
    }

    /// The picture as a DICOM file, `columns` wide.
    pub fn dicom(&self, columns: u32) -> Result<Vec<u8>, DicomError> {
        let mut chance = Chance::new(self.seed, self.record.index, Purpose::File);
        let patient = if self.record.prior.is_some() {
            self.record.index - 1
        } else {
            self.record.index
        };
        let identity = dicom::Identity {
            seed: self.seed,
            index: self.record.index,
            patient,
        };
        dicom::file(&self.render(columns), identity, &mut chance)
    }
}
