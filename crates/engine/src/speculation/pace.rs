//! Whether proposals pay, and how many. What a pass takes is measured by how many rows it has, and a second model's step by
//! how many texts it has; how much text a pass is expected to bring follows from the chances of its proposals. The number of
//! proposals that brings most text for the time is taken, what proposing took included.
//!
//! Estimates alone do not switch anything off: they are of single passes, and the best of many estimates is one that is too
//! good. So what proposing really brought is measured against plain passes of as many texts ([`Gain`]), and it goes on only
//! while that is clearly more. Where it is not, nothing is proposed but in a short trial now and then, after rests that
//! become longer; where it is, a plain pass now and then keeps the comparison fair.
//!
//! No clock is asked here: times are given.

use std::time::Duration;

use super::DraftSteps;

/// Passes of more rows than this are not measured: prompts are read in them.
const ROWS_MAX: usize = 64;
/// What a new measurement counts, once there are some.
const NEW: f64 = 0.1;
/// The same of a plain pass, of which there are few while proposals pay, and in a trial, which is short.
const NEW_PLAIN: f64 = 0.2;
const NEW_IN_TRIAL: f64 = 0.5;
/// One measurement counts as no more than so many times what is believed: another program may have had the machine.
const OUTLIER: f64 = 2.0;
/// How much sooner texts must be there with proposals than without, or nothing is proposed.
const GAIN_MIN: f64 = 1.05;
/// What a pass counts in the gain after the next one.
const KEPT: f64 = 0.98;
const TRIAL_PASSES: u32 = 16;
/// A trial that has verified something this often and brought less than this share of what plain passes bring ends early.
const HOPELESS_PASSES: u32 = 6;
const HOPELESS: f64 = 0.8;
/// Passes between two trials: at first, and at most, twice as many after each that failed.
/// So in the long run at most 16 of 528 passes verify anything where that does not pay.
const REST_PASSES: u32 = 64;
const REST_PASSES_MAX: u32 = 512;
/// Passes with proposals between two plain ones.
const BETWEEN_PLAIN: u32 = 32;
/// The least chance of a proposal that is verified in a trial although it does not seem to pay.
const TRIAL_CHANCE: f64 = 0.25;

/// Measured times of passes, and what follows from them.
#[derive(Debug)]
pub(crate) struct Pace {
    /// By the number of rows, from 1 on.
    times: Vec<Time>,
    /// Without proposals, by the number of texts, from 1 on.
    plain: Vec<Time>,
    /// A second model's step, by the number of texts, from 1 on.
    steps: Vec<Time>,
    phase: Phase,
    /// Passes of the next rest.
    rest: u32,
    gain: Gain,
    /// Nothing is asked of what pays.
    always: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Time {
    seconds: f64,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is proposed in the next passes.
    Rest { left: u32 },
    /// Whether it pays is found out; in so many passes proposals were verified.
    Trial { left: u32, verified: u32 },
    /// It pays; so many passes since the last plain one.
    On { passes: u32 },
}

/// What proposing brought, lately.
#[derive(Debug, Clone, Copy, Default)]
struct Gain {
    /// What the tokens would have taken in plain passes.
    plain: f64,
    /// What they took, proposing included.
    took: f64,
}

/// A pass without proposals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Rows of it, those of prompts included.
    pub(crate) rows: usize,
    /// Texts that get a token.
    pub(crate) texts: usize,
}

/// What a pass came to in which no prompt was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Took {
    pub(crate) texts: usize,
    /// Proposals that were verified.
    pub(crate) verified: usize,
    /// Tokens that it wrote.
    pub(crate) tokens: usize,
    /// How long proposing took; `None` where it was not done.
    pub(crate) proposing: Option<Duration>,
    /// How long the pass itself took.
    pub(crate) pass: Duration,
}

impl Pace {
    /// Of an engine that verifies what pays, or `always` all.
    pub(crate) fn new(always: bool) -> Self {
        Self {
            times: vec![Time::default(); ROWS_MAX],
            plain: vec![Time::default(); ROWS_MAX],
            steps: vec![Time::default(); ROWS_MAX],
            phase: Phase::TRIAL,
            rest: REST_PASSES,
            gain: Gain::default(),
            always,
        }
    }

    /// Whether to propose anything for a pass.
    pub(crate) fn proposes(&self, pass: Pass) -> bool {
        // What is read beside texts is no measure of them, so it is no trial either.
        let with_prompts = pass.rows != pass.texts;
        self.always
            || match self.phase {
                // What a plain pass takes has to be known first.
                _ if self.plain_seconds(pass.texts).is_none() => false,
                Phase::Rest { .. } => false,
                Phase::Trial { .. } => !with_prompts,
                Phase::On { passes } => with_prompts || passes < BETWEEN_PLAIN,
            }
    }

    /// A pass is over.
    pub(crate) fn took(&mut self, took: &Took) {
        let (pass, rows) = (took.pass.as_secs_f64(), took.texts + took.verified);
        let verified = took.verified > 0;
        let new = match self.phase {
            Phase::Trial { .. } => NEW_IN_TRIAL,
            Phase::Rest { .. } | Phase::On { .. } => NEW,
        };
        let counted = note(&mut self.times, rows, pass, new).unwrap_or(pass);
        if !verified {
            note(&mut self.plain, took.texts, pass, NEW_PLAIN);
        }
        let Some(plain) = self.plain_seconds(took.texts) else {
            return;
        };
        if let Some(proposing) = took.proposing {
            let passes = took.tokens as f64 / took.texts as f64;
            self.gain
                .add(plain * passes, counted + proposing.as_secs_f64());
        }
        self.phase = self.next(took.proposing.is_some(), verified);
    }

    /// A second model has proposed.
    pub(crate) fn drafted(&mut self, steps: &DraftSteps) {
        if steps.count > 0 {
            let seconds = steps.time.as_secs_f64() / f64::from(steps.count);
            note(&mut self.steps, steps.texts, seconds, NEW);
        }
    }

    /// How many tokens, at most `most`, a second model is to propose for each of so many texts, if each of them is right with
    /// this chance when those before it are. In a trial at least one, so that its chance is measured.
    pub(crate) fn drafts(&self, pass: Pass, texts: usize, chance: f32, most: usize) -> usize {
        if self.always {
            return most;
        }
        let Some(plain) = self.seconds(pass.rows) else {
            return 0;
        };
        let step = texts.checked_sub(1).and_then(|at| self.steps.get(at));
        let step = step.filter(|time| time.count > 0).map(|time| time.seconds);
        let mut best = (0, pass.texts as f64 / plain);
        let (mut likely, mut reach, mut expected) = (0, 1.0, pass.texts as f64);
        for count in 1..=most {
            reach *= f64::from(chance);
            expected += reach * texts as f64;
            if reach >= TRIAL_CHANCE {
                likely = count;
            }
            let rows = self.seconds(pass.rows + texts * count);
            let seconds = rows.unwrap_or(f64::INFINITY) + step.unwrap_or(0.0) * count as f64;
            if expected / seconds > best.1 {
                best = (count, expected / seconds);
            }
        }
        let likely = likely.max(usize::from(most > 0));
        match (step, self.phase) {
            (None, _) => likely,
            (Some(_), Phase::Trial { .. }) if best.0 == 0 => likely,
            (Some(_), _) => best.0,
        }
    }

    /// What follows a pass.
    fn next(&mut self, proposed: bool, verified: bool) -> Phase {
        match self.phase {
            Phase::Rest { left } if left > 1 => Phase::Rest { left: left - 1 },
            Phase::Rest { .. } => {
                self.gain = Gain::default();
                Phase::TRIAL
            }
            Phase::Trial {
                left,
                verified: before,
            } if proposed => {
                let verified = before + u32::from(verified);
                let gain = self.gain.ratio();
                let hopeless = verified >= HOPELESS_PASSES && gain < HOPELESS;
                if left > 1 && !hopeless {
                    let left = left - 1;
                    Phase::Trial { left, verified }
                } else if gain >= GAIN_MIN {
                    self.rest = REST_PASSES;
                    Phase::On { passes: 0 }
                } else {
                    let left = self.rest;
                    self.rest = (2 * left).min(REST_PASSES_MAX);
                    Phase::Rest { left }
                }
            }
            // A pass of another number of texts was measured first.
            Phase::Trial { .. } => self.phase,
            Phase::On { .. } if !proposed => Phase::On { passes: 0 },
            Phase::On { .. } if self.gain.ratio() < GAIN_MIN => Phase::Rest { left: self.rest },
            Phase::On { passes } => Phase::On { passes: passes + 1 },
        }
    }

    /// What a pass of so many texts takes without proposals.
    fn plain_seconds(&self, texts: usize) -> Option<f64> {
        let time = self.plain.get(texts.checked_sub(1)?)?;
        (time.count > 0).then_some(time.seconds)
    }

    /// How many of each text's proposals to verify, from the chance of each to be right when those before it are, and how
    /// long proposing took.
    pub(crate) fn choose(
        &self,
        pass: Pass,
        chances: &[Vec<f32>],
        proposing: Duration,
    ) -> Vec<usize> {
        if self.always {
            return chances.iter().map(Vec::len).collect();
        }
        let none = vec![0; chances.len()];
        // What a pass takes without proposals has to be known first.
        let Some(plain) = self.seconds(pass.rows) else {
            return none;
        };
        // That time is gone whatever is verified.
        let gone = proposing.as_secs_f64();
        let mut best = (none.clone(), pass.texts as f64 / (plain + gone));
        let mut likely = none.clone();
        let (mut counts, mut texts) = (none, pass.texts as f64);
        let mut rows = pass.rows;
        let mut reach = vec![1.0_f64; chances.len()];
        // What is not measured is only guessed at where a prompt is read anyway.
        let rows_max = if rows <= ROWS_MAX {
            ROWS_MAX
        } else {
            usize::MAX
        };
        while rows < rows_max
            && let Some((index, chance)) = likeliest(chances, &counts, &reach)
        {
            counts[index] += 1;
            reach[index] = chance;
            texts += chance;
            rows += 1;
            if chance >= TRIAL_CHANCE {
                likely.clone_from(&counts);
            }
            let rate = texts / (self.seconds(rows).unwrap_or(f64::INFINITY) + gone);
            if rate > best.1 {
                best = (counts.clone(), rate);
            }
        }
        let pays = best.0.iter().any(|count| *count > 0);
        // A trial is there to find out whether what is believed is still so.
        match self.phase {
            Phase::Trial { .. } if !pays => likely,
            _ => best.0,
        }
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

impl Phase {
    /// The start of one.
    const TRIAL: Self = Self::Trial {
        left: TRIAL_PASSES,
        verified: 0,
    };
}

impl Gain {
    fn add(&mut self, plain: f64, took: f64) {
        self.plain = self.plain * KEPT + plain;
        self.took = self.took * KEPT + took;
    }

    /// How many times as soon texts were there as in plain passes; 0 before anything was measured.
    fn ratio(self) -> f64 {
        if self.took > 0.0 {
            self.plain / self.took
        } else {
            0.0
        }
    }
}

/// Notes what something of a size, from 1 on, took. Returns the time as it counts; nothing where the size is too large.
fn note(times: &mut [Time], size: usize, seconds: f64, new: f64) -> Option<f64> {
    let known = times.get_mut(size.checked_sub(1)?)?;
    known.count = known.count.saturating_add(1);
    if known.count == 1 {
        known.seconds = seconds;
        return Some(seconds);
    }
    let seconds = seconds.min(known.seconds * OUTLIER);
    let weight = new.max(1.0 / f64::from(known.count));
    known.seconds += (seconds - known.seconds) * weight;
    Some(seconds)
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
mod tests;
