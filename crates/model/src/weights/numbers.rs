//! Numbers as files store them: whether all of them are any, and as f32.

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::{Entry, Scope};
use crate::error::{BackendError, LoadError};

impl Scope<'_> {
    /// Checks what was read of the tensor `name`, which is stored plainly.
    pub(super) fn check_numbers(
        &self,
        (name, entry): (&str, &Entry),
        stored: DType,
        bytes: &[u8],
    ) -> Result<(), LoadError> {
        if self.numbers_only && !are_finite(stored, bytes) {
            return Err(self.no_numbers(name, entry));
        }
        Ok(())
    }

    /// The same of one that was stored quantised, on whatever device.
    pub(super) fn check_values(
        &self,
        (name, entry): (&str, &Entry),
        values: &Tensor,
    ) -> Result<(), LoadError> {
        // A sum with anything that is no number is none.
        let sum = || {
            let sum = values.sum_all()?.to_dtype(DType::F32)?;
            sum.to_scalar::<f32>()
        };
        if self.numbers_only && !sum().map_err(BackendError::from)?.is_finite() {
            return Err(self.no_numbers(name, entry));
        }
        Ok(())
    }

    fn no_numbers(&self, name: &str, entry: &Entry) -> LoadError {
        LoadError::NotFinite {
            name: name.to_owned(),
            file: self.weights.shards[entry.shard].name.clone(),
        }
    }
}

/// Whether every value is finite: neither infinite nor NaN. `stored` is F32, BF16 or F16.
fn are_finite(stored: DType, bytes: &[u8]) -> bool {
    // A value that is not has every bit of its exponent set. No early end: so many are looked at side by side.
    match stored {
        DType::F32 => {
            const EXPONENT: u32 = 0x7f80_0000;
            let found = bytes.as_chunks::<4>().0.iter().fold(false, |found, value| {
                found | (u32::from_le_bytes(*value) & EXPONENT == EXPONENT)
            });
            !found
        }
        DType::F16 => are_finite_halves(0x7c00, bytes),
        _ => are_finite_halves(0x7f80, bytes),
    }
}

fn are_finite_halves(exponent: u16, bytes: &[u8]) -> bool {
    let found = bytes.as_chunks::<2>().0.iter().fold(false, |found, value| {
        found | (u16::from_le_bytes(*value) & exponent == exponent)
    });
    !found
}

/// Numbers that are stored plainly, as f32, which holds all of them.
///
/// `stored` is F32, BF16 or F16, and `bytes` has as many as `into`.
pub(super) fn widen(stored: DType, bytes: &[u8], into: &mut [f32]) {
    match stored {
        DType::F32 => {
            for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        DType::F16 => {
            for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        _ => {
            for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use safetensors::Dtype as StoredDtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::weights::{Part, Weights};
    use crate::{ComputeDevice, Dtype};

    const SHAPE: [usize; 2] = [3, 32];

    /// What loading a matrix of this part says, where one of its values is this one.
    fn load(value: f32, stored: StoredDtype, dtype: Dtype, part: Part) -> Vec<Option<String>> {
        let mut values = [1.0_f32; 96];
        values[70] = value;
        let bytes: Vec<u8> = match stored {
            StoredDtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => {
                let narrow = values.iter().map(|x| bf16::from_f32(*x));
                narrow.flat_map(bf16::to_le_bytes).collect()
            }
        };
        let name = match part {
            Part::Text => "language_model.model.embed_tokens.weight",
            Part::Vision => "vision_tower.vision_model.embeddings.patch_embedding.weight",
            Part::Projector => "multi_modal_projector.mm_input_projection_weight",
        };
        let dir = tempfile::tempdir().unwrap();
        let view = TensorView::new(stored, SHAPE.to_vec(), &bytes).unwrap();
        let path = dir.path().join("model.safetensors");
        safetensors::serialize_to_file([(name, view)], None, &path).unwrap();
        let kernels = [None, ComputeDevice::Cpu.kernels()];
        let said = kernels.map(|kernels| {
            let mut weights = Weights::open(dir.path()).unwrap();
            weights.use_kernels(kernels);
            let scope = weights.part(part, dtype, &Device::Cpu);
            let matrix = scope.matrix(part.landmark(), SHAPE);
            matrix.err().map(|error| error.to_string())
        });
        said.to_vec()
    }

    #[test]
    fn values_that_are_no_numbers_are_named_with_their_tensor_and_file() {
        for stored in [StoredDtype::F32, StoredDtype::BF16] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for part in [Part::Vision, Part::Projector] {
                        for said in load(bad, stored, dtype, part) {
                            let said = said.expect("it is refused");
                            assert!(said.contains(part.landmark()), "{said}");
                            assert!(said.contains("in model.safetensors"), "{said}");
                        }
                    }
                }
                // Large, but a number.
                let sound = load(-3e38, stored, dtype, Part::Vision);
                assert!(sound.iter().all(Option::is_none), "{sound:?}");
                // The language model is tried when it is there: its matrices are most of what is read.
                let text = load(f32::NAN, stored, dtype, Part::Text);
                assert!(text.iter().all(Option::is_none), "{text:?}");
            }
        }
    }

    #[test]
    fn values_of_every_kind_are_looked_at() {
        let halves = |bits: [u16; 2]| bits.map(u16::to_le_bytes).concat();
        assert!(are_finite(DType::F16, &halves([0x7bff, 0xfbff])));
        assert!(!are_finite(DType::F16, &halves([0, 0x7c00])));
        // The same bits are a number of another kind.
        assert!(are_finite(DType::BF16, &halves([0, 0x7c00])));
        assert!(!are_finite(DType::BF16, &halves([0xff80, 0])));
    }
}
