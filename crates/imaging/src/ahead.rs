//! Things on several threads: made ahead of who takes them, and taken on the caller's thread in the order in which they were put
//! in. The frames of one file are made so, and the files of an archive: what is taken, and the first refusal, are those of one
//! thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use crate::codestream::Decoder;
use crate::{Reason, Refusal};

/// Things of one thread that nobody has taken yet: one that is made, and one that waits to be made or taken.
const OF_A_THREAD_MAX: usize = 2;

/// What a thing takes of what there is for all that nobody has taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// That are in memory for it.
    pub(crate) bytes: u64,
    /// Of the square that it is padded to.
    pub(crate) pixels: u64,
}

/// Who takes what was made, and may end it all.
pub(crate) type Take<'a, Out> = &'a mut dyn FnMut(Out) -> Result<(), Refusal>;

/// Where things are put in and taken.
pub(crate) struct Ahead<'a, In, Out> {
    make: &'a (dyn Fn(In) -> Out + Sync),
    /// Starts a thread that makes what comes from the one and gives it to the other; false where there is none to be had.
    start: &'a dyn Fn(Receiver<In>, SyncSender<Out>) -> bool,
    /// 0 where all is made on the caller's thread.
    threads: usize,
    most: Cost,
    workers: Vec<Worker<In, Out>>,
    /// Who is next, in turns.
    next: usize,
    /// Of what was put in and nobody has taken: who makes it, and what it takes.
    waiting: VecDeque<(usize, Cost)>,
    taken: Cost,
}

struct Worker<In, Out> {
    things: SyncSender<In>,
    made: Receiver<Out>,
}

/// Lets `work` put things in, of which `make` makes others on so many threads; all that nobody has taken yet cost at most so much
/// together, or are one thing. On one thread, which is the caller's, each is taken before the next one is put in.
pub(crate) fn ahead<In: Send, Out: Send, T>(
    decoder: Decoder,
    (threads, most): (usize, Cost),
    make: &(dyn Fn(In) -> Out + Sync),
    work: impl FnOnce(&mut Ahead<'_, In, Out>) -> T,
) -> T {
    let carried = &decoder.carried();
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |things: Receiver<In>, made: SyncSender<Out>| -> bool {
            let run = move || {
                carried(&mut || {
                    while let Ok(thing) = things.recv() {
                        // Nobody takes it where an earlier one was refused.
                        if over.load(Ordering::Relaxed) || made.send(make(thing)).is_err() {
                            break;
                        }
                    }
                });
            };
            thread::Builder::new().spawn_scoped(scope, run).is_ok()
        };
        let mut ahead = Ahead {
            make,
            start: &start,
            threads: if threads < 2 { 0 } else { threads },
            most,
            workers: Vec::new(),
            next: 0,
            waiting: VecDeque::new(),
            taken: Cost::default(),
        };
        let done = work(&mut ahead);
        over.store(true, Ordering::Relaxed);
        done
    })
}

impl<In: Send, Out: Send> Ahead<'_, In, Out> {
    /// Takes what was put in first until so much is left for what comes, or nothing is in the way.
    pub(crate) fn make_room(&mut self, cost: Cost, take: Take<'_, Out>) -> Result<(), Refusal> {
        let over = |taken: u64, more: u64, most: u64| taken.saturating_add(more) > most;
        while !self.waiting.is_empty()
            && (over(self.taken.bytes, cost.bytes, self.most.bytes)
                || over(self.taken.pixels, cost.pixels, self.most.pixels))
        {
            self.take_first(take)?;
        }
        Ok(())
    }

    /// Puts a thing in, once there is room for it.
    pub(crate) fn put(
        &mut self,
        thing: In,
        cost: Cost,
        take: Take<'_, Out>,
    ) -> Result<(), Refusal> {
        self.make_room(cost, take)?;
        if self.workers.len() < self.threads {
            self.start_one();
        }
        if self.threads == 0 {
            return take((self.make)(thing));
        }
        while self.waiting.len() >= self.threads * OF_A_THREAD_MAX {
            self.take_first(take)?;
        }
        let worker = self.next % self.workers.len();
        self.next = worker + 1;
        // There is room in it for as many as nobody has taken.
        let sent = self.workers[worker].things.send(thing);
        sent.map_err(|_| gone())?;
        self.waiting.push_back((worker, cost));
        self.taken.bytes += cost.bytes;
        self.taken.pixels += cost.pixels;
        Ok(())
    }

    /// Takes everything that was put in.
    ///
    /// # Errors
    /// What `take` ends with; the rest is not taken then.
    pub(crate) fn finish(&mut self, take: Take<'_, Out>) -> Result<(), Refusal> {
        while !self.waiting.is_empty() {
            self.take_first(take)?;
        }
        Ok(())
    }

    fn take_first(&mut self, take: Take<'_, Out>) -> Result<(), Refusal> {
        let Some((worker, cost)) = self.waiting.pop_front() else {
            return Ok(());
        };
        self.taken.bytes -= cost.bytes;
        self.taken.pixels -= cost.pixels;
        let made = self.workers[worker].made.recv();
        take(made.map_err(|_| gone())?)
    }

    fn start_one(&mut self) {
        let (things, to_make) = mpsc::sync_channel(OF_A_THREAD_MAX);
        let (give, made) = mpsc::sync_channel(OF_A_THREAD_MAX);
        if (self.start)(to_make, give) {
            self.workers.push(Worker { things, made });
        } else {
            // The system has no more threads: slower, and the same.
            self.threads = self.workers.len();
        }
    }
}

/// A thread that is gone has panicked, and the scope's end passes that on.
fn gone() -> Refusal {
    Refusal::new(Reason::DecodeFailed)
}

/// Makes `count` things on so many threads, and gives them to `each` in order.
///
/// # Errors
/// The first in order that `make` gives; what comes after it is not taken, and every thread ends with what it is at.
pub(crate) fn in_order<T: Send>(
    decoder: Decoder,
    (threads, count): (usize, usize),
    make: &(dyn Fn(usize) -> Result<T, Refusal> + Sync),
    each: &mut dyn FnMut(T),
) -> Result<(), Refusal> {
    let mut take = |made: Result<T, Refusal>| -> Result<(), Refusal> {
        each(made?);
        Ok(())
    };
    // The caller has chosen as many threads as there is room for.
    let free = Cost::default();
    ahead(decoder, (threads.min(count), free), make, |ahead| {
        for at in 0..count {
            ahead.put(at, free, &mut take)?;
        }
        ahead.finish(&mut take)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
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

    /// Whoever waits for that thread hears of it, and so does who called; the others end.
    #[test]
    fn a_panic_on_a_thread_is_passed_on() {
        for broken in [0, 5, 22] {
            let make = |at: usize| -> Result<usize, Refusal> {
                assert_ne!(at, broken, "a broken codec");
                Ok(at)
            };
            let mut taken = 0;
            let mut take = |_: usize| taken += 1;
            let all = || in_order(Decoder::HERE, (3, 23), &make, &mut take);
            assert!(catch_unwind(AssertUnwindSafe(all)).is_err());
            assert!(taken <= broken, "{taken}");
        }
    }

    /// What is in the hands of threads never costs more together than it may, but for one thing that does by itself.
    #[test]
    fn things_wait_until_there_is_room_for_them() {
        const MOST: usize = 8;
        let check = |costs: &[usize]| {
            let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let make = |cost: usize| -> usize {
                let now = held.fetch_add(cost, SeqCst) + cost;
                assert!(now <= MOST || now == cost, "{now}");
                most.fetch_max(now, SeqCst);
                cost
            };
            let mut order = Vec::new();
            let mut take = |cost: usize| -> Result<(), Refusal> {
                held.fetch_sub(cost, SeqCst);
                order.push(cost);
                Ok(())
            };
            let room = Cost {
                bytes: MOST as u64,
                pixels: u64::MAX,
            };
            let all = ahead(
                Decoder::HERE,
                (4, room),
                &make,
                |ahead: &mut Ahead<'_, usize, usize>| {
                    for cost in costs {
                        let of = Cost {
                            bytes: *cost as u64,
                            pixels: 1,
                        };
                        ahead.put(*cost, of, &mut take)?;
                    }
                    ahead.finish(&mut take)
                },
            );
            assert_eq!(all.map_err(|refusal| refusal.reason), Ok(()));
            assert_eq!((order.as_slice(), held.into_inner()), (costs, 0));
            most.into_inner()
        };
        assert_eq!(check(&[3, 4, 5, 20, 8, 1, 1, 1, 1, 1, 1, 1]), 20);
        assert!((5..=MOST).contains(&check(&[5, 5, 5, 1, 7, 2, 6])));
    }
}
