//! llama.cpp's tensor names for Gemma 3 and its mmproj files, and what the hub calls the same tensors.
//! A name that is not here stands for a computation that is not done here, so it is refused, not skipped.

/// One of the hub's names, in its first scheme ([`crate::weights`]), and whether the converter has already added
/// Gemma's 1 to the weight (`1 + w` is what its norms multiply with).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubName {
    pub(crate) name: String,
    pub(crate) one_added: bool,
}

fn hub(name: String, one_added: bool) -> Option<HubName> {
    Some(HubName { name, one_added })
}

/// What the hub's names of the language model begin with.
const TEXT: &str = "language_model.model.";

/// The tensors of the language model outside its layers: llama.cpp's name, the hub's, whether the converter adds 1.
const AROUND: &[(&str, &str, bool)] = &[
    ("token_embd", "embed_tokens", false),
    ("output_norm", "norm", true),
];

/// The same for those of each layer.
const LAYER: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", true),
    ("attn_q", "self_attn.q_proj", false),
    ("attn_k", "self_attn.k_proj", false),
    ("attn_v", "self_attn.v_proj", false),
    ("attn_output", "self_attn.o_proj", false),
    ("attn_q_norm", "self_attn.q_norm", true),
    ("attn_k_norm", "self_attn.k_norm", true),
    ("post_attention_norm", "post_attention_layernorm", true),
    ("ffn_norm", "pre_feedforward_layernorm", true),
    ("ffn_gate", "mlp.gate_proj", false),
    ("ffn_up", "mlp.up_proj", false),
    ("ffn_down", "mlp.down_proj", false),
    ("post_ffw_norm", "post_feedforward_layernorm", true),
];

/// A tensor of the language model.
pub(crate) fn text(name: &str) -> Option<HubName> {
    let name = name.strip_suffix(".weight")?;
    let (layer, part, parts) = match name.strip_prefix("blk.") {
        Some(rest) => {
            let (layer, part) = block(rest)?;
            (format!("layers.{layer}."), part, LAYER)
        }
        None => (String::new(), name, AROUND),
    };
    let (_, part, one_added) = parts.iter().find(|(llama, _, _)| *llama == part)?;
    hub(format!("{TEXT}{layer}{part}.weight"), *one_added)
}

/// llama.cpp's name of a tensor of the language model, by the hub's in its first scheme (`language_model.model.…`); nothing
/// for a name that is none of them.
pub fn gguf_name(hub: &str) -> Option<String> {
    let name = hub.strip_prefix(TEXT)?.strip_suffix(".weight")?;
    let (layer, part, parts) = match name.strip_prefix("layers.") {
        Some(rest) => {
            let (layer, part) = block(rest)?;
            (format!("blk.{layer}."), part, LAYER)
        }
        None => (String::new(), name, AROUND),
    };
    let (llama, _, _) = parts.iter().find(|(_, hub, _)| *hub == part)?;
    Some(format!("{layer}{llama}.weight"))
}

/// A tensor of an mmproj file. In files of some converters `ffn_up` and `ffn_down` are exchanged, as in CLIP's first
/// conversion; `swapped` says so.
pub(crate) fn vision(name: &str, swapped: bool) -> Option<HubName> {
    const PREFIX: &str = "vision_tower.vision_model.";
    const PROJECTOR: &str = "multi_modal_projector.";
    match name {
        "mm.input_projection.weight" => {
            return hub(format!("{PROJECTOR}mm_input_projection_weight"), false);
        }
        "mm.soft_emb_norm.weight" => {
            return hub(format!("{PROJECTOR}mm_soft_emb_norm.weight"), true);
        }
        _ => (),
    }
    let name = name.strip_prefix("v.")?;
    let (part, kind) = name.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let Some(rest) = part.strip_prefix("blk.") else {
        let part = match part {
            "patch_embd" => "embeddings.patch_embedding",
            "position_embd" => "embeddings.position_embedding",
            "post_ln" => "post_layernorm",
            _ => return None,
        };
        return hub(format!("{PREFIX}{part}.{kind}"), false);
    };
    let (layer, part) = block(rest)?;
    let part = match (part, swapped) {
        ("ln1", _) => "layer_norm1",
        ("ln2", _) => "layer_norm2",
        ("attn_q", _) => "self_attn.q_proj",
        ("attn_k", _) => "self_attn.k_proj",
        ("attn_v", _) => "self_attn.v_proj",
        ("attn_out", _) => "self_attn.out_proj",
        ("ffn_up", false) | ("ffn_down", true) => "mlp.fc1",
        ("ffn_down", false) | ("ffn_up", true) => "mlp.fc2",
        _ => return None,
    };
    hub(
        format!("{PREFIX}encoder.layers.{layer}.{part}.{kind}"),
        false,
    )
}

/// `12.attn_q` → 12 and `attn_q`.
fn block(rest: &str) -> Option<(usize, &str)> {
    let (layer, part) = rest.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_files() {
        let check = |found: Option<HubName>, name: &str, one_added: bool| {
            assert_eq!(found, hub(name.to_owned(), one_added));
        };
        let layer = "language_model.model.layers.17";
        check(
            text("blk.17.attn_q.weight"),
            &format!("{layer}.self_attn.q_proj.weight"),
            false,
        );
        check(
            text("blk.17.ffn_norm.weight"),
            &format!("{layer}.pre_feedforward_layernorm.weight"),
            true,
        );
        check(
            text("output_norm.weight"),
            "language_model.model.norm.weight",
            true,
        );
        assert_eq!(text("output.weight"), None);
        assert_eq!(text("blk.0.token_embd.weight"), None);
        assert_eq!(text("attn_q.weight"), None);
        assert_eq!(text("blk.0.attn_q.bias"), None);
        let layer = "vision_tower.vision_model.encoder.layers.3";
        check(
            vision("v.blk.3.ffn_up.bias", false),
            &format!("{layer}.mlp.fc1.bias"),
            false,
        );
        check(
            vision("v.blk.3.ffn_up.bias", true),
            &format!("{layer}.mlp.fc2.bias"),
            false,
        );
        check(
            vision("mm.soft_emb_norm.weight", false),
            "multi_modal_projector.mm_soft_emb_norm.weight",
            true,
        );
        assert_eq!(vision("v.class_embd", false), None);
    }
    #[test]
    fn names_of_the_language_model_lead_back() {
        for (hub, llama) in [
            ("embed_tokens", "token_embd"),
            ("norm", "output_norm"),
            ("layers.3.self_attn.q_norm", "blk.3.attn_q_norm"),
            ("layers.3.self_attn.o_proj", "blk.3.attn_output"),
            ("layers.0.input_layernorm", "blk.0.attn_norm"),
            ("layers.12.mlp.down_proj", "blk.12.ffn_down"),
        ] {
            let hub = format!("language_model.model.{hub}.weight");
            let llama = format!("{llama}.weight");
            assert_eq!(gguf_name(&hub), Some(llama.clone()));
            assert_eq!(text(&llama).map(|found| found.name), Some(hub));
        }
        for other in [
            "embed_tokens.weight",
            "language_model.model.layers.3.norm.weight",
            "language_model.model.layers.3.self_attn.q_proj.bias",
            "vision_tower.vision_model.post_layernorm.weight",
        ] {
            assert_eq!(gguf_name(other), None, "{other}");
        }
    }
}
