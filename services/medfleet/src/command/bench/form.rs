//! What a bench's model is stored and computed in: plain numbers, or one of GGUF's forms, of random bits.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use medfleet_model::Dtype;

/// How matrices are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As safetensors, in this dtype, which everything is computed in.
    Plain(Dtype),
    /// The language model as a GGUF, multiplied as stored; the rest is f32.
    Quantised(Quants),
}

/// GGUF's forms that the kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quants {
    Q8_0,
    Q4K,
    Q6K,
    /// As llama.cpp's Q4_K_M: Q4_K, but Q6_K for the embedding and, in some layers, for values and `ffn_down`.
    Q4KM,
}

/// A matrix's own form in a file of ggml's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    /// ggml's number of the type.
    pub(super) number: u32,
    /// Weights of a block.
    pub(super) weights: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Where its f16 are, and what they have to be so that random weights are about as large as trained ones.
    pub(super) scales: &'static [(usize, f32)],
}

const Q8_0: Block = Block {
    number: 8,
    weights: 32,
    bytes: 34,
    scales: &[(0, 3e-4)],
};
const Q4K: Block = Block {
    number: 12,
    weights: 256,
    bytes: 144,
    scales: &[(0, 1e-4), (2, 7.5e-4)],
};
const Q6K: Block = Block {
    number: 14,
    weights: 256,
    bytes: 210,
    scales: &[(208, 1.5e-5)],
};

impl Quants {
    /// The form of a matrix, by its name in GGUF files.
    pub(super) fn block(self, name: &str, layers: usize) -> Block {
        match self {
            Self::Q8_0 => Q8_0,
            Self::Q4K => Q4K,
            Self::Q6K => Q6K,
            Self::Q4KM if name == "token_embd.weight" => Q6K,
            Self::Q4KM if name.contains("attn_v") || name.contains("ffn_down") => {
                let layer = name.split('.').nth(1).and_then(|layer| layer.parse().ok());
                if layer.is_some_and(|layer| more_bits(layer, layers)) {
                    Q6K
                } else {
                    Q4K
                }
            }
            Self::Q4KM => Q4K,
        }
    }
}

/// llama.cpp's choice of layers: the first and last eighth, and every third between.
const fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

impl Form {
    /// What is computed in.
    pub(super) const fn dtype(self) -> Dtype {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Quantised(_) => Dtype::F32,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Quantised(Quants::Q8_0) => f.write_str("q8_0"),
            Self::Quantised(Quants::Q4K) => f.write_str("q4_k"),
            Self::Quantised(Quants::Q6K) => f.write_str("q6_k"),
            Self::Quantised(Quants::Q4KM) => f.write_str("q4_k_m"),
        }
    }
}

impl FromStr for Form {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "q8_0" => Self::Quantised(Quants::Q8_0),
            "q4_k" => Self::Quantised(Quants::Q4K),
            "q6_k" => Self::Quantised(Quants::Q6K),
            "q4_k_m" => Self::Quantised(Quants::Q4KM),
            "f32" | "bf16" => Self::Plain(text.parse()?),
            _ => bail!("dtype is {text}, allowed are f32, bf16, q8_0, q4_k, q6_k and q4_k_m"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["f32", "bf16", "q8_0", "q4_k", "q6_k", "q4_k_m"] {
            assert_eq!(name.parse::<Form>().unwrap().to_string(), name);
        }
        assert!("q5_0".parse::<Form>().is_err());
    }

    #[test]
    fn a_mixed_file_has_two_forms() {
        let block = |name: &str| Quants::Q4KM.block(name, 34);
        assert_eq!(block("token_embd.weight"), Q6K);
        assert_eq!(block("blk.0.ffn_down.weight"), Q6K);
        assert_eq!(block("blk.4.ffn_down.weight"), Q4K);
        assert_eq!(block("blk.6.attn_v.weight"), Q6K);
        assert_eq!(block("blk.6.attn_q.weight"), Q4K);
    }
}
