//! Proposed tokens: computed in one forward behind a token that is certain, they give the very bits that one step after the
//! other gives, whoever is beside them; and what wrong ones left in the cache is overwritten, across windows too.
//!
//! The engine's speculation is exact because of this, on devices where [`Model::rows_stand_alone`] holds.

use super::fixtures::{CASES, Case, Fixtures, tiny_dir};
use super::matrix::matrix;
use super::{device, on, prefix, schedules};
use crate::{Chunk, Dtype, KvPool, Model, Progress, Want};

/// Tokens of the answer that are gone through.
const STEPS: usize = 24;
/// Proposals of each forward, in turn, and how many of them are right.
const PROPOSALS: [(usize, usize); 9] = [
    (1, 1),
    (3, 0),
    (0, 0),
    (7, 2),
    (5, 5),
    (15, 4),
    (2, 1),
    (4, 0),
    (6, 6),
];

/// A sequence whose prompt is read, in a pool of small blocks.
fn begin(model: &Model, pool: &mut KvPool, case: &Case) -> Progress {
    let mut progress = prefix::progress(model, case, pool.block_tokens());
    prefix::read_all(model, pool, case, &mut progress, (512, Want::Nothing));
    progress
}

/// For two sequences.
fn pool(model: &Model, case: &Case) -> KvPool {
    let positions = case.prompt.tokens().len() + 2 * STEPS;
    let mut pool = schedules::pool(model, 4, 2 * positions.next_multiple_of(4));
    pool.limit_stretches(512);
    pool
}

/// Logits of the answer's tokens, one forward each.
fn stepped(model: &Model, case: &Case) -> Vec<Vec<f32>> {
    let mut pool = pool(model, case);
    let mut one = begin(model, &mut pool, case);
    let step = |token: &u32| {
        one.push(*token);
        prefix::read(model, &mut pool, case, &mut one, (1, Want::Last)).remove(0)
    };
    case.greedy[..STEPS].iter().map(step).collect()
}

/// The same with proposals, beside another sequence that repeats one of its steps; every block that was taken for wrong
/// proposals is given back.
fn proposed(model: &Model, case: &Case) -> Vec<Vec<f32>> {
    let mut pool = pool(model, case);
    let mut one = begin(model, &mut pool, case);
    let mut other = begin(model, &mut pool, case);
    other.push(case.greedy[0]);
    let beside = other.tokens().len();
    other.reserve(pool.blocks_mut(), beside).unwrap();
    let mut rows = Vec::new();
    let mut turns = PROPOSALS.into_iter().cycle();
    while rows.len() < STEPS {
        let (count, right) = turns.next().unwrap();
        let next = &case.greedy[rows.len()..STEPS];
        let count = count.min(next.len() - 1);
        let right = right.min(count);
        let wrong = |token: &u32| if *token == 9 { 10 } else { 9 };
        let mut fed = next[..=right].to_vec();
        fed.extend(next[right + 1..=count].iter().map(wrong));
        let start = one.tokens().len();
        let before = pool.blocks().available();
        one.reserve(pool.blocks_mut(), start + fed.len()).unwrap();
        let chunk = Chunk {
            tokens: &fed,
            images: &[],
            start,
            table: one.table(),
            want: Want::All,
        };
        let neighbour = Chunk {
            tokens: &case.greedy[..1],
            images: &[],
            start: beside - 1,
            table: other.table(),
            want: Want::Last,
        };
        let first = rows.len().is_multiple_of(2);
        let chunks = if first {
            [chunk, neighbour]
        } else {
            [neighbour, chunk]
        };
        let mut found = model.forward(&mut pool, &chunks).unwrap();
        let own = found.remove(usize::from(!first));
        rows.extend(own.rows.into_iter().take(right + 1));
        for token in &next[..=right] {
            one.push(*token);
            let end = one.tokens().len();
            one.advance(pool.blocks_mut(), end);
        }
        one.shrink(pool.blocks_mut());
        let used = pool.blocks().layout().groups() * ((right + 1).div_ceil(4) + 1);
        assert!(pool.blocks().available() + used >= before);
    }
    one.give_back(pool.blocks_mut());
    other.give_back(pool.blocks_mut());
    assert_eq!(pool.blocks().available(), pool.blocks().total());
    rows
}

pub(super) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let of = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect();
    rows.iter().map(of).collect()
}

fn check(what: &str, model: &Model, case: &Case) {
    if !model.rows_stand_alone() {
        return;
    }
    let (expected, found) = (stepped(model, case), proposed(model, case));
    for (at, (expected, found)) in bits(&expected).iter().zip(bits(&found)).enumerate() {
        assert!(*expected == found, "{what}: other bits at token {at}");
    }
}

fn check_checkpoint(checkpoint: &str) {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model = matrix().model(checkpoint, dtype);
        for name in matrix().case_names(checkpoint) {
            let case = matrix().case(&model, checkpoint, name, "");
            check(&format!("{checkpoint} {name} in {dtype}"), &model, &case);
        }
    }
}

mod leave_no_trace {
    over_the_matrix!(check_checkpoint);
}

#[test]
fn right_and_wrong_proposals_leave_no_trace_at_any_level() {
    let fixtures = Fixtures::read();
    for device in [device(), "cpu:portable".parse().unwrap()] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = Model::load(&tiny_dir(), on(device, dtype)).unwrap();
            for name in CASES {
                let case = fixtures.case(&model, name);
                check(&format!("{name} on {device} in {dtype}"), &model, &case);
            }
        }
    }
}

#[test]
fn which_devices_promise_it() {
    let promises = |device: &str| {
        let options = on(device.parse().unwrap(), Dtype::F32);
        let model = Model::load(&tiny_dir(), options).unwrap();
        model.rows_stand_alone()
    };
    assert!(promises("cpu") && promises("cpu:portable"));
    assert!(!promises("cpu:generic"));
}
