//! How many units a worker takes at a time and how patient it is with them.

use std::num::NonZeroUsize;

use medfleet_core::setting::DurationText;
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig};
use medfleet_store::StoreConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// More slots than this are a mistake, not a machine.
const SLOTS_MAX: usize = 4096;
/// A unit that failed this often will always fail.
const RETRIES_MAX: u32 = 100;

/// The part of a worker service's configuration that is the same for all stages; `SLOTS` is how many slots a stage has by
/// default, whether the whole table is left out or only its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
// serde's derive panics on the short form of `default` where a parameter is a constant.
#[serde(default = "WorkerConfig::<SLOTS>::default", deny_unknown_fields)]
pub struct WorkerConfig<const SLOTS: usize = 1> {
    /// Units worked on at a time.
    #[schemars(range(max = SLOTS_MAX))]
    pub slots: NonZeroUsize,
    /// Starts of a unit beyond the first that may go wrong before the job fails.
    #[schemars(range(max = RETRIES_MAX))]
    pub retries_max: u32,
    /// First pause before a unit is delivered again after trouble; it doubles each time. Each is shortened by up to half, so that
    /// units that failed together do not come back together.
    pub retry_first: DurationText,
    /// Longest such pause.
    pub retry_longest: DurationText,
    /// Before the end of the drain time, work that is not finished by then is handed back for another worker.
    pub hand_back_before: DurationText,
}

impl<const SLOTS: usize> Default for WorkerConfig<SLOTS> {
    fn default() -> Self {
        Self {
            slots: NonZeroUsize::new(SLOTS).unwrap_or(NonZeroUsize::MIN),
            retries_max: 4,
            retry_first: DurationText::from_millis(100),
            retry_longest: DurationText::from_secs(30),
            hand_back_before: DurationText::from_secs(5),
        }
    }
}

impl<const SLOTS: usize> WorkerConfig<SLOTS> {
    /// The same settings, whatever the stage's default was.
    pub const fn of_any_stage(self) -> WorkerConfig {
        WorkerConfig {
            slots: self.slots,
            retries_max: self.retries_max,
            retry_first: self.retry_first,
            retry_longest: self.retry_longest,
            hand_back_before: self.hand_back_before,
        }
    }

    /// Checks what all worker services have in common; `service` is the section that this one stands in.
    pub fn check(
        &self,
        service: &str,
        process: &ProcessConfig,
        queue: &QueueConfig,
        store: &StoreConfig,
    ) -> Result<(), ConfigError> {
        queue
            .check()
            .map_err(|error| ConfigError::of_part(&error))?;
        store
            .check()
            .map_err(|error| ConfigError::of_part(&error))?;
        if process.drain.get() <= self.hand_back_before.get() {
            return Err(ConfigError::relation(format!(
                "process.drain must be longer than {service}.worker.hand_back_before, or nothing is ever finished while stopping"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::setting::{ByteSize, Secret};
    use medfleet_store::BackendConfig;

    use super::*;

    #[test]
    fn what_does_not_fit_is_named_with_its_reason() {
        let check = |key: &str, drain_seconds: u64| {
            let process = ProcessConfig {
                drain: DurationText::from_secs(drain_seconds),
                ..ProcessConfig::default()
            };
            let store = StoreConfig {
                backend: BackendConfig::Folder { path: "/x".into() },
                key: Secret::new(key),
                blob_bytes_max: ByteSize::from_mib(1),
                capacity_bytes: None,
            };
            let worker: WorkerConfig = WorkerConfig::default();
            let checked = worker.check("encode", &process, &QueueConfig::default(), &store);
            checked.err().map(|error| error.to_string())
        };
        let key = "0f".repeat(32);
        assert_eq!(check(&key, 6), None);
        let found = check(&key, 5).expect("a unit is handed back 5 s before the end");
        assert!(found.contains("encode.worker.hand_back_before"), "{found}");
        let found = check("short", 6).expect("that is no key");
        assert!(
            found.starts_with("store.key: ") && !found.contains("short"),
            "{found}"
        );
    }
}
