"""Makes the tiny MedGemma checkpoint and the reference outputs that crates/model is tested against.

The checkpoint has MedGemma's architecture in every detail that can be got wrong, at a size that can be committed:
both kinds of attention layer, heads * head_dim != hidden, query scalar != head_dim, fewer key-value heads than heads,
a window shorter than one image's tokens, rope factor 8, 4x4 pooling. Its weights are random: its text means nothing.

Run from the repository root; see README.md beside this file.
"""

import argparse
import copy
import json
import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from tiny_tokenizer import CHAT_TEMPLATE, build_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCAB_ROWS_EXTRA = 7  # rows past the tokenizer, as the real checkpoints have 64
TOKENS_PER_IMAGE = 16
IMAGE_SIZE = 224
GREEDY_TOKENS = 48
NOISE_MAX = 3e-5  # between f32 and f64 of the reference itself: its rounding must not use up the tests' 1e-4
GAP_MIN = 2e-3  # between the two best logits of every greedy step, so that equality of tokens is a fair test

TEXT = dict(
    model_type="gemma3_text",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    query_pre_attn_scalar=20,
    sliding_window=12,
    sliding_window_pattern=3,
    max_position_embeddings=4096,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
)
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=IMAGE_SIZE,
    patch_size=14,
    vision_use_head=False,
)


def config_dict(tokenizer):
    """The checkpoint's config.json, in the hub's own spelling (rope_scaling, sliding_window_pattern)."""
    ids = tokenizer.token_to_id
    return dict(
        architectures=["Gemma3ForConditionalGeneration"],
        model_type="gemma3",
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        eos_token_id=[ids("<eos>"), ids("<end_of_turn>")],
        text_config=dict(TEXT, vocab_size=tokenizer.get_vocab_size() + VOCAB_ROWS_EXTRA),
        vision_config=VISION,
        dtype="float32",
    )


def fill(model, tokenizer, seed):
    """Random weights whose logits spread: normal, scaled by fan-in; norms that let layers outweigh the embedding."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p, mean, std: p.copy_(torch.randn(p.shape, generator=generator) * std + mean)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "vision" not in name and ("norm" in name):
                if name.endswith("language_model.norm.weight"):
                    draw(p, 1.6, 0.2)
                elif "post_" in name:
                    draw(p, 2.5, 0.3)
                elif "q_norm" in name or "k_norm" in name:
                    draw(p, 0.15, 0.2)
                else:
                    draw(p, 0.2, 0.2)
            elif "norm" in name:
                draw(p, 1.0 if name.endswith("weight") else 0.0, 0.2)
            elif name.endswith("bias"):
                draw(p, 0.0, 0.1)
            elif "embed_tokens" in name:
                draw(p, 0.0, 0.2)
            elif "position_embedding" in name:
                draw(p, 0.0, 0.5)
            elif "mm_input_projection" in name:
                draw(p, 0.0, 3.0 / p.shape[0] ** 0.5)
            else:
                fan_in = p[0].numel()
                draw(p, 0.0, 1.3 / fan_in**0.5)
        table = model.get_input_embeddings().weight
        quiet = [t for t in ("<pad>", "<bos>", "<unk>", "<mask>", "<unused94>", "<unused95>", "<start_of_turn>", "<eos>",
                             "<start_of_image>", "<end_of_image>", "<image_soft_token>")]
        table[[tokenizer.token_to_id(t) for t in quiet]] *= 0.1
        table[tokenizer.token_to_id("<end_of_turn>")] *= 0.8
        table[[tokenizer.token_to_id(f"<0x{b:02X}>") for b in range(256)]] *= 0.3
        table[tokenizer.get_vocab_size():] *= 0.1


def hub_name(name):
    """A parameter's name in the hub's scheme (transformers in memory: model.language_model..., model.vision_tower...)."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


def pictures(seed):
    """Two colour pictures and a grey one, uint8, smooth with edges, plainly different from each other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE
    out = []
    for channels in (3, 3, 1):
        picture = np.zeros((IMAGE_SIZE, IMAGE_SIZE, channels))
        for _ in range(6):
            cx, cy, size, shade = rng.random(4)
            inside = (np.abs(x - cx) < size / 2) & (np.abs(y - cy) < size / 3)
            picture[inside] += (shade - 0.3) * rng.random(channels)
        picture += 0.5 + 0.4 * np.sin(2 * np.pi * (x * rng.integers(1, 6) + y * rng.integers(1, 6)))[..., None]
        picture += 0.05 * rng.standard_normal(picture.shape)
        out.append((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return out


def pixel_values(picture):
    """[1, 3, S, S] in [-1, 1]."""
    rgb = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    x = torch.from_numpy(rgb.astype(np.float32)) / 255.0
    return ((x - 0.5) / 0.5).permute(2, 0, 1)[None].contiguous()


def pooled(model, pixels):
    """The tower's output after average pooling, before norm and projection: [tokens_per_image, hidden]."""
    features = model.model.vision_tower(pixel_values=pixels).last_hidden_state
    side = VISION["image_size"] // VISION["patch_size"]
    grid = features.transpose(1, 2).reshape(1, -1, side, side)
    kernel = side // int(TOKENS_PER_IMAGE**0.5)
    return torch.nn.functional.avg_pool2d(grid, kernel).flatten(2).transpose(1, 2)[0]


def logits_of(model, soft, ids, pixels):
    """[positions, vocab] of one sequence, whole, without a cache."""
    ids = torch.tensor([ids])
    kinds = (ids == soft).long()
    images = torch.cat(pixels) if pixels else None
    return model(input_ids=ids, pixel_values=images, token_type_ids=kinds, use_cache=False).logits[0]


def chat(system, content):
    """The prompt's text as the chat template gives it; the content is split at its images."""
    parts = [dict(type="text", text=text) for text in content.split("<start_of_image>")]
    for place in range(len(parts) - 1, 0, -1):
        parts.insert(place, dict(type="image"))
    messages = [dict(role="system", content=system)] if system else []
    messages.append(dict(role="user", content=parts))
    fast = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), bos_token="<bos>", chat_template=CHAT_TEMPLATE)
    return fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def cases():
    """name -> (system text, user content with <start_of_image> for each picture, indices of the pictures)."""
    long_text = (
        "The heart size is normal. The lungs are clear. No pleural effusion or "
        "pneumothorax is seen. Describe the chest radiograph: état général, 37 °C 🙂."
    )
    return {
        "text": ("You are an expert radiologist. ", long_text, []),
        "short": ("", "Hi", []),
        "one_image": ("", "<start_of_image>Describe this X-ray.", [0]),
        "two_images": ("", "Compare the prior <start_of_image>and the current<start_of_image>study: is the effusion new?", [0, 1]),
        "grey_first_last": ("", "<start_of_image><start_of_image>Which one?<start_of_image>", [2, 1, 0]),
    }


def run_case(model, tokenizer, case, images):
    system, content, indices = case
    soft = tokenizer.token_to_id("<image_soft_token>")
    block = "\n\n<start_of_image>" + "<image_soft_token>" * TOKENS_PER_IMAGE + "<end_of_image>\n\n"
    prompt = tokenizer.encode(chat(system, content).replace("<start_of_image>", block), add_special_tokens=False).ids
    pixels = [pixel_values(images[i]) for i in indices]
    ids = list(prompt)
    gap = 1e9
    for step in range(GREEDY_TOKENS):
        logits = logits_of(model, soft, ids, pixels)
        best = torch.topk(logits[-1], 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return prompt, ids[len(prompt):], logits_of(model, soft, ids, pixels), gap


def good(tokens, logits, gap):
    """Not degenerate, not a coin toss."""
    return gap > GAP_MIN and len(set(tokens)) >= 8 and float(logits.std()) >= 3.0


def noise(model, tokenizer, case, images, result):
    """The largest distance of the case's f32 logits from the same computed in f64."""
    soft = tokenizer.token_to_id("<image_soft_token>")
    pixels = [pixel_values(images[i]).double() for i in case[2]]
    exact = logits_of(copy.deepcopy(model).double(), soft, result[0] + result[1], pixels)
    return float((exact - result[2]).abs().max())


def resized():
    """Pillow's antialiased bilinear, both directions, one channel."""
    rng = np.random.default_rng(7)
    out = {}
    for size in (100, 331):
        y, x = np.mgrid[0:size, 0:size]
        source = (127 + 90 * np.sin(x / 5) * np.cos(y / 9) + rng.integers(0, 30, (size, size))).astype(np.uint8)
        target = Image.fromarray(source).resize((IMAGE_SIZE, IMAGE_SIZE), Image.BILINEAR)
        out[f"resize_{size}.in"] = torch.from_numpy(source.copy())
        out[f"resize_{size}.out"] = torch.from_numpy(np.asarray(target).copy())
    return out


def find_seed(config, tokenizer, images, first):
    """The first seed from `first` on whose greedy continuations make a fair test in every case."""
    for seed in range(first, first + 200):
        model = Gemma3ForConditionalGeneration(config).float().eval()
        fill(model, tokenizer, seed)
        results = {}
        for name, case in cases().items():
            result = run_case(model, tokenizer, case, images)
            print(seed, name, "positions", len(result[0]), "std", round(float(result[2].std()), 2),
                  "distinct", len(set(result[1])), "gap", f"{result[3]:.1e}", flush=True)
            if not good(*result[1:]):
                break
            rounding = noise(model, tokenizer, case, images, result)
            print("  f32 against f64", f"{rounding:.1e}", flush=True)
            if rounding > NOISE_MAX:
                break
            results[name] = result
        else:
            return seed, model, results
    raise SystemExit("no seed gives a fair test")


def save_checkpoint(folder, model, tokenizer, config):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {hub_name(n): p.detach().contiguous() for n, p in model.named_parameters() if not n.startswith("lm_head")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    write("config.json", config)
    write("generation_config.json", dict(do_sample=False, eos_token_id=config["eos_token_id"],
                                         bos_token_id=tokenizer.token_to_id("<bos>"), pad_token_id=0))
    names = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", boi_token="<start_of_image>",
                 eoi_token="<end_of_image>", image_token="<image_soft_token>")
    write("tokenizer_config.json", dict(names, tokenizer_class="GemmaTokenizer", chat_template=CHAT_TEMPLATE))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "model.safetensors").chmod(0o644)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", type=pathlib.Path, default=ROOT / "deploy/tiny")
    arguments.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures")
    arguments.add_argument("--seed", type=int, default=1)
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    tokenizer = build_tokenizer()
    config = config_dict(tokenizer)
    images = pictures(3)
    hf = Gemma3Config(**json.loads(json.dumps(config)), attn_implementation="eager")
    seed, model, results = find_seed(hf, tokenizer, images, arguments.seed)
    save_checkpoint(arguments.checkpoint, model, tokenizer, config)

    # The oracle must agree with itself on the files as written: names, config spelling and all.
    again = Gemma3ForConditionalGeneration.from_pretrained(arguments.checkpoint, attn_implementation="eager").float().eval()
    prompt, tokens, logits, _ = run_case(again, tokenizer, cases()["two_images"], images)
    assert torch.equal(logits, results["two_images"][2]), "the saved checkpoint does not load as it was"

    tensors = {f"picture_{i}": torch.from_numpy(p.copy()) for i, p in enumerate(images)}
    for i, p in enumerate(images):
        tensors[f"pooled_{i}"] = pooled(model, pixel_values(p)).contiguous()
        # pooler_output: after norm and projection
        tensors[f"projected_{i}"] = model.model.get_image_features(pixel_values(p)).pooler_output.reshape(TOKENS_PER_IMAGE, -1).contiguous()
    tensors.update(resized())
    described = {}
    for name, (prompt, tokens, logits, gap) in results.items():
        first = 0 if name == "two_images" else max(len(prompt) - 24, 0)
        tensors[f"{name}.logits"] = logits[first:].contiguous()
        system, content, indices = cases()[name]
        described[name] = dict(system=system, content=content, images=indices, prompt=prompt, greedy=tokens, logits_first=first, gap=gap)
    arguments.fixtures.mkdir(parents=True, exist_ok=True)
    save_file(tensors, arguments.fixtures / "tiny.safetensors")
    (arguments.fixtures / "tiny.safetensors").chmod(0o644)
    facts = dict(seed=seed, cases=described, torch=torch.__version__)
    (arguments.fixtures / "tiny.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
