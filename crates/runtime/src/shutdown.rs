//! The one way to stop: a signal that everyone can wait for, and one deadline that all steps of the stop share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Knows whether the process is stopping, and until when it may take. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    drain: Duration,
    deadline: OnceLock<Instant>,
    token: CancellationToken,
}

impl Shutdown {
    /// A shutdown that, once begun, may take `drain`.
    pub fn new(drain: Duration) -> Self {
        let (deadline, token) = (OnceLock::new(), CancellationToken::new());
        Self {
            inner: Arc::new(Inner {
                drain,
                deadline,
                token,
            }),
        }
    }

    /// Begins the shutdown and fixes the deadline. Later calls change nothing.
    pub fn begin(&self) {
        self.inner
            .deadline
            .get_or_init(|| Instant::now() + self.inner.drain);
        self.inner.token.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.inner.token.is_cancelled()
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        self.inner.token.cancelled().await;
    }

    /// For libraries that take tokio's own token; cancelled when the shutdown begins.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.inner.token.child_token()
    }

    /// When everything must have ended; none before it has begun.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.deadline.get().copied()
    }

    /// How long is left; the whole drain time before it has begun.
    pub fn remaining(&self) -> Duration {
        match self.deadline() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.inner.drain,
        }
    }

    /// Waits until it has begun and its deadline has passed.
    pub async fn expired(&self) {
        self.begun().await;
        tokio::time::sleep(self.remaining()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_call_fixes_the_deadline() {
        let shutdown = Shutdown::new(Duration::from_secs(10));
        assert!(!shutdown.has_begun());
        assert_eq!(shutdown.deadline(), None);
        assert_eq!(shutdown.remaining(), Duration::from_secs(10));
        let (clone, start) = (shutdown.clone(), Instant::now());
        clone.begin();
        tokio::time::advance(Duration::from_secs(4)).await;
        shutdown.begin();
        assert!(shutdown.has_begun());
        shutdown.begun().await;
        assert_eq!(shutdown.remaining(), Duration::from_secs(6));
        shutdown.expired().await;
        assert_eq!(shutdown.deadline(), Some(start + Duration::from_secs(10)));
        assert_eq!(shutdown.remaining(), Duration::ZERO);
    }

    #[test]
    fn tokens_handed_out_cannot_stop_the_process() {
        let shutdown = Shutdown::new(Duration::ZERO);
        shutdown.token().cancel();
        assert!(!shutdown.has_begun());
    }
}
