//! Weights from a seed: the Rust half of `tests/reference/matrix_weights.py`, which documents the generator.
//! The matrix' checkpoints are made by it at test time instead of being stored; a checksum shows that both halves agree.

use std::path::Path;

use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use super::fixtures::tiny_dir;

/// Name, shape, centre, and the factor of the drawn integer.
#[derive(Deserialize, Clone)]
pub(super) struct Entry(
    pub(super) String,
    pub(super) Vec<usize>,
    pub(super) f64,
    pub(super) f64,
);

/// What a checkpoint is made of.
#[derive(Deserialize, Clone)]
pub(super) struct Recipe {
    pub(super) seed: u64,
    pub(super) config: serde_json::Value,
    /// Rows of the embedding that are scaled by an eighth, so that no answer holds these tokens.
    pub(super) quiet: Vec<usize>,
    pub(super) tensors: Vec<Entry>,
    pub(super) checksum: u64,
}

/// One tensor as bf16 bits.
pub(super) struct Made {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) bits: Vec<u16>,
}

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The `i`th draw, about normal with a standard deviation of 37837.
fn draw(start: u64, i: u64) -> f32 {
    let mut z = start.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let fields = (0..4)
        .map(|i| ((z >> (16 * i)) & 0xFFFF) as i32)
        .sum::<i32>();
    // Below 2²⁴, so exact.
    (fields - 131_070) as f32
}

/// The nearest bf16, ties to even.
fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

impl Recipe {
    pub(super) fn make(&self) -> Vec<Made> {
        let tensor = |Entry(name, shape, centre, scale): &Entry| {
            let (start, count) = (self.seed ^ fnv1a(name), shape.iter().product::<usize>());
            let (centre, scale) = (*centre as f32, *scale as f32);
            let mut bits: Vec<u16> = (0..count as u64)
                .map(|i| rounded(centre + scale * draw(start, i)))
                .collect();
            if name.ends_with("embed_tokens.weight") {
                for row in &self.quiet {
                    for value in &mut bits[row * shape[1]..(row + 1) * shape[1]] {
                        let eighth = f32::from_bits(u32::from(*value) << 16) * 0.125;
                        *value = (eighth.to_bits() >> 16) as u16;
                    }
                }
            }
            Made {
                name: name.clone(),
                shape: shape.clone(),
                bits,
            }
        };
        self.tensors.iter().map(tensor).collect()
    }

    /// A folder as a user would have it, with the tiny checkpoint's tokenizer.
    pub(super) fn write(&self, dir: &Path) {
        write_safetensors(&self.make(), &dir.join("model.safetensors"));
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        std::fs::copy(
            tiny_dir().join("tokenizer.json"),
            dir.join("tokenizer.json"),
        )
        .unwrap();
    }
}

pub(super) fn write_safetensors(tensors: &[Made], path: &Path) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|made| made.bits.iter().flat_map(|b| b.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(made, bytes)| {
        let view = TensorView::new(Stored::BF16, made.shape.clone(), bytes).unwrap();
        (made.name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Over names and bits, as the reference computed it over its own.
pub(super) fn checksum(tensors: &[Made]) -> u64 {
    let of_bits = |bits: &[u16]| {
        bits.iter().enumerate().fold(0u64, |sum, (i, b)| {
            sum.wrapping_add(u64::from(*b).wrapping_mul(2 * i as u64 + 1))
        })
    };
    tensors.iter().fold(0, |sum, made| {
        sum.wrapping_add(fnv1a(&made.name))
            .wrapping_add(of_bits(&made.bits))
    })
}
