"""Compares medfleet with transformers on a checkpoint of one's own, MedGemma's above all: one prompt through both, in f32 and bf16.

For who has the weights; nothing is stored. Every position of medfleet's greedy text is compared along that text, so that one near
tie does not hide what comes after it. Ends with 1 where a bar of docs/model.md is missed, and with 2 where nothing was compared.
From the repository's root, with what tests/reference/requirements.txt names installed:

    cargo build -p medfleet
    python tests/reference/check_medgemma.py FOLDER --image FILM.png --prompt "Describe this X-ray."

In f32 MedGemma 4B takes some 18 GB of memory, one program after the other.
"""

import argparse
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of docs/model.md and docs/model-formats.md: f32 on real weights, bf16 against the reference's own bf16.
DIFFERENCE_MAX = 1e-3  # of logits, in f32; where the two best are nearer than this, either may win
DIVERGENCE_MAX = 1e-3  # mean over positions, in nats
AGREEMENT_MIN = 0.99  # of positions where the reference's best token leads by more than this, in bf16
LEAD = 0.1
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def give_up(why):
    print(f"nothing was compared: {why}", file=sys.stderr)
    raise SystemExit(2)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def print_what_is_compared(options):
    said = subprocess.run([options.medfleet, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{said}, sha256 {digest(options.medfleet)}")
    print("  ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES), f" python {platform.python_version()}")
    files = sorted(path for path in options.folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors", ".model"))
    for path in [*files, *options.image]:
        print(f"sha256 {digest(path)}  {path.name}")


def read_logits(path):
    """The tensor `logits` [positions, vocab], f32, of a safetensors file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:begin])["logits"]
    assert entry["dtype"] == "F32", entry
    first, last = entry["data_offsets"]
    return np.frombuffer(data[begin + first:begin + last], "<f4").reshape(entry["shape"])


def medfleet(options, dtype):
    """What `infer` says, and its logits: of the last prompt position and of the generated tokens, all of them or all but the last."""
    with tempfile.TemporaryDirectory() as folder:
        logits = pathlib.Path(folder) / "logits.safetensors"
        command = [options.medfleet, "infer", "--model", options.folder, "--prompt", options.prompt, "--max-tokens", options.tokens,
                   "--dtype", dtype, "--device", options.device, "--json", "--dump-logits", logits]
        for image in options.image:
            command += ["--image", image]
        ran = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            give_up(f"medfleet ended with {ran.returncode}")
        said, rows = json.loads(ran.stdout), read_logits(logits)
    written = len(said["generated_tokens"])
    if not 0 < len(rows) <= written + 1 or len(rows) < written:
        give_up(f"medfleet wrote {written} tokens and {len(rows)} rows of logits")
    return said, rows


def chat_template(folder):
    """Of a folder whose tokenizer names none."""
    path = folder / "chat_template.json"
    return json.loads(path.read_text())["chat_template"] if path.is_file() else None


class Reference:
    """transformers on the same folder."""

    def __init__(self, options, dtype):
        import torch
        from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

        self.torch, self.device, self.images = torch, options.torch_device, options.image
        torch.set_grad_enabled(False)
        self.tokenizer = AutoTokenizer.from_pretrained(options.folder)
        self.template = None if self.tokenizer.chat_template else chat_template(options.folder)
        kind = dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]
        model, report = Gemma3ForConditionalGeneration.from_pretrained(
            options.folder, dtype=kind, attn_implementation="eager", output_loading_info=True)
        if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
            give_up(f"transformers does not find what it looks for: {report}")
        self.model = model.to(self.device).eval()
        self.soft = model.config.image_token_id

    def prompt(self, text):
        content = [dict(type="image") for _ in self.images] + [dict(type="text", text=text)]
        chat = self.tokenizer.apply_chat_template([dict(role="user", content=content)], chat_template=self.template,
                                                  tokenize=False, add_generation_prompt=True)
        soft = self.tokenizer.convert_ids_to_tokens(self.soft)
        block = "\n\n<start_of_image>" + soft * self.model.config.mm_tokens_per_image + "<end_of_image>\n\n"
        return self.tokenizer(chat.replace("<start_of_image>", block), add_special_tokens=False).input_ids

    def pixels(self):
        """[images, 3, S, S] in [-1, 1]: resized as Pillow does, which is what medfleet is held to."""
        from PIL import Image

        side = self.model.config.vision_config.image_size
        pictures = [Image.open(path).convert("RGB").resize((side, side), Image.BILINEAR) for path in self.images]
        x = self.torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32)) / 255.0
        return ((x - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous().to(self.device, self.model.dtype)

    def arguments(self, ids):
        tokens = self.torch.tensor([ids], device=self.device)
        images = dict(pixel_values=self.pixels()) if self.images else {}
        return dict(input_ids=tokens, token_type_ids=(tokens == self.soft).long(), **images)

    def logits(self, ids, rows):
        """[rows, vocab] of the last positions, by one whole forward without a cache."""
        out = self.model(**self.arguments(ids), use_cache=False, logits_to_keep=rows)
        return out.logits[0, -rows:].float().cpu().numpy()

    def greedy(self, prompt, count):
        """So many tokens by way of the reference's own cache."""
        out = self.model(**self.arguments(prompt), use_cache=True, logits_to_keep=1)
        tokens = []
        while True:
            tokens.append(int(out.logits[0, -1].argmax()))
            if len(tokens) == count:
                return tokens
            last = self.torch.tensor([tokens[-1:]], device=self.device)
            out = self.model(input_ids=last, past_key_values=out.past_key_values, use_cache=True)

    def text(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def log_softmax(row):
    x = row.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def compare(expected, found):
    """Of each position: divergence of the reference from what was found, largest difference, both best tokens, the reference's lead."""
    assert expected.shape == found.shape, (expected.shape, found.shape)
    out = []
    for p_row, q_row in zip(expected, found):
        p, q = log_softmax(p_row), log_softmax(q_row)
        second, first = np.partition(p_row, -2)[-2:]
        out.append(dict(kl=float((np.exp(p) * (p - q)).sum()), difference=float(np.abs(p_row - q_row).max()),
                        best=int(p_row.argmax()), found=int(q_row.argmax()), lead=float(first - second)))
    return out


def first_difference(a, b):
    """The first place at which two texts part, of as many tokens as the shorter has."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), None)


def missed(dtype, rows, parted):
    """The bars that are missed, in words."""
    out = []
    finite = all(np.isfinite([row["kl"], row["difference"]]).all() for row in rows)
    if not finite:
        out.append("logits that are no numbers")
    mean = sum(row["kl"] for row in rows) / len(rows)
    if mean > DIVERGENCE_MAX:
        out.append(f"mean KL {mean:.1e}, allowed {DIVERGENCE_MAX:.0e}")
    if dtype == "f32":
        worst = max(row["difference"] for row in rows)
        if worst > DIFFERENCE_MAX:
            out.append(f"largest difference of logits {worst:.1e}, allowed {DIFFERENCE_MAX:.0e}")
        if parted is not None and rows[parted]["lead"] > DIFFERENCE_MAX:
            out.append(f"greedy tokens part at {parted}, where the best leads by {rows[parted]['lead']:.1e}")
    else:
        clear = [row["best"] == row["found"] for row in rows if row["lead"] > LEAD]
        if clear and sum(clear) / len(clear) < AGREEMENT_MIN:
            out.append(f"best tokens agree at {sum(clear)} of {len(clear)} positions, allowed {AGREEMENT_MIN:.0%}")
    return out


def check(options, dtype):
    """Compares in one number type; whether every bar is met."""
    print(f"\n{dtype}")
    said, found = medfleet(options, dtype)
    prompt, written = said["prompt_tokens"], said["generated_tokens"]
    reference = Reference(options, dtype)
    own = reference.prompt(options.prompt)
    if own != prompt:
        print(f"  MISSED: the prompt has other ids, from place {first_difference(own, prompt)} on: {len(prompt)} tokens, reference {len(own)}")
        return False
    rows = compare(reference.logits(prompt + written[:len(found) - 1], len(found)), found)
    greedy = reference.greedy(prompt, len(written))
    parted = first_difference(greedy, written)

    print(f"  {len(prompt)} tokens of the prompt, {len(written)} written")
    print("  position  KL        largest   best    here    lead")
    for at, row in enumerate(rows):
        print(f"  {at:8}  {row['kl']:.2e}  {row['difference']:.2e}  {row['best']:6}  {row['found']:6}  {row['lead']:.2e}")
    kls = [row["kl"] for row in rows]
    print(f"  KL in nats: mean {sum(kls) / len(kls):.2e}, largest {max(kls):.2e} at {kls.index(max(kls))}")
    print(f"  greedy tokens: {'the same' if parted is None else f'part at {parted}'}")
    print(f"  medfleet:     {said['text']!r}")
    print(f"  transformers: {reference.text(greedy)!r}")
    failures = missed(dtype, rows, parted)
    for failure in failures:
        print(f"  MISSED: {failure}")
    return not failures


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=pathlib.Path, metavar="DIR", help="config.json, safetensors, tokenizer.json")
    arguments.add_argument("--image", type=pathlib.Path, action="append", default=[], metavar="FILE",
                           help="a square PNG or JPEG of 8 bits; repeat for several, in order")
    arguments.add_argument("--prompt", default="Describe this X-ray.", metavar="TEXT")
    arguments.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens to write at most (64)")
    arguments.add_argument("--dtype", choices=("f32", "bf16"), action="append", help="one alone; both without it")
    arguments.add_argument("--medfleet", type=pathlib.Path, default=ROOT / "target/debug/medfleet", metavar="FILE")
    arguments.add_argument("--device", default="cpu", help="where medfleet computes, as in its own --device (cpu)")
    arguments.add_argument("--torch-device", default="cpu", help="where transformers does (cpu)")
    options = arguments.parse_args()
    if options.tokens < 1:
        arguments.error("--tokens: at least 1")
    for path in [options.folder / "config.json", options.medfleet, *options.image]:
        if not path.is_file():
            arguments.error(f"{path} is not there")
    try:
        print_what_is_compared(options)
    except importlib.metadata.PackageNotFoundError as error:
        give_up(f"{error.name} is not installed: tests/reference/requirements.txt names it")
    met = [check(options, dtype) for dtype in options.dtype or ["f32", "bf16"]]
    print("\nevery bar is met" if all(met) else "\nMISSED: see above")
    raise SystemExit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
