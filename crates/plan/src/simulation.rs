//! The two stages as events in simulated time: jobs arrive, their chunks wait for encoders by class, the last chunk sends
//! the job on to wait for a decode slot. The same seed gives the same figures on every machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use medfleet_core::splitmix;

use crate::load::{Fleet, Load, Service};

/// Classes told apart.
pub const CLASSES: usize = 4;

/// How long to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Jobs that are measured.
    pub jobs: u32,
    /// Jobs before them, while the queues fill.
    pub warm_up: u32,
    pub seed: u64,
}

/// How long jobs took from accept to result, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Turnaround {
    /// Jobs measured.
    pub jobs: u32,
    pub p50_seconds: f64,
    pub p95_seconds: f64,
}

/// What a run showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    pub all: Turnaround,
    pub classes: [Turnaround; CLASSES],
    /// Mean wait of a chunk, in seconds.
    pub encode_wait_seconds: f64,
    /// Mean wait of a decode, in seconds.
    pub decode_wait_seconds: f64,
}

/// Randomness that is the same everywhere and always.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        let number = splitmix::mixed(self.0);
        self.0 = self.0.wrapping_add(splitmix::STEP);
        number
    }

    /// Above 0, up to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// A time of this mean and variation: constant, or log-normal.
    pub(crate) fn service(&mut self, service: Service) -> f64 {
        if service.variation <= 0.0 {
            return service.mean_seconds;
        }
        let squared = service.variation.ln_1p();
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        service.mean_seconds * (squared.sqrt() * normal - squared / 2.0).exp()
    }
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Encoded { job: usize },
    Decoded { job: usize },
}

/// Simulated time in nanoseconds, so that it has an order.
pub(crate) type Time = u64;

pub(crate) fn nanos(seconds: f64) -> Time {
    (seconds * 1e9) as Time
}

pub(crate) fn seconds(time: Time) -> f64 {
    time as f64 / 1e9
}

struct Job {
    class: usize,
    chunks_left: u32,
    arrived: Time,
}

/// Units that wait for one of several alike workers.
struct Stage {
    free: u32,
    waiting: [VecDeque<(usize, Time)>; CLASSES],
    waited: f64,
    taken: u64,
}

impl Stage {
    fn new(workers: u32) -> Self {
        Self {
            free: workers,
            waiting: Default::default(),
            waited: 0.0,
            taken: 0,
        }
    }

    fn take(&mut self, now: Time, is_measured: bool) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let (job, since) = self.waiting.iter_mut().find_map(VecDeque::pop_front)?;
        self.free -= 1;
        if is_measured {
            self.waited += seconds(now - since);
            self.taken += 1;
        }
        Some(job)
    }

    fn mean_wait(&self) -> f64 {
        self.waited / self.taken.max(1) as f64
    }
}

struct Simulation<'a> {
    load: &'a Load,
    random: Random,
    events: BinaryHeap<Reverse<(Time, Event)>>,
    jobs: Vec<Job>,
    encode: Stage,
    decode: Stage,
    warm_up: usize,
}

/// Simulates a fleet. The load must have passed its check, and the fleet keep up with it.
pub fn simulate(load: &Load, fleet: Fleet, run: Run) -> Simulated {
    let mut simulation = Simulation::new(load, fleet, run.seed, run.warm_up as usize);
    let most = run.warm_up as usize + run.jobs as usize;
    let mut done: [Vec<f64>; CLASSES] = Default::default();
    simulation.events.push(Reverse((0, Event::Arrival)));
    while let Some(Reverse((now, event))) = simulation.events.pop() {
        match event {
            Event::Arrival if simulation.jobs.len() < most => simulation.arrive(now),
            Event::Arrival => {}
            Event::Encoded { job } => simulation.encoded(job, now),
            Event::Decoded { job } => {
                simulation.decode.free += 1;
                let job_done = &simulation.jobs[job];
                if job >= simulation.warm_up {
                    let took = seconds(now - job_done.arrived) + load.other_seconds;
                    done[job_done.class].push(took);
                }
            }
        }
        simulation.start(now);
    }
    let mut all: Vec<f64> = done.iter().flatten().copied().collect();
    Simulated {
        all: turnaround(&mut all),
        classes: done.map(|mut took| turnaround(&mut took)),
        encode_wait_seconds: simulation.encode.mean_wait(),
        decode_wait_seconds: simulation.decode.mean_wait(),
    }
}

/// How long a fleet takes for a number of jobs that are all there at the beginning, in seconds: what it does at most. The load's
/// rate does not count.
pub fn batch_seconds(load: &Load, fleet: Fleet, jobs: u32, seed: u64) -> f64 {
    let mut simulation = Simulation::new(load, fleet, seed, 0);
    for _ in 0..jobs {
        simulation.add(0);
    }
    simulation.start(0);
    let mut end = 0;
    while let Some(Reverse((now, event))) = simulation.events.pop() {
        match event {
            Event::Arrival => {}
            Event::Encoded { job } => simulation.encoded(job, now),
            Event::Decoded { .. } => simulation.decode.free += 1,
        }
        simulation.start(now);
        end = now;
    }
    seconds(end) + load.other_seconds
}

impl<'a> Simulation<'a> {
    fn new(load: &'a Load, fleet: Fleet, seed: u64, warm_up: usize) -> Self {
        Self {
            load,
            random: Random(seed),
            events: BinaryHeap::new(),
            jobs: Vec::new(),
            encode: Stage::new(fleet.encoders),
            decode: Stage::new(fleet.decode_slots),
            warm_up,
        }
    }

    fn arrive(&mut self, now: Time) {
        self.add(now);
        let pause = self.random.exponential(1.0 / self.load.jobs_per_second);
        self.events
            .push(Reverse((now + nanos(pause), Event::Arrival)));
    }

    /// A job is there.
    fn add(&mut self, now: Time) {
        let mut draw = self.random.unit();
        let kinds = &self.load.kinds;
        let kind = kinds.iter().find(|kind| {
            draw -= kind.share;
            draw <= 0.0
        });
        // Shares add up to 1 but for rounding.
        let Some(kind) = kind.or(kinds.last()).copied() else {
            return;
        };
        let job = self.jobs.len();
        self.jobs.push(Job {
            class: kind.class,
            chunks_left: kind.chunks,
            arrived: now,
        });
        for _ in 0..kind.chunks {
            self.encode.waiting[kind.class].push_back((job, now));
        }
        if kind.chunks == 0 {
            self.wait_for_decode(job, now);
        }
    }

    fn encoded(&mut self, job: usize, now: Time) {
        self.encode.free += 1;
        self.jobs[job].chunks_left -= 1;
        if self.jobs[job].chunks_left == 0 {
            self.wait_for_decode(job, now);
        }
    }

    fn wait_for_decode(&mut self, job: usize, now: Time) {
        let class = self.jobs[job].class;
        self.decode.waiting[class].push_back((job, now));
    }

    fn start(&mut self, now: Time) {
        let is_measured = self.jobs.len() > self.warm_up;
        while let Some(job) = self.encode.take(now, is_measured) {
            let end = now + nanos(self.random.service(self.load.encode));
            self.events.push(Reverse((end, Event::Encoded { job })));
        }
        while let Some(job) = self.decode.take(now, is_measured) {
            let end = now + nanos(self.random.service(self.load.decode));
            self.events.push(Reverse((end, Event::Decoded { job })));
        }
    }
}

fn turnaround(took: &mut [f64]) -> Turnaround {
    took.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (took.len() as f64 * part) as usize;
        took.get(index.min(took.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    };
    Turnaround {
        jobs: took.len() as u32,
        p50_seconds: at(0.5),
        p95_seconds: at(0.95),
    }
}

#[cfg(test)]
mod tests;
