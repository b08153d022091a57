"""Makes the reference outputs for real weights: Gemma 3 270M from a GGUF file, dequantised to f32.

The GGUF is read and dequantised by the `gguf` package and put into transformers' Gemma3ForCausalLM; nothing of medfleet
takes part. `cargo xtask fetch` puts the GGUF and the tokenizer into the cache. Run from the repository root:

    python tests/reference/make_270m.py --cache ~/.cache/medfleet
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
GREEDY_TOKENS = 32
TOP = 8  # best logits kept of every step
STRIDE = 64  # of the last prompt position every 64th logit is kept

PROMPTS = [
    "The capital of France is",
    "A chest radiograph shows the heart, the lungs and",
    "Pneumothorax is defined as",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die Lunge ist",
    "La radiographie du thorax montre",
    "The patient was admitted with fever and cough. On examination,",
    "FINDINGS: The cardiomediastinal silhouette is",
    "Translate to Spanish: Good morning, doctor. ->",
    "SELECT name FROM patients WHERE",
    "In 1895, Wilhelm Röntgen discovered",
    "Q: What is the boiling point of water?\nA:",
    "胸部X線写真では、",
    "<html><head><title>",
    "The opposite of hot is",
    "Once upon a time, in a small village by the sea,",
    "Ingredients: 200 g flour, 2 eggs, 100 ml milk.\nMethod:",
    "E = mc^2 means that",
]

LONG = "Study {n}: the lungs are {a}, the heart is {b}, there is {c} effusion and {d} pneumothorax. "


def long_prompt():
    """Longer than the window of 512 tokens, and not the same sentence again and again."""
    words = lambda n, *options: options[(n * 7 + n // 3) % len(options)]
    return "".join(
        LONG.format(n=n, a=words(n, "clear", "hyperinflated", "hazy"), b=words(n + 1, "normal in size", "enlarged"),
                    c=words(n + 2, "no", "a small", "a large"), d=words(n + 3, "no", "an apical"))
        for n in range(28)
    ) + "In summary, the study shows"


def hub_name(name):
    """llama.cpp's name of a tensor to the hub's."""
    simple = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in simple:
        return simple[name]
    _, layer, part, _ = name.split(".")
    parts = dict(
        attn_norm="input_layernorm", attn_q="self_attn.q_proj", attn_k="self_attn.k_proj", attn_v="self_attn.v_proj",
        attn_output="self_attn.o_proj", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm",
        post_attention_norm="post_attention_layernorm", ffn_norm="pre_feedforward_layernorm", ffn_gate="mlp.gate_proj",
        ffn_up="mlp.up_proj", ffn_down="mlp.down_proj", post_ffw_norm="post_feedforward_layernorm",
    )
    return f"model.layers.{layer}.{parts[part]}.weight"


def load(path):
    reader = gguf.GGUFReader(path)
    key = lambda name: reader.fields[f"gemma3.{name}"].contents()
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        head_dim=key("attention.key_length"),
        query_pre_attn_scalar=key("attention.key_length"),
        sliding_window=key("attention.sliding_window"),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = Gemma3ForCausalLM(config).float().eval()
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        # The converter has already added Gemma's 1 to every norm.
        weights[hub_name(tensor.name)] = torch.from_numpy(values - 1.0 if "norm" in tensor.name else values.copy())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return model, config


def run(model, ids):
    """Greedy continuation with a cache: logits [1 + 32, vocab] of the last prompt position and each generated one."""
    rows, tokens = [], []
    out = model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    for _ in range(GREEDY_TOKENS):
        rows.append(out.logits[0, -1])
        tokens.append(int(rows[-1].argmax()))
        out = model(input_ids=torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True)
    rows.append(out.logits[0, -1])
    return tokens, torch.stack(rows)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cache", type=pathlib.Path, required=True)
    arguments.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures")
    arguments = arguments.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)

    model, config = load(arguments.cache / "gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf")
    print(config.layer_types, config.rope_parameters)
    tokenizer = Tokenizer.from_file(str(arguments.cache / "tokenizer-gemma3-3.7.2/tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS + [long_prompt()]]
    assert all(ids[0] == 2 for ids in prompts) and len(prompts) == 20
    cases, values, ids, sums, strided = [], [], [], [], []
    for prompt in prompts:
        tokens, logits = run(model, prompt)
        best = torch.topk(logits, TOP)
        values.append(best.values)
        ids.append(best.indices.int())
        sums.append(torch.logsumexp(logits.double(), -1).float())
        strided.append(logits[0, ::STRIDE])
        gap = (best.values[:, 0] - best.values[:, 1])[:-1]
        cases.append(dict(prompt=prompt, greedy=tokens))
        print(len(prompt), "smallest gap", f"{float(gap.min()):.1e}", "std", round(float(logits.std()), 2),
              repr(tokenizer.decode(tokens)), flush=True)
    tensors = dict(top_values=torch.stack(values), top_ids=torch.stack(ids), log_sums=torch.stack(sums),
                   strided=torch.stack(strided))
    save_file({name: t.contiguous() for name, t in tensors.items()}, arguments.fixtures / "gemma3_270m.safetensors")
    (arguments.fixtures / "gemma3_270m.safetensors").chmod(0o644)
    (arguments.fixtures / "gemma3_270m.json").write_text(json.dumps(dict(stride=STRIDE, cases=cases)) + "\n")


if __name__ == "__main__":
    main()
