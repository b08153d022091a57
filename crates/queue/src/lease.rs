//! Leader leases: an entry that its holder renews, and that disappears by itself when the holder does not.

use bytes::Bytes;
use tokio::time::Instant;

use medfleet_core::chain;

use crate::{Queue, QueueError, Result, Revision};

/// Times that a renewal is tried from where our own lease is found.
const TRIES: u32 = 2;

/// A lease that this process holds, or held.
#[derive(Debug)]
pub struct Lease {
    queue: Queue,
    name: String,
    holder: String,
    revision: Revision,
    /// When its last renewal was asked for: it lasts from then on at least.
    asked: Instant,
    /// Losses of the connection before it was last known to be ours. A server that forgot it since may have another's in its place.
    losses: u64,
}

impl Queue {
    /// Takes the lease `name` if nobody holds it. It lasts for `lease_ttl`; renew it every third of that.
    /// `name` must be a subject token.
    ///
    /// # Errors
    /// Transient ones. Where the answer was lost the lease may be held by nobody for one `lease_ttl`.
    pub async fn try_lease(&self, name: &str, holder: &str) -> Result<Option<Lease>> {
        let (value, losses) = (Bytes::copy_from_slice(holder.as_bytes()), self.losses());
        let asked = Instant::now();
        let created = self.leases.create(name, value).await?;
        Ok(created.map(|revision| Lease {
            queue: self.clone(),
            name: name.to_owned(),
            holder: holder.to_owned(),
            revision,
            asked,
            losses,
        }))
    }

    /// How long a lease lasts without renewal.
    pub fn lease_ttl(&self) -> std::time::Duration {
        self.config.lease_ttl.get()
    }
}

impl Lease {
    /// Makes it last for another `lease_ttl`. False when it was lost: stop what it allowed, at once.
    ///
    /// # Errors
    /// Transient ones: renew again, and stop when `lease_ttl` has passed since the last success.
    pub async fn renew(&mut self) -> Result<bool> {
        let value = Bytes::copy_from_slice(self.holder.as_bytes());
        let (bucket, losses) = (&self.queue.leases, self.queue.losses());
        for _ in 0..TRIES {
            let asked = Instant::now();
            let updated = bucket.update(&self.name, value.clone(), self.revision);
            if let Some(revision) = updated.await? {
                (self.revision, self.asked, self.losses) = (revision, asked, losses);
                return Ok(true);
            }
            // A renewal whose answer was lost has moved our own lease on, nobody knows when: it is renewed from there.
            let found = bucket.get(&self.name).await?;
            match found.filter(|entry| entry.value == self.holder.as_bytes()) {
                Some(entry) => self.revision = entry.revision,
                None => return Ok(false),
            }
        }
        // What was found was outdated.
        Err(QueueError::unavailable("renew a lease"))
    }

    /// Renews it three times in each `lease_ttl`, and no try takes longer than a third of that. Returns when it is lost, or when no
    /// renewal has succeeded for as long as it lasts: stop what it allowed, at once.
    pub async fn hold(&mut self) {
        let lasts = self.queue.lease_ttl();
        let mut tried = self.asked;
        loop {
            let ends = self.asked + lasts;
            tokio::time::sleep_until(ends.min(tried + lasts / 3)).await;
            tried = Instant::now();
            let until = ends.min(tried + lasts / 3);
            match tokio::time::timeout_at(until, self.renew()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::debug!(error = chain(&error), "a lease could not be renewed");
                }
                Err(_) if until == ends => return,
                Err(_) => tracing::debug!("a lease was not renewed in time, and is tried again"),
            }
        }
    }

    /// Gives it up, so that another can take it at once. One that may have been lost with the connection since its last renewal
    /// ends by itself; servers that forgot it and kept the connection give its sequence to another name, whose lease stays.
    ///
    /// # Errors
    /// Transient ones; it then ends by itself.
    pub async fn release(self) -> Result<()> {
        if self.queue.losses() != self.losses {
            return Ok(());
        }
        let leases = &self.queue.leases;
        leases.remove_up_to(&self.name, self.revision).await
    }
}
