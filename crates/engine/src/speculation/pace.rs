//! How many proposals pay. What a pass takes is measured by how many rows it has; how much text it is expected to bring
//! follows from the chances of its proposals. The number of proposals that brings most text for the time is taken, which is
//! none where every row costs as much as the first, or where proposals are seldom right.
//!
//! A pass of a size that was never measured is believed to take no longer than the next smaller ones say, so it is tried
//! once; where nothing pays, it is tried again from time to time.

use std::time::Duration;

/// Passes of more rows than this are not measured: prompts are read in them.
const ROWS_MAX: usize = 64;
/// What a new measurement counts, once there are some.
const NEW: f64 = 0.1;
/// One measurement counts as no more than so many times what is believed: another program may have had the machine.
const OUTLIER: f64 = 2.0;
/// Passes with proposals that did not seem to pay, after which some are verified all the same.
const RETRY_PASSES: u32 = 64;
/// The least chance of a proposal that is verified then.
const RETRY_CHANCE: f64 = 0.25;

/// Measured times of passes.
#[derive(Debug)]
pub(crate) struct Pace {
    /// By the number of rows, from 1 on.
    times: Vec<Time>,
    /// Passes since proposals were last verified although there were some.
    unpaid: u32,
    /// Nothing is asked of what pays.
    always: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Time {
    seconds: f64,
    count: u32,
}

/// A pass without proposals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Rows of it, those of prompts included.
    pub(crate) rows: usize,
    /// Texts that get a token.
    pub(crate) texts: usize,
}

impl Pace {
    /// Of an engine that verifies what pays, or `always` all.
    pub(crate) fn new(always: bool) -> Self {
        Self {
            times: vec![Time::default(); ROWS_MAX],
            unpaid: 0,
            always,
        }
    }

    /// A pass of so many rows, none of them a prompt's, took so long.
    pub(crate) fn took(&mut self, rows: usize, time: Duration) {
        let Some(known) = rows.checked_sub(1).and_then(|at| self.times.get_mut(at)) else {
            return;
        };
        known.count = known.count.saturating_add(1);
        let found = time.as_secs_f64();
        if known.count == 1 {
            known.seconds = found;
            return;
        }
        let found = found.min(known.seconds * OUTLIER);
        let weight = NEW.max(1.0 / f64::from(known.count));
        known.seconds += (found - known.seconds) * weight;
    }

    /// How many of each text's proposals to verify, from the chance of each to be right when those before it are.
    pub(crate) fn choose(&mut self, pass: Pass, chances: &[Vec<f32>]) -> Vec<usize> {
        if self.always {
            return chances.iter().map(Vec::len).collect();
        }
        let none = vec![0; chances.len()];
        // What a pass takes without proposals has to be known first.
        let Some(plain) = self.seconds(pass.rows) else {
            return none;
        };
        let mut best = (none.clone(), pass.texts as f64 / plain);
        let mut retry = none.clone();
        let (mut counts, mut texts) = (none, pass.texts as f64);
        let mut rows = pass.rows;
        let mut reach = vec![1.0_f64; chances.len()];
        while let Some((index, chance)) = likeliest(chances, &counts, &reach) {
            counts[index] += 1;
            reach[index] = chance;
            texts += chance;
            rows += 1;
            if chance >= RETRY_CHANCE {
                retry.clone_from(&counts);
            }
            let rate = texts / self.seconds(rows).unwrap_or(f64::INFINITY);
            if rate > best.1 {
                best = (counts.clone(), rate);
            }
        }
        let chosen = best.0;
        if chosen.iter().any(|count| *count > 0) {
            self.unpaid = 0;
            return chosen;
        }
        if retry.iter().any(|count| *count > 0) {
            self.unpaid += 1;
            if self.unpaid > RETRY_PASSES {
                self.unpaid = 0;
                return retry;
            }
        }
        chosen
    }

    /// What a pass of so many rows is believed to take: between two measured sizes on the line between them, beyond the
    /// largest on the line from the smallest through it. Nothing below the smallest.
    fn seconds(&self, rows: usize) -> Option<f64> {
        let measured = || {
            let known = self.times.iter().enumerate();
            known
                .filter(|(_, time)| time.count > 0)
                .map(|(at, time)| (at + 1, time.seconds))
        };
        let below = measured().take_while(|(size, _)| *size <= rows).last()?;
        let above = measured().find(|(size, _)| *size >= rows);
        let (from, to) = match above {
            Some(above) => (below, above),
            None => (measured().next()?, below),
        };
        if from.0 == to.0 {
            return Some(to.1);
        }
        let slope = (to.1 - from.1) / (to.0 - from.0) as f64;
        let slope = if above.is_some() {
            slope
        } else {
            slope.max(0.0)
        };
        Some(below.1 + slope * (rows - below.0) as f64)
    }
}

/// The likeliest proposal that is next in its text, and its chance with all before it; the first of equal ones.
fn likeliest(chances: &[Vec<f32>], counts: &[usize], reach: &[f64]) -> Option<(usize, f64)> {
    let next = chances.iter().enumerate().filter_map(|(index, chances)| {
        let chance = chances.get(counts[index])?;
        Some((index, reach[index] * f64::from(*chance)))
    });
    next.reduce(|a, b| if b.1 > a.1 { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After passes of these rows took these milliseconds.
    fn measured(times: &[(usize, u64)]) -> Pace {
        let mut pace = Pace::new(false);
        for (rows, millis) in times {
            pace.took(*rows, Duration::from_millis(*millis));
        }
        pace
    }

    fn chosen(times: &[(usize, u64)], texts: usize, chances: &[&[f32]]) -> Vec<usize> {
        let chances: Vec<Vec<f32>> = chances.iter().map(|of| of.to_vec()).collect();
        let pass = Pass { rows: texts, texts };
        measured(times).choose(pass, &chances)
    }

    const SURE: [f32; 8] = [0.95; 8];

    #[test]
    fn nothing_is_verified_before_a_plain_pass_was_measured() {
        assert_eq!(chosen(&[], 1, &[&SURE]), [0]);
        // Then a longer one is tried, as far as it could be of use.
        assert_eq!(chosen(&[(1, 100)], 1, &[&SURE]), [8]);
    }

    #[test]
    fn many_rows_pay_where_they_cost_little_and_none_where_each_costs_as_much() {
        assert_eq!(chosen(&[(1, 100), (9, 120)], 1, &[&SURE]), [8]);
        assert_eq!(chosen(&[(1, 100), (9, 900)], 1, &[&SURE]), [0]);
        assert_eq!(chosen(&[(1, 100), (9, 120)], 1, &[&[0.1; 8]]), [1]);
        // A step at the second row is passed over when what follows is cheap.
        assert_eq!(chosen(&[(1, 100), (2, 190), (9, 200)], 1, &[&SURE]), [8]);
        // A cheap block of four rows, then a dear one.
        assert_eq!(
            chosen(&[(1, 100), (4, 110), (5, 300), (9, 400)], 1, &[&SURE]),
            [3]
        );
    }

    #[test]
    fn proposals_of_several_texts_are_taken_by_their_chances() {
        let times = [(2, 100), (18, 260)];
        let found = chosen(&times, 2, &[&[0.9, 0.9, 0.9], &[0.5, 0.5, 0.5]]);
        assert_eq!(found, [3, 1]);
        assert_eq!(chosen(&times, 2, &[&[], &[]]), [0, 0]);
    }

    #[test]
    fn beside_a_long_prompt_a_row_costs_what_rows_cost() {
        let mut pace = measured(&[(1, 100), (9, 140)]);
        let pass = Pass {
            rows: 513,
            texts: 1,
        };
        // 100 + 512 × 5 ms for one token: all that adds one within that.
        assert_eq!(pace.choose(pass, &[vec![0.9; 4]]), [4]);
    }

    #[test]
    fn what_did_not_pay_is_tried_again_from_time_to_time() {
        let mut pace = measured(&[(1, 100), (5, 900)]);
        let pass = Pass { rows: 1, texts: 1 };
        let chances = [vec![0.9, 0.9, 0.9, 0.1]];
        let tries = (0..200).filter(|_| pace.choose(pass, &chances) != [0]);
        assert_eq!(tries.count(), 3);
        // Rows have become cheap.
        for _ in 0..100 {
            pace.took(4, Duration::from_millis(110));
        }
        assert_eq!(pace.choose(pass, &chances), [3]);
    }

    #[test]
    fn one_slow_pass_changes_little() {
        let mut pace = Pace::new(false);
        for _ in 0..30 {
            pace.took(1, Duration::from_millis(100));
        }
        pace.took(1, Duration::from_secs(60));
        let found = pace.seconds(1).expect("it was measured");
        assert!((0.1..0.12).contains(&found), "{found}");
        pace.took(0, Duration::ZERO);
        pace.took(1000, Duration::ZERO);
        assert_eq!(pace.seconds(64), pace.seconds(1));
    }
}
