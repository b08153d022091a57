//! A GGUF of MedGemma 4B's true shapes with random weights in one of its quantised forms: what this program and others can
//! load alike. It has no vocabulary; whoever loads it brings a tokenizer, or needs none.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use half::f16;
use medfleet_model::{GgufWriter, gguf_name};

use super::checkpoint::{
    HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, Planned, Random, VOCAB, planned_text,
};
use super::form::{Block, Quants};

/// ggml's number of a plain type.
const F32: u32 = 0;

/// A tensor under llama.cpp's name.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    held: Held,
}

#[derive(Clone, Copy)]
enum Held {
    /// A norm, all ones: the file's norms have Gemma's 1 in them.
    Ones,
    Blocks(Block),
}

impl Tensor {
    fn new(planned: &Planned, quants: Quants, layers: usize) -> Self {
        let name = llama_name(&planned.name);
        let held = match planned.shape.len() {
            1 => Held::Ones,
            _ => Held::Blocks(quants.block(&name, layers)),
        };
        Self {
            name,
            shape: planned.shape.clone(),
            held,
        }
    }

    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn number(&self) -> u32 {
        match self.held {
            Held::Ones => F32,
            Held::Blocks(block) => block.number,
        }
    }

    fn bytes(&self) -> u64 {
        let bytes = match self.held {
            Held::Ones => self.values() * 4,
            Held::Blocks(block) => self.values() / block.weights * block.bytes,
        };
        bytes as u64
    }

    /// The rows of `ends` in the embedding are zeros, as in the safetensors: such a text has no end.
    fn write(&self, file: &mut dyn Write, random: &mut Random, ends: &[usize]) -> io::Result<()> {
        match self.held {
            Held::Ones => {
                for _ in 0..self.values() {
                    file.write_all(&1_f32.to_le_bytes())?;
                }
            }
            Held::Blocks(block) => {
                let mut bytes = vec![0; block.bytes.next_multiple_of(8)];
                let is_embedding = self.name == "token_embd.weight";
                for number in 0..self.values() / block.weights {
                    random.bits(&mut bytes);
                    let row = number * block.weights / HIDDEN;
                    let blank = is_embedding && ends.contains(&row);
                    for (at, scale) in block.scales {
                        let scale = if blank { 0.0 } else { *scale };
                        let scale = f16::from_f32(scale).to_le_bytes();
                        bytes[*at..at + 2].copy_from_slice(&scale);
                    }
                    file.write_all(&bytes[..block.bytes])?;
                }
            }
        }
        Ok(())
    }
}

/// llama.cpp's name of a tensor that is planned for the language model.
pub(super) fn llama_name(hub: &str) -> String {
    gguf_name(hub).expect("the plan's names are Gemma's, which the reader knows")
}

/// What is said of the model, as llama.cpp's converter says it.
fn described(layers: usize) -> GgufWriter {
    let mut writer = GgufWriter::default()
        .text("general.architecture", "gemma3")
        .text("tokenizer.ggml.model", "none")
        .text("gemma3.rope.scaling.type", "linear");
    for (key, size) in [
        ("vocab_size", VOCAB),
        ("context_length", 131_072),
        ("embedding_length", HIDDEN),
        ("block_count", layers),
        ("feed_forward_length", INTERMEDIATE),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("attention.sliding_window", 1024),
    ] {
        writer = writer.size(&format!("gemma3.{key}"), size);
    }
    writer
        .float("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
        .float("gemma3.rope.freq_base", 1e6)
        .float("gemma3.rope.scaling.factor", 8.0)
}

/// Writes the file; it gets its name last, so that an interrupted one is written again.
pub(super) fn write(path: &Path, quants: Quants, layers: usize, ends: &[usize]) -> Result<()> {
    let planned = planned_text(layers);
    let tensors = planned.iter().map(|of| Tensor::new(of, quants, layers));
    let tensors: Vec<Tensor> = tensors.collect();
    let mut writer = described(layers);
    for tensor in &tensors {
        writer.tensor(&tensor.name, &tensor.shape, tensor.number(), tensor.bytes());
    }
    let unfinished = path.with_extension("unfinished");
    let mut file = BufWriter::new(File::create(&unfinished)?);
    let mut random = Random::default();
    let data = |at: usize, file: &mut dyn Write| tensors[at].write(file, &mut random, ends);
    writer.write(&mut file, data)?;
    file.flush()?;
    std::fs::rename(unfinished, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planned_tensor_has_a_name() {
        let planned = planned_text(2);
        let name = |of: &Planned| Tensor::new(of, Quants::Q8_0, 2).name;
        let mut names: Vec<String> = planned.iter().map(name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((all, names.len()), (2 + 2 * 13, all));
    }
}
