//! Frames that other encoders of the site are encoding: of several that get the same new image at once, one claims it in the
//! queue and encodes it, and the others wait for its tokens. Trouble stops nobody: who cannot claim a frame encodes it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use medfleet_core::{Digest, chain};
use medfleet_queue::{Claim, Claims, QueueError};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::metrics::{ClaimOutcome, EncodeMetrics};

/// Claims that are asked for at a time.
const ASKED_MAX: usize = 32;
/// Shortest and longest pause between two looks whether what another encodes is there. In between a quarter of what was waited
/// already: so much longer at most the wait is than it had to be.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
const PAUSE_SHARE: u32 = 4;
/// Claims are renewed so many times while they last.
const RENEWALS: u32 = 3;

/// What is claimed, by this process and by others. Shared by the workers' slots.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    /// None for an encoder by itself, as tests of everything else have it.
    claims: Option<Claims>,
    state: Mutex<State>,
    over: Notify,
    metrics: EncodeMetrics,
}

#[derive(Debug, Default)]
struct State {
    /// Whether claims can be made.
    is_open: bool,
    /// Whether it was said that they cannot.
    is_told: bool,
    held: HashMap<Digest, Claim>,
    /// Of what is encoded, or is not going to be.
    over: Vec<(Digest, Claim)>,
}

/// Frames by whose turn it is to encode them. Those that are in neither set are nobody's. While this is kept, other encoders
/// leave its own to it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<'a> {
    elsewhere: &'a Elsewhere,
    pub(crate) own: HashSet<Digest>,
    pub(crate) others: HashSet<Digest>,
}

impl Elsewhere {
    /// Without claims no frame is ever another encoder's.
    pub(crate) fn new(claims: Option<Claims>, metrics: EncodeMetrics) -> Self {
        Self {
            claims,
            state: Mutex::default(),
            over: Notify::new(),
            metrics,
        }
    }

    /// Claims each of these frames that nobody has claimed. One round trip for all of them; waits for nobody.
    pub(crate) async fn claim(&self, frames: &HashSet<Digest>) -> Turn<'_> {
        let mut turn = Turn {
            elsewhere: self,
            own: HashSet::new(),
            others: HashSet::new(),
        };
        let Some(claims) = &self.claims else {
            return turn;
        };
        let is_open = self.lock().is_open;
        let asked = frames.iter().filter(|_| is_open).map(|frame| {
            let frame = *frame;
            async move { (frame, claims.claim(&frame.to_string()).await) }
        });
        let asked: Vec<_> = asked.collect();
        let mut asked = stream::iter(asked).buffer_unordered(ASKED_MAX);
        while let Some((frame, claimed)) = asked.next().await {
            match claimed {
                Ok(Some(claim)) => {
                    self.lock().held.insert(frame, claim);
                    turn.own.insert(frame);
                }
                Ok(None) => {
                    turn.others.insert(frame);
                }
                Err(error) => {
                    self.close(&error);
                    break;
                }
            }
        }
        let (own, others) = (turn.own.len(), turn.others.len());
        let failed = frames.len() - own - others;
        self.metrics.claimed(ClaimOutcome::Taken, own);
        self.metrics.claimed(ClaimOutcome::Held, others);
        self.metrics.claimed(ClaimOutcome::Failed, failed);
        turn
    }

    /// Waits until no encoder claims any of these frames, at most until then. Returns early when that cannot be told.
    pub(crate) async fn freed(&self, frames: &HashSet<Digest>, until: Instant) {
        let Some(claims) = &self.claims else {
            return;
        };
        let names: Vec<String> = frames.iter().map(Digest::to_string).collect();
        let begun = Instant::now();
        while Instant::now() < until {
            let pause = (begun.elapsed() / PAUSE_SHARE).clamp(PAUSE.0, PAUSE.1);
            sleep_until(until.min(Instant::now() + pause)).await;
            match claims.are_free(&names).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return self.close(&error),
            }
        }
    }

    /// Makes it possible to claim, if it is.
    pub(crate) async fn open(&self) {
        let Some(claims) = &self.claims else {
            return;
        };
        match claims.prepare().await {
            Ok(()) => {
                let mut state = self.lock();
                state.is_open = true;
                state.is_told = false;
            }
            Err(error) => self.close(&error),
        }
    }

    /// Renews what is claimed and gives up what is over, until then.
    pub(crate) async fn keep(&self, until: &CancellationToken) {
        let Some(claims) = &self.claims else {
            return;
        };
        let mut due = interval(claims.ttl() / RENEWALS);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !until.is_cancelled() {
            tokio::select! {
                () = self.over.notified() => {}
                () = until.cancelled() => {}
                _ = due.tick() => {
                    if !self.lock().is_open {
                        self.open().await;
                    }
                    self.renew(claims).await;
                }
            }
            self.release(claims).await;
        }
        // What was given up while the last ones were.
        self.release(claims).await;
    }

    async fn renew(&self, claims: &Claims) {
        let held = self.lock().held.clone();
        let renewed = held.into_iter().map(|(frame, claim)| async move {
            let renewed = claims.renew(&frame.to_string(), claim).await;
            (frame, claim, renewed)
        });
        for (frame, before, renewed) in join_all(renewed).await {
            let mut state = self.lock();
            let is_held = state.held.get(&frame) == Some(&before);
            match renewed {
                Ok(Some(after)) if is_held => {
                    state.held.insert(frame, after);
                }
                // It was given up meanwhile, by what it was called before.
                Ok(Some(after)) => state.over.push((frame, after)),
                // Others may encode it now, too.
                Ok(None) if is_held => {
                    state.held.remove(&frame);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(
                    error = chain(&error),
                    "a claim on an image could not be renewed"
                ),
            }
        }
    }

    async fn release(&self, claims: &Claims) {
        let over = std::mem::take(&mut self.lock().over);
        let released = over.into_iter().map(|(frame, claim)| async move {
            let name = frame.to_string();
            claims.release(&name, claim).await
        });
        for released in join_all(released).await {
            if let Err(error) = released {
                tracing::debug!(
                    error = chain(&error),
                    "a claim on an image was not given up and ends by itself"
                );
            }
        }
    }

    /// Has the claims on these frames given up.
    fn give_up(&self, frames: HashSet<Digest>) {
        if frames.is_empty() {
            return;
        }
        let mut state = self.lock();
        for frame in frames {
            // One that was lost meanwhile is another's.
            if let Some(claim) = state.held.remove(&frame) {
                state.over.push((frame, claim));
            }
        }
        drop(state);
        self.over.notify_one();
    }

    /// No more claims until it was tried again to make them possible.
    fn close(&self, error: &QueueError) {
        let mut state = self.lock();
        state.is_open = false;
        let was_told = std::mem::replace(&mut state.is_told, true);
        drop(state);
        if !was_told {
            tracing::warn!(
                error = chain(error),
                "images cannot be claimed now: other encoders may encode the same ones"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Gives up those of its own that are not among these: they need not be encoded any more, and the others may take long.
    pub(crate) fn keep_only(&mut self, frames: &HashSet<Digest>) {
        let over = self.own.extract_if(|frame| !frames.contains(frame));
        self.elsewhere.give_up(over.collect());
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.elsewhere.give_up(std::mem::take(&mut self.own));
    }
}

#[cfg(test)]
mod tests;
