//! Frames of one file on several threads: made ahead of who takes them, and taken in order on the caller's thread. What is
//! taken, and the first refusal, are those of one thread.

use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::codestream::Decoder;
use crate::{Reason, Refusal};

/// Frames that a thread has made and nobody has taken yet, while it makes the next one.
const WAITING_MAX: usize = 1;

/// Makes `count` things on so many threads, and gives them to `each` in order. Of each thread one is at work, and one waits to
/// be taken. On one thread, which is the caller's, each is taken before the next one is made.
///
/// # Errors
/// The first in order that `make` gives; what comes after it is not taken, and every thread ends with what it is at.
pub(crate) fn in_order<T: Send>(
    decoder: Decoder,
    (threads, count): (usize, usize),
    make: &(dyn Fn(usize) -> Result<T, Refusal> + Sync),
    each: &mut dyn FnMut(T),
) -> Result<(), Refusal> {
    let threads = threads.min(count);
    if threads < 2 {
        for at in 0..count {
            each(make(at)?);
        }
        return Ok(());
    }
    let carried = &decoder.carried();
    thread::scope(|scope| -> Result<(), Refusal> {
        let mut made: Vec<Option<Receiver<Result<T, Refusal>>>> = Vec::with_capacity(threads);
        for first in 0..threads {
            let (send, receive) = mpsc::sync_channel(WAITING_MAX);
            let work = move || {
                carried(&mut || {
                    for at in (first..count).step_by(threads) {
                        let one = make(at);
                        let refused = one.is_err();
                        // Nobody takes it where an earlier one was refused.
                        if send.send(one).is_err() || refused {
                            break;
                        }
                    }
                });
            };
            let started = thread::Builder::new().spawn_scoped(scope, work);
            made.push(started.is_ok().then_some(receive));
        }
        for at in 0..count {
            let one = match &made[at % threads] {
                // A thread that is gone has panicked, and the scope's end passes that on.
                Some(made) => made
                    .recv()
                    .unwrap_or_else(|_| Err(Refusal::new(Reason::DecodeFailed))),
                // The system has no more threads: slower, and the same.
                None => make(at),
            };
            each(one?);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::{CodestreamError, Codestreams, OnThread, Plane};

    /// What is taken of 23 things, of which these are refused.
    fn taken(threads: usize, refused: &[usize]) -> (Result<(), Reason>, Vec<usize>) {
        let mut taken = Vec::new();
        let make = |at: usize| -> Result<usize, Refusal> {
            if refused.contains(&at) {
                Err(Refusal::new(if at.is_multiple_of(2) {
                    Reason::Truncated
                } else {
                    Reason::DecodeFailed
                }))
            } else {
                Ok(at)
            }
        };
        let mut take = |at: usize| taken.push(at);
        let all = in_order(Decoder::HERE, (threads, 23), &make, &mut take);
        (all.map_err(|refusal| refusal.reason), taken)
    }

    #[test]
    fn everything_comes_in_order_up_to_the_first_refusal() {
        for threads in [0, 1, 2, 7, 64] {
            let expected: Vec<usize> = (0..23).collect();
            assert_eq!(taken(threads, &[]), (Ok(()), expected.clone()));
            let first = (Err(Reason::DecodeFailed), expected[..5].to_vec());
            assert_eq!(taken(threads, &[5, 6, 22]), first, "{threads}");
            let first = (Err(Reason::Truncated), Vec::new());
            assert_eq!(taken(threads, &[1, 0]), first, "{threads}");
        }
    }

    /// Each waits until the others have begun, which on one thread would never be.
    #[test]
    fn they_are_made_at_the_same_time() {
        let (begun, threads) = (AtomicUsize::new(0), Mutex::new(HashSet::new()));
        let make = |at: usize| -> Result<usize, Refusal> {
            begun.fetch_add(1, SeqCst);
            while begun.load(SeqCst) < 3 {
                thread::yield_now();
            }
            threads.lock().unwrap().insert(thread::current().id());
            Ok(at)
        };
        in_order(Decoder::HERE, (3, 3), &make, &mut |_: usize| {}).unwrap();
        assert_eq!(threads.into_inner().unwrap().len(), 3);
    }

    thread_local! {
        static CARRIED: Cell<bool> = const { Cell::new(false) };
    }

    /// Knows the threads that work for it.
    #[derive(Debug)]
    struct Carries;

    impl Codestreams for Carries {
        fn decode(&self, _: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
            Err(CodestreamError::Broken)
        }

        fn carried(&self) -> OnThread {
            Box::new(|work: &mut dyn FnMut()| {
                CARRIED.set(true);
                work();
            })
        }
    }

    #[test]
    fn every_thread_works_for_whoever_waits_here() {
        let make = |_: usize| -> Result<bool, Refusal> { Ok(CARRIED.get()) };
        let mut all = Vec::new();
        let mut take = |carried: bool| all.push(carried);
        in_order(Decoder::new(&Carries), (3, 7), &make, &mut take).unwrap();
        assert_eq!(all, [true; 7]);
        assert!(!CARRIED.get());
    }

    /// Frames are large: those that nobody takes hold up who makes them.
    #[test]
    fn few_are_made_ahead_of_who_takes_them() {
        let (made, mut taken, mut most) = (AtomicUsize::new(0), 0, 0);
        let make = |at: usize| -> Result<usize, Refusal> {
            made.fetch_add(1, SeqCst);
            Ok(at)
        };
        let mut take = |_: usize| {
            most = most.max(made.load(SeqCst) - taken);
            taken += 1;
        };
        in_order(Decoder::HERE, (2, 50), &make, &mut take).unwrap();
        // Of each thread one that is at work and blocks, and one that waits; and the one that was just taken.
        assert!((1..=5).contains(&most), "{most}");
        assert_eq!(made.load(SeqCst), 50);
    }
}
