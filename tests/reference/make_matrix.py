"""Makes the matrix of reference outputs that crates/model is tested against, beyond the tiny checkpoint's.

Weights are not stored: `matrix_weights.py` says how both sides make them from a seed, and a checksum guards them.
Run from the repository root; see README.md beside this file.
"""

import argparse
import copy
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

import matrix_weights
from make_tiny import ROOT, pixel_values
from matrix_checkpoints import CHECKPOINTS, recipe
from tiny_tokenizer import build_tokenizer

GREEDY_TOKENS = 64
GAP_MIN = 1e-3  # between the two best logits of every greedy step: ten times the tests' tolerance
NOISE_MAX = 4e-5  # between f32 and f64 of the reference itself, at the positions that are stored, of the tests' 1e-4
ROWS_EXTRA = 7  # of the embedding, past the tokenizer
TAIL = 256  # the last positions, whose best token is stored
QUIET = ["<pad>", "<bos>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]


def config_of(checkpoint, ids, rows):
    """config.json in the checkpoint's spelling: what the hub's files say and no more, or what transformers 5 writes."""
    text = dict(checkpoint["text"], vocab_size=rows, model_type="gemma3_text")
    eos = [ids("<eos>"), ids("<end_of_turn>")]
    if "vision" not in checkpoint:
        return Gemma3TextConfig(**text, eos_token_id=eos, architectures=["Gemma3ForCausalLM"]).to_dict()
    config = dict(
        architectures=["Gemma3ForConditionalGeneration"],
        model_type="gemma3",
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        mm_tokens_per_image=checkpoint["tokens_per_image"],
        eos_token_id=eos,
        text_config=text,
        vision_config=dict(checkpoint["vision"], model_type="siglip_vision_model", patch_size=14, vision_use_head=False),
    )
    return config if checkpoint["spelling"] == "hub" else Gemma3Config(**config).to_dict()


def write(folder, config, tensors):
    """The folder as a user would have it; read back by transformers itself, names and spelling included."""
    (folder / "config.json").write_text(json.dumps(config))
    words = {name: torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).reshape(shape) for name, shape, bits in tensors}
    save_file(words, folder / "model.safetensors", metadata={"format": "pt"})


def build(checkpoint, config, seed, quiet):
    """The tensors of a checkpoint, as (recipe, [(name, shape, bits)])."""
    if "vision" in checkpoint:
        empty = Gemma3ForConditionalGeneration(Gemma3Config(**copy.deepcopy(config)))
    else:
        empty = Gemma3ForCausalLM(Gemma3TextConfig(**copy.deepcopy(config)))
    entries = recipe(empty, checkpoint["scheme"], checkpoint["text"]["hidden_size"])
    tensors = []
    for name, shape, centre, scale in entries:
        bits = matrix_weights.bits(seed, name, int(np.prod(shape)), centre, scale)
        if name.endswith("embed_tokens.weight"):
            table = matrix_weights.widen(bits).reshape(shape)
            table[quiet] *= np.float32(0.125)
            bits = (table.view(np.uint32) >> np.uint32(16)).astype(np.uint16).ravel()
        tensors.append((name, shape, bits))
    return entries, tensors


def load(checkpoint, folder, dtype):
    kind = Gemma3ForConditionalGeneration if "vision" in checkpoint else Gemma3ForCausalLM
    model, report = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model.eval()


def prompts(name, checkpoint, ids):
    """name -> function of a random generator to (prompt ids, indices of the pictures)."""
    rows = [ids("\n") + 3 + 256 + i for i in range(300)]  # ordinary pieces
    bos, soi, eoi, soft = (ids(t) for t in ("<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"))
    words = lambda rng, count: [int(t) for t in rng.choice(rows, count)]
    text = lambda length: lambda rng: ([bos, *words(rng, length - 1)], [])
    window = checkpoint["text"]["sliding_window"]
    out = {"below": text(window - 1), "exact": text(window), "above": text(window + 1)}
    if window < 1024:
        out.update(triple=text(3 * window), long=text(299))
    if "vision" not in checkpoint:
        return out
    run = [soft] * checkpoint["tokens_per_image"]
    image = [soi, *run, eoi]
    if window >= 1024:
        # The first image at the far end of the window, the second where it begins to move.
        out["two_images"] = lambda rng: ([bos, *image, *words(rng, 1000), *image, *words(rng, 9)], [1, 0])
        out["triple"] = text(3 * window)
        return out
    out["image_first"] = lambda rng: ([*run, eoi, *words(rng, 6)], [1])
    out["image_last"] = lambda rng: ([bos, *words(rng, 5), *image, *words(rng, 3), soi, *run], [0, 1])
    out["back_to_back"] = lambda rng: ([bos, *image, *image, *words(rng, 4)], [2, 0])
    if checkpoint["pictures"] == 5:
        out["five_images"] = lambda rng: ([bos, *image, *words(rng, 2), *image, *image, *words(rng, 9), *image, *words(rng, 1), *image], [3, 1, 4, 0, 2])
    else:
        out["three_images"] = lambda rng: ([bos, *words(rng, 2), *image, *words(rng, 11), *image, *image, *words(rng, 3)], [2, 1, 0])
    return out


def pictures(checkpoint, seed):
    """uint8 [side, side, 3]: blocks, gradients and noise, each plainly another."""
    rng = np.random.default_rng(seed)
    side = checkpoint["vision"]["image_size"]
    y, x = np.mgrid[0:side, 0:side]
    out = []
    for _ in range(checkpoint["pictures"]):
        blocks = rng.integers(0, 140, (side // 7, side // 7, 3)).repeat(7, 0).repeat(7, 1)
        slope = (x * rng.integers(1, 5) + y * rng.integers(1, 5)) % 90
        out.append((blocks + slope[..., None] + rng.integers(0, 20, (side, side, 3))).astype(np.uint8))
    return out


def arguments_of(ids, pixels, soft):
    """What a forward takes; text-only models know no images."""
    tokens = torch.tensor([ids])
    if pixels is None:
        return dict(input_ids=tokens)
    images = dict(pixel_values=torch.cat(pixels)) if pixels else {}
    return dict(input_ids=tokens, token_type_ids=(tokens == soft).long(), **images)


def whole(model, ids, pixels, soft):
    """Logits [positions, vocab], without a cache."""
    if pixels:
        pixels = [p.to(model.dtype) for p in pixels]
    return model(**arguments_of(ids, pixels, soft), use_cache=False).logits[0]


def greedy(model, prompt, pixels, soft):
    """64 tokens by way of the reference's own cache."""
    out = model(**arguments_of(prompt, pixels, soft), use_cache=True)
    tokens = []
    for _ in range(GREEDY_TOKENS):
        tokens.append(int(out.logits[0, -1].argmax()))
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens


def gaps(logits):
    best = torch.topk(logits.float(), 2).values
    return best[:, 0] - best[:, 1]


def entropy(logits):
    """Mean over positions, in bits."""
    log = torch.log_softmax(logits.float(), -1)
    return float(-(log.exp() * log).sum(-1).mean()) / np.log(2)


def divergence(p, q):
    """Mean Kullback-Leibler divergence of rows of logits, in nats."""
    p, q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def chosen_positions(prompt, images):
    """Fourteen positions: the prompt's ends, inside each run of an image, before and in the answer."""
    last = len(prompt) - 1
    inside = [first + 1 for first in images][:3]
    found = {0, last // 2, last - 1, last, *inside, *(last + step for step in (1, 2, 8, 9, 21, 40, GREEDY_TOKENS))}
    return sorted(p for p in found if p >= 0)


def run_case(models, make, pictures, soft, salt):
    """The first prompt that makes a fair test (see the README), with the reference in f32 and in bf16 on it; or nothing."""
    exact, half, doubled = models
    for variant in range(40):
        prompt, indices = make(np.random.default_rng([salt, variant]))
        pixels = None if pictures is None else [pixel_values(pictures[i]) for i in indices]
        tokens = greedy(exact, prompt, pixels, soft)
        logits = whole(exact, prompt + tokens, pixels, soft)
        answer = logits[len(prompt) - 1 : -1]
        if answer.argmax(-1).tolist() != tokens or float(gaps(answer).min()) <= GAP_MIN or len(set(tokens)) < 8:
            continue
        firsts = [i for i, t in enumerate(prompt) if t == soft and (i == 0 or prompt[i - 1] != soft)]
        positions = chosen_positions(prompt, firsts)
        rounding = float((whole(doubled, prompt + tokens, pixels, soft) - logits)[positions].abs().max())
        if float(logits.std()) >= 3 and 1 <= entropy(logits) <= 4 and rounding <= NOISE_MAX:
            break
    else:
        return None
    rounded = whole(half, prompt + tokens, pixels, soft)
    found = dict(prompt=prompt, images=firsts, pictures=indices, greedy=tokens, positions=positions)
    tail = max(len(logits) - TAIL, 0)
    tensors = {
        "logits": logits[positions],
        "best": logits[tail:].max(-1).values,
        "bf16.logits": rounded[positions].to(torch.bfloat16),
        "bf16.best": rounded[tail:].argmax(-1).to(torch.int32),
        "bf16.gap": gaps(rounded[tail:]),
    }
    facts = dict(
        std=float(logits.std()), entropy=entropy(logits), gap=float(gaps(answer).min()), variant=variant, rounding=rounding,
        bf16_divergence_from_f32=divergence(logits, rounded),
        bf16_agreement_with_f32=float((logits.argmax(-1) == rounded.argmax(-1)).float().mean()),
    )
    return found, tensors, facts


def run_checkpoint(name, checkpoint, seed, folder, tokenizer):
    """All cases of a checkpoint, or nothing when one of them is no fair test with this seed."""
    ids = tokenizer.token_to_id
    soft = ids("<image_soft_token>")
    config = config_of(checkpoint, ids, tokenizer.get_vocab_size() + ROWS_EXTRA)
    quiet = [ids(token) for token in QUIET]
    entries, tensors = build(checkpoint, config, seed, quiet)
    write(folder, config, tensors)
    exact = load(checkpoint, folder, torch.float32)
    models = exact, load(checkpoint, folder, torch.bfloat16), copy.deepcopy(exact).double()
    drawn = pictures(checkpoint, seed) if "vision" in checkpoint else None
    cases, stored = {}, {}
    for salt, (case, make) in enumerate(prompts(name, checkpoint, ids).items()):
        result = run_case(models, make, drawn, soft, salt)
        if result is None:
            return None
        found, outputs, facts = result
        print(name, seed, case, len(found["prompt"]), {k: float(f"{v:.2g}") for k, v in facts.items()}, flush=True)
        cases[case] = dict(found, facts={k: float(f"{v:.3g}") for k, v in facts.items()})
        stored.update({f"{case}.{key}": value.contiguous() for key, value in outputs.items()})
    for index, picture in enumerate(drawn or []):
        stored[f"picture_{index}"] = torch.from_numpy(picture.copy())
        for kind, model in (("", exact), ("bf16.", models[1])):
            pixels = pixel_values(picture).to(model.dtype)
            features = model.model.vision_tower(pixel_values=pixels).last_hidden_state
            stored[f"{kind}pooled_{index}"] = pooled(checkpoint, features).contiguous()
            projected = model.model.get_image_features(pixels).pooler_output.reshape(checkpoint["tokens_per_image"], -1)
            stored[f"{kind}projected_{index}"] = projected.contiguous()
    sums = matrix_weights.checksum([(tensor, bits) for tensor, _, bits in tensors])
    described = dict(seed=seed, config=config, quiet=quiet, tensors=entries, checksum=sums, cases=cases)
    return described, stored


def pooled(checkpoint, features):
    """After average pooling, before norm and projection: [tokens per image, hidden]."""
    side = checkpoint["vision"]["image_size"] // 14
    grid = features.transpose(1, 2).reshape(1, -1, side, side)
    kernel = side // int(checkpoint["tokens_per_image"] ** 0.5)
    return torch.nn.functional.avg_pool2d(grid, kernel).flatten(2).transpose(1, 2)[0]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures/matrix")
    arguments.add_argument("--only", choices=sorted(CHECKPOINTS), nargs="*", default=list(CHECKPOINTS))
    arguments.add_argument("--seed", type=int, default=1)
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    tokenizer = build_tokenizer()
    arguments.fixtures.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        for seed in range(arguments.seed, arguments.seed + 100):
            with tempfile.TemporaryDirectory() as folder:
                found = run_checkpoint(name, CHECKPOINTS[name], seed, pathlib.Path(folder), tokenizer)
            if found:
                break
        else:
            raise SystemExit(f"{name}: no seed gives a fair test")
        described, stored = found
        described["made_with"] = dict(torch=torch.__version__, transformers=transformers.__version__)
        save_file(stored, arguments.fixtures / f"{name}.safetensors")
        (arguments.fixtures / f"{name}.safetensors").chmod(0o644)
        (arguments.fixtures / f"{name}.json").write_text(json.dumps(described, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
