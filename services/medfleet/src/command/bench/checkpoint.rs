//! A checkpoint of MedGemma 4B's true shapes with random bf16 weights, written once and used by the benches of the model;
//! beside it a GGUF of each quantised form that was asked for.
//!
//! The text that such a model writes means nothing; its sizes are those of the real one, from the config.json of
//! google/medgemma-1.5-4b-it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use medfleet_model::{ComputeDevice, FolderSource, GgufSource, LoadOptions, Model, Parts};
use serde_json::{Map, Value, json};

use super::form::Form;
use super::gguf;

/// Files of the tokenizer's folder that a checkpoint needs besides config and weights.
const TOKENIZER: &str = "tokenizer.json";
const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];
const INDEX: &str = "model.safetensors.index.json";
/// How the name of the embedding ends.
const EMBEDDING: &str = "embed_tokens.weight";
/// Bytes of a bf16.
const VALUE_BYTES: usize = 2;
/// Values made at a time.
const CHUNK: usize = 1 << 20;

pub(super) const HIDDEN: usize = 2560;
const LAYERS: usize = 34;
pub(super) const HEADS: usize = 8;
pub(super) const KV_HEADS: usize = 4;
pub(super) const HEAD_DIM: usize = 256;
pub(super) const INTERMEDIATE: usize = 10_240;
pub(super) const VOCAB: usize = 262_208;
const VISION_HIDDEN: usize = 1152;
const VISION_LAYERS: usize = 27;
const VISION_INTERMEDIATE: usize = 4304;
const PATCH: usize = 14;
/// Side of an image in pixels, unless another is asked for.
const IMAGE_SIZE: usize = 896;
/// Tokens of an image of any size, of each side of their square: patches are averaged to so many.
const TOKENS_PER_SIDE: usize = 16;

/// A tensor to be written.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// The flags that choose a checkpoint and how it is loaded.
#[derive(clap::Args, Debug)]
pub(super) struct Checkpoint {
    /// Where the checkpoint is, or is to be written: 8.6 GB
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Folder with the tokenizer and the ids of its image tokens
    #[arg(long, value_name = "DIR", default_value = "deploy/tiny")]
    tokenizer: PathBuf,
    /// What to store and compute in: bf16, f32, or a GGUF's q8_0, q4_k, q6_k, q4_k_m; several for `bench model`
    #[arg(
        long,
        value_name = "DTYPE,…",
        value_delimiter = ',',
        default_value = "bf16"
    )]
    pub(super) dtype: Vec<Form>,
    /// Layers of each tower at most, for a run that takes less; DIR then holds a checkpoint of so many
    #[arg(long, value_name = "N", default_value_t = LAYERS)]
    layers: usize,
    /// Side of images, in pixels, a multiple of 224; DIR then holds a checkpoint of a vision tower for such
    #[arg(long, value_name = "PIXELS", default_value_t = IMAGE_SIZE)]
    image_size: usize,
    /// Where to compute: cpu (or cpu:LEVEL: generic, portable, avx2, avx512-bfp, avx512, amx, neon), or cuda, cuda:N,
    /// metal in a build that has them; several for `bench model`, which then takes turns
    #[arg(
        long,
        value_name = "DEVICE,…",
        value_delimiter = ',',
        default_value = "cpu"
    )]
    pub(super) device: Vec<ComputeDevice>,
}

impl Checkpoint {
    /// Writes what is not there yet.
    pub(super) fn prepare(&self) -> Result<()> {
        let step = PATCH * TOKENS_PER_SIDE;
        ensure!(
            self.image_size > 0 && self.image_size.is_multiple_of(step),
            "--image-size is {}, allowed are multiples of {step}",
            self.image_size
        );
        if !self.dir.join(INDEX).is_file() {
            write(&self.dir, &self.tokenizer, self.layers, self.image_size)?;
        }
        for form in &self.dtype {
            let path = self.gguf(*form);
            if let Form::Quantised(quants) = form
                && !path.is_file()
            {
                gguf::write(&path, *quants, self.layers(), &self.ends()?)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The tokens that end a text, by the configuration that was written.
    fn ends(&self) -> Result<Vec<usize>> {
        let path = self.dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        Ok(ends(&config))
    }

    fn gguf(&self, form: Form) -> PathBuf {
        gguf_of(&self.dir, form)
    }

    /// The folder of the plain weights.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The flags that choose this checkpoint, for another process.
    pub(super) fn flags(&self, form: Form, device: ComputeDevice) -> Vec<OsString> {
        let mut flags = Vec::new();
        for (flag, value) in [
            ("--dir", self.dir.clone().into_os_string()),
            ("--tokenizer", self.tokenizer.clone().into_os_string()),
            ("--layers", self.layers.to_string().into()),
            ("--image-size", self.image_size.to_string().into()),
            ("--dtype", form.to_string().into()),
            ("--device", device.to_string().into()),
        ] {
            flags.push(flag.into());
            flags.push(value);
        }
        flags
    }

    /// The files with the weights of one form.
    pub(super) fn files(&self, form: Form) -> Vec<PathBuf> {
        let mut files = SHARDS.map(|name| self.dir.join(name)).to_vec();
        if let Form::Quantised(_) = form {
            files.push(self.gguf(form));
        }
        files
    }

    /// A GGUF's language model as it is stored, with the folder's vision tower.
    pub(super) fn stored(&self, form: Form) -> GgufSource {
        GgufSource {
            text: self.gguf(form),
            vision: Some(self.dir.clone()),
            tokenizer: Some(self.dir.join(TOKENIZER)),
            quantised: true,
            digest_cache: None,
        }
    }

    /// Layers of the language model.
    pub(super) fn layers(&self) -> usize {
        LAYERS.min(self.layers)
    }

    /// Layers of the vision tower.
    pub(super) fn vision_layers(&self) -> usize {
        VISION_LAYERS.min(self.layers)
    }

    /// Weights of the language model's matrices: of all layers, and of the embedding, which also makes the logits.
    pub(super) fn text_weights(&self) -> (usize, usize) {
        let tensors = planned_text(self.layers);
        let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
        let all: usize = matrices.map(Planned::values).sum();
        (all - VOCAB * HIDDEN, VOCAB * HIDDEN)
    }

    /// Bytes of the same as they are held.
    pub(super) fn text_bytes(&self, form: Form) -> f64 {
        let tensors = planned_text(self.layers);
        let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
        matrices
            .map(|tensor| match form {
                Form::Plain(dtype) => (tensor.values() * dtype.bytes()) as f64,
                Form::Quantised(quants) => {
                    let block = quants.block(&gguf::llama_name(&tensor.name), self.layers());
                    tensor.values() as f64 / block.weights as f64 * block.bytes as f64
                }
            })
            .sum()
    }

    /// Multiplications and additions of one image's products and attention.
    pub(super) fn image_operations(&self) -> f64 {
        let layer = 4 * VISION_HIDDEN * VISION_HIDDEN + 2 * VISION_HIDDEN * VISION_INTERMEDIATE;
        let count = patches(self.image_size);
        let attention = 2 * count * VISION_HIDDEN;
        let layers = self.vision_layers() * (layer + attention);
        let embedding = 3 * PATCH * PATCH * VISION_HIDDEN;
        2.0 * count as f64 * (layers + embedding) as f64
    }

    /// Bytes of all its tensors.
    pub(super) fn weights_bytes(&self, form: Form) -> u64 {
        let bytes = |of: Vec<Planned>| of.iter().map(Planned::bytes).sum::<u64>();
        let plain = bytes(planned(self.layers, self.image_size));
        match form {
            Form::Plain(_) => plain,
            // The norms of the text, some hundred kilobytes, are left out.
            Form::Quantised(_) => {
                plain - bytes(planned_text(self.layers)) + self.text_bytes(form) as u64
            }
        }
    }

    /// Loads all of it, in one form on one device, and says how long that took.
    pub(super) fn load(&self, form: Form, device: ComputeDevice) -> Result<(Model, Duration)> {
        let options = LoadOptions {
            dtype: form.dtype(),
            parts: Parts::All,
            device,
        };
        let begun = Instant::now();
        let model = match form {
            Form::Plain(_) => {
                let source = FolderSource {
                    digest_cache: Some(self.dir.join("digests")),
                    ..FolderSource::new(&self.dir)
                };
                Model::load_folder(&source, options)
            }
            Form::Quantised(_) => Model::load_gguf(&self.stored(form), options),
        };
        let model = model.with_context(|| format!("cannot load {}", self.dir.display()))?;
        Ok((model, begun.elapsed()))
    }
}

/// Where a checkpoint's folder has the GGUF of a quantised form.
pub(super) fn gguf_of(dir: &Path, form: Form) -> PathBuf {
    dir.join(format!("text-{form}.gguf"))
}

/// The matrices of the language model, and its norms.
pub(super) fn planned_text(layers: usize) -> Vec<Planned> {
    let mut tensors = planned(layers, IMAGE_SIZE);
    tensors.retain(|tensor| tensor.name.starts_with("language_model."));
    tensors
}

/// Writes the checkpoint; its index comes last, so that an interrupted one is written again.
fn write(dir: &Path, tokenizer: &Path, layers: usize, image_size: usize) -> Result<()> {
    let unwritable = || format!("cannot write to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(unwritable)?;
    let from = tokenizer.join(TOKENIZER);
    std::fs::copy(&from, dir.join(TOKENIZER))
        .with_context(|| format!("cannot copy {}", from.display()))?;
    let config = config(tokenizer, layers, image_size)?;
    std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)
        .with_context(unwritable)?;
    let tensors = planned(layers, image_size);
    let half = tensors.iter().map(Planned::bytes).sum::<u64>() / 2;
    let mut begun_bytes = 0;
    let shard_of = tensors.iter().map(|tensor| {
        let shard = usize::from(begun_bytes >= half);
        begun_bytes += tensor.bytes();
        shard
    });
    let shard_of: Vec<usize> = shard_of.collect();
    let (mut random, ends) = (Random::default(), ends(&config));
    for (shard, name) in SHARDS.iter().enumerate() {
        let of_shard = tensors.iter().zip(&shard_of);
        let of_shard = of_shard.filter(|(_, of)| **of == shard);
        let of_shard: Vec<&Planned> = of_shard.map(|(tensor, _)| tensor).collect();
        write_shard(&dir.join(name), &of_shard, &mut random, &ends).with_context(unwritable)?;
    }
    let map = tensors.iter().zip(&shard_of);
    let map: Map<String, Value> = map
        .map(|(tensor, shard)| (tensor.name.clone(), json!(SHARDS[*shard])))
        .collect();
    let index = serde_json::to_vec(&json!({"metadata": {}, "weight_map": map}))?;
    std::fs::write(dir.join(INDEX), index).with_context(unwritable)
}

/// The form of safetensors: length of the head, the head as JSON, the values.
fn write_shard(
    path: &Path,
    tensors: &[&Planned],
    random: &mut Random,
    ends: &[usize],
) -> Result<()> {
    let mut head = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let entry = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]});
        head.insert(tensor.name.clone(), entry);
    }
    let head = serde_json::to_vec(&head)?;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(head.len() as u64).to_le_bytes())?;
    file.write_all(&head)?;
    let mut chunk = Vec::with_capacity(CHUNK * VALUE_BYTES);
    for tensor in tensors {
        let (all, mut first) = (tensor.values(), 0);
        while first < all {
            let count = (all - first).min(CHUNK);
            chunk.clear();
            random.fill(&mut chunk, count);
            if tensor.name.ends_with(EMBEDDING) {
                blank(&mut chunk, first, ends);
            }
            file.write_all(&chunk)?;
            first += count;
        }
    }
    file.flush()?;
    Ok(())
}

/// The tokens that end a text.
fn ends(config: &Value) -> Vec<usize> {
    let ids = &config["eos_token_id"];
    let ids = ids
        .as_array()
        .map_or(std::slice::from_ref(ids), Vec::as_slice);
    let ids = ids.iter().filter_map(Value::as_u64);
    ids.filter_map(|id| usize::try_from(id).ok()).collect()
}

/// Zeroes the embeddings of these tokens, as far as they are among these values of the embedding. The same numbers make the
/// logits: those of the tokens that end a text are 0, and of so many random ones the largest is above that, so that every
/// text is as long as it may be.
fn blank(values: &mut [u8], first: usize, tokens: &[usize]) {
    for at in tokens
        .iter()
        .flat_map(|token| token * HIDDEN..(token + 1) * HIDDEN)
    {
        let inside = at.checked_sub(first).map(|at| at * VALUE_BYTES);
        if let Some(value) = inside.and_then(|at| values.get_mut(at..at + VALUE_BYTES)) {
            value.fill(0);
        }
    }
}

/// MedGemma 4B's sizes with the ids of another tokenizer's special tokens.
fn config(tokenizer: &Path, layers: usize, image_size: usize) -> Result<Value> {
    let path = tokenizer.join("config.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    config["dtype"] = json!("bfloat16");
    config["mm_tokens_per_image"] = json!(TOKENS_PER_SIDE * TOKENS_PER_SIDE);
    config["text_config"] = json!({
        "model_type": "gemma3_text",
        "head_dim": HEAD_DIM,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 131_072,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS.min(layers),
        "num_key_value_heads": KV_HEADS,
        "query_pre_attn_scalar": 256,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": VOCAB,
    });
    config["vision_config"] = json!({
        "model_type": "siglip_vision_model",
        "hidden_size": VISION_HIDDEN,
        "image_size": image_size,
        "intermediate_size": VISION_INTERMEDIATE,
        "num_attention_heads": 16,
        "num_hidden_layers": VISION_LAYERS.min(layers),
        "patch_size": PATCH,
        "vision_use_head": false,
    });
    Ok(config)
}

/// Patches of an image.
const fn patches(image_size: usize) -> usize {
    let side = image_size / PATCH;
    side * side
}

/// Every tensor of a checkpoint with so many layers at most, for images of this size, under the names of the hub.
fn planned(layers: usize, image_size: usize) -> Vec<Planned> {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let shape = shape.to_vec();
        tensors.push(Planned { name, shape });
    };
    let text = "language_model.model";
    add(format!("{text}.{EMBEDDING}"), &[VOCAB, HIDDEN]);
    for layer in 0..LAYERS.min(layers) {
        let mut of_layer = |name: &str, shape: &[usize]| {
            add(format!("{text}.layers.{layer}.{name}.weight"), shape);
        };
        let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        for norm in [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ] {
            of_layer(norm, &[HIDDEN]);
        }
        of_layer("self_attn.q_proj", &[queries, HIDDEN]);
        of_layer("self_attn.k_proj", &[keys, HIDDEN]);
        of_layer("self_attn.v_proj", &[keys, HIDDEN]);
        of_layer("self_attn.o_proj", &[HIDDEN, queries]);
        of_layer("self_attn.q_norm", &[HEAD_DIM]);
        of_layer("self_attn.k_norm", &[HEAD_DIM]);
        of_layer("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]);
        of_layer("mlp.up_proj", &[INTERMEDIATE, HIDDEN]);
        of_layer("mlp.down_proj", &[HIDDEN, INTERMEDIATE]);
    }
    add(format!("{text}.norm.weight"), &[HIDDEN]);
    let vision = "vision_tower.vision_model";
    let hidden = VISION_HIDDEN;
    let mut both = |name: String, output: usize, input: &[usize]| {
        let shape: Vec<usize> = [&[output], input].concat();
        add(format!("{name}.weight"), &shape);
        add(format!("{name}.bias"), &[output]);
    };
    both(
        format!("{vision}.embeddings.patch_embedding"),
        hidden,
        &[3, PATCH, PATCH],
    );
    for layer in 0..VISION_LAYERS.min(layers) {
        let of_layer = |name: &str| format!("{vision}.encoder.layers.{layer}.{name}");
        both(of_layer("layer_norm1"), hidden, &[]);
        both(of_layer("layer_norm2"), hidden, &[]);
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            both(
                of_layer(&format!("self_attn.{projection}")),
                hidden,
                &[hidden],
            );
        }
        both(of_layer("mlp.fc1"), VISION_INTERMEDIATE, &[hidden]);
        both(of_layer("mlp.fc2"), hidden, &[VISION_INTERMEDIATE]);
    }
    both(format!("{vision}.post_layernorm"), hidden, &[]);
    add(
        format!("{vision}.embeddings.position_embedding.weight"),
        &[patches(image_size), hidden],
    );
    let projector = "multi_modal_projector";
    add(
        format!("{projector}.mm_input_projection_weight"),
        &[hidden, HIDDEN],
    );
    add(format!("{projector}.mm_soft_emb_norm.weight"), &[hidden]);
    tensors
}

impl Planned {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (self.values() * VALUE_BYTES) as u64
    }
}

/// xorshift64* (Vigna 2016), four values a step.
pub(super) struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Any bits, eight bytes at a time.
    pub(super) fn bits(&mut self, out: &mut [u8]) {
        for part in out.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
    }

    /// Adds bf16 values of either sign between 2⁻⁶ and 2⁻⁵, about the size of trained weights.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, count: usize) {
        const EXPONENT: u16 = (127 - 6) << 7;
        const SIGN_AND_MANTISSA: u16 = 0x807f;
        let mut left = count;
        while left > 0 {
            let bits = self.next();
            for part in 0..left.min(4) {
                let value = (bits >> (16 * part)) as u16 & SIGN_AND_MANTISSA | EXPONENT;
                out.extend_from_slice(&value.to_le_bytes());
            }
            left -= left.min(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoint_has_the_size_of_the_real_one() {
        let tensors = planned(LAYERS, IMAGE_SIZE);
        // google/medgemma-1.5-4b-it: 4,300,079,472 parameters in 883 tensors.
        assert_eq!(
            tensors.iter().map(Planned::values).sum::<usize>(),
            4_300_079_472
        );
        assert_eq!(tensors.len(), 883);
    }

    #[test]
    fn smaller_images_have_fewer_patches_and_as_many_tokens() {
        let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/tiny");
        let positions = |image_size: usize| {
            let tensors = planned(1, image_size).into_iter();
            let mut named = tensors.filter(|tensor| tensor.name.contains("position_embedding"));
            named.next().map(|tensor| tensor.shape)
        };
        assert_eq!(positions(896), Some(vec![4096, VISION_HIDDEN]));
        assert_eq!(positions(448), Some(vec![1024, VISION_HIDDEN]));
        let written = config(Path::new(tokenizer), 1, 448).unwrap().to_string();
        let read = medfleet_model::Config::parse(&written, None).unwrap();
        let found = read.vision.map(|of| (of.image_size, of.tokens_per_image));
        assert_eq!(found, Some((448, 256)));
    }

    #[test]
    fn tokens_that_end_a_text_have_empty_rows() {
        assert_eq!(ends(&json!({"eos_token_id": [1, 8]})), [1, 8]);
        assert_eq!(ends(&json!({"eos_token_id": 2})), [2]);
        assert_eq!(ends(&json!({})), [0_usize; 0]);
        let zeros = |first: usize| {
            let mut values = vec![1; 2 * HIDDEN * VALUE_BYTES];
            blank(&mut values, first, &[1, 8]);
            values.iter().filter(|value| **value == 0).count()
        };
        assert_eq!(zeros(0), HIDDEN * VALUE_BYTES);
        assert_eq!(zeros(HIDDEN + 1), (HIDDEN - 1) * VALUE_BYTES);
        assert_eq!(zeros(2 * HIDDEN), 0);
    }

    #[test]
    fn random_values_are_small_and_of_both_signs() {
        let mut bytes = Vec::new();
        Random(1).fill(&mut bytes, 1001);
        let values = bytes.chunks_exact(2).map(|b| {
            let bits = u32::from(u16::from_le_bytes([b[0], b[1]])) << 16;
            f32::from_bits(bits)
        });
        let values: Vec<f32> = values.collect();
        assert_eq!(values.len(), 1001);
        let small = |value: &&f32| (0.015_625..0.031_25).contains(&value.abs());
        assert!(values.iter().filter(small).count() == 1001);
        let negative = values.iter().filter(|value| value.is_sign_negative());
        assert!((300..700).contains(&negative.count()));
    }
}
