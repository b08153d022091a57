//! One replica leads, by lease: a hub's dispatcher, or at an edge what hands its jobs on. The lease is renewed beside the work,
//! however long one step of it takes, and trouble with the queue does not give it away: nobody else would fare better. Two
//! leaders for a moment do no harm: whatever a leader does can be done twice.

use std::time::Duration;

use medfleet_core::chain;
use medfleet_queue::{Lease, Queue, QueueError};
use medfleet_runtime::Shutdown;
use prometheus_client::metrics::gauge::Gauge;

/// Name of the lease.
pub(crate) const LEASE: &str = "dispatcher";
/// Pause before a leader whose session broke begins another.
const AGAIN: Duration = Duration::from_millis(250);

/// A replica that would lead.
pub(crate) struct Leader {
    pub(crate) queue: Queue,
    /// Tells this process from others.
    pub(crate) holder: String,
    pub(crate) shutdown: Shutdown,
    /// 1 while this process leads.
    pub(crate) gauge: Gauge,
    /// Between two looks at whether the lease is free.
    pub(crate) pause: Duration,
}

impl Leader {
    /// Leads whenever the lease is free, until the shutdown: `session` is what a leader does, `on_end` comes after each time.
    pub(crate) async fn run<F>(&self, session: impl Fn() -> F, on_end: impl Fn())
    where
        F: Future<Output = ()>,
    {
        // Said once, not at every look for as long as the queue is away.
        let mut is_told = false;
        while !self.shutdown.has_begun() {
            let asked = self.queue.try_lease(LEASE, &self.holder).await;
            let was_told = std::mem::replace(&mut is_told, asked.is_err());
            match asked {
                Ok(Some(lease)) => {
                    self.gauge.set(1);
                    tracing::info!("this process is the dispatcher");
                    let ours = self.lead(lease, session()).await;
                    self.gauge.set(0);
                    on_end();
                    tracing::info!("this process is no longer the dispatcher");
                    if let Some(lease) = ours {
                        give_back(lease).await;
                    }
                }
                Ok(None) => {}
                Err(_) if was_told => {}
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    "the dispatcher's lease could not be asked for"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(self.pause) => {}
                () = self.shutdown.begun() => {}
            }
        }
    }

    /// Leads until the lease is lost, or until the shutdown begins, when it is still ours.
    async fn lead(&self, mut lease: Lease, session: impl Future<Output = ()>) -> Option<Lease> {
        let is_ours = tokio::select! {
            () = lease.hold() => false,
            () = session => true,
            () = self.shutdown.begun() => true,
        };
        is_ours.then_some(lease)
    }
}

/// How a session ended that is to be followed by another.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It could not begin.
    BeforeItBegan(QueueError),
    /// Something broke.
    Broke(QueueError),
}

impl From<QueueError> for Ended {
    fn from(error: QueueError) -> Self {
        Self::Broke(error)
    }
}

impl Ended {
    /// Why, where it is to be said: of sessions that cannot begin one after the other, not of those behind the first that ended.
    fn news(&self, is_first: bool) -> Option<&QueueError> {
        match self {
            Self::BeforeItBegan(_) if !is_first => None,
            Self::BeforeItBegan(error) | Self::Broke(error) => Some(error),
        }
    }
}

/// One session after the other, until one ends by itself; for whoever leads.
pub(crate) async fn sessions<F>(session: impl Fn() -> F)
where
    F: Future<Output = Result<(), Ended>>,
{
    let mut is_first = true;
    while let Err(ended) = session().await {
        if let Some(error) = ended.news(std::mem::take(&mut is_first)) {
            tracing::warn!(error = chain(error), "the dispatcher starts over");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn give_back(lease: Lease) {
    if let Err(error) = lease.release().await {
        tracing::debug!(
            error = chain(&error),
            "the dispatcher's lease was not given back; it ends by itself"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_outage_it_is_said_once_that_no_session_can_begin() {
        let away = || QueueError::Unavailable { operation: "read" };
        let said = |ended: Ended, is_first| ended.news(is_first).is_some();
        assert!(said(Ended::BeforeItBegan(away()), true));
        assert!(!said(Ended::BeforeItBegan(away()), false));
        // A session had begun since.
        assert!(said(Ended::Broke(away()), false));
    }
}
