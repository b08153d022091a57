//! Whether an engine can still work: the guard that turns a panic of the model into an error and an end, and the watch over
//! calls into the model that do not come back (a stalled driver, a deadlock), which nothing can end but the process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use medfleet_core::chain;
use tokio::sync::{mpsc, watch};

use crate::backend::EngineError;

/// The state of an engine's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Taking requests.
    Running,
    /// The model panicked, or its device computes no more; the process has to end.
    Failed,
    /// The model makes values that are no numbers; the process has to end.
    Damaged,
    /// A call into the model did not come back; the process has to end.
    Hung,
    /// Ended in order: nobody holds the engine any more.
    Stopped,
}

/// Why a process cannot go on with its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModelFailure {
    /// The model panicked, or its device computes no more.
    #[error("the model broke; the process ends in order")]
    Broke,
    #[error(
        "the model makes values that are no numbers: its weights or its device are damaged; the process ends in order"
    )]
    Damaged,
    #[error("the model hangs; the process ends")]
    Hangs,
}

impl Health {
    /// Whether the process may go on, or end in order, with an engine in this state.
    pub const fn check(self) -> Result<(), ModelFailure> {
        match self {
            Self::Failed => Err(ModelFailure::Broke),
            Self::Damaged => Err(ModelFailure::Damaged),
            Self::Hung => Err(ModelFailure::Hangs),
            Self::Running | Self::Stopped => Ok(()),
        }
    }
}

/// How long a call into the model may take before it counts as hung.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The limit until a call of the same kind has come back: the machine's speed is unknown, and the first call may have to load
    /// and compile.
    pub(crate) unknown: Duration,
    /// The least limit from then on.
    pub(crate) known: Duration,
    /// From then on the limit is this many times what the slowest call took.
    pub(crate) slower: u32,
}

/// So many calls in a row without numbers end an engine, though its model makes numbers where it is tried.
const IN_VAIN_MAX: u32 = 8;

/// What it says of a model that a call made values that are no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// It makes numbers of other inputs.
    OfOthers,
    /// It makes none of an input of which it must: the engine has ended.
    OfNone,
    /// It has made none for many calls, which may be to blame or not: the engine has ended.
    NotForLong,
}

/// How often a call is looked at within the shortest limit. A look that comes late shows that the whole process stood still.
const LOOKS: u32 = 10;

impl Patience {
    /// Generous: a large model on a few cores takes minutes for a pass, and ending a process that works would make it begin anew
    /// for ever. A device that hangs delays its jobs by these limits at most.
    pub(crate) const SAFE: Self = Self {
        unknown: Duration::from_secs(60 * 60),
        known: Duration::from_secs(10 * 60),
        slower: 20,
    };
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Takes a request on, or plans and proposes for a pass.
    Prepare,
    /// Computes: a pass, or an encode.
    Compute,
}

/// A call into the model: what it does, and how much of it. Larger calls are expected to take longer, in proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// Rows of a pass, frames of an encode; at least 1.
    pub(crate) size: u32,
}

impl Call {
    /// One that prepares.
    pub(crate) const PREPARE: Self = Self {
        kind: Kind::Prepare,
        size: 1,
    };

    /// A call that computes `size` rows or frames.
    pub(crate) fn compute(size: usize) -> Self {
        Self {
            kind: Kind::Compute,
            size: u32::try_from(size).unwrap_or(u32::MAX).max(1),
        }
    }
}

/// The call under way, and what others took.
#[derive(Debug, Default)]
struct Calls {
    now: Option<(Call, Instant)>,
    /// The slowest of each kind.
    slowest: [Option<(Call, Duration)>; 2],
}

impl Calls {
    fn begin(&mut self, call: Call, now: Instant) {
        self.now = Some((call, now));
    }

    fn end(&mut self, now: Instant, patience: Patience) {
        let Some((call, begun)) = self.now.take() else {
            return;
        };
        let took = now.saturating_duration_since(begun);
        // A call beyond its limit that has come back all the same: the process stood still meanwhile, or it would have been found.
        // Its time says nothing about other calls.
        if took > self.limit(call, patience) {
            return;
        }
        let slowest = &mut self.slowest[call.kind as usize];
        if slowest.is_none_or(|(_, slowest)| took > slowest) {
            *slowest = Some((call, took));
        }
    }

    /// How long a call may take.
    fn limit(&self, call: Call, patience: Patience) -> Duration {
        let Some((slowest, took)) = self.slowest[call.kind as usize] else {
            return patience.unknown;
        };
        let times = call.size.div_ceil(slowest.size).max(1);
        let expected = took.saturating_mul(times);
        patience.known.max(expected.saturating_mul(patience.slower))
    }

    /// When the call under way will have taken too long; where there is none, the earliest time at which a call could have.
    fn due(&self, now: Instant, patience: Patience) -> Instant {
        let (begun, limit) = match self.now {
            Some((call, begun)) => (begun, self.limit(call, patience)),
            None => (now, patience.known.min(patience.unknown)),
        };
        // A limit beyond the range of the clock.
        begun.checked_add(limit).unwrap_or(now + patience.unknown)
    }

    /// How long the call under way has taken.
    fn under_way(&self, now: Instant) -> Duration {
        let begun = self.now.map(|(_, begun)| begun);
        begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun))
    }

    /// Takes off the time for which the whole process stood still, as when a machine sleeps. A call may have begun since.
    fn stood_still(&mut self, time: Duration, now: Instant) {
        if let Some((_, begun)) = &mut self.now {
            *begun = (*begun + time).min(now);
        }
    }
}

#[derive(Debug)]
struct Shared {
    health: watch::Sender<Health>,
    calls: Mutex<Calls>,
    patience: Patience,
    /// Calls without numbers since the last one with.
    in_vain: AtomicU32,
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        // Every change is one assignment, so the state is whole even after a panic elsewhere.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how the engine ended, unless it has ended before.
    fn end(&self, end: Health) {
        self.health.send_if_modified(|health| {
            let running = *health == Health::Running;
            if running {
                *health = end;
            }
            running
        });
    }

    /// Ends the engine if the call under way has taken too long. Gives the time of the next look.
    fn look(&self, now: Instant) -> Instant {
        let (due, took) = {
            let calls = self.calls();
            (calls.due(now, self.patience), calls.under_way(now))
        };
        if due <= now {
            tracing::error!(
                seconds = took.as_secs(),
                "a call into the model does not come back; the process ends, and others take its work"
            );
            self.end(Health::Hung);
        }
        due.min(now + self.patience.known / LOOKS)
    }
}

/// Whether a request may be what a call that does not come back is at: only it counts as begun in vain then, and the others are
/// done elsewhere. All clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Suspect(Arc<AtomicBool>);

impl Suspect {
    /// To be said before a call begins.
    pub(crate) fn set(&self, is_suspect: bool) {
        // Whoever finds that the call hangs has taken the lock under which it began since.
        self.0.store(is_suspect, Ordering::Relaxed);
    }

    /// What the request is told when a call does not come back.
    fn told(&self) -> EngineError {
        if self.0.load(Ordering::Relaxed) {
            EngineError::Hung
        } else {
            EngineError::Stopped
        }
    }
}

/// The side of the model's thread. Dropping it reports the end, also when the thread unwinds.
#[derive(Debug)]
pub(crate) struct Reporter(Arc<Shared>);

/// The side of the engine's handles. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Monitor(Arc<Shared>);

/// A call under way, for as long as this lives.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Shared>);

impl Reporter {
    pub(crate) fn new(patience: Patience) -> (Self, Monitor) {
        let shared = Arc::new(Shared {
            health: watch::Sender::new(Health::Running),
            calls: Mutex::default(),
            patience,
            in_vain: AtomicU32::new(0),
        });
        (Self(Arc::clone(&shared)), Monitor(shared))
    }

    pub(crate) fn failed(&self) {
        self.0.end(Health::Failed);
    }

    /// Notes that a call into the model begins; there is one at a time.
    pub(crate) fn begin(&self, call: Call) -> UnderWay {
        self.0.calls().begin(call, Instant::now());
        UnderWay(Arc::clone(&self.0))
    }

    /// Calls into the model; a panic becomes [`EngineError::Panicked`] and flips the health.
    /// The model is not used again afterwards, so what it left half-done is never seen.
    pub(crate) fn guard<T>(
        &self,
        call: Call,
        calling: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let _under_way = self.begin(call);
        catch_unwind(AssertUnwindSafe(calling)).unwrap_or_else(|_| {
            self.failed();
            Err(EngineError::Panicked)
        })
    }

    /// Whether the device still computes after a call that failed. Where it does not, the engine ends as after a panic: the
    /// process would go on taking units and fail each of them at once, sooner than others could do them.
    pub(crate) fn still_computes(
        &self,
        failed: &EngineError,
        computes: impl FnOnce() -> bool,
    ) -> bool {
        let computes = matches!(self.guard(Call::PREPARE, || Ok(computes())), Ok(true));
        if !computes {
            tracing::error!(
                error = chain(failed),
                "the device computes no more; the process ends, and others take its work"
            );
            self.failed();
        }
        computes
    }

    /// Whether the engine has ended, however.
    pub(crate) fn has_ended(&self) -> bool {
        *self.0.health.borrow() != Health::Running
    }

    /// Notes that a call made numbers.
    pub(crate) fn made_numbers(&self) {
        self.0.in_vain.store(0, Ordering::Relaxed);
    }

    /// What it says of the model that a call made values that are no numbers, by another `call` that tries whether it makes any.
    /// Where it is the model's fault the engine ends: the process would go on taking units and fail each of them.
    pub(crate) fn without_numbers(
        &self,
        call: Call,
        makes_numbers: impl FnOnce() -> bool,
    ) -> Numbers {
        let found = if !matches!(self.guard(call, || Ok(makes_numbers())), Ok(true)) {
            Numbers::OfNone
        } else if self.0.in_vain.fetch_add(1, Ordering::Relaxed) + 1 >= IN_VAIN_MAX {
            Numbers::NotForLong
        } else {
            Numbers::OfOthers
        };
        if found != Numbers::OfOthers {
            tracing::error!(
                ?found,
                "the model makes values that are no numbers, so its weights or its device are damaged; the process ends, and others take its work"
            );
            self.0.end(Health::Damaged);
        }
        found
    }
}

impl Numbers {
    /// Whether the engine has ended.
    pub(crate) const fn ends(self) -> bool {
        matches!(self, Self::OfNone | Self::NotForLong)
    }

    /// What whoever made such a call is told: it is not to blame where nothing makes numbers.
    pub(crate) const fn told(self) -> EngineError {
        match self {
            Self::OfNone => EngineError::Damaged,
            Self::OfOthers | Self::NotForLong => EngineError::NotFinite,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls().end(Instant::now(), self.0.patience);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.end(if std::thread::panicking() {
            Health::Failed
        } else {
            Health::Stopped
        });
    }
}

impl Monitor {
    pub(crate) fn health(&self) -> Health {
        *self.0.health.borrow()
    }

    /// How long the call under way has taken; nothing between two calls.
    pub(crate) fn call(&self) -> Duration {
        self.0.calls().under_way(Instant::now())
    }

    /// Waits until the engine ended, and says how. It is this that finds a call that does not come back.
    pub(crate) fn ended(&self) -> impl Future<Output = Health> + Send + use<> {
        let shared = Arc::clone(&self.0);
        async move {
            let mut health = shared.health.subscribe();
            loop {
                let next = shared.look(Instant::now());
                let ended = health.wait_for(|health| *health != Health::Running);
                match tokio::time::timeout_at(next.into(), ended).await {
                    Ok(Ok(health)) => return *health,
                    // The sender lives as long as this.
                    Ok(Err(_)) => return Health::Stopped,
                    Err(_) => {
                        let now = Instant::now();
                        let late = now.saturating_duration_since(next);
                        shared.calls().stood_still(late, now);
                    }
                }
            }
        }
    }

    /// Waits for an answer of the model's thread to a request.
    ///
    /// # Errors
    /// As soon as the thread hangs: [`EngineError::Hung`] where it may hang because of the request, else [`EngineError::Stopped`].
    pub(crate) async fn answer<T>(
        &self,
        suspect: &Suspect,
        answer: impl Future<Output = T>,
    ) -> Result<T, EngineError> {
        let mut health = self.0.health.subscribe();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            _ = health.wait_for(|health| *health == Health::Hung) => Err(suspect.told()),
        }
    }

    /// Hands a request to the model's thread.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] where the engine has ended, however: this request had no part in it.
    pub(crate) async fn send<T>(
        &self,
        requests: &mpsc::Sender<T>,
        request: T,
    ) -> Result<(), EngineError> {
        // The channel of a thread that hangs may still have room.
        if self.health() != Health::Running {
            return Err(EngineError::Stopped);
        }
        match self
            .answer(&Suspect::default(), requests.send(request))
            .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(EngineError::Stopped),
        }
    }

    /// Why an engine did not answer a request that it has.
    pub(crate) fn gone(&self, suspect: &Suspect) -> EngineError {
        match self.health() {
            Health::Failed => EngineError::Panicked,
            Health::Hung => suspect.told(),
            Health::Running | Health::Stopped | Health::Damaged => EngineError::Stopped,
        }
    }
}

#[cfg(test)]
mod tests;
