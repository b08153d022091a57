//! A GGUF of MedGemma 4B's true shapes with random weights in one of its quantised forms: what this program and others can
//! load alike. It has no vocabulary; whoever loads it brings a tokenizer, or needs none.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use half::f16;

use super::checkpoint::{
    HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, Planned, Random, VOCAB, planned_text,
};
use super::form::{Block, Quants};

/// ggml's numbers of plain types.
const F32: u32 = 0;
const ALIGNMENT: u64 = 32;
/// Kinds of metadata values.
const KIND_U32: u32 = 4;
const KIND_F32: u32 = 6;
const KIND_TEXT: u32 = 8;

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
    fn write(&self, file: &mut impl Write, random: &mut Random, ends: &[usize]) -> Result<()> {
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

/// llama.cpp's name of a tensor of the language model.
pub(super) fn llama_name(hub: &str) -> String {
    let name = hub.trim_start_matches("language_model.model.");
    let pairs = [
        ("embed_tokens", "token_embd"),
        ("layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ];
    let name = if name == "norm.weight" {
        "output_norm.weight".to_owned()
    } else {
        name.to_owned()
    };
    pairs
        .iter()
        .fold(name, |name, (hub, llama)| name.replace(hub, llama))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What is said of the model, as llama.cpp's converter says it.
fn metadata(layers: usize) -> (u64, Vec<u8>) {
    let (mut count, mut out) = (0, Vec::new());
    let mut put = |key: &str, kind: u32, value: &[u8]| {
        count += 1;
        put_text(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
    };
    let text = |text: &str| {
        let mut out = Vec::new();
        put_text(&mut out, text);
        out
    };
    put("general.architecture", KIND_TEXT, &text("gemma3"));
    put("tokenizer.ggml.model", KIND_TEXT, &text("none"));
    put("gemma3.rope.scaling.type", KIND_TEXT, &text("linear"));
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
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        put(&format!("gemma3.{key}"), KIND_U32, &size.to_le_bytes());
    }
    for (key, number) in [
        ("attention.layer_norm_rms_epsilon", 1e-6_f32),
        ("rope.freq_base", 1e6),
        ("rope.scaling.factor", 8.0),
    ] {
        put(&format!("gemma3.{key}"), KIND_F32, &number.to_le_bytes());
    }
    (count, out)
}

/// Writes the file; it gets its name last, so that an interrupted one is written again.
pub(super) fn write(path: &Path, quants: Quants, layers: usize, ends: &[usize]) -> Result<()> {
    let planned = planned_text(layers);
    let tensors = planned.iter().map(|of| Tensor::new(of, quants, layers));
    let tensors: Vec<Tensor> = tensors.collect();
    let (count, values) = metadata(layers);
    let mut head = b"GGUF".to_vec();
    head.extend(3_u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(count.to_le_bytes());
    head.extend(values);
    let mut offset = 0_u64;
    for tensor in &tensors {
        put_text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        let sizes = tensor.shape.iter().rev();
        head.extend(sizes.flat_map(|size| (*size as u64).to_le_bytes()));
        head.extend(tensor.number().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let unfinished = path.with_extension("unfinished");
    let mut file = BufWriter::new(File::create(&unfinished)?);
    file.write_all(&head)?;
    let mut random = Random::default();
    for tensor in &tensors {
        tensor.write(&mut file, &mut random, ends)?;
        let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
        file.write_all(&vec![0; padding as usize])?;
    }
    file.flush()?;
    std::fs::rename(unfinished, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llamas() {
        for (hub, llama) in [
            ("embed_tokens.weight", "token_embd.weight"),
            ("norm.weight", "output_norm.weight"),
            (
                "layers.3.self_attn.q_norm.weight",
                "blk.3.attn_q_norm.weight",
            ),
            (
                "layers.3.self_attn.o_proj.weight",
                "blk.3.attn_output.weight",
            ),
            ("layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ] {
            assert_eq!(llama_name(&format!("language_model.model.{hub}")), llama);
        }
    }
}
