//! bf16 against the reference's own bf16, over the matrix. Where bf16 is rounded is part of the model: softmax, norms,
//! activations and the last step of every product are computed in f32 and rounded where the reference rounds.

use medfleet_kernels::Level;

use super::matrix::matrix;
use super::{best, on, println_figure};
use crate::text::Mutations;
use crate::{ComputeDevice, Dtype};

/// Mean Kullback-Leibler divergence from the reference over the stored positions of a case, in nats.
const DIVERGENCE_MAX: f64 = 1e-3;
/// Share of positions with the reference's best token, where its lead over the second is above [`LEAD`].
const AGREEMENT_MIN: f64 = 0.99;
const LEAD: f32 = 0.1;

/// Natural logarithms of the softmax.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    row.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

fn divergence(reference: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    assert_eq!(reference.len(), found.len());
    let of_row = |(p, q): (&Vec<f32>, &Vec<f32>)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>()
    };
    reference.iter().zip(found).map(of_row).sum::<f64>() / reference.len() as f64
}

/// (divergence, positions with a clear lead, those that agree)
fn compare(
    model: &crate::Model,
    checkpoint: &str,
    name: &str,
    reverse: bool,
) -> (f64, usize, usize) {
    let mut case = matrix().case(model, checkpoint, name, "bf16.");
    if reverse {
        case.images.reverse();
    }
    let rows = case.all_logits(model);
    let tensors = matrix().tensors(checkpoint);
    let ids = tensors.ids(&format!("{name}.bf16.best"));
    let leads = tensors.values(&format!("{name}.bf16.gap"));
    let tail = &rows[rows.len() - ids.len()..];
    let clear: Vec<bool> = tail
        .iter()
        .zip(ids.iter().zip(&leads))
        .filter(|(_, (_, lead))| **lead > LEAD)
        .map(|(row, (id, _))| best(row) == *id)
        .collect();
    let agreed = clear.iter().filter(|same| **same).count();
    (
        divergence(&case.logits, &case.selected(&rows)),
        clear.len(),
        agreed,
    )
}

fn check_half(checkpoint: &str) {
    let model = matrix().model(checkpoint, Dtype::Bf16);
    let (mut positions, mut agreed) = (0, 0);
    for name in matrix().case_names(checkpoint) {
        let (found, clear, same) = compare(&model, checkpoint, name, false);
        println_figure(&format!("{checkpoint} {name} in bf16, divergence"), found);
        assert!(found <= DIVERGENCE_MAX, "{checkpoint} {name}: {found}");
        positions += clear;
        agreed += same;
    }
    let share = agreed as f64 / positions as f64;
    println_figure(
        &format!("{checkpoint}, disagreement over {positions} positions"),
        1.0 - share,
    );
    assert!(
        positions >= 400 && share >= AGREEMENT_MIN,
        "{checkpoint}: {agreed} of {positions}"
    );
}

mod bf16 {
    over_the_matrix!(check_half);
}

/// In block floating point bf16 parts from the reference's own bf16 as far as that parts from f32, since every last digit that falls
/// otherwise is handed on. From f32 it must be no further than the reference's own is.
fn check_blocks(checkpoint: &str) {
    /// What the mean over all cases of a checkpoint may be, of the reference's own.
    const SHARE_MAX: f64 = 1.25;
    let level = Level::Avx512Bfp;
    if !level.is_available() {
        return;
    }
    let model = matrix().load(checkpoint, on(ComputeDevice::CpuAt(level), Dtype::Bf16));
    let (mut found, mut reference) = (0.0, 0.0);
    for name in matrix().case_names(checkpoint) {
        let case = matrix().case(&model, checkpoint, name, "");
        let rounded = matrix().case(&model, checkpoint, name, "bf16.").logits;
        reference += divergence(&case.logits, &rounded);
        found += divergence(&case.logits, &case.selected(&case.all_logits(&model)));
    }
    let share = found / reference;
    println_figure(
        &format!("{checkpoint} in {level}, share of the reference's own"),
        share,
    );
    assert!(share <= SHARE_MAX, "{checkpoint}: {share}");
}

mod blocks {
    over_the_matrix!(check_blocks);
}

#[test]
fn the_bf16_comparison_bites() {
    let mut model = matrix().model("window_8_kv_2", Dtype::Bf16);
    let (swapped, _, _) = compare(&model, "window_8_kv_2", "back_to_back", true);
    assert!(swapped >= 100.0 * DIVERGENCE_MAX, "{swapped}");
    model.mutate(Mutations {
        no_image_mask: true,
        ..Mutations::default()
    });
    let (causal, _, _) = compare(&model, "window_8_kv_2", "image_last", false);
    assert!(causal >= 100.0 * DIVERGENCE_MAX, "{causal}");
}
