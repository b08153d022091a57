//! A day of jobs: nearly none at night, a steep morning, most at noon, a second peak, and an evening. The same seed gives the
//! same jobs.

use crate::load::Load;
use crate::simulation::Random;

/// Jobs a second as a part of the most, by the hour. Between these points it is a straight line.
const HOURS: [(f64, f64); 11] = [
    (0.0, 0.002),
    (6.0, 0.002),
    (7.0, 0.15),
    (9.0, 0.7),
    (12.0, 1.0),
    (13.0, 0.75),
    (15.0, 0.85),
    (18.0, 0.35),
    (21.0, 0.06),
    (22.0, 0.002),
    (24.0, 0.002),
];

#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// When it is accepted, in seconds of the day.
    pub at_seconds: f64,
    /// Order of service: 0 is served first.
    pub class: usize,
    /// Slot time of each of its chunks.
    pub encode_seconds: Vec<f64>,
    /// Slot time of its text.
    pub decode_seconds: f64,
}

/// The jobs of a day of this length; the load must have passed its check, and its rate is that of the busiest moment.
pub fn arrivals(load: &Load, day_seconds: f64, seed: u64) -> Vec<Arrival> {
    let mut random = Random(seed);
    let mut all = Vec::new();
    let mut at_seconds = 0.0;
    loop {
        at_seconds += random.exponential(1.0 / load.jobs_per_second);
        if at_seconds >= day_seconds {
            return all;
        }
        if random.unit() > rate(24.0 * at_seconds / day_seconds) {
            continue;
        }
        let mut draw = random.unit();
        let kind = load.kinds.iter().find(|kind| {
            draw -= kind.share;
            draw <= 0.0
        });
        // Shares add up to 1 but for rounding.
        let Some(kind) = kind.or(load.kinds.last()) else {
            return all;
        };
        let chunks = (0..kind.chunks).map(|_| random.service(load.encode));
        let encode_seconds = chunks.collect();
        all.push(Arrival {
            at_seconds,
            class: kind.class,
            encode_seconds,
            decode_seconds: random.service(load.decode),
        });
    }
}

/// The part of the highest rate at an hour.
fn rate(hour: f64) -> f64 {
    let mut lines = HOURS.windows(2).map(|pair| (pair[0], pair[1]));
    let line = lines.find(|(_, (end, _))| hour <= *end);
    line.map_or(0.0, |((begin, low), (end, high))| {
        low + (high - low) * (hour - begin) / (end - begin)
    })
}

/// The units of encode and of decode, each as the earliest time at which it could begin and the slot time that it takes, in
/// seconds: what [`oracle`](crate::oracle) knows.
pub fn units(load: &Load, jobs: &[Arrival]) -> [Vec<(f64, f64)>; 2] {
    let (mut encode, mut decode) = (Vec::new(), Vec::new());
    for job in jobs {
        let at = job.at_seconds + load.other_seconds;
        encode.extend(job.encode_seconds.iter().map(|takes| (at, *takes)));
        let longest = job.encode_seconds.iter().copied().fold(0.0, f64::max);
        decode.push((at + longest, job.decode_seconds));
    }
    [encode, decode]
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
