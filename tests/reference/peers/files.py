"""What llama.cpp needs beside the GGUFs that `medfleet bench model` writes: an mmproj file of the checkpoint's vision tower,
a language model of its width, otherwise tiny, that has a vocabulary (an image is wrapped in text), and the language model in
bf16.

    python files.py CHECKPOINT
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy
import torch
from safetensors import safe_open

folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
vision, text = config["vision_config"], config["text_config"]
# Patches in a row that become one token: llama.cpp takes 4 unless it is told otherwise.
pool = vision["image_size"] // vision["patch_size"] // math.isqrt(config["mm_tokens_per_image"])


def tensors():
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in sorted(set(index.values())):
        with safe_open(folder / shard, "pt") as file:
            for name in file.keys():
                if name.startswith(("vision_tower.", "multi_modal_projector.")):
                    yield name, file.get_tensor(name).to(torch.float32).numpy()


def llama_name(name):
    name = name.removeprefix("vision_tower.vision_model.").removeprefix("multi_modal_projector.")
    for hub, llama in [
        ("embeddings.patch_embedding", "v.patch_embd"),
        ("embeddings.position_embedding", "v.position_embd"),
        ("post_layernorm", "v.post_ln"),
        ("encoder.layers.", "v.blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.out_proj", "attn_out"),
        ("layer_norm1", "ln1"),
        ("layer_norm2", "ln2"),
        ("mlp.fc1", "ffn_up"),
        ("mlp.fc2", "ffn_down"),
        ("mm_input_projection_weight", "mm.input_projection.weight"),
        ("mm_soft_emb_norm", "mm.soft_emb_norm"),
    ]:
        name = name.replace(hub, llama)
    return name


def write_mmproj(path, dtype, kind):
    """Matrices of the layers in this type; everything else in f32, as llama.cpp's converter does it."""
    out = gguf.GGUFWriter(path, "clip")
    out.add_bool("clip.has_vision_encoder", True)
    out.add_string("clip.projector_type", "gemma3")
    out.add_bool("clip.use_gelu", True)
    for key, value in [
        ("image_size", vision["image_size"]),
        ("patch_size", vision["patch_size"]),
        ("embedding_length", vision["hidden_size"]),
        ("feed_forward_length", vision["intermediate_size"]),
        ("projection_dim", text["hidden_size"]),
        ("block_count", vision["num_hidden_layers"]),
        ("attention.head_count", vision["num_attention_heads"]),
        ("projector.scale_factor", pool),
    ]:
        out.add_uint32(f"clip.vision.{key}", value)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    out.add_array("clip.vision.image_mean", [0.5] * 3)
    out.add_array("clip.vision.image_std", [0.5] * 3)
    for name, values in tensors():
        name = llama_name(name)
        matrix = values.ndim == 2 and ".blk." in name or name == "mm.input_projection.weight"
        if name == "mm.soft_emb_norm.weight":
            values = values + 1
        # Rows that are no whole blocks stay f16, as llama.cpp's converter leaves them.
        if matrix and kind is not None and values.shape[1] % 32 == 0:
            stored = gguf.quants.quantize(values, kind)
            out.add_tensor(name, stored, raw_dtype=kind)
        else:
            out.add_tensor(name, values.astype(dtype if matrix else numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_words(path):
    out = gguf.GGUFWriter(path, "gemma3")
    width, ffn, head = text["hidden_size"], 256, text["head_dim"]
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + ["<start_of_image>", "<end_of_image>"]
    kinds = [2, 3, 3] + [6] * 256 + [4, 4]
    out.add_vocab_size(len(tokens))
    out.add_context_length(2048)
    out.add_embedding_length(width)
    out.add_block_count(1)
    out.add_feed_forward_length(ffn)
    out.add_head_count(1)
    out.add_head_count_kv(1)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_sliding_window(1024)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(1e6)
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * len(tokens))
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "output_norm.weight": (width,),
        "blk.0.attn_q.weight": (head, width),
        "blk.0.attn_k.weight": (head, width),
        "blk.0.attn_v.weight": (head, width),
        "blk.0.attn_output.weight": (width, head),
        "blk.0.attn_q_norm.weight": (head,),
        "blk.0.attn_k_norm.weight": (head,),
        "blk.0.ffn_gate.weight": (ffn, width),
        "blk.0.ffn_up.weight": (ffn, width),
        "blk.0.ffn_down.weight": (width, ffn),
    }
    for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"]:
        shapes[f"blk.0.{norm}.weight"] = (width,)
    for name, shape in shapes.items():
        out.add_tensor(name, numpy.full(shape, 0.01, dtype=numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


write_mmproj(folder / "mmproj-f16.gguf", numpy.float16, None)
write_mmproj(folder / "mmproj-q8_0.gguf", numpy.float16, gguf.GGMLQuantizationType.Q8_0)


def llama_text_name(name):
    name = name.removeprefix("language_model.model.")
    if name == "norm.weight":
        return "output_norm.weight"
    for hub, llama in [
        ("embed_tokens", "token_embd"),
        ("layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ]:
        name = name.replace(hub, llama)
    return name


def write_text(path):
    """The language model in bf16, as it is in the checkpoint."""
    out = gguf.GGUFWriter(path, "gemma3")
    out.add_vocab_size(text["vocab_size"])
    out.add_tokenizer_model("none")
    out.add_context_length(text["max_position_embeddings"])
    out.add_embedding_length(text["hidden_size"])
    out.add_block_count(text["num_hidden_layers"])
    out.add_feed_forward_length(text["intermediate_size"])
    out.add_head_count(text["num_attention_heads"])
    out.add_head_count_kv(text["num_key_value_heads"])
    out.add_key_length(text["head_dim"])
    out.add_value_length(text["head_dim"])
    out.add_sliding_window(text["sliding_window"])
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(1e6)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in sorted(set(index.values())):
        with safe_open(folder / shard, "pt") as file:
            for name in file.keys():
                if not name.startswith("language_model."):
                    continue
                values = file.get_tensor(name)
                if values.ndim == 1:
                    out.add_tensor(llama_text_name(name), values.to(torch.float32).numpy() + 1)
                else:
                    bits = values.view(torch.uint16).numpy().view(numpy.uint8)
                    out.add_tensor(llama_text_name(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


write_text(folder / "text-bf16.gguf")
# Last: whoever finds it takes all of them to be there.
write_words(folder / "words.gguf")
