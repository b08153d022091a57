//! The plain forms, in f64, as slow and as clear as can be.

use medfleet_kernels::KeyRange;

/// x [rows, inputs] × wᵀ [outputs, inputs].
pub(crate) fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(inputs) {
        for weights in w.chunks(inputs) {
            let products = row.iter().zip(weights);
            out.push(products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
        }
    }
    out
}

pub(crate) fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// [rows, heads, width] over keys and values [positions, kv heads, width].
pub(crate) fn attention(
    query: &[f32],
    (keys, values): (&[f32], &[f32]),
    [heads, kv_heads, width]: [usize; 3],
    scale: f32,
    seen: &[KeyRange],
) -> Vec<f64> {
    let mut out = vec![0.0; query.len()];
    for (row, range) in seen.iter().enumerate() {
        for head in 0..heads {
            let query = &query[(row * heads + head) * width..][..width];
            let kv_head = head / (heads / kv_heads);
            let at = |position: usize| (position * kv_heads + kv_head) * width;
            let score = |position: usize| {
                let key = &keys[at(position)..][..width];
                let products = query.iter().zip(key);
                let sum: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                sum * f64::from(scale)
            };
            let scores: Vec<f64> = (range.first..range.end).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            for (position, score) in (range.first..range.end).zip(scores) {
                let weight = (score - largest).exp() / total;
                for number in 0..width {
                    out[(row * heads + head) * width + number] +=
                        weight * f64::from(values[at(position) + number]);
                }
            }
        }
    }
    out
}
