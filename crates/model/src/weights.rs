//! The safetensors of a model folder, memory-mapped: one file or the shards of an index.
//! Tensors are found under any of the naming schemes in circulation ([`Part`]) and digested under one (`digest`).
//! Matrices that are held quantised are in `quantised`, what an earlier start kept of them in `kept`; what numbers are is in
//! `numbers`.

mod digest;
mod kept;
mod numbers;
mod quantised;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use medfleet_kernels::{Kernels, Packed};
use memmap2::Mmap;
use safetensors::{Dtype as StoredDtype, SafeTensors};
use serde::Deserialize;

use crate::config::{parse_json, read};
use crate::dtype::Dtype;
use crate::error::{BackendError, GgufError, LoadError};
use crate::fused::cpu;
use crate::gguf::file::GgufFile;
use crate::gguf::names::HubName;
use crate::gguf::value::Metadata;
use crate::layers::Matrix;
use crate::pages::prefer_huge_pages;

use kept::Kept;
use numbers::widen;

pub use digest::Digests;
pub use kept::QuantisedCache;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A part of the model, with the prefixes its tensors carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Text,
    Vision,
    Projector,
}

impl Part {
    /// The hub's scheme first; then what transformers holds in memory and re-saves; then text-only checkpoints.
    const fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Text => &[
                "language_model.model.",
                "model.language_model.",
                "language_model.",
                "model.",
            ],
            Self::Vision => &[
                "vision_tower.vision_model.",
                "model.vision_tower.vision_model.",
                "vision_tower.",
                "model.vision_tower.",
            ],
            Self::Projector => &["multi_modal_projector.", "model.multi_modal_projector."],
        }
    }

    /// The tensor whose place tells the scheme.
    const fn landmark(self) -> &'static str {
        match self {
            Self::Text => "embed_tokens.weight",
            Self::Vision => "embeddings.patch_embedding.weight",
            Self::Projector => "mm_input_projection_weight",
        }
    }

    const fn canonical(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Vision => "vision",
            Self::Projector => "projector",
        }
    }
}

#[derive(Clone)]
struct Entry {
    shard: usize,
    dtype: Stored,
    shape: Vec<usize>,
    bytes: Range<usize>,
    /// A norm's weight that already holds Gemma's 1.
    one_added: bool,
    /// A matrix that is stored quantised is to stay so.
    keep_quantised: bool,
}

/// How a tensor's bytes are to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Safetensors(StoredDtype),
    Ggml(GgmlDType),
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Safetensors(dtype) => dtype.fmt(f),
            Self::Ggml(dtype) => dtype.fmt(f),
        }
    }
}

/// All tensors of a checkpoint, not yet copied anywhere.
#[derive(Default)]
pub(crate) struct Weights {
    shards: Vec<Shard>,
    /// Those that products on the CPU use.
    kernels: Option<Kernels>,
    /// The language model's matrices are quantised while they are read.
    quantise: bool,
    /// What an earlier start quantised, or where this one keeps it for the next.
    kept: Option<Kept>,
    entries: BTreeMap<String, Entry>,
}

/// A file of weights: mapped, and open to be read. A copy out of the map costs a page fault for every page of it, which is
/// most of the time of a load, and its pages count as this process's memory until they are let go.
struct Shard {
    map: Mmap,
    file: File,
    name: String,
}

impl Shard {
    /// Fills `into` with the bytes that begin at `from`.
    fn read(&self, from: usize, into: &mut [u8]) -> Result<(), LoadError> {
        let read = self.file.read_exact_at(into, from as u64);
        read.map_err(LoadError::unreadable(&self.name))
    }
}

impl Stored {
    /// The type of numbers that are stored plainly and read row by row.
    const fn plain(self) -> Option<DType> {
        match self {
            Self::Safetensors(StoredDtype::F32) | Self::Ggml(GgmlDType::F32) => Some(DType::F32),
            Self::Safetensors(StoredDtype::BF16) | Self::Ggml(GgmlDType::BF16) => Some(DType::BF16),
            // A GGUF of an f16 conversion: read as stored, computed in the model's own dtype.
            Self::Ggml(GgmlDType::F16) => Some(DType::F16),
            Self::Safetensors(_) | Self::Ggml(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let mut weights = Self::default();
        if !dir.join(INDEX).is_file() {
            weights.add(dir, SINGLE)?;
            return Ok(weights);
        }
        let index: ShardIndex = parse_json(INDEX, &read(dir, INDEX)?)?;
        let refuse = |reason: String| LoadError::Safetensors {
            file: INDEX.to_owned(),
            reason,
        };
        let files: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
        if dir.join(SINGLE).is_file() && !files.iter().any(|file| *file == SINGLE) {
            let reason = format!("{SINGLE} lies beside it, and only one of the two is the model");
            return Err(refuse(reason));
        }
        for file in files {
            // A shard lies beside its index; a path elsewhere is no shard of this folder.
            if Path::new(file).components().count() != 1 || file.starts_with("..") {
                return Err(refuse(
                    "the index names a file outside the folder".to_owned(),
                ));
            }
            weights.add(dir, file)?;
        }
        let missing = |name: &&String| !weights.entries.contains_key(*name);
        if let Some(name) = index.weight_map.keys().find(missing) {
            let reason = format!("the index lists {name}, which its shard does not hold");
            return Err(refuse(reason));
        }
        Ok(weights)
    }

    /// Lays matrices out for these kernels, where they are loaded onto a CPU.
    pub(crate) const fn use_kernels(&mut self, kernels: Option<Kernels>) {
        self.kernels = kernels;
    }

    /// Quantises the language model's matrices to Q8_0 while they are read.
    pub(crate) const fn quantise(&mut self) {
        self.quantise = true;
    }

    fn add(&mut self, dir: &Path, name: &str) -> Result<(), LoadError> {
        let unreadable = LoadError::unreadable(name);
        let file = File::open(dir.join(name)).map_err(&unreadable)?;
        // SAFETY: the map is read-only and private to this value. A model folder is immutable while served; that
        // nobody truncates it meanwhile is an assumption every memory-mapping loader makes, and the docs state it.
        let map = unsafe { Mmap::map(&file) }.map_err(&unreadable)?;
        let refuse = |error: safetensors::SafeTensorError| LoadError::Safetensors {
            file: name.to_owned(),
            reason: error.to_string(),
        };
        let tensors = SafeTensors::deserialize(&map).map_err(refuse)?;
        let base = map.as_ptr() as usize;
        for (tensor, view) in tensors.iter() {
            let start = view.data().as_ptr() as usize - base;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: Stored::Safetensors(view.dtype()),
                shape: view.shape().to_vec(),
                bytes: start..start + view.data().len(),
                one_added: false,
                keep_quantised: false,
            };
            if self.entries.insert(tensor.to_owned(), entry).is_some() {
                // Which of the two is meant nobody knows.
                return Err(LoadError::Safetensors {
                    file: name.to_owned(),
                    reason: format!("the tensor {tensor} is in another shard as well"),
                });
            }
        }
        self.shards.push(Shard {
            map,
            file,
            name: name.to_owned(),
        });
        Ok(())
    }

    /// Adds the tensors of a GGUF file under the hub's names; what else the file says comes back.
    pub(crate) fn add_gguf(
        &mut self,
        file: GgufFile,
        keep_quantised: bool,
        hub: impl Fn(&str) -> Option<HubName>,
    ) -> Result<Metadata, LoadError> {
        for (name, place) in file.tensors {
            let Some(hub) = hub(&name) else {
                let file = file.metadata.file;
                return Err(GgufError::UnknownTensor { file, name }.into());
            };
            let entry = Entry {
                shard: self.shards.len(),
                dtype: Stored::Ggml(place.dtype),
                shape: place.shape,
                bytes: place.bytes,
                one_added: hub.one_added,
                keep_quantised,
            };
            if self.entries.insert(hub.name, entry).is_some() {
                let reason =
                    format!("the tensor {name} is there twice, by two spellings of its layer");
                let file = file.metadata.file;
                return Err(GgufError::Format { file, reason }.into());
            }
        }
        self.shards.push(Shard {
            map: file.map,
            file: file.file,
            name: file.metadata.file.clone(),
        });
        Ok(file.metadata)
    }

    /// Takes vision tower and projector of another checkpoint.
    pub(crate) fn take_vision(&mut self, other: Self) {
        let first = self.shards.len();
        for part in [Part::Vision, Part::Projector] {
            let prefix = other.prefix(part).unwrap_or(part.prefixes()[0]);
            for (name, entry) in &other.entries {
                let Some(rest) = name.strip_prefix(prefix) else {
                    continue;
                };
                let mut moved = entry.clone();
                moved.shard += first;
                self.entries
                    .insert(format!("{}{rest}", part.prefixes()[0]), moved);
            }
        }
        self.shards.extend(other.shards);
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.shards[entry.shard].map[entry.bytes.clone()]
    }

    /// The tensor as it lies in its file, read straight into its place and checked; `None` where it cannot be taken as it is.
    fn read(
        &self,
        entry: &Entry,
        (dtype, device): (DType, &Device),
        check: impl Fn(&[u8]) -> Result<(), LoadError>,
    ) -> Result<Option<Tensor>, LoadError> {
        if !device.is_cpu() {
            return Ok(None);
        }
        let fill = |bytes: &mut [u8]| {
            prefer_huge_pages(bytes);
            self.shards[entry.shard].read(entry.bytes.start, bytes)?;
            check(bytes)
        };
        let (count, shape) = (
            entry.bytes.len() / dtype.size_in_bytes(),
            entry.shape.as_slice(),
        );
        let tensor = match dtype {
            DType::F32 => {
                let mut values = vec![0_f32; count];
                fill(bytemuck::cast_slice_mut(&mut values))?;
                Tensor::from_vec(values, shape, device)
            }
            DType::BF16 => {
                let mut bits = vec![0_u16; count];
                fill(bytemuck::cast_slice_mut(&mut bits))?;
                Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, device)
            }
            _ => return Ok(None),
        };
        Ok(Some(tensor.map_err(BackendError::from)?))
    }

    /// Tells the system that a tensor's pages have been copied: what is resident while loading stays one copy of the
    /// weights, not two.
    fn let_go(&self, entry: &Entry) {
        let shard = &self.shards[entry.shard].map;
        // SAFETY: the map is read-only and backed by its file, so pages that are dropped are read again when touched.
        let advised = unsafe {
            shard.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                entry.bytes.start,
                entry.bytes.len(),
            )
        };
        // Advice that is not taken costs memory until loading ends, nothing else.
        let _ = advised;
    }

    fn prefix(&self, part: Part) -> Option<&'static str> {
        let found = |prefix: &&&str| {
            self.entries
                .contains_key(&format!("{prefix}{}", part.landmark()))
        };
        part.prefixes().iter().find(found).copied()
    }

    /// The tensors of one part. Without its landmark the hub's scheme is assumed, so that the first tensor asked for
    /// is reported as missing under the name most checkpoints use.
    pub(crate) fn part(&self, part: Part, dtype: Dtype, device: &Device) -> Scope<'_> {
        let prefix = self.prefix(part).unwrap_or(part.prefixes()[0]).to_owned();
        Scope {
            weights: self,
            prefix,
            dtype,
            quantise: self.quantise && part == Part::Text,
            numbers_only: part != Part::Text,
            device: device.clone(),
        }
    }

    /// All tensors, by their names as stored.
    pub(crate) fn root(&self, dtype: Dtype, device: &Device) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
            dtype,
            quantise: false,
            numbers_only: true,
            device: device.clone(),
        }
    }
}

/// A place in the tree of tensor names.
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
    dtype: Dtype,
    /// Matrices are quantised while they are read.
    quantise: bool,
    /// A tensor with values that are no numbers is refused. Only the language model is left to whoever loads it: to read one
    /// token with it tries all of its layers.
    numbers_only: bool,
    device: Device,
}

impl Scope<'_> {
    /// One level down.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: format!("{}{name}.", self.prefix),
            device: self.device.clone(),
            ..*self
        }
    }

    /// What the model computes in.
    pub(crate) const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The kernels that layers use, on CPUs.
    pub(crate) fn kernels(&self) -> Option<Kernels> {
        self.weights.kernels.filter(|_| self.device.is_cpu())
    }

    /// The tensor `name`, which must have `shape`, in the dtype the model computes in.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.get_as(name, shape, self.dtype)
    }

    /// The same in f32 whatever the model's dtype: norms work in f32.
    pub(crate) fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.get_as(name, shape, Dtype::F32)
    }

    /// What a Gemma norm multiplies with, 1 + w, in f32, whether or not the file holds the 1 already.
    pub(crate) fn gemma_scale(&self, name: &str, width: usize) -> Result<Tensor, LoadError> {
        let weight = self.get_f32(name, &[width])?;
        let one_added = self
            .weights
            .entries
            .get(&format!("{}{name}", self.prefix))
            .is_some_and(|entry| entry.one_added);
        if one_added {
            return Ok(weight);
        }
        Ok((weight + 1.0).map_err(BackendError::from)?)
    }

    /// A matrix [out, in] for products, quantised where it is stored so and is to stay so, or where it is to become so.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, LoadError> {
        if self.quantise {
            return self.quantised_now(name, shape);
        }
        let (_, entry) = self.entry(name, &shape)?;
        match (entry.dtype, self.kernels()) {
            (Stored::Ggml(dtype), _) if entry.keep_quantised && dtype.block_size() > 1 => {
                self.as_stored(name, shape, dtype)
            }
            (_, Some(kernels)) => {
                let packed = self.packed(name, shape)?;
                Ok(Matrix::Cpu(cpu::Matrix::packed(kernels, packed)))
            }
            (_, None) => Ok(Matrix::Plain(self.get(name, &shape)?)),
        }
    }

    /// A matrix laid out for the CPU's kernels, row by row: there is never a second copy of one that is stored plainly,
    /// whatever its numbers become.
    fn packed(&self, name: &str, shape: [usize; 2]) -> Result<Packed, LoadError> {
        let (full_name, entry) = self.entry(name, &shape)?;
        let Some(stored) = entry.dtype.plain() else {
            return Ok(cpu::pack(&self.get(name, &shape)?)?);
        };
        let row_bytes = shape[1] * stored.size_in_bytes();
        let shard = &self.weights.shards[entry.shard];
        let check = |bytes: &[u8]| self.check_numbers((full_name.as_str(), entry), stored, bytes);
        let read = |rows: Range<usize>, into: &mut [u8]| {
            shard.read(entry.bytes.start + rows.start * row_bytes, into)?;
            check(into)
        };
        let stored_rows = |rows: Range<usize>| {
            let bytes = self.weights.rows(entry, rows, row_bytes)?;
            check(&bytes)?;
            Ok::<_, LoadError>(bytes)
        };
        match (stored, self.dtype) {
            (DType::F32, Dtype::F32) => {
                Packed::read(shape, prefer_huge_pages, |rows, into: &mut [f32]| {
                    read(rows, bytemuck::cast_slice_mut(into))
                })
            }
            (DType::BF16, Dtype::Bf16) => {
                Packed::read(shape, prefer_huge_pages, |rows, into: &mut [bf16]| {
                    let bits: &mut [u16] = into.reinterpret_cast_mut();
                    read(rows, bytemuck::cast_slice_mut(bits))
                })
            }
            (_, Dtype::F32) => Packed::read(shape, prefer_huge_pages, |rows, into: &mut [f32]| {
                widen(stored, &stored_rows(rows)?, into);
                Ok::<_, LoadError>(())
            }),
            (_, Dtype::Bf16) => {
                Packed::read(shape, prefer_huge_pages, |rows, into: &mut [bf16]| {
                    let mut wide = vec![0_f32; into.len()];
                    widen(stored, &stored_rows(rows)?, &mut wide);
                    into.convert_from_f32_slice(&wide);
                    Ok::<_, LoadError>(())
                })
            }
        }
    }

    /// The tensor's full name and entry, with its shape checked.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<(String, &Entry), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let Some(entry) = self.weights.entries.get(&name) else {
            return Err(LoadError::MissingTensor {
                name,
                expected: shape.to_vec(),
            });
        };
        if entry.shape != shape {
            return Err(LoadError::TensorShape {
                name,
                expected: shape.to_vec(),
                found: entry.shape.clone(),
                dtype: format!("{:?}", entry.dtype),
            });
        }
        Ok((name, entry))
    }

    fn get_as(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor, LoadError> {
        let (name, entry) = self.entry(name, shape)?;
        let stored = match (entry.dtype.plain(), entry.dtype) {
            (Some(stored), _) => stored,
            (None, Stored::Ggml(quantised)) => {
                let load = || {
                    self.ggml_tensor(entry, quantised)?
                        .dequantize(&self.device)?
                        .to_dtype(dtype.candle())
                };
                let values = load().map_err(BackendError::from)?;
                self.check_values((name.as_str(), entry), &values)?;
                return Ok(values);
            }
            (None, Stored::Safetensors(other)) => {
                return Err(LoadError::TensorDtype {
                    name,
                    shape: shape.to_vec(),
                    found: format!("{other:?}"),
                });
            }
        };
        let check = |bytes: &[u8]| self.check_numbers((name.as_str(), entry), stored, bytes);
        if stored == dtype.candle()
            && let Some(tensor) = self.weights.read(entry, (stored, &self.device), check)?
        {
            return Ok(tensor);
        }
        check(self.weights.bytes(entry))?;
        let load = || {
            Tensor::from_raw_buffer(self.weights.bytes(entry), stored, shape, &self.device)?
                .to_dtype(dtype.candle())
        };
        let tensor = load().map_err(BackendError::from)?;
        self.weights.let_go(entry);
        Ok(tensor)
    }
}
