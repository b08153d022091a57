//! Real weights: Gemma 3 270M from its GGUF, dequantised, against transformers on the same dequantised weights
//! (`tests/reference/make_270m.py`), and as stored against dequantised.
//!
//! All twenty prompts go through together, one of them longer than the window, each along the reference's own greedy
//! tokens, so that one near-tie does not hide what comes after it.

use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;

use super::cache::fetched;
use super::println_figure;
use crate::{
    BlockTable, Chunk, Dtype, GgufSource, KvOptions, KvPool, LoadOptions, Model, Parts, Want,
};

/// Largest absolute difference allowed, and the gap between the two best logits below which either may win.
const TOLERANCE: f32 = 1e-3;
/// KL divergence allowed between the dequantised model and the one that multiplies with its matrices as stored.
const KL_MEAN_MAX: f64 = 0.02;

#[derive(Deserialize)]
struct Facts {
    stride: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

struct Reference {
    facts: Facts,
    /// [cases, steps, top] each.
    top_values: Vec<f32>,
    top_ids: Vec<u32>,
    /// [cases, steps]
    log_sums: Vec<f32>,
    /// [cases, vocab / stride], of the last prompt position.
    strided: Vec<f32>,
}

impl Reference {
    fn read() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let facts = std::fs::read_to_string(dir.join("gemma3_270m.json")).unwrap();
        let bytes = std::fs::read(dir.join("gemma3_270m.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4)
                .map(|b| [b[0], b[1], b[2], b[3]])
                .collect()
        };
        let floats = |name| words(name).into_iter().map(f32::from_le_bytes).collect();
        Self {
            facts: serde_json::from_str(&facts).unwrap(),
            top_values: floats("top_values"),
            top_ids: words("top_ids")
                .into_iter()
                .map(u32::from_le_bytes)
                .collect(),
            log_sums: floats("log_sums"),
            strided: floats("strided"),
        }
    }

    fn steps(&self) -> usize {
        self.facts.cases[0].greedy.len() + 1
    }

    /// The best logits of a step with their ids, best first.
    fn top(&self, case: usize, step: usize) -> impl Iterator<Item = (u32, f32)> {
        let rows = self.facts.cases.len() * self.steps();
        let top = self.top_ids.len() / rows;
        let from = (case * self.steps() + step) * top;
        let ids = self.top_ids[from..from + top].iter().copied();
        ids.zip(self.top_values[from..from + top].iter().copied())
    }

    /// The largest distance of a row from what is kept of the reference's.
    fn distance(&self, case: usize, step: usize, row: &[f32]) -> f32 {
        let top = self
            .top(case, step)
            .map(|(id, value)| (row[id as usize] - value).abs());
        let sum = log_sum(row) as f32 - self.log_sums[case * self.steps() + step];
        let mut found = top.fold(sum.abs(), f32::max);
        if step == 0 {
            let width = self.strided.len() / self.facts.cases.len();
            let kept = &self.strided[case * width..(case + 1) * width];
            let ours = row.iter().step_by(self.facts.stride);
            assert_eq!(ours.len(), kept.len());
            found = ours
                .zip(kept)
                .map(|(a, b)| (a - b).abs())
                .fold(found, f32::max);
        }
        found
    }
}

/// A model on its way through all cases.
struct Walk {
    model: Model,
    pool: KvPool,
    tables: Vec<BlockTable>,
    lengths: Vec<usize>,
}

impl Walk {
    fn start(quantised: bool, reference: &Reference) -> Self {
        let mut source = GgufSource::text(fetched("gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf"));
        source.quantised = quantised;
        let options = LoadOptions {
            dtype: Dtype::F32,
            parts: Parts::All,
        };
        let model = Model::load_gguf(&source, options).unwrap();
        let lengths: Vec<usize> = reference
            .facts
            .cases
            .iter()
            .map(|c| c.prompt.len())
            .collect();
        let needed: Vec<usize> = lengths
            .iter()
            .map(|n| (n + reference.steps()).next_multiple_of(16))
            .collect();
        let mut pool = model
            .kv_pool(KvOptions {
                block_tokens: 16,
                budget_bytes: needed.iter().sum::<usize>() * model.kv_position_bytes(),
            })
            .unwrap();
        let tables = needed
            .iter()
            .map(|n| {
                let mut table = BlockTable::default();
                pool.reserve(&mut table, *n).unwrap();
                table
            })
            .collect();
        Self {
            model,
            pool,
            tables,
            lengths: vec![0; lengths.len()],
        }
    }

    /// Feeds every case its tokens; the logits of each one's last.
    fn feed(&mut self, tokens: &[&[u32]]) -> Vec<Vec<f32>> {
        let chunks: Vec<Chunk> = (0..tokens.len())
            .map(|i| Chunk {
                tokens: tokens[i],
                images: &[],
                start: self.lengths[i],
                table: &self.tables[i],
                want: Want::Last,
            })
            .collect();
        let rows = self.model.forward(&mut self.pool, &chunks).unwrap();
        for (length, tokens) in self.lengths.iter_mut().zip(tokens) {
            *length += tokens.len();
        }
        rows.into_iter()
            .map(|mut chunk| chunk.rows.remove(0))
            .collect()
    }
}

fn log_sum(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// KL divergence of `other` from `exact`, in nats.
fn divergence(exact: &[f32], other: &[f32]) -> f64 {
    let (a, b) = (log_sum(exact), log_sum(other));
    let one = |(x, y): (&f32, &f32)| {
        let log = f64::from(*x) - a;
        f64::from((log as f32).exp()) * (log - (f64::from(*y) - b))
    };
    exact.iter().zip(other).map(one).sum()
}

#[test]
fn the_270m_is_the_references() {
    let reference = Reference::read();
    assert_eq!(reference.facts.cases.len(), 20);
    let mut exact = Walk::start(false, &reference);
    let mut stored = Walk::start(true, &reference);
    let window = exact.model.config().text.window;
    assert!(
        reference
            .facts
            .cases
            .iter()
            .any(|case| case.prompt.len() > window)
    );

    let (mut worst, mut ties, mut same) = (0.0f32, 0, 0);
    let (mut kl_sum, mut kl_max) = (0.0f64, 0.0f64);
    let mut next: Vec<&[u32]> = reference
        .facts
        .cases
        .iter()
        .map(|c| c.prompt.as_slice())
        .collect();
    for step in 0..reference.steps() {
        let (rows, near) = (exact.feed(&next), stored.feed(&next));
        for (case, row) in rows.iter().enumerate() {
            worst = worst.max(reference.distance(case, step, row));
            let best: Vec<(u32, f32)> = reference.top(case, step).take(2).collect();
            let found = (0..row.len())
                .max_by(|a, b| row[*a].total_cmp(&row[*b]))
                .unwrap();
            if found as u32 != best[0].0 {
                let gap = best[0].1 - best[1].1;
                assert!(gap < TOLERANCE, "case {case}, step {step}: gap {gap}");
                ties += 1;
            }
            let kl = divergence(row, &near[case]);
            (kl_sum, kl_max) = (kl_sum + kl, kl_max.max(kl));
            let other = (0..row.len()).max_by(|a, b| near[case][*a].total_cmp(&near[case][*b]));
            same += usize::from(other == Some(found));
        }
        next = reference
            .facts
            .cases
            .iter()
            .map(|c| c.greedy.get(step..=step).unwrap_or(&[]))
            .collect();
        if step + 1 == reference.steps() {
            break;
        }
    }
    let rows = (reference.steps() * reference.facts.cases.len()) as f64;
    println_figure("270M, dequantised against transformers", worst);
    println_figure(
        "270M, as stored, mean KL divergence",
        (kl_sum / rows) as f32,
    );
    println_figure("270M, as stored, largest KL divergence", kl_max as f32);
    println_figure(
        "270M, as stored, share of equal best tokens",
        (same as f64 / rows) as f32,
    );
    assert!(worst <= TOLERANCE, "{worst}");
    assert!(ties <= 3, "{ties} near-ties went the other way");
    assert!(kl_sum / rows <= KL_MEAN_MAX, "{}", kl_sum / rows);
    assert!(kl_sum > 0.0, "the quantised model is the dequantised one");
}
