//! Waiting times by formula.
//!
//! Sources: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
//! exchanges" (1917), for the probability of waiting; A. O. Allen, "Probability, Statistics, and Queueing Theory" (2nd ed.
//! 1990), section 5.3, for the approximation of Allen and Cunneen, which is exact for M/M/c and M/G/1; batches enter by the
//! index of dispersion of a compound Poisson process, E\[X²\] / E\[X\] (W. Feller, volume 1, chapter XII).

use crate::load::{Fleet, Load};

/// Probability that a unit waits: `servers` servers at an offered load of `erlangs`, which must be less.
fn erlang_c(servers: u32, erlangs: f64) -> f64 {
    let mut blocked = 1.0;
    for n in 1..=servers {
        blocked = erlangs * blocked / (f64::from(n) + erlangs * blocked);
    }
    let busy = erlangs / f64::from(servers);
    blocked / (1.0 - busy + busy * blocked)
}

/// Mean wait before service, in seconds; infinite when the servers cannot keep up. The variations are variance over
/// squared mean, of the arrivals' count and of the service time.
pub fn wait(servers: u32, per_second: f64, mean_seconds: f64, variations: (f64, f64)) -> f64 {
    let erlangs = per_second * mean_seconds;
    let spare = f64::from(servers) - erlangs;
    if spare <= 0.0 {
        return f64::INFINITY;
    }
    let (arrivals, service) = variations;
    erlang_c(servers, erlangs) * mean_seconds / spare * f64::midpoint(arrivals, service)
}

/// What the formulas say of a fleet, over all classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Mean wait of a chunk, in seconds.
    pub encode_wait_seconds: f64,
    /// Mean wait of a decode, in seconds.
    pub decode_wait_seconds: f64,
}

/// Applies the formulas to both stages. For jobs of several chunks the encode wait is a heavy-traffic approximation: in a pool
/// with time to spare, the chunks of a job wait for each other, longer than the formula says. The order of service among classes
/// leaves the mean over all of them as it is.
pub fn predict(load: &Load, fleet: Fleet) -> Predicted {
    let mean = load.chunks_moment(1);
    let dispersion = if mean > 0.0 {
        load.chunks_moment(2) / mean
    } else {
        1.0
    };
    let (encode, decode) = (load.encode, load.decode);
    Predicted {
        encode_wait_seconds: wait(
            fleet.encoders,
            load.chunks_per_second(),
            encode.mean_seconds,
            (dispersion, encode.variation),
        ),
        // The departures of many encoders are taken for a Poisson process again.
        decode_wait_seconds: wait(
            fleet.decode_slots,
            load.jobs_per_second,
            decode.mean_seconds,
            (1.0, decode.variation),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }

    #[test]
    fn one_server_waits_as_it_is_busy() {
        close(erlang_c(1, 0.7), 0.7);
        // M/M/1: ρ/(1−ρ) of the service time; M/D/1: half of it.
        close(wait(1, 0.7, 1.0, (1.0, 1.0)), 0.7 / 0.3);
        close(wait(1, 0.7, 1.0, (1.0, 0.0)), 0.35 / 0.3);
    }

    #[test]
    fn two_servers_wait_as_worked_out_by_hand() {
        // M/M/2 at 1 erlang: the probability of waiting is 1/3.
        close(erlang_c(2, 1.0), 1.0 / 3.0);
        close(wait(2, 1.0, 1.0, (1.0, 1.0)), 1.0 / 3.0);
    }

    #[test]
    fn too_few_servers_never_catch_up() {
        assert!(wait(2, 2.0, 1.0, (1.0, 0.0)).is_infinite());
    }
}
