//! Synthetic chest radiographs with known findings: pictures, records, reports and questions for training and demos.
//!
//! A picture is a sum of what tissue, bones, vessels and findings absorb, worked out from curves of one patient, seen
//! through a tone curve with noise. Everything follows from the seed of the set and the number of the picture. No patient's
//! picture is involved, and nothing here is for clinical use.
//!
//! Reading order: [`Phantom`] here; `plan` (which findings), `anatomy`, `bones` and `vessels` (the patient), `acquisition`
//! (the picture), `shape` and `measure` (findings and their contrast), `scene`, `layers` and `render` (adding up), `report`
//! and `questions` (words), `set`, `dicom` and `frame` (files, and what
//! the fleet makes of them); `chance`, `curve`, `grid`, `noise` and `stroke` are the tools.

mod acquisition;
mod anatomy;
mod bones;
mod chance;
mod curve;
mod dicom;
mod frame;
mod grid;
pub mod labels;
mod layers;
mod measure;
mod noise;
mod phantom;
mod plan;
mod questions;
mod record;
mod render;
mod report;
mod scene;
mod set;
mod shape;
mod stroke;
mod vessels;

pub use dicom::DicomError;
pub use phantom::Phantom;
pub use plan::Change;
pub use record::{Changed, Finding, Labels, Prior, Question, Record};
pub use render::Picture;
pub use set::{Format, PhantomError, SetOptions, write_set};
