//! What an encoder does at the moment, for a decoder that computes on the same device: the one place where the two halves
//! of a process know of each other. The encoder waits for nobody; whether texts wait for it is decided in `decode::company`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use medfleet_core::Class;

/// Weight of the newest encode in the running mean of how long images usually take.
const FOLLOWED: f64 = 0.25;

/// What images are encoded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// How soon their job matters.
    pub class: Class,
    /// Whether no other images of their job are left to encode, so that its text can be written next.
    pub is_last: bool,
}

/// What an encoder does. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Encoding(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Grows with every change that may end a decoder's wait.
    changes: u64,
    /// What is being encoded now.
    now: Option<Purpose>,
    /// How long images usually take that are the last of their jobs.
    usual: Option<Duration>,
    /// Such images are encoded, and their text has not come to the decoder yet.
    is_owed: bool,
    /// Encodes begun.
    encodes: u64,
    /// Passes of the decoder begun, and whether one is under way.
    passes: u64,
    is_passing: bool,
    /// The process is ending, and no text may wait any more.
    is_hurried: bool,
}

/// A text whose images are being encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coming {
    /// How soon its job matters.
    pub(crate) class: Class,
    /// How long its images usually take to encode.
    pub(crate) usual: Duration,
}

/// An encoder as it was at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View {
    /// The count of changes then, for [`Encoding::wait`].
    pub(crate) changes: u64,
    /// The text that comes next, if there is one and its time can be estimated.
    pub(crate) coming: Option<Coming>,
}

/// Taken at the beginning of an encode or of a pass, to measure it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    begun: Instant,
    /// Whether the other half of the process was at rest then.
    is_alone: bool,
    /// How many passes or encodes the other half had begun by then.
    others: u64,
}

impl Mark {
    /// How long ago it was taken.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Encoding {
    /// From now on no text waits for another: the process is to end.
    pub fn hurry(&self) {
        self.change(|state| state.is_hurried = true);
    }

    /// Ends the decoder's wait for a change that is not part of this state, such as a new request.
    pub(crate) fn changed(&self) {
        self.change(|_| ());
    }

    /// A text has come to the decoder.
    pub(crate) fn arrived(&self) {
        self.lock().is_owed = false;
    }

    /// The encoder begins.
    pub(crate) fn begin(&self, purpose: Purpose) -> Mark {
        let (is_alone, others) = self.change(|state| {
            state.now = Some(purpose);
            state.encodes += 1;
            (!state.is_passing, state.passes)
        });
        Mark {
            begun: Instant::now(),
            is_alone,
            others,
        }
    }

    /// An encode has ended. `is_wanted`: it gave tokens, and its caller still waits for them.
    pub(crate) fn end(&self, mark: Mark, is_wanted: bool) {
        let took = mark.elapsed();
        self.change(|state| {
            let last = state.now.take().is_some_and(|purpose| purpose.is_last);
            if last && is_wanted {
                state.is_owed = true;
                let is_alone = mark.is_alone && mark.others == state.passes;
                state.usual = Some(followed(state.usual, took, is_alone));
            }
        });
    }

    /// The decoder begins a pass.
    pub(crate) fn begin_pass(&self) -> Mark {
        let mut state = self.lock();
        state.is_passing = true;
        state.passes += 1;
        Mark {
            begun: Instant::now(),
            is_alone: state.now.is_none(),
            others: state.encodes,
        }
    }

    /// A pass of the decoder has ended; true if the encoder was at rest all the while.
    pub(crate) fn end_pass(&self, mark: Mark) -> bool {
        let mut state = self.lock();
        state.is_passing = false;
        mark.is_alone && mark.others == state.encodes
    }

    /// The text that the decoder could wait for, if there is one.
    pub(crate) fn look(&self) -> View {
        let state = self.lock();
        // As long as the text of the images before has not come, it went to another decoder or finds no place here, and so would
        // this one.
        let is_open = !state.is_owed && !state.is_hurried;
        let last = state.now.filter(|purpose| is_open && purpose.is_last);
        let coming = last
            .zip(state.usual)
            .map(|(Purpose { class, .. }, usual)| Coming { class, usual });
        View {
            changes: state.changes,
            coming,
        }
    }

    /// Waits until something has changed since `seen`, or until the given time.
    pub(crate) fn wait(&self, seen: View, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let is_same = |state: &mut State| state.changes == seen.changes;
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), left, is_same);
        // The caller looks again, whatever has ended the wait.
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What images that are the last of their jobs take, for tests.
    #[cfg(test)]
    pub(crate) fn set_usual(&self, usual: Duration) {
        self.lock().usual = Some(usual);
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        state.changes += 1;
        drop(state);
        self.0.changed.notify_all();
        changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long images usually take, now that some took `took`. Those that shared the device with a pass only show that it takes no
/// longer than that.
fn followed(usual: Option<Duration>, took: Duration, is_alone: bool) -> Duration {
    match usual {
        None => took,
        Some(usual) if is_alone => usual.mul_f64(1.0 - FOLLOWED) + took.mul_f64(FOLLOWED),
        Some(usual) => usual.min(took),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Purpose = Purpose {
        class: Class::Routine,
        is_last: true,
    };

    #[test]
    fn only_the_last_images_of_a_job_bring_a_text_and_only_while_texts_come() {
        let encoding = Encoding::default();
        let comes = || encoding.look().coming.map(|coming| coming.class);
        let first = encoding.begin(LAST);
        assert_eq!(comes(), None, "nobody knows yet how long it takes");
        encoding.end(first, true);
        assert_eq!(comes(), None, "nothing is encoded");
        encoding.arrived();
        let middle = encoding.begin(Purpose {
            is_last: false,
            ..LAST
        });
        assert_eq!(comes(), None, "other images of the job are left");
        encoding.end(middle, true);
        let second = encoding.begin(LAST);
        assert_eq!(comes(), Some(Class::Routine));
        encoding.end(second, true);
        let third = encoding.begin(LAST);
        assert_eq!(comes(), None, "the text before it has not come");
        encoding.arrived();
        assert_eq!(comes(), Some(Class::Routine));
        encoding.end(third, false);
        let fourth = encoding.begin(LAST);
        assert_eq!(
            comes(),
            Some(Class::Routine),
            "nobody wanted the one before it"
        );
        encoding.hurry();
        assert_eq!(comes(), None);
        encoding.end(fourth, true);
    }

    #[test]
    fn a_pass_beside_an_encode_is_known() {
        let encoding = Encoding::default();
        let pass = encoding.begin_pass();
        assert!(encoding.end_pass(pass));
        let pass = encoding.begin_pass();
        let encode = encoding.begin(LAST);
        assert!(!encode.is_alone);
        encoding.end(encode, true);
        assert!(!encoding.end_pass(pass), "one came and went");
        let encode = encoding.begin(LAST);
        assert!(encode.is_alone);
        let pass = encoding.begin_pass();
        assert!(!encoding.end_pass(pass));
        encoding.end(encode, true);
    }

    #[test]
    fn what_shared_the_device_says_only_how_long_it_takes_at_most() {
        let seconds = Duration::from_secs;
        let check = |usual: Option<u64>, took, is_alone, expected| {
            let found = followed(usual.map(seconds), seconds(took), is_alone);
            assert_eq!(found, seconds(expected), "{usual:?} {took} {is_alone}");
        };
        check(None, 9, false, 9);
        check(Some(4), 8, true, 5);
        check(Some(4), 8, false, 4);
        check(Some(4), 3, false, 3);
    }

    #[test]
    fn what_changed_since_the_look_is_not_waited_for() {
        let encoding = Encoding::default();
        let seen = encoding.look();
        encoding.changed();
        // It would take an hour.
        encoding.wait(seen, Instant::now() + Duration::from_secs(3600));
        encoding.wait(encoding.look(), Instant::now());
    }
}
