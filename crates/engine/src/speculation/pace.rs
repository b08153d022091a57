//! Whether proposals pay, and how many. What a pass takes is measured by how many rows it has, proposing included; how much
//! text it is expected to bring follows from the chances of its proposals. The number of proposals that brings most text
//! for the time is taken.
//!
//! Estimates alone do not switch anything off: they are of single passes, and the best of many estimates is one that is too
//! good. So what proposing really brought is measured against plain passes of as many texts ([`Gain`]), and it goes on only
//! while that is clearly more. Where it is not, nothing is proposed but in a short trial now and then, after rests that
//! become longer; where it is, a plain pass now and then keeps the comparison fair.
//!
//! No clock is asked here: times are given.

use std::time::Duration;

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
/// Passes of a trial.
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
    /// Texts in it.
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
        let proposing = took.proposing.map(|time| time.as_secs_f64());
        let verified = took.verified > 0;
        let new = match self.phase {
            Phase::Trial { .. } => NEW_IN_TRIAL,
            Phase::Rest { .. } | Phase::On { .. } => NEW,
        };
        // Proposing in vain is no part of what a plain pass takes.
        let (within, beside) = match (verified, proposing) {
            (true, Some(proposing)) => (proposing, 0.0),
            (_, proposing) => (0.0, proposing.unwrap_or(0.0)),
        };
        let counted = note(&mut self.times, rows, pass + within, new);
        if !verified {
            note(&mut self.plain, took.texts, pass, NEW_PLAIN);
        }
        let counted = counted.unwrap_or(pass + within);
        let Some(plain) = self.plain_seconds(took.texts) else {
            return;
        };
        if proposing.is_some() {
            let passes = took.tokens as f64 / took.texts as f64;
            self.gain.add(plain * passes, counted + beside);
        }
        self.phase = self.next(proposing.is_some(), verified);
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

    /// How many of each text's proposals to verify, from the chance of each to be right when those before it are.
    pub(crate) fn choose(&self, pass: Pass, chances: &[Vec<f32>]) -> Vec<usize> {
        if self.always {
            return chances.iter().map(Vec::len).collect();
        }
        let none = vec![0; chances.len()];
        // What a pass takes without proposals has to be known first.
        let Some(plain) = self.seconds(pass.rows) else {
            return none;
        };
        let mut best = (none.clone(), pass.texts as f64 / plain);
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
            let rate = texts / self.seconds(rows).unwrap_or(f64::INFINITY);
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
mod tests {
    use super::*;

    const ONE: Pass = Pass { rows: 1, texts: 1 };

    /// After passes of one text had these rows and took these milliseconds. It believes that proposals pay: no trial.
    fn measured(times: &[(usize, u64)]) -> Pace {
        let mut pace = Pace::new(false);
        pace.phase = Phase::On { passes: 0 };
        for (rows, millis) in times {
            let time = Duration::from_millis(*millis);
            note(&mut pace.times, *rows, time.as_secs_f64(), NEW);
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
        let pace = measured(&[(1, 100), (9, 140)]);
        let pass = Pass {
            rows: 513,
            texts: 1,
        };
        // 100 + 512 × 5 ms for one token: all that adds one within that.
        assert_eq!(pace.choose(pass, &[vec![0.9; 4]]), [4]);
    }

    #[test]
    fn no_more_is_verified_than_is_measured() {
        let sixteen: Vec<&[f32]> = vec![&SURE[..]; 16];
        let found = chosen(&[(16, 100)], 16, &sixteen);
        assert_eq!(found.iter().sum::<usize>(), ROWS_MAX - 16);
    }

    #[test]
    fn a_trial_verifies_what_is_likely_though_it_does_not_seem_to_pay() {
        let mut pace = measured(&[(1, 100), (5, 900)]);
        let chances = [vec![0.9, 0.9, 0.9, 0.1]];
        assert_eq!(pace.choose(ONE, &chances), [0]);
        pace.phase = Phase::TRIAL;
        assert_eq!(pace.choose(ONE, &chances), [3]);
    }

    #[test]
    fn one_slow_pass_changes_little() {
        let mut times = vec![Time::default(); 2];
        for _ in 0..30 {
            note(&mut times, 1, 0.1, NEW);
        }
        note(&mut times, 1, 60.0, NEW);
        let found = times[0].seconds;
        assert!((0.1..0.12).contains(&found), "{found}");
        assert_eq!(note(&mut times, 0, 1.0, NEW), None);
        assert_eq!(note(&mut times, 3, 1.0, NEW), None);
    }

    /// A machine that writes one text, and the pace that it is told.
    struct Machine {
        pace: Pace,
        /// Milliseconds of a plain pass, of each row more, and of proposing.
        plain: u64,
        row: u64,
        proposing: u64,
        /// Tokens that are proposed, and those of them that are right; each is believed to be with 9 of 10.
        proposed: usize,
        right: usize,
    }

    impl Machine {
        fn new(row: u64, proposed: usize, right: usize) -> Self {
            Self {
                pace: Pace::new(false),
                plain: 100,
                row,
                proposing: 1,
                proposed,
                right,
            }
        }

        /// In how many of so many passes something is verified.
        fn run(&mut self, passes: usize) -> usize {
            let mut all = 0;
            for _ in 0..passes {
                let proposes = self.pace.proposes(ONE);
                let verified = if proposes {
                    self.pace.choose(ONE, &[vec![0.9; self.proposed]])[0]
                } else {
                    0
                };
                let millis = self.plain + self.row * verified as u64;
                self.pace.took(&Took {
                    texts: 1,
                    verified,
                    tokens: 1 + verified.min(self.right),
                    proposing: proposes.then(|| Duration::from_millis(self.proposing)),
                    pass: Duration::from_millis(millis),
                });
                all += usize::from(verified > 0);
            }
            all
        }
    }

    #[test]
    fn what_pays_stays_on_with_a_plain_pass_now_and_then() {
        let mut machine = Machine::new(2, 8, 6);
        let verified = machine.run(1000);
        assert!((950..=980).contains(&verified), "{verified}");
        // All has become slower alike: it still pays.
        (machine.plain, machine.row) = (300, 6);
        machine.run(300);
        let verified = machine.run(300);
        assert!((280..=295).contains(&verified), "{verified}");
    }

    /// Goes off within a hundred passes but for trials, and comes to less than one pass in 25.
    fn goes_off(what: &str, mut machine: Machine) {
        let begin = machine.run(100);
        assert!(begin <= 2 * TRIAL_PASSES as usize, "{what}: {begin} of 100");
        let later = machine.run(5000);
        assert!(later <= 200, "{what}: {later} of 5000");
        assert!(later > 0, "{what}: it is tried again");
    }

    #[test]
    fn what_does_not_pay_goes_off() {
        goes_off("dear rows", Machine::new(100, 8, 6));
        goes_off("wrong proposals", Machine::new(2, 8, 0));
        goes_off("a gain that is within the noise", Machine::new(92, 1, 1));
    }

    #[test]
    fn proposing_is_part_of_the_price() {
        // Two tokens in 110 ms, but after 120 ms of proposing.
        let mut machine = Machine::new(10, 1, 1);
        machine.proposing = 120;
        goes_off("slow proposing", machine);
        let mut machine = Machine::new(10, 1, 1);
        assert!(machine.run(1000) > 900);
    }

    #[test]
    fn what_begins_to_pay_comes_back_and_goes_again() {
        let mut machine = Machine::new(100, 8, 6);
        assert!(machine.run(2000) < 80);
        machine.row = 2;
        machine.run((REST_PASSES_MAX + TRIAL_PASSES) as usize);
        let verified = machine.run(300);
        assert!(verified > 280, "{verified}");
        machine.row = 100;
        machine.run(1000);
        let verified = machine.run(300);
        assert!(verified < 20, "{verified}");
        // Rows as cheap as can be, and now all is wrong, then right.
        let mut machine = Machine::new(2, 8, 0);
        machine.run(2000);
        machine.right = 6;
        machine.run((REST_PASSES_MAX + TRIAL_PASSES) as usize);
        let verified = machine.run(300);
        assert!(verified > 280, "{verified}");
    }

    #[test]
    fn another_number_of_texts_is_measured_before_anything_is_proposed() {
        let mut machine = Machine::new(2, 8, 6);
        machine.run(100);
        let four = Pass { rows: 4, texts: 4 };
        assert!(machine.pace.proposes(ONE) && !machine.pace.proposes(four));
        machine.pace.took(&Took {
            texts: 4,
            verified: 0,
            tokens: 4,
            proposing: None,
            pass: Duration::from_millis(120),
        });
        assert!(machine.pace.proposes(four));
        let nothing = Pass { rows: 9, texts: 0 };
        assert!(!machine.pace.proposes(nothing), "only a prompt is read");
    }

    #[test]
    fn trials_wait_for_passes_without_prompts() {
        let mut pace = Pace::new(false);
        note(&mut pace.plain, 1, 0.1, NEW_PLAIN);
        let beside_a_prompt = Pass {
            rows: 300,
            texts: 1,
        };
        assert!(pace.proposes(ONE) && !pace.proposes(beside_a_prompt));
        pace.phase = Phase::On { passes: 0 };
        assert!(pace.proposes(beside_a_prompt));
        assert!(Pace::new(true).proposes(beside_a_prompt));
    }
}
