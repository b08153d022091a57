//! How many units a worker takes at a time and how patient it is with them.

use std::num::NonZeroUsize;

use medfleet_core::setting::DurationText;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The part of a worker service's configuration that is the same for all stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Units worked on at a time.
    pub slots: NonZeroUsize,
    /// Starts of a unit beyond the first that may go wrong before the job fails.
    pub retries_max: u32,
    /// First pause before a unit is delivered again after trouble; it doubles each time.
    pub retry_first: DurationText,
    /// Longest such pause.
    pub retry_longest: DurationText,
    /// Before the end of the drain time, work that is not finished by then is handed back for another worker.
    pub hand_back_before: DurationText,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: NonZeroUsize::MIN,
            retries_max: 4,
            retry_first: DurationText::from_millis(100),
            retry_longest: DurationText::from_secs(30),
            hand_back_before: DurationText::from_secs(5),
        }
    }
}
