//! Whether an engine can still work, and the guard that turns a panic of the model into an error and an end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::watch;

use crate::backend::EngineError;

/// The state of an engine's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Taking requests.
    Running,
    /// The model panicked; the process has to end.
    Failed,
    /// Ended in order: nobody holds the engine any more.
    Stopped,
}

/// The thread's side: reports the end, also when the thread itself unwinds.
#[derive(Debug)]
pub(crate) struct Reporter(watch::Sender<Health>);

impl Reporter {
    pub(crate) fn new() -> (Self, watch::Receiver<Health>) {
        let (sender, receiver) = watch::channel(Health::Running);
        (Self(sender), receiver)
    }

    pub(crate) fn failed(&self) {
        self.0.send_replace(Health::Failed);
    }

    /// Calls into the model; a panic becomes [`EngineError::Panicked`] and flips the health.
    /// The model is not used again afterwards, so what it left half-done is never seen.
    pub(crate) fn guard<T>(
        &self,
        call: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
            self.failed();
            Err(EngineError::Panicked)
        })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.send_if_modified(|health| {
            let running = *health == Health::Running;
            if running {
                *health = if std::thread::panicking() {
                    Health::Failed
                } else {
                    Health::Stopped
                };
            }
            running
        });
    }
}

/// Waits until the engine ended, and says how.
pub(crate) async fn ended(mut health: watch::Receiver<Health>) -> Health {
    match health.wait_for(|health| *health != Health::Running).await {
        Ok(health) => *health,
        // The reporter writes the end before it goes; without it the thread was killed from outside.
        Err(_) => Health::Stopped,
    }
}

/// Why an engine answers no more.
pub(crate) fn gone(health: &watch::Receiver<Health>) -> EngineError {
    match *health.borrow() {
        Health::Failed => EngineError::Panicked,
        Health::Running | Health::Stopped => EngineError::Stopped,
    }
}
