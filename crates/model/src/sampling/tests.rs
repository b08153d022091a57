//! Limits, draws and penalties on four logits whose probabilities are known.

use super::*;

const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

fn warm(temperature: f32, seed: u64) -> Sampling {
    Sampling {
        temperature,
        seed,
        ..Sampling::greedy()
    }
}

fn pick(sampling: &Sampling, step: u64, forbidden: &[u32]) -> u32 {
    let situation = Situation {
        step,
        forbidden,
        ..Situation::default()
    };
    choose(&LOGITS, sampling, &situation).unwrap().token
}

fn check(sampling: Sampling, forbidden: &[u32], expected: &[u32]) {
    let mut seen: Vec<u32> = (0..400)
        .map(|step| pick(&sampling, step, forbidden))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, expected, "{sampling:?}");
}

#[test]
fn limits_leave_what_they_should() {
    let warm = warm(1.0, 7);
    check(Sampling::greedy(), &[], &[1]);
    check(Sampling::greedy(), &[1], &[3]);
    check(warm, &[], &[0, 1, 2, 3]);
    check(Sampling { top_k: 1, ..warm }, &[], &[1]);
    check(Sampling { top_k: 3, ..warm }, &[], &[1, 2, 3]);
    let nucleus = |top_p| Sampling { top_p, ..warm };
    check(nucleus(0.39), &[], &[1]);
    check(nucleus(0.7), &[], &[1, 3]);
    check(warm, &[1, 3], &[0, 2]);
}

#[test]
fn frequencies_follow_probabilities() {
    let warm = warm(2.0, 1);
    let hits = (0..4000)
        .filter(|step| pick(&warm, *step, &[]) == 2)
        .count();
    let sum: f64 = LOGITS.iter().map(|x| f64::from(x / 2.0).exp()).sum();
    let expected = 1f64.exp() / sum * 4000.0;
    assert!(
        (hits as f64 - expected).abs() < 150.0,
        "{hits} of {expected}"
    );
}

#[test]
fn log_probability_is_the_models_own() {
    let cold = Sampling {
        temperature: 0.1,
        top_k: 1,
        ..Sampling::greedy()
    };
    let choice = choose(&LOGITS, &cold, &Situation::default()).unwrap();
    let sum: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
    assert!((f64::from(choice.logprob) - (3.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn same_seed_and_step_same_token() {
    let draws = |seed| {
        let draws = (0..50).map(|step| pick(&warm(1.0, seed), step, &[]));
        draws.collect::<Vec<_>>()
    };
    assert_eq!(draws(3), draws(3));
    assert_ne!(draws(3), draws(4));
}

#[test]
fn bad_values_are_named() {
    type Change = fn(&mut Sampling);
    let changes: [(&str, Change); 5] = [
        ("temperature", |sampling| sampling.temperature = -1.0),
        ("temperature", |sampling| sampling.temperature = f32::NAN),
        ("top_p", |sampling| sampling.top_p = 0.0),
        ("min_p", |sampling| sampling.min_p = 1.5),
        ("repetition_penalty", |s| s.repetition_penalty = 0.0),
    ];
    for (expected, change) in changes {
        let mut sampling = Sampling::greedy();
        change(&mut sampling);
        match choose(&LOGITS, &sampling, &Situation::default()) {
            Err(SamplingError::Parameter { field, .. }) => assert_eq!(field, expected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        choose(&[f32::NAN; 3], &Sampling::greedy(), &Situation::default()),
        Err(SamplingError::NotFinite)
    );
}

#[test]
fn min_p_cuts_by_the_share_of_the_likeliest() {
    let warm = warm(1.0, 7);
    // Shares of the likeliest: 1, 1, e⁻¹ = 0.37, e⁻² = 0.14.
    check(Sampling { min_p: 0.1, ..warm }, &[], &[0, 1, 2, 3]);
    check(Sampling { min_p: 0.2, ..warm }, &[], &[1, 2, 3]);
    check(Sampling { min_p: 0.5, ..warm }, &[], &[1, 3]);
    check(Sampling { min_p: 1.0, ..warm }, &[], &[1, 3]);
}

#[test]
fn what_was_said_is_less_likely() {
    let penalty = |repetition_penalty, seen: &[u32]| {
        let sampling = Sampling {
            repetition_penalty,
            ..Sampling::greedy()
        };
        let situation = Situation {
            seen,
            ..Situation::default()
        };
        choose(&LOGITS, &sampling, &situation).unwrap()
    };
    assert_eq!(penalty(1.0, &[1]).token, 1);
    assert_eq!(penalty(1.2, &[1, 1]).token, 3, "3 / 1.2 is below 3");
    assert_eq!(penalty(2.0, &[1, 3]).token, 2, "3 / 2 is below 2");
    assert_eq!(penalty(0.5, &[2]).token, 2, "below 1 it attracts");
    assert_eq!(penalty(1e-40, &[2]).token, 2, "however near to 0 it is");
    assert_eq!(
        penalty(1e-40, &[0, 1, 2, 3]).token,
        0,
        "none is left out for it"
    );
    // Negative logits are multiplied, and the reported probability is the model's own.
    let situation = Situation {
        seen: &[0],
        ..Situation::default()
    };
    let sampling = Sampling {
        repetition_penalty: 2.0,
        ..Sampling::greedy()
    };
    let choice = choose(&[-1.0, -1.5], &sampling, &situation).unwrap();
    let own = -1.5 - ((-1.0_f64).exp() + (-1.5_f64).exp()).ln();
    assert_eq!(choice.token, 1);
    assert!((f64::from(choice.logprob) - own).abs() < 1e-6);
}

#[test]
fn the_likeliest_come_in_order_with_the_models_own_figures() {
    let situation = Situation {
        forbidden: &[3],
        ..Situation::default()
    };
    let tokens = |count| {
        let found = likeliest(&LOGITS, &situation, count);
        found.iter().map(|c| c.token).collect::<Vec<_>>()
    };
    assert_eq!(
        (tokens(0), tokens(2), tokens(9)),
        (vec![], vec![1, 2], vec![1, 2, 0])
    );
    let first = likeliest(&LOGITS, &Situation::default(), 1)[0];
    let greedy = choose(&LOGITS, &Sampling::greedy(), &Situation::default()).unwrap();
    assert_eq!(first, greedy);
}

#[test]
fn only_what_is_allowed_is_chosen() {
    let allowed = TokenSet::of(4, &[0, 2]);
    let situation = Situation {
        allowed: Some(&allowed),
        ..Situation::default()
    };
    let choice = choose(&LOGITS, &Sampling::greedy(), &situation).unwrap();
    assert_eq!(choice.token, 2);
    let none = TokenSet::of(4, &[]);
    let situation = Situation {
        allowed: Some(&none),
        ..Situation::default()
    };
    let refused = choose(&LOGITS, &Sampling::greedy(), &situation);
    assert_eq!(refused, Err(SamplingError::NotFinite));
}
