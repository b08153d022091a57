//! What is chosen by what was measured, and that what does not pay goes off. Times are given: nothing here waits.

use super::super::chances::{Chances, Source};
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
    measured(times).choose(pass, &chances, Duration::ZERO)
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
    assert_eq!(pace.choose(pass, &[vec![0.9; 4]], Duration::ZERO), [4]);
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
    assert_eq!(pace.choose(ONE, &chances, Duration::ZERO), [0]);
    pace.phase = Phase::TRIAL;
    assert_eq!(pace.choose(ONE, &chances, Duration::ZERO), [3]);
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
                let (chances, time) = ([vec![0.9; self.proposed]], self.proposing);
                self.pace.choose(ONE, &chances, Duration::from_millis(time))[0]
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

/// A second model beside a machine that writes one text, with 100 ms a plain pass and 2 ms each row more.
struct Second {
    pace: Pace,
    chances: Chances,
    /// Milliseconds of its step.
    step: u64,
    /// How many of its proposals are right before one is wrong.
    right: usize,
}

/// What came of some passes.
struct Came {
    tokens: usize,
    drafted: usize,
    millis: u64,
}

impl Second {
    fn new(step: u64, right: usize) -> Self {
        Self {
            pace: Pace::new(false),
            chances: Chances::default(),
            step,
            right,
        }
    }

    fn run(&mut self, passes: usize) -> Came {
        let mut came = Came {
            tokens: 0,
            drafted: 0,
            millis: 0,
        };
        for _ in 0..passes {
            let proposes = self.pace.proposes(ONE);
            let (drafted, verified) = if proposes { self.propose() } else { (0, 0) };
            let (proposing, pass) = (self.step * drafted as u64, 100 + 2 * verified as u64);
            let tokens = 1 + verified.min(self.right);
            self.pace.took(&Took {
                texts: 1,
                verified,
                tokens,
                proposing: proposes.then(|| Duration::from_millis(proposing)),
                pass: Duration::from_millis(pass),
            });
            came.tokens += tokens;
            came.drafted += drafted;
            came.millis += proposing + pass;
        }
        came
    }

    /// How many tokens it proposes, and how many are verified.
    fn propose(&mut self) -> (usize, usize) {
        let drafted = self.pace.drafts(ONE, 1, self.chances.of_draft(), 15);
        let time = Duration::from_millis(self.step * drafted as u64);
        self.pace.drafted(&DraftSteps {
            texts: 1,
            count: drafted as u32,
            time,
        });
        let source = Source::draft(0.9);
        let chances = vec![self.chances.of(source); drafted];
        for at in 0..drafted.min(self.right + 1) {
            self.chances.measure(source, at < self.right);
        }
        (drafted, self.pace.choose(ONE, &[chances], time)[0])
    }
}

#[test]
fn a_second_model_that_is_quick_and_right_proposes_as_many_as_pay() {
    let mut second = Second::new(10, 4);
    second.run(200);
    let came = second.run(1000);
    assert!(came.tokens > 4000, "{} tokens", came.tokens);
    let each = came.drafted as f64 / 1000.0;
    assert!((3.0..9.0).contains(&each), "{each} a pass");
    // Five tokens in 148 ms at best.
    let millis = came.millis as f64 / came.tokens as f64;
    assert!(millis < 40.0, "{millis} ms a token");
}

#[test]
fn a_second_model_that_is_wrong_or_slow_goes_off() {
    for (what, step, right) in [
        ("wrong", 10, 0),
        ("slow", 150, 4),
        ("within the noise", 90, 1),
    ] {
        let mut second = Second::new(step, right);
        second.run(100);
        let came = second.run(5000);
        let millis = came.millis as f64 / came.tokens as f64;
        assert!(millis < 105.0, "{what}: {millis} ms a token");
        assert!(came.drafted > 0, "{what}: it is tried again");
        assert!(came.drafted < 500, "{what}: {} drafted", came.drafted);
    }
}

#[test]
fn a_second_model_that_becomes_right_comes_back() {
    let mut second = Second::new(10, 0);
    second.run(2000);
    second.right = 4;
    // Trials, in each of which it proposes little, until they have shown that it is right.
    second.run(4 * (REST_PASSES_MAX + TRIAL_PASSES) as usize);
    let came = second.run(300);
    assert!(came.tokens > 1000, "{} tokens", came.tokens);
}

#[test]
fn nothing_is_drafted_before_a_plain_pass_was_measured() {
    assert_eq!(Pace::new(false).drafts(ONE, 1, 0.9, 15), 0);
    assert_eq!(Pace::new(true).drafts(ONE, 1, 0.1, 15), 15);
    // What a step takes is not known: as far as it is likely.
    let pace = measured(&[(1, 100)]);
    assert_eq!(pace.drafts(ONE, 1, 0.6, 15), 2);
    assert_eq!(pace.drafts(ONE, 1, 0.1, 15), 1);
    assert_eq!(pace.drafts(ONE, 1, 0.6, 0), 0);
}
