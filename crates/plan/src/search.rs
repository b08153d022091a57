//! The smallest fleet that meets a target.

use crate::load::{Fleet, Load};
use crate::simulation::{CLASSES, Run, Simulated, simulate};

/// Workers of a stage at most.
pub const WORKERS_MAX: u32 = 100_000;

/// What has to be met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// 95 of 100 jobs of this class, and of those served before it, take no longer, in seconds.
    pub p95_seconds: f64,
    /// The last class that the target holds for.
    pub class: usize,
    /// Busy part of a stage at most: what is left is for bursts and for workers that are away.
    pub utilisation_max: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub fleet: Fleet,
    /// How long jobs take.
    pub simulated: Simulated,
}

/// No fleet meets the target.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "no fleet of up to {WORKERS_MAX} workers a stage meets a p95 of {target_seconds} s; \
     with {encoders} encoders and {decode_slots} decode slots it is {best_seconds:.2} s: \
     the stages themselves take as long, whatever waits"
)]
pub struct NoPlan {
    /// What was asked.
    pub target_seconds: f64,
    /// What the largest fleet tried takes.
    pub best_seconds: f64,
    /// Its encoders.
    pub encoders: u32,
    /// Its decode slots.
    pub decode_slots: u32,
}

/// The smallest fleet: as few workers as the load may keep busy, then more of the stage that waits longer until the target
/// is met.
///
/// # Errors
/// [`NoPlan`] when more workers do not help.
pub fn smallest(load: &Load, target: Target, run: Run) -> Result<Plan, NoPlan> {
    let (encode, decode) = load.utilisation(Fleet {
        encoders: 1,
        decode_slots: 1,
    });
    let least = |erlangs: f64| {
        // More than the load itself, so that the queue does not grow for ever.
        let busy = (erlangs / target.utilisation_max).ceil().max(1.0);
        (busy.min(f64::from(WORKERS_MAX)) as u32).max(erlangs.floor() as u32 + 1)
    };
    let mut fleet = Fleet {
        encoders: least(encode),
        decode_slots: least(decode),
    };
    loop {
        let simulated = simulate(load, fleet, run);
        let worst = worst(&simulated, target.class);
        if worst <= target.p95_seconds {
            return Ok(Plan { fleet, simulated });
        }
        let waits = (simulated.encode_wait_seconds, simulated.decode_wait_seconds);
        let is_idle = waits.0 + waits.1 < 1e-3 * target.p95_seconds;
        if is_idle || fleet.encoders.max(fleet.decode_slots) >= WORKERS_MAX {
            return Err(NoPlan {
                target_seconds: target.p95_seconds,
                best_seconds: worst,
                encoders: fleet.encoders,
                decode_slots: fleet.decode_slots,
            });
        }
        // A step of one in a small fleet, of two hundredths in a large one.
        let more = |workers: u32| workers + (workers / 50).max(1);
        if waits.0 >= waits.1 {
            fleet.encoders = more(fleet.encoders);
        } else {
            fleet.decode_slots = more(fleet.decode_slots);
        }
    }
}

fn worst(simulated: &Simulated, class: usize) -> f64 {
    let held = simulated.classes.iter().take((class + 1).min(CLASSES));
    held.map(|class| class.p95_seconds).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobKind, Service};

    const RUN: Run = Run {
        jobs: 20_000,
        warm_up: 2_000,
        seed: 1,
    };

    fn load() -> Load {
        let service = |mean_seconds| Service {
            mean_seconds,
            variation: 0.5,
        };
        Load {
            jobs_per_second: 5.0,
            kinds: vec![JobKind {
                class: 2,
                share: 1.0,
                chunks: 2,
            }],
            encode: service(0.2),
            decode: service(2.0),
            other_seconds: 0.1,
        }
    }

    fn target(p95_seconds: f64) -> Target {
        Target {
            p95_seconds,
            class: 2,
            utilisation_max: 0.85,
        }
    }

    #[test]
    fn a_tighter_target_needs_no_fewer_workers() {
        let wide = smallest(&load(), target(20.0), RUN).expect("plenty of time");
        let tight = smallest(&load(), target(6.0), RUN).expect("enough time");
        assert!(wide.fleet.decode_slots <= tight.fleet.decode_slots);
        assert!(tight.simulated.all.p95_seconds <= 6.0);
        let (encode, decode) = load().utilisation(wide.fleet);
        assert!(encode <= 0.85 && decode <= 0.85, "{encode} {decode}");
    }

    #[test]
    fn what_no_fleet_can_do_is_said() {
        let error = smallest(&load(), target(1.0), RUN).expect_err("a decode takes 2 s");
        assert!(error.to_string().contains("the stages themselves"));
    }
}
