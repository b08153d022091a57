//! Real weights: Gemma 3 270M from its GGUF, dequantised, against transformers on the same dequantised weights
//! (`tests/reference/make_270m.py`), and as stored against dequantised.
//!
//! All twenty prompts go through together, one of them longer than the window, each along the reference's own greedy
//! tokens, so that one near-tie does not hide what comes after it.

use serde::Deserialize;

use super::cache::fetched;
use super::fixtures::{Tensors, facts};
use super::schedules::pool;
use super::{all, best, largest, println_figure};
use crate::{BlockTable, Chunk, Dtype, GgufSource, KvPool, Model, Want};

/// Largest absolute difference allowed, and the gap between the two best logits below which either may win.
const TOLERANCE: f32 = 1e-3;
/// KL divergence allowed between the dequantised model and the one that multiplies with its matrices as stored.
const KL_MEAN_MAX: f64 = 0.02;
/// On how many of the cases and steps that is measured: products with matrices as stored are slow where their width is
/// no multiple of 256, as here.
const STORED_CASES: usize = 8;
const STORED_STEPS: usize = 4;

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
        let tensors = Tensors::read("gemma3_270m.safetensors");
        Self {
            facts: facts("gemma3_270m.json"),
            top_values: tensors.values("top_values"),
            top_ids: tensors.ids("top_ids"),
            log_sums: tensors.values("log_sums"),
            strided: tensors.values("strided"),
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
        let mut found = largest(top.chain([sum.abs()]));
        if step == 0 {
            let width = self.strided.len() / self.facts.cases.len();
            let kept = &self.strided[case * width..(case + 1) * width];
            let ours = row.iter().step_by(self.facts.stride);
            assert_eq!(ours.len(), kept.len());
            let differences = ours.zip(kept).map(|(a, b)| (a - b).abs());
            found = found.max(largest(differences));
        }
        found
    }
}

/// What llama.cpp says of the same prompts with the same file (`tests/reference/make_llama_cpp.mjs`).
#[derive(Deserialize)]
struct LlamaCpp {
    cases: Vec<Vec<LlamaStep>>,
}

#[derive(Deserialize)]
struct LlamaStep {
    /// Best first.
    ids: Vec<u32>,
    logits: Vec<f32>,
    log_sum: f64,
    tokens: usize,
}

impl LlamaCpp {
    fn read() -> Self {
        facts("llama_cpp_270m.json")
    }
}

impl LlamaStep {
    /// KL divergence of our row from llama.cpp's, in nats, over its best tokens and all others as one.
    fn divergence(&self, row: &[f32]) -> f64 {
        assert_eq!(row.len(), self.tokens);
        let sum = log_sum(row);
        let pairs = self.ids.iter().zip(&self.logits).map(|(id, logit)| {
            let ours = (f64::from(row[*id as usize]) - sum).exp();
            ((f64::from(*logit) - self.log_sum).exp(), ours)
        });
        let (mut found, mut theirs, mut ours) = (0.0, 0.0, 0.0);
        for (p, q) in pairs {
            found += p * (p / q).ln();
            theirs += p;
            ours += q;
        }
        // The logits are kept with four digits, so that the rest may come out at nothing.
        let (p, q) = ((1.0 - theirs).max(1e-9), (1.0 - ours).max(1e-9));
        found + p * (p / q).ln()
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
    fn start(quantised: bool, reference: &Reference, cases: usize) -> Self {
        let mut source = GgufSource::text(fetched("gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf"));
        source.quantised = quantised;
        let model = Model::load_gguf(&source, all(Dtype::F32)).unwrap();
        let needed: Vec<usize> = reference.facts.cases[..cases]
            .iter()
            .map(|case| (case.prompt.len() + reference.steps()).next_multiple_of(16))
            .collect();
        let mut pool = pool(&model, 16, needed.iter().sum());
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
            lengths: vec![0; cases],
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

/// Sums over the rows on which the two forms of the weights are compared.
struct Nearness {
    rows: usize,
    sum: f64,
    max: f64,
    same_best: usize,
}

impl Nearness {
    const fn new() -> Self {
        Self {
            rows: 0,
            sum: 0.0,
            max: 0.0,
            same_best: 0,
        }
    }

    fn add(&mut self, divergence: f64, same_best: bool) {
        self.rows += 1;
        self.sum += divergence;
        self.max = self.max.max(divergence);
        self.same_best += usize::from(same_best);
    }

    fn mean(&self) -> f64 {
        self.sum / self.rows as f64
    }

    fn print(&self, what: &str) {
        println!(
            "270M, {what}: mean KL divergence {:.1e}, largest {:.1e}, equal best tokens in {} of {} rows",
            self.mean(),
            self.max,
            self.same_best,
            self.rows
        );
    }
}

#[test]
fn the_270m_is_the_references() {
    let reference = Reference::read();
    let cases = &reference.facts.cases;
    assert_eq!(cases.len(), 20);
    let mut exact = Walk::start(false, &reference, 20);
    let mut stored = Walk::start(true, &reference, STORED_CASES);
    let window = exact.model.config().text.window;
    assert!(cases.iter().any(|case| case.prompt.len() > window));

    let llama = LlamaCpp::read();
    let (mut worst, mut ties) = (0.0f32, 0);
    let [mut nearness, mut exact_llama, mut stored_llama] = [const { Nearness::new() }; 3];
    for step in 0..reference.steps() {
        let next: Vec<&[u32]> = cases
            .iter()
            .map(|case| match step {
                0 => case.prompt.as_slice(),
                _ => &case.greedy[step - 1..step],
            })
            .collect();
        let rows = exact.feed(&next);
        for (case, row) in rows.iter().enumerate() {
            worst = worst.max(reference.distance(case, step, row));
            let two: Vec<(u32, f32)> = reference.top(case, step).take(2).collect();
            if best(row) != two[0].0 {
                let gap = two[0].1 - two[1].1;
                assert!(gap < TOLERANCE, "case {case}, step {step}: gap {gap}");
                ties += 1;
            }
        }
        if step < STORED_STEPS {
            let theirs = llama.cases.iter().map(|case| &case[step]);
            for (row, theirs) in rows.iter().zip(theirs.clone()) {
                exact_llama.add(theirs.divergence(row), best(row) == theirs.ids[0]);
            }
            let near = stored.feed(&next[..STORED_CASES]);
            for ((row, near), theirs) in rows.iter().zip(&near).zip(theirs) {
                nearness.add(divergence(row, near), best(row) == best(near));
                stored_llama.add(theirs.divergence(near), best(near) == theirs.ids[0]);
            }
        }
    }
    let mean = nearness.mean();
    println_figure("270M, dequantised against transformers", worst);
    nearness.print("as stored against dequantised");
    exact_llama.print("dequantised against llama.cpp");
    stored_llama.print("as stored against llama.cpp");
    assert!(worst <= TOLERANCE, "{worst}");
    assert!(ties <= 3, "{ties} near-ties went the other way");
    assert!(
        mean > 0.0 && mean <= KL_MEAN_MAX,
        "mean KL divergence {mean}"
    );
    for near in [&exact_llama, &stored_llama] {
        let mean = near.mean();
        assert!(
            mean > 0.0 && mean <= KL_MEAN_MAX,
            "mean KL divergence from llama.cpp {mean}"
        );
    }
}
