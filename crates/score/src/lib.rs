//! Scores of what the fleet says against what is known: `medfleet eval` without the fleet.
//!
//! It reads a set's records and the predictions made for them, and makes figures with confidence intervals and a report
//! of them. It knows no server and no model, and reads no clock; the only files that it writes are the report's
//! ([`report::write`]). A prediction that failed or is missing counts as wrong and is listed.
//!
//! Reading order: [`record`] (what is known), [`outcome`] (what was said), [`labeler`] (what a text says),
//! [`metrics`] (formulas), [`evaluation`] (which formula of what), [`report`] (how it is shown).

pub mod evaluation;
pub mod labeler;
pub mod metrics;
pub mod outcome;
pub mod record;
pub mod report;

pub use evaluation::{Evaluation, Options, Uncertain, evaluate};
pub use outcome::{Outcome, Task};
pub use record::{About, Record, read_set};
