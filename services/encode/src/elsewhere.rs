//! Claims on frames among the encoders of a site: when several encoders get the same new image at once, one of them claims it in
//! the queue and encodes it, and the others wait for its tokens. Claims only save work: an encoder that cannot claim a frame
//! encodes it all the same.

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
/// Shortest and longest pause between two checks whether another encoder has finished. In between, a pause is a quarter of the
/// time waited so far, so that a wait is at most a quarter longer than it had to be.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
const PAUSE_SHARE: u32 = 4;
/// How often a claim is renewed within its lifetime.
const RENEWALS: u32 = 3;
/// Lifetimes of a claim without an answer of the queue after which its claims count as lost. Servers that restart or elect a
/// leader take less.
const LOST_AFTER: u32 = 6;

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
    /// Since when the queue, asked to prepare for them, gives no answer.
    silent_since: Option<Instant>,
    held: HashMap<Digest, Claim>,
    /// Claims to give up: their frames are encoded, or will not be encoded here.
    over: Vec<(Digest, Claim)>,
}

/// Which frames this encoder has claimed and which ones another has. A frame in neither set is claimed by nobody. The claims on
/// `own` are given up when this is dropped.
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

    /// Waits until no encoder claims any of these frames, but not beyond `until`. Returns early when the queue does not answer, or
    /// when a server whose copy of the claims is behind does: who waits again for that tells since when, and asks less often.
    pub(crate) async fn freed(&self, frames: &HashSet<Digest>, (since, until): (Instant, Instant)) {
        let Some(claims) = &self.claims else {
            return;
        };
        let names: Vec<String> = frames.iter().map(Digest::to_string).collect();
        while Instant::now() < until {
            let pause = (since.elapsed() / PAUSE_SHARE).clamp(PAUSE.0, PAUSE.1);
            sleep_until(until.min(Instant::now() + pause)).await;
            match claims.are_free(&names).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return self.close(&error),
            }
        }
    }

    /// Prepares the queue for claims, so that they can be made from now on.
    pub(crate) async fn open(&self) {
        let Some(claims) = &self.claims else {
            return;
        };
        match claims.prepare().await {
            Ok(()) => {
                let mut state = self.lock();
                state.is_open = true;
                state.is_told = false;
                state.silent_since = None;
            }
            Err(error) => {
                self.close(&error);
                if self.is_lost(&error, claims.ttl() * LOST_AFTER) {
                    give_up_bucket(claims).await;
                }
            }
        }
    }

    /// Whether the queue has given no answer for so long; then that begins anew.
    fn is_lost(&self, error: &QueueError, after: Duration) -> bool {
        let mut state = self.lock();
        if !matches!(
            error,
            QueueError::TimedOut { .. } | QueueError::Unavailable { .. }
        ) {
            state.silent_since = None;
            return false;
        }
        let is_lost = state
            .silent_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            >= after;
        if is_lost {
            state.silent_since = None;
        }
        is_lost
    }

    /// Renews the claims that are held and releases those that were given up, until `until` is cancelled.
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
        // Claims that were given up while those before them were being released.
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
                // It was given up meanwhile, but the release names the claim as it was before this renewal, and will not find it.
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

    /// Marks the claims on these frames to be released.
    fn give_up(&self, frames: HashSet<Digest>) {
        if frames.is_empty() {
            return;
        }
        let mut state = self.lock();
        for frame in frames {
            // A claim that was lost meanwhile may be another encoder's by now.
            if let Some(claim) = state.held.remove(&frame) {
                state.over.push((frame, claim));
            }
        }
        drop(state);
        self.over.notify_one();
    }

    /// Makes no more claims until [`Self::open`] has succeeded again.
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
    /// Gives up its claims on all frames but these: the others need not be encoded any more, and these may take long.
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

/// Lets the queue make the bucket of the claims anew if no server answers for the one that is there.
async fn give_up_bucket(claims: &Claims) {
    match claims.remove_leaderless().await {
        Ok(true) => tracing::warn!(
            "no nats-server answered for the claims on images: their removal was asked for, so that they are made anew; if this comes again and again, the NATS user may not remove KV_CLAIMS"
        ),
        Ok(false) => {}
        Err(error) => tracing::debug!(
            error = chain(&error),
            "it is not known whether a nats-server answers for the claims on images"
        ),
    }
}

#[cfg(test)]
mod tests;
