//! What KEDA and the controller of a `HorizontalPodAutoscaler` make of a backlog: how many workers there should be. Pure; the
//! simulated day and the tests with real workers use the same code.
//!
//! The rules are those that the chart renders, and `cargo xtask chart` compares them. Sources: KEDA 2.20,
//! `scale_scaledobjects.go` (activation from none to one, cooldown from any number to none); Kubernetes,
//! `pkg/controller/podautoscaler/horizontal.go` (an `AverageValue`: value ÷ threshold, rounded up, unless within a tenth of what
//! it is; the stabilisation window; the policies of a behaviour).

use std::collections::{BTreeMap, VecDeque};

/// Backlog that a slot may have before it, in seconds: the chart's `targetSeconds`.
pub const TARGET_SECONDS: f64 = 30.0;
/// Workers that may be added within a turn; more only where that doubles their number at most.
pub const ADDED_MAX: u32 = 4;
/// The controller leaves the number of workers as it is while it is within this fraction of what it should be.
const TOLERANCE: f64 = 0.1;

/// The rules of one pool of workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Backlog for each worker, in seconds of a slot.
    pub threshold_seconds: f64,
    pub workers_max: u32,
    /// Between two looks at the backlog, of KEDA's as of the controller's.
    pub turn_seconds: f64,
    /// The highest backlog within this counts.
    pub window_seconds: f64,
    /// How long the backlog must be zero before the last workers go.
    pub cooldown_seconds: f64,
    /// No fewer workers than were wanted at any time within this window.
    pub stabilisation_seconds: f64,
    /// At most one worker is removed within this time.
    pub step_seconds: f64,
}

impl Rules {
    /// What the chart renders by default for workers with so many slots.
    pub fn chart(slots: u32, workers_max: u32) -> Self {
        Self {
            threshold_seconds: TARGET_SECONDS * f64::from(slots),
            workers_max,
            turn_seconds: 15.0,
            window_seconds: 60.0,
            cooldown_seconds: 300.0,
            stabilisation_seconds: 300.0,
            step_seconds: 60.0,
        }
    }

    /// The same rules where everything is so many times as fast.
    #[must_use]
    pub fn faster(self, times: f64) -> Self {
        Self {
            threshold_seconds: self.threshold_seconds / times,
            workers_max: self.workers_max,
            turn_seconds: self.turn_seconds / times,
            window_seconds: self.window_seconds / times,
            cooldown_seconds: self.cooldown_seconds / times,
            stabilisation_seconds: self.stabilisation_seconds / times,
            step_seconds: self.step_seconds / times,
        }
    }
}

/// Who decides for one pool, and what it remembers. Times are seconds since any moment, and never go back.
#[derive(Debug, Clone)]
pub struct Controller {
    rules: Rules,
    seen: VecDeque<(f64, f64)>,
    wishes: VecDeque<(f64, u32)>,
    added: VecDeque<(f64, u32)>,
    removed: VecDeque<(f64, u32)>,
    active: f64,
}

impl Controller {
    /// One that has seen nothing yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            seen: VecDeque::new(),
            wishes: VecDeque::new(),
            added: VecDeque::new(),
            removed: VecDeque::new(),
            active: f64::NEG_INFINITY,
        }
    }

    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// One turn: how many workers there are to be, for a backlog in seconds and the workers that were not told to go.
    pub fn turn(&mut self, now: f64, backlog_seconds: f64, workers: u32) -> u32 {
        let rules = self.rules;
        self.seen.push_back((now, backlog_seconds));
        forget(&mut self.seen, now - rules.window_seconds);
        let value = self
            .seen
            .iter()
            .fold(0.0, |most: f64, seen| most.max(seen.1));
        if value > 0.0 {
            self.active = now;
        }
        let wanted = if workers == 0 {
            self.wishes.clear();
            u32::from(value > 0.0)
        } else if value <= 0.0 && now - self.active >= rules.cooldown_seconds {
            0
        } else {
            self.scaled(now, value, workers)
        };
        if wanted > workers {
            self.added.push_back((now, wanted - workers));
        } else if wanted < workers {
            self.removed.push_back((now, workers - wanted));
        }
        wanted
    }

    /// The controller's part, between one worker and the most.
    fn scaled(&mut self, now: f64, value: f64, workers: u32) -> u32 {
        let rules = self.rules;
        let there = rules.threshold_seconds * f64::from(workers);
        let wish = if (value / there - 1.0).abs() <= TOLERANCE {
            workers
        } else {
            // Bounded by the most, and never negative.
            (value / rules.threshold_seconds).ceil() as u32
        };
        let wish = wish.clamp(1, rules.workers_max.max(1));
        self.wishes.push_back((now, wish));
        forget(&mut self.wishes, now - rules.stabilisation_seconds);
        if wish > workers {
            forget(&mut self.added, now - rules.turn_seconds);
            let begun = workers.saturating_sub(sum(&self.added));
            let most = (begun * 2).max(begun + ADDED_MAX);
            return wish.min(most).max(workers);
        }
        let least = self.wishes.iter().map(|(_, wish)| *wish).max();
        let least = least.unwrap_or(wish);
        if least >= workers {
            return workers;
        }
        forget(&mut self.removed, now - rules.step_seconds);
        let begun = workers + sum(&self.removed);
        least.max(begun - 1).min(workers)
    }
}

/// Drops what is as old as this or older.
fn forget<T>(queue: &mut VecDeque<(f64, T)>, until: f64) {
    while queue.front().is_some_and(|(at, _)| *at <= until) {
        queue.pop_front();
    }
}

fn sum(queue: &VecDeque<(f64, u32)>) -> u32 {
    queue.iter().map(|(_, count)| count).sum()
}

/// Worker-seconds of an oracle that knows all units, each as the time when it could begin and the slot time that it takes.
///
/// In every stretch of the least life it has as many workers as the units that come in it fill, each started early enough to
/// be ready; where the stretches begin is chosen as is best. It is better than anybody with real workers could be: the units
/// of a stretch fill its slots without a gap, and none waits longer than a stretch. It keeps nobody through a stretch without
/// work, which is right where a least life is longer than a start. Times in seconds.
pub fn oracle(units: &[(f64, f64)], slots: u32, start_seconds: f64, least_seconds: f64) -> f64 {
    const BEGINS: u32 = 10;
    let of_begin = |begin: u32| {
        let offset = least_seconds * f64::from(begin) / f64::from(BEGINS);
        let mut stretches: BTreeMap<i64, f64> = BTreeMap::new();
        for (at, seconds) in units {
            let stretch = ((at + offset) / least_seconds).floor() as i64;
            *stretches.entry(stretch).or_default() += seconds;
        }
        let (mut total, mut before, mut last) = (0.0, 0.0, i64::MIN);
        for (stretch, seconds) in stretches {
            let workers = (seconds / (least_seconds * f64::from(slots)) - 1e-9).ceil();
            if stretch != last + 1 {
                before = 0.0;
            }
            total += workers * least_seconds + f64::max(workers - before, 0.0) * start_seconds;
            (before, last) = (workers, stretch);
        }
        total
    };
    (0..BEGINS).map(of_begin).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(slots: u32, workers_max: u32) -> Controller {
        Controller::new(Rules::chart(slots, workers_max))
    }

    /// A turn every fifteen seconds, each with a backlog; what is asked for is there at the next.
    fn check(mut controller: Controller, backlogs: &[f64], expected: &[u32]) {
        let mut workers = 0;
        let mut found = Vec::new();
        for (turn, backlog) in (0_i32..).zip(backlogs) {
            workers = controller.turn(f64::from(turn) * 15.0, *backlog, workers);
            found.push(workers);
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn from_none_comes_one_and_then_what_an_average_value_asks_for() {
        // Four slots of thirty seconds: 120 a worker. At most four more, or twice as many, in a turn.
        check(
            controller(4, 20),
            &[0.0, 0.5, 600.0, 120.0 * 9.5, 120.0 * 100.0],
            &[0, 1, 5, 10, 20],
        );
        check(controller(4, 3), &[1.0, 9_000.0, 9_000.0], &[1, 3, 3]);
    }

    #[test]
    fn what_is_nearly_enough_stays() {
        check(controller(1, 20), &[1.0, 60.0, 65.0, 67.0], &[1, 2, 2, 3]);
    }

    #[test]
    fn workers_go_one_a_minute_after_five_minutes_and_the_last_after_the_cooldown() {
        let mut controller = controller(1, 20);
        let mut workers = controller.turn(0.0, 90.0, 0);
        let mut changes = Vec::new();
        for turn in 1_i32..60 {
            // Work for three, then for one, then none.
            let backlog = match turn {
                ..4 => 90.0,
                4..32 => 10.0,
                _ => 0.0,
            };
            let now = f64::from(turn) * 15.0;
            let wanted = controller.turn(now, backlog, workers);
            if wanted != workers {
                changes.push((now, wanted));
            }
            workers = wanted;
        }
        // Seen last within the window at 465 s + 45 s, so that it has been nothing for long at 810 s.
        assert_eq!(changes, [(15.0, 3), (390.0, 2), (450.0, 1), (810.0, 0)]);
    }

    #[test]
    fn faster_rules_are_the_same_in_less_time() {
        let fast = Rules::chart(4, 7).faster(20.0);
        assert_eq!(fast.workers_max, 7);
        assert!((fast.threshold_seconds - 6.0).abs() < 1e-9);
        assert!((fast.cooldown_seconds - 15.0).abs() < 1e-9);
    }

    #[test]
    fn an_oracle_has_the_workers_that_the_work_of_each_stretch_fills() {
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}");
        // One unit: one least life and one start.
        near(oracle(&[(5.0, 10.0)], 2, 60.0, 300.0), 360.0);
        // What two slots do in 300 s, and a little more: another worker.
        near(oracle(&[(5.0, 600.0)], 2, 60.0, 300.0), 360.0);
        near(oracle(&[(5.0, 601.0)], 2, 60.0, 300.0), 720.0);
        // Two that one stretch can hold, wherever it has to begin; far apart they are two lives.
        near(oracle(&[(290.0, 1.0), (310.0, 1.0)], 1, 60.0, 300.0), 360.0);
        near(oracle(&[(0.0, 1.0), (900.0, 1.0)], 1, 60.0, 300.0), 720.0);
        // One life goes on where stretches with work follow each other.
        near(
            oracle(&[(0.0, 200.0), (350.0, 200.0)], 1, 60.0, 300.0),
            660.0,
        );
    }
}
