//! A model folder's language model in the file that llama.cpp's converter makes of it, in Q8_0.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use medfleet_kernels::{Form, store_q8_0};
use serde_json::{Map, Value};

/// ggml's numbers of types.
const F32: u32 = 0;
const Q8_0: u32 = 8;
/// Kinds of metadata values.
const KIND_U32: u32 = 4;
const KIND_F32: u32 = 6;
const KIND_TEXT: u32 = 8;
const ALIGNMENT: usize = 32;

/// The hub's names of a layer's tensors, and llama.cpp's.
const PARTS: [(&str, &str); 13] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
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
///
/// # Errors
/// A folder of another form.
pub fn write_q8_0(folder: &Path, file: &Path) -> Result<()> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
    let weights = fs::read(folder.join("model.safetensors"))?;
    let (length, rest) = weights.split_first_chunk().context("no head")?;
    let (head, values) = rest.split_at(usize::try_from(u64::from_le_bytes(*length))?);
    let head: Map<String, Value> = serde_json::from_slice(head)?;
    let mut tensors = Vec::new();
    for (name, entry) in &head {
        if let Some(name) = name.strip_prefix("language_model.model.") {
            tensors.push(Tensor::read(name, entry, values)?);
        }
    }
    fs::write(file, bytes(&config["text_config"], &tensors)?)?;
    Ok(())
}

impl Tensor {
    fn read(hub: &str, entry: &Value, values: &[u8]) -> Result<Self> {
        ensure!(entry["dtype"] == "BF16", "{hub} is {}", entry["dtype"]);
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
            name: llama_name(hub).with_context(|| format!("{hub} has no name"))?,
            shape,
            kind,
            bytes,
        })
    }
}

fn llama_name(hub: &str) -> Option<String> {
    match hub {
        "embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "norm.weight" => return Some("output_norm.weight".to_owned()),
        _ => {}
    }
    let part = hub.strip_prefix("layers.")?.strip_suffix(".weight")?;
    let (layer, part) = part.split_once('.')?;
    let (_, part) = PARTS.iter().find(|(hub, _)| *hub == part)?;
    Some(format!("blk.{layer}.{part}.weight"))
}

/// The whole file.
fn bytes(config: &Value, tensors: &[Tensor]) -> Result<Vec<u8>> {
    let (count, values) = metadata(config)?;
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend(values);
    let mut offset = 0_usize;
    for tensor in tensors {
        put_text(&mut file, &tensor.name);
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        let sizes = tensor.shape.iter().rev();
        file.extend(sizes.flat_map(|size| (*size as u64).to_le_bytes()));
        file.extend(tensor.kind.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
    }
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&tensor.bytes);
    }
    Ok(file)
}

/// How many values there are, and the values.
fn metadata(config: &Value) -> Result<(u64, Vec<u8>)> {
    let (mut count, mut out) = (0, Vec::new());
    let mut put = |key: &str, kind: u32, value: &[u8]| {
        count += 1;
        put_text(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
    };
    for (key, text) in [
        ("general.architecture", "gemma3"),
        ("gemma3.rope.scaling.type", "linear"),
    ] {
        let mut value = Vec::new();
        put_text(&mut value, text);
        put(key, KIND_TEXT, &value);
    }
    for (key, theirs) in SIZES {
        let size = config[theirs].as_u64().context(theirs)?;
        let size = u32::try_from(size)?.to_le_bytes();
        put(&format!("gemma3.{key}"), KIND_U32, &size);
    }
    let factor = &config["rope_scaling"]["factor"];
    let factor = factor.as_f64().context("rope_scaling.factor")? as f32;
    put(
        "gemma3.rope.scaling.factor",
        KIND_F32,
        &factor.to_le_bytes(),
    );
    let scalar = &config["query_pre_attn_scalar"];
    let scale = scalar.as_f64().context("query_pre_attn_scalar")?.powf(-0.5) as f32;
    put("gemma3.attention.scale", KIND_F32, &scale.to_le_bytes());
    Ok((count, out))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
