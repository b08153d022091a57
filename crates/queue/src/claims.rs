//! Claims: which process does a piece of work that others would do again, and are about to. An entry of one holder that ends by
//! itself when the holder dies, as a lease does; but thousands come and go, so they are kept in the servers' memory alone, and
//! no answer is waited for as long as for what may not be lost. Who cannot claim does the work all the same.

use std::time::Duration;

use bytes::Bytes;

use crate::api::Api;
use crate::bucket::{Bucket, stream_of};
use crate::{Queue, QueueError, Result, Revision, streams, subject};

/// Longest wait for one answer: by then most work would be well under way.
const PATIENCE: Duration = Duration::from_millis(500);
/// A claim on no work, to see whether claims are accepted.
const TRIAL: &str = "trial";

/// The claims of a site. Names are subject tokens.
#[derive(Debug, Clone)]
pub struct Claims {
    queue: Queue,
    bucket: Bucket,
}

/// A claim that this process made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    revision: Revision,
    /// Losses of the connection before it. A server that was restarted gives its sequence to another's claim.
    losses: u64,
}

impl Queue {
    /// The claims; nothing is made on the server yet, see [`Claims::prepare`].
    pub fn claims(&self) -> Claims {
        let api = Api {
            timeout: self.api.timeout.min(PATIENCE),
            ..self.api.clone()
        };
        Claims {
            queue: self.clone(),
            bucket: Bucket::new(api, subject::CLAIMS),
        }
    }
}

impl Claims {
    /// Makes their bucket on the server. Safe to call again; needed again after a single server was restarted.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Refused`](crate::QueueError::Refused) where the account has no memory for it.
    pub async fn prepare(&self) -> Result<()> {
        streams::ensure_claims(&self.queue.api, &self.queue.config).await
    }

    /// Removes their bucket where no server accepts a claim, so that [`Claims::prepare`] makes another. Servers that lost what they
    /// had in memory before they had it from each other again never agree on a leader for it. Whatever is claimed is forgotten.
    /// False where claims are accepted, or where it is this process that has no connection.
    ///
    /// # Errors
    /// Transient ones.
    pub async fn remove_leaderless(&self) -> Result<bool> {
        if !self.queue.is_connected() {
            return Ok(false);
        }
        match self.claim(TRIAL).await {
            Ok(_) => return Ok(false),
            Err(QueueError::Unavailable { .. }) => {}
            Err(error) => return Err(error),
        }
        let stream = stream_of(subject::CLAIMS);
        match self.queue.api.remove_stream(&stream).await {
            // Servers that have no leader for it remove it all the same, and nobody answers.
            Ok(()) | Err(QueueError::TimedOut { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// How long a claim lasts without renewal: as long as a lease does.
    pub fn ttl(&self) -> Duration {
        self.queue.lease_ttl()
    }

    /// Claims `name` if nobody else has; none when somebody has.
    ///
    /// # Errors
    /// Transient ones. Where the answer was lost it may be claimed by nobody for one [`Claims::ttl`].
    pub async fn claim(&self, name: &str) -> Result<Option<Claim>> {
        let losses = self.queue.losses();
        let created = self.bucket.create(name, Bytes::new()).await?;
        Ok(created.map(|revision| Claim { revision, losses }))
    }

    /// Makes a claim last for another [`Claims::ttl`]; none when it was lost, or may have been with the connection.
    pub async fn renew(&self, name: &str, claim: Claim) -> Result<Option<Claim>> {
        if self.is_doubtful(claim) {
            return Ok(None);
        }
        let renewed = self.bucket.update(name, Bytes::new(), claim.revision);
        let renewed = renewed.await?;
        Ok(renewed.map(|revision| Claim { revision, ..claim }))
    }

    /// Gives a claim up. One that was lost takes nothing from its new holder; one that may have been ends by itself. Servers
    /// that forgot and kept the connection give its sequence to another name, whose claim stays.
    ///
    /// # Errors
    /// Transient ones; it then ends by itself.
    pub async fn release(&self, name: &str, claim: Claim) -> Result<()> {
        if self.is_doubtful(claim) {
            return Ok(());
        }
        self.bucket.remove_up_to(name, claim.revision).await
    }

    /// Whether nobody claims any of these; may be a moment old on a cluster.
    pub async fn are_free(&self, names: &[String]) -> Result<bool> {
        self.bucket.has_none(names).await
    }

    fn is_doubtful(&self, claim: Claim) -> bool {
        self.queue.losses() != claim.losses
    }
}
