//! A fleet that an autoscaler makes follow a day, as events in simulated time: its workers take time to start, and hand back
//! what they have not finished when their time to stop is over. The same seed gives the same figures.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::{Arrival, arrivals, units};
use crate::load::Load;
use crate::scaling::{Controller, Rules, oracle};
use crate::simulation::{CLASSES, Time, nanos, seconds};

/// A simulated fleet that has not finished after so many days never will.
const DAYS_MAX: f64 = 3.0;

/// One pool of workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pool {
    /// Units that a worker has in hand at a time.
    pub(super) slots: u32,
    /// From the order to start until a worker takes units.
    pub(super) start_seconds: f64,
    pub(super) rules: Rules,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Day {
    /// What arrives and what it takes; its rate is that of the busiest moment.
    pub(super) load: Load,
    /// Length of the day: 86,400, or less for one that runs faster.
    pub(super) seconds: f64,
    pub(super) encode: Pool,
    pub(super) decode: Pool,
    /// A worker that was told to go hands back after this what it has not finished.
    pub(super) drain_seconds: f64,
    /// A job that takes no longer, from accept to result, is in time.
    pub(super) target_seconds: f64,
    pub(super) seed: u64,
}

/// What a simulated day showed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DayRun {
    pub(super) jobs: usize,
    /// Jobs that ended, each once.
    pub(super) completed: usize,
    /// Part of all jobs that were in time.
    pub(super) in_time: f64,
    pub(super) encode: PoolRun,
    pub(super) decode: PoolRun,
}

/// What the workers of one pool did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct PoolRun {
    /// From the order to start to the end of the process, over all workers.
    pub(super) worker_seconds: f64,
    /// Of the oracle.
    pub(super) oracle_seconds: f64,
    pub(super) most: u32,
    pub(super) starts: u32,
    /// Units begun by a worker that had to go.
    pub(super) handed_back: u32,
}

impl PoolRun {
    /// Worker-seconds, divided by the oracle's.
    pub(super) fn ratio(&self) -> f64 {
        self.worker_seconds / self.oracle_seconds
    }
}

const ENCODE: usize = 0;
const DECODE: usize = 1;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival {
        job: usize,
    },
    Preprocessed {
        job: usize,
    },
    Ready {
        side: usize,
        worker: u64,
    },
    Done {
        side: usize,
        worker: u64,
        job: usize,
    },
    HandBack {
        side: usize,
        worker: u64,
    },
    Turn,
}

/// A unit in the hand of a worker.
struct Held {
    job: usize,
    takes: Time,
    end: Time,
}

struct Worker {
    since: Time,
    is_ready: bool,
    is_leaving: bool,
    hand: Vec<Held>,
}

/// One stage: its workers and what waits for them.
struct Side {
    index: usize,
    pool: Pool,
    controller: Controller,
    workers: BTreeMap<u64, Worker>,
    waiting: [VecDeque<(usize, Time)>; CLASSES],
    /// The backlog as it was at the last turn: what a monitoring system has of it is that old.
    scraped: f64,
    run: PoolRun,
}

impl Side {
    fn new(index: usize, pool: Pool) -> Self {
        Self {
            index,
            pool,
            controller: Controller::new(pool.rules),
            workers: BTreeMap::new(),
            waiting: Default::default(),
            scraped: 0.0,
            run: PoolRun::default(),
        }
    }

    /// A unit that waits for a worker that is free.
    fn take(&mut self, now: Time) -> Option<(Time, Event)> {
        let slots = self.pool.slots as usize;
        let (id, worker) = self.workers.iter_mut().find(|(_, worker)| {
            worker.is_ready && !worker.is_leaving && worker.hand.len() < slots
        })?;
        let (job, takes) = self.waiting.iter_mut().find_map(VecDeque::pop_front)?;
        let end = now + takes;
        worker.hand.push(Held { job, takes, end });
        let (side, worker) = (self.index, *id);
        Some((end, Event::Done { side, worker, job }))
    }

    /// Whether this worker had the unit still; then it has it no more.
    fn finish(&mut self, now: Time, id: u64, job: usize) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        let mut hand = worker.hand.iter();
        let Some(place) = hand.position(|held| held.job == job && held.end == now) else {
            return false;
        };
        worker.hand.remove(place);
        if worker.is_leaving && worker.hand.is_empty() {
            self.end(now, id);
        }
        true
    }

    /// A worker's process ends; what it has in hand is returned.
    fn end(&mut self, now: Time, id: u64) -> Vec<Held> {
        let Some(worker) = self.workers.remove(&id) else {
            return Vec::new();
        };
        self.run.worker_seconds += seconds(now - worker.since);
        worker.hand
    }

    /// What the controller orders, and what will happen because of it.
    fn turn(&mut self, now: Time, backlog: f64, drain_seconds: f64) -> Vec<(Time, Event)> {
        let side = self.index;
        let there = self.workers.iter().filter(|(_, worker)| !worker.is_leaving);
        let there: Vec<u64> = there.map(|(id, _)| *id).collect();
        let scraped = std::mem::replace(&mut self.scraped, backlog);
        let wanted = self
            .controller
            .turn(seconds(now), scraped, there.len() as u32);
        self.run.most = self.run.most.max(wanted);
        let mut events = Vec::new();
        for _ in there.len()..wanted as usize {
            let worker = u64::from(self.run.starts);
            self.run.starts += 1;
            let new = Worker {
                since: now,
                is_ready: false,
                is_leaving: false,
                hand: Vec::new(),
            };
            self.workers.insert(worker, new);
            let ready = now + nanos(self.pool.start_seconds);
            events.push((ready, Event::Ready { side, worker }));
        }
        // The youngest go first.
        for id in there.into_iter().skip(wanted as usize) {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            worker.is_leaving = true;
            if worker.hand.is_empty() {
                self.end(now, id);
            } else {
                let late = now + nanos(drain_seconds);
                events.push((late, Event::HandBack { side, worker: id }));
            }
        }
        events
    }
}

/// The state of a simulated day.
struct Course<'a> {
    day: &'a Day,
    jobs: &'a [Arrival],
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    /// Events so far: what comes at the same time happens in the order in which it was foreseen.
    foreseen: u64,
    sides: [Side; 2],
    chunks_left: Vec<usize>,
    ended: Vec<Option<Time>>,
    open_chunks: usize,
    open_jobs: usize,
}

/// Simulates a day and what follows of it until every job has ended and every worker has gone. The load must have passed
/// its check.
pub(super) fn simulate_day(day: &Day) -> DayRun {
    let jobs = arrivals(&day.load, day.seconds, day.seed);
    let mut course = Course {
        day,
        jobs: &jobs,
        events: BinaryHeap::new(),
        foreseen: 0,
        sides: [Side::new(ENCODE, day.encode), Side::new(DECODE, day.decode)],
        chunks_left: jobs.iter().map(|job| job.encode_seconds.len()).collect(),
        ended: vec![None; jobs.len()],
        open_chunks: 0,
        open_jobs: 0,
    };
    for (job, arrival) in jobs.iter().enumerate() {
        course.foresee(nanos(arrival.at_seconds), Event::Arrival { job });
    }
    course.foresee(0, Event::Turn);
    let last = nanos(day.seconds * DAYS_MAX);
    while let Some(Reverse((now, _, event))) = course.events.pop()
        && now <= last
    {
        course.happen(now, event);
        course.take(now);
    }
    let took = jobs.iter().zip(&course.ended).filter_map(|(job, end)| {
        let end = (*end)?;
        Some(seconds(end - nanos(job.at_seconds)))
    });
    let took: Vec<f64> = took.collect();
    let in_time = took.iter().filter(|took| **took <= day.target_seconds);
    let in_time = in_time.count() as f64 / jobs.len().max(1) as f64;
    let [encode, decode] = course.sides.map(|side| side.run);
    let [of_encode, of_decode] = units(&day.load, &jobs);
    DayRun {
        jobs: jobs.len(),
        completed: took.len(),
        in_time,
        encode: PoolRun {
            oracle_seconds: of_pool(&day.encode, &of_encode),
            ..encode
        },
        decode: PoolRun {
            oracle_seconds: of_pool(&day.decode, &of_decode),
            ..decode
        },
    }
}

fn of_pool(pool: &Pool, units: &[(f64, f64)]) -> f64 {
    let least = pool.rules.cooldown_seconds;
    oracle(units, pool.slots, pool.start_seconds, least)
}

impl Course<'_> {
    fn foresee(&mut self, at: Time, event: Event) {
        self.foreseen += 1;
        self.events.push(Reverse((at, self.foreseen, event)));
    }

    fn happen(&mut self, now: Time, event: Event) {
        match event {
            Event::Arrival { job } => {
                self.open_jobs += 1;
                self.open_chunks += self.chunks_left[job];
                let other = nanos(self.day.load.other_seconds);
                self.foresee(now + other, Event::Preprocessed { job });
            }
            Event::Preprocessed { job } => self.preprocessed(job),
            Event::Ready { side, worker } => {
                if let Some(worker) = self.sides[side].workers.get_mut(&worker) {
                    worker.is_ready = true;
                }
            }
            Event::Done { side, worker, job } => {
                if self.sides[side].finish(now, worker, job) {
                    self.done(now, side, job);
                }
            }
            Event::HandBack { side, worker } => {
                for held in self.sides[side].end(now, worker) {
                    let class = self.jobs[held.job].class;
                    let side = &mut self.sides[side];
                    side.waiting[class].push_front((held.job, held.takes));
                    side.run.handed_back += 1;
                }
            }
            Event::Turn => self.turn(now),
        }
    }

    fn preprocessed(&mut self, job: usize) {
        let arrival = &self.jobs[job];
        let waiting = &mut self.sides[ENCODE].waiting[arrival.class];
        let chunks = arrival.encode_seconds.iter();
        waiting.extend(chunks.map(|takes| (job, nanos(*takes))));
        if self.chunks_left[job] == 0 {
            self.wait_for_decode(job);
        }
    }

    fn wait_for_decode(&mut self, job: usize) {
        let arrival = &self.jobs[job];
        let unit = (job, nanos(arrival.decode_seconds));
        self.sides[DECODE].waiting[arrival.class].push_back(unit);
    }

    fn done(&mut self, now: Time, side: usize, job: usize) {
        if side == DECODE {
            self.ended[job] = Some(now);
            self.open_jobs -= 1;
            return;
        }
        self.open_chunks -= 1;
        self.chunks_left[job] -= 1;
        if self.chunks_left[job] == 0 {
            self.wait_for_decode(job);
        }
    }

    /// Both backlogs as ingest tells them, work on its way to a stage included, and what the controllers make of them.
    fn turn(&mut self, now: Time) {
        let load = &self.day.load;
        let backlogs = [
            self.open_chunks as f64 * load.encode.mean_seconds,
            self.open_jobs as f64 * load.decode.mean_seconds,
        ];
        let drain = self.day.drain_seconds;
        for (side, backlog) in backlogs.into_iter().enumerate() {
            for (at, event) in self.sides[side].turn(now, backlog, drain) {
                self.foresee(at, event);
            }
        }
        let is_over = seconds(now) >= self.day.seconds
            && self.open_jobs == 0
            && self.sides.iter().all(|side| side.workers.is_empty());
        if !is_over {
            let pause = nanos(self.day.encode.rules.turn_seconds);
            self.foresee(now + pause, Event::Turn);
        }
    }

    fn take(&mut self, now: Time) {
        for side in [ENCODE, DECODE] {
            while let Some((end, event)) = self.sides[side].take(now) {
                self.foresee(end, event);
            }
        }
    }
}
