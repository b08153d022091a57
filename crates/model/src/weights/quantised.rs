//! Matrices that are held quantised: as a GGUF stores them, or made so while a folder's safetensors are read.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::DType;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use medfleet_kernels::{Form, Quantised, store_q8_0};

use super::numbers::widen;
use super::{Entry, Scope, Stored, Weights};
use crate::dtype::Dtype;
use crate::error::{BackendError, LoadError};
use crate::fused::cpu;
use crate::layers::Matrix;
use crate::pages::prefer_huge_pages;

/// What a matrix becomes while it is read.
pub(super) const NOW: Form = Form::Q8_0;
/// Rows quantised at a time where there are no kernels; the kernels take as many.
pub(super) const ROWS: usize = 16;

/// What the CPU's kernels call a type of ggml's, where they have it.
const fn form(dtype: GgmlDType) -> Option<Form> {
    match dtype {
        GgmlDType::Q8_0 => Some(Form::Q8_0),
        GgmlDType::Q4K => Some(Form::Q4K),
        GgmlDType::Q6K => Some(Form::Q6K),
        _ => None,
    }
}

/// The names of quantised types, as files of them are called.
fn name_of(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::Q4_0 => "q4_0",
        GgmlDType::Q5_0 => "q5_0",
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q4K => "q4_k",
        GgmlDType::Q6K => "q6_k",
        // Files of other types are refused when they are opened.
        _ => "another",
    }
}

impl Weights {
    /// The forms that matrices of the language model are held in, such as `q8_0` or `q4_k, q6_k`; empty where none is
    /// quantised.
    pub(crate) fn held(&self) -> String {
        if self.quantise {
            return name_of(GgmlDType::Q8_0).to_owned();
        }
        self.kept_in(|_| true)
    }

    /// Those of them for which there are no kernels, though others have some.
    pub(crate) fn without_kernels(&self) -> String {
        if self.kernels.is_none() {
            return String::new();
        }
        self.kept_in(|dtype| form(dtype).is_none())
    }

    /// The quantised types that matrices are stored in and kept in, of those that are asked for.
    fn kept_in(&self, asked: impl Fn(GgmlDType) -> bool) -> String {
        let kept = self.entries.values().filter(|entry| entry.keep_quantised);
        let names = kept.filter_map(|entry| match entry.dtype {
            Stored::Ggml(dtype) if dtype.block_size() > 1 && asked(dtype) => Some(name_of(dtype)),
            _ => None,
        });
        let names: BTreeSet<&str> = names.collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

impl Scope<'_> {
    /// A matrix [out, in] as its file has it.
    pub(super) fn as_stored(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: GgmlDType,
    ) -> Result<Matrix, LoadError> {
        let (full_name, entry) = self.entry(name, &shape)?;
        if let (Some(form), Some(kernels)) = (form(dtype), self.kernels())
            && let Some(row_bytes) = form.row_bytes(shape[1])
            && entry.bytes.len() == shape[0] * row_bytes
        {
            let shard = &self.weights.shards[entry.shard];
            let read = |rows: Range<usize>, into: &mut [u8]| {
                shard.read(entry.bytes.start + rows.start * row_bytes, into)
            };
            let weight = Quantised::read(form, shape, prefer_huge_pages, read)?;
            return Ok(Matrix::Cpu(cpu::Matrix::quantised(kernels, weight)));
        }
        self.check_dtype(full_name, dtype)?;
        let tensor = self.ggml_tensor(entry, dtype).map_err(BackendError::from)?;
        Ok(Matrix::Quantised(tensor))
    }

    /// A matrix [out, in] quantised while it is read: there is never a second copy of it, nor one that is not quantised.
    pub(super) fn quantised_now(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, LoadError> {
        let (full_name, entry) = self.entry(name, &shape)?;
        let [outputs, inputs] = shape;
        let Some(row_bytes) = NOW.row_bytes(inputs) else {
            return Err(LoadError::Blocks {
                name: full_name,
                inputs,
                block: NOW.block_inputs(),
            });
        };
        let (Stored::Safetensors(_), Some(stored)) = (entry.dtype, entry.dtype.plain()) else {
            return Err(LoadError::TensorDtype {
                name: full_name,
                shape: shape.to_vec(),
                found: format!("{:?}", entry.dtype),
            });
        };
        let kept = self.weights.kept.as_ref();
        let store = |rows: Range<usize>, into: &mut [u8]| {
            if kept.is_some_and(|kept| kept.get(&full_name, &rows, into)) {
                return Ok(());
            }
            self.quantise_rows(entry, stored, rows.clone(), into)?;
            if let Some(kept) = kept {
                kept.put(&full_name, &rows, into);
            }
            Ok::<_, LoadError>(())
        };
        if let Some(kernels) = self.kernels() {
            let weight = Quantised::read(NOW, shape, prefer_huge_pages, store)?;
            return Ok(Matrix::Cpu(cpu::Matrix::quantised(kernels, weight)));
        }
        self.check_dtype(full_name.clone(), GgmlDType::Q8_0)?;
        let mut bytes = vec![0; outputs * row_bytes];
        for (chunk, into) in bytes.chunks_mut(ROWS * row_bytes).enumerate() {
            let first = chunk * ROWS;
            store(first..first + into.len() / row_bytes, into)?;
        }
        let tensor = self.tensor_of(bytes.into(), GgmlDType::Q8_0, &shape);
        Ok(Matrix::Quantised(tensor.map_err(BackendError::from)?))
    }

    /// Rows of a matrix that is stored plainly, quantised; `into` has room for them.
    fn quantise_rows(
        &self,
        entry: &Entry,
        stored: DType,
        rows: Range<usize>,
        into: &mut [u8],
    ) -> Result<(), LoadError> {
        let inputs = entry.shape[1];
        let value_bytes = inputs * stored.size_in_bytes();
        let mut values = vec![0_f32; inputs];
        let quantised_bytes = into.len() / rows.len();
        let stored_rows = self.weights.rows(entry, rows, value_bytes)?;
        let stored_rows = stored_rows.chunks_exact(value_bytes);
        for (row, into) in stored_rows.zip(into.chunks_exact_mut(quantised_bytes)) {
            widen(stored, row, &mut values);
            store_q8_0(&values, into);
        }
        Ok(())
    }

    /// candle multiplies quantised matrices with f32 alone.
    fn check_dtype(&self, name: String, dtype: GgmlDType) -> Result<(), LoadError> {
        match self.dtype {
            Dtype::F32 => Ok(()),
            Dtype::Bf16 => Err(LoadError::QuantisedDtype {
                name,
                form: name_of(dtype),
                dtype: self.dtype,
            }),
        }
    }

    /// A tensor of a GGUF as candle holds it.
    pub(super) fn ggml_tensor(
        &self,
        entry: &Entry,
        dtype: GgmlDType,
    ) -> candle_core::Result<QTensor> {
        let tensor = self.tensor_of(self.weights.bytes(entry).into(), dtype, &entry.shape)?;
        self.weights.let_go(entry);
        Ok(tensor)
    }

    fn tensor_of(
        &self,
        bytes: std::borrow::Cow<'_, [u8]>,
        dtype: GgmlDType,
        shape: &[usize],
    ) -> candle_core::Result<QTensor> {
        let storage = QStorage::from_data(bytes, &self.device, dtype)?;
        QTensor::new(storage, shape)
    }
}

impl Weights {
    /// Rows of a matrix as they are stored, each of so many bytes.
    pub(super) fn rows(
        &self,
        entry: &Entry,
        rows: Range<usize>,
        row_bytes: usize,
    ) -> Result<Vec<u8>, LoadError> {
        let mut bytes = vec![0; rows.len() * row_bytes];
        let from = entry.bytes.start + rows.start * row_bytes;
        self.shards[entry.shard].read(from, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ComputeDevice;
    use crate::weights::Part;
    use candle_core::{Device, Tensor};
    use half::bf16;
    use safetensors::Dtype as StoredDtype;
    use safetensors::tensor::TensorView;

    /// A folder with one matrix of each part, [outputs, inputs] of `dtype`.
    fn folder(values: &[u8], dtype: StoredDtype, shape: [usize; 2]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "language_model.model.embed_tokens.weight",
            "multi_modal_projector.mm_input_projection_weight",
        ];
        let tensors = names.map(|name| {
            let view = TensorView::new(dtype, shape.to_vec(), values).unwrap();
            (name, view)
        });
        let path = dir.path().join("model.safetensors");
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        dir
    }

    fn load(dir: &std::path::Path, shape: [usize; 2]) -> Result<Matrix, LoadError> {
        let mut weights = Weights::open(dir).unwrap();
        weights.use_kernels(ComputeDevice::Cpu.kernels());
        weights.quantise();
        let text = weights.part(Part::Text, Dtype::F32, &Device::Cpu);
        text.at("embed_tokens").matrix("weight", shape)
    }

    /// The library's quantiser, which is another implementation, makes the same blocks.
    #[test]
    fn blocks_are_the_librarys() {
        let shape = [37, 96];
        let values: Vec<f32> = (0..37 * 96).map(|i| (i as f32).sin() * 0.05).collect();
        let wide: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let narrow: Vec<u8> = values
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect();
        let ids = Tensor::arange(0_u32, 37, &Device::Cpu).unwrap();
        for (dtype, bytes) in [(StoredDtype::F32, wide), (StoredDtype::BF16, narrow)] {
            let dir = folder(&bytes, dtype, shape);
            let found = load(dir.path(), shape).unwrap();
            assert!(matches!(found, Matrix::Cpu(_)));
            let found = found.rows(&ids, DType::F32).unwrap();
            let plain = Weights::open(dir.path()).unwrap();
            let plain = plain.part(Part::Text, Dtype::F32, &Device::Cpu);
            let plain = plain.at("embed_tokens").get("weight", &shape).unwrap();
            let expected = QTensor::quantize(&plain, GgmlDType::Q8_0).unwrap();
            let expected = expected.dequantize(&Device::Cpu).unwrap();
            let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
            assert_eq!(rows(&found), rows(&expected), "{dtype:?}");
            assert_ne!(rows(&found), rows(&plain), "{dtype:?}");
        }
    }

    /// Numbers that become others while a matrix is laid out become what the library makes of them.
    #[test]
    fn matrices_of_another_type_are_the_librarys() {
        let shape = [37, 96];
        // Some lie half way between two bf16.
        let values = (0..37 * 96_u32).map(|i| f32::from_bits(0x3c00_0000 + i * 0x8000));
        let wide: Vec<u8> = values.clone().flat_map(f32::to_le_bytes).collect();
        let narrow: Vec<u8> = values
            .flat_map(|x| bf16::from_f32(x).to_le_bytes())
            .collect();
        let ids = Tensor::arange(0_u32, 37, &Device::Cpu).unwrap();
        for (stored, bytes, dtype) in [
            (StoredDtype::F32, wide, Dtype::Bf16),
            (StoredDtype::BF16, narrow, Dtype::F32),
        ] {
            let dir = folder(&bytes, stored, shape);
            let mut weights = Weights::open(dir.path()).unwrap();
            weights.use_kernels(ComputeDevice::Cpu.kernels());
            let text = weights.part(Part::Text, dtype, &Device::Cpu);
            let text = text.at("embed_tokens");
            let found = text.matrix("weight", shape).unwrap();
            assert!(matches!(found, Matrix::Cpu(_)));
            let found = found.rows(&ids, DType::F32).unwrap();
            let expected = text.get("weight", &shape).unwrap();
            let expected = expected.to_dtype(DType::F32).unwrap();
            let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
            assert_eq!(rows(&found), rows(&expected), "{stored:?} as {dtype}");
        }
    }

    #[test]
    fn a_matrix_without_whole_blocks_is_named() {
        let shape = [2, 40];
        let dir = folder(&[0; 2 * 40 * 4], StoredDtype::F32, shape);
        let Err(error) = load(dir.path(), shape) else {
            panic!("40 values are no blocks of 32");
        };
        let text = error.to_string();
        assert!(
            text.contains("embed_tokens.weight") && text.contains("40 values"),
            "{text}"
        );
    }

    #[test]
    fn only_the_language_model_is_quantised() {
        let shape = [2, 64];
        let dir = folder(&[0; 2 * 64 * 4], StoredDtype::F32, shape);
        let mut weights = Weights::open(dir.path()).unwrap();
        weights.quantise();
        assert_eq!(weights.held(), "q8_0");
        let matrix = |part, name| {
            let scope = weights.part(part, Dtype::F32, &Device::Cpu);
            scope.matrix(name, shape).unwrap()
        };
        let text = matrix(Part::Text, "embed_tokens.weight");
        let projector = matrix(Part::Projector, "mm_input_projection_weight");
        assert!(matches!(text, Matrix::Quantised(_)));
        assert!(matches!(projector, Matrix::Plain(_)));
    }
}
