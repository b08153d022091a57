//! A model folder's language model in the file that llama.cpp's converter makes of it, in Q8_0.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use medfleet_kernels::{Form, store_q8_0};
use medfleet_model::{GgufWriter, gguf_name};
use serde_json::{Map, Value};

/// ggml's numbers of types.
const F32: u32 = 0;
const Q8_0: u32 = 8;

/// Sizes of the model, as the file and as config.json call them.
const SIZES: [(&str, &str); 9] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "sliding_window_pattern"),
];

/// A tensor under llama.cpp's name.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    bytes: Vec<u8>,
}

/// Writes the language model of `folder`, whose weights are bf16 in one file, to `file`. It has no vocabulary.
pub fn write_q8_0(folder: &Path, file: &Path) -> Result<()> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
    let weights = fs::read(folder.join("model.safetensors"))?;
    let (length, rest) = weights.split_first_chunk().context("no head")?;
    let (head, values) = rest.split_at(usize::try_from(u64::from_le_bytes(*length))?);
    let head: Map<String, Value> = serde_json::from_slice(head)?;
    let mut writer = described(&config["text_config"])?;
    let mut tensors = Vec::new();
    for (name, entry) in &head {
        if name.starts_with("language_model.") {
            let name = gguf_name(name).with_context(|| format!("{name} has no name"))?;
            tensors.push(Tensor::read(name, entry, values)?);
        }
    }
    for tensor in &tensors {
        let bytes = tensor.bytes.len() as u64;
        writer.tensor(&tensor.name, &tensor.shape, tensor.kind, bytes);
    }
    let mut bytes = Vec::new();
    writer.write(&mut bytes, |at, file| file.write_all(&tensors[at].bytes))?;
    fs::write(file, bytes)?;
    Ok(())
}

impl Tensor {
    fn read(name: String, entry: &Value, values: &[u8]) -> Result<Self> {
        ensure!(entry["dtype"] == "BF16", "{name} is {}", entry["dtype"]);
        let numbers = |key: &str| serde_json::from_value::<Vec<usize>>(entry[key].clone());
        let (shape, place) = (numbers("shape")?, numbers("data_offsets")?);
        let stored = values
            .get(place[0]..place[1])
            .context("a tensor is cut off")?;
        let values = stored
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
        let (kind, bytes) = if shape.len() == 1 {
            // The file's norms have Gemma's 1 in them.
            let bytes = values.flat_map(|weight| (weight + 1.0).to_le_bytes());
            (F32, bytes.collect())
        } else {
            let values: Vec<f32> = values.collect();
            let length = Form::Q8_0.row_bytes(values.len());
            let mut bytes = vec![0; length.context("no whole blocks")?];
            store_q8_0(&values, &mut bytes);
            (Q8_0, bytes)
        };
        Ok(Self {
            name,
            shape,
            kind,
            bytes,
        })
    }
}

/// What the file says of the model.
fn described(config: &Value) -> Result<GgufWriter> {
    let mut writer = GgufWriter::default()
        .text("general.architecture", "gemma3")
        .text("gemma3.rope.scaling.type", "linear");
    for (key, theirs) in SIZES {
        let size = config[theirs].as_u64().context(theirs)?;
        writer = writer.size(&format!("gemma3.{key}"), usize::try_from(size)?);
    }
    let factor = &config["rope_scaling"]["factor"];
    let factor = factor.as_f64().context("rope_scaling.factor")? as f32;
    let scalar = &config["query_pre_attn_scalar"];
    let scale = scalar.as_f64().context("query_pre_attn_scalar")?.powf(-0.5) as f32;
    Ok(writer
        .float("gemma3.rope.scaling.factor", factor)
        .float("gemma3.attention.scale", scale))
}
