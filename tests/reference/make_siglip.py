"""Makes a tiny MedSigLIP-style checkpoint and the reference embeddings that crates/model is tested against.

Both towers, attention pooling, scale and bias as in SiglipModel, at 448 pixels and 64 tokens as in MedSigLIP; the widths
of the two towers differ. The tokenizer is a real SentencePiece unigram model, read in the reference by transformers'
SiglipTokenizer. Its weights are random: its similarities mean nothing.

Run from the repository root; see README.md beside this file.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE_SIZE = 448
PIECES = 420

TEXT = dict(hidden_size=40, intermediate_size=96, num_hidden_layers=3, num_attention_heads=5, max_position_embeddings=64,
            vocab_size=PIECES + 4, projection_size=48)
VISION = dict(hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4, image_size=IMAGE_SIZE,
              patch_size=14)

TEXTS = [
    "a chest X-ray with a pleural effusion",
    "A Chest X-Ray, with NO pleural effusion!",
    "normal",
    "  two   spaces\tand\na line break ",
    "ankle: fracture of the distal fibula (left)",
    "naïve Ünïcödé — “quotes” ﬁne ½ ①",
    "日本語 胸部",
    "?!…",
    "",
    "a photo of " + "the lungs and the heart and the " * 20,
    "s unk odd",
    "it's the patient's 2nd CT: 3.5 mm nodule",
]

SIDES = [(300, 3), (448, 1), (1000, 1), (61, 3)]


def corpus():
    """Sentences for the tokenizer's training, from a few lists of words."""
    subjects = ["the heart", "the left lung", "the right lung", "a nodule", "the mediastinum", "a fracture", "the pleura",
                "an effusion", "the distal fibula", "the patient", "a chest x ray", "a ct slice", "the ankle"]
    verbs = ["is", "shows", "is without", "has", "suggests", "is suspicious for", "is compatible with", "rules out"]
    objects = ["normal size", "no effusion", "a small pneumothorax", "an opacity", "consolidation", "atelectasis",
               "cardiomegaly", "a mass of 3 cm", "no acute disease", "degenerative change", "oedema", "a photo of it"]
    return [f"{s} {v} {o}" for s in subjects for v in verbs for o in objects]


def train(folder):
    # Written through a stream: with a prefix, the file would name the folder of the machine that made it.
    with open(folder / "spiece.model", "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=out, vocab_size=PIECES, model_type="unigram",
            normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
            num_threads=1, minloglevel=2)
    return SiglipTokenizer(str(folder / "spiece.model"))


def fill(model, seed):
    """Random weights, scaled by fan-in, so that layers outweigh the embeddings and directions spread."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p, mean, std: p.copy_(torch.randn(p.shape, generator=generator) * std + mean)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if name == "logit_scale":
                p.fill_(2.5)
            elif name == "logit_bias":
                p.fill_(-3.0)
            elif "norm" in name:
                draw(p, 1.0 if name.endswith("weight") else 0.0, 0.2)
            elif name.endswith("bias"):
                draw(p, 0.0, 0.1)
            elif "embedding" in name and "patch" not in name or "probe" in name:
                draw(p, 0.0, 0.7)
            else:
                draw(p, 0.0, 1.3 / p[0].numel() ** 0.5)


def picture(side, channels):
    """uint8 [side, side, channels] by a formula that the test repeats: edges, slopes, and detail finer than a pixel."""
    y, x, c = np.mgrid[0:side, 0:side, 0:channels]
    return ((x * (3 + c) ^ y * 5) + x * y // 16).astype(np.int64) % 256


def pixel_values(source):
    """Bilinear without antialiasing, cut to uint8, scaled to [-1, 1]: [1, 3, 448, 448], and the uint8 picture."""
    x = torch.from_numpy(source.astype(np.float32)).permute(2, 0, 1)[None]
    if x.shape[-1] != IMAGE_SIZE:
        x = torch.nn.functional.interpolate(x, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False,
                                            antialias=False)
    small = x.clamp(0, 255).to(torch.uint8)
    rgb = small.expand(1, 3, -1, -1).float() / 255.0
    return (rgb - 0.5) / 0.5, small[0].permute(1, 2, 0).contiguous()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures/tiny_medsiglip")
    arguments.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    arguments.checkpoint.mkdir(parents=True, exist_ok=True)
    tokenizer = train(arguments.checkpoint)
    TEXT["vocab_size"] = tokenizer.vocab_size + 4
    config = dict(architectures=["SiglipModel"], model_type="siglip", text_config=dict(TEXT, model_type="siglip_text_model"),
                  vision_config=dict(VISION, model_type="siglip_vision_model"))
    model = SiglipModel(SiglipConfig(**json.loads(json.dumps(config)), attn_implementation="eager")).float().eval()
    fill(model, 11)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(weights, arguments.checkpoint / "model.safetensors", metadata={"format": "pt"})
    (arguments.checkpoint / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for name in ("model.safetensors", "spiece.model"):
        (arguments.checkpoint / name).chmod(0o644)
    # What a hub folder holds is what transformers writes: the names must be those.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        from safetensors import safe_open
        with safe_open(pathlib.Path(folder) / "model.safetensors", "pt") as saved:
            assert set(saved.keys()) == set(weights), set(saved.keys()) ^ set(weights)

    ids = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True)["input_ids"]
    pixels = [pixel_values(picture(*size)) for size in SIDES]
    out = model(input_ids=torch.tensor(ids), pixel_values=torch.cat([values for values, _ in pixels]))
    # The same in f64: the reference's own rounding must be far below what the test allows.
    exact = model.double()(input_ids=torch.tensor(ids), pixel_values=torch.cat([v for v, _ in pixels]).double())
    cosine = lambda a, b: float(torch.nn.functional.cosine_similarity(a.double(), b, dim=-1).min())
    print("f32 against f64", 1 - cosine(out.text_embeds, exact.text_embeds), 1 - cosine(out.image_embeds, exact.image_embeds))
    spread = lambda x: [round(float(v), 3) for v in (torch.triu(x @ x.T, 1)[torch.triu(torch.ones(len(x), len(x)), 1) > 0]).quantile(torch.tensor([0.0, 0.5, 1.0]))]
    print("similarities among texts", spread(out.text_embeds), "among images", spread(out.image_embeds))
    tensors = dict(texts=out.text_embeds, images=out.image_embeds, logits=out.logits_per_image)
    tensors["sampled_0"] = pixels[0][1][::9].contiguous()
    tensors["sampled_2"] = pixels[2][1][::9].contiguous()
    tensors["sampled_3"] = pixels[3][1][::9].contiguous()
    save_file({k: v.contiguous() for k, v in tensors.items()}, arguments.fixtures / "medsiglip.safetensors")
    (arguments.fixtures / "medsiglip.safetensors").chmod(0o644)
    facts = dict(texts=[dict(text=t, ids=i) for t, i in zip(TEXTS, ids)], pictures=SIDES, row_step=9)
    (arguments.fixtures / "medsiglip.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
