"""The phantom demo's data: its two tokenizers, and the records of a raw set as padded tensors.

Everything is tokenised once, in parallel, before training; a batch is then a few gathers on the device.
"""

import io
import json
import multiprocessing
import os
import random
import re

import numpy as np
import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from demo_words import (CONTEXTS, LABELS, SIZES, SLOTS, ZONES, canonical, phrases, slot_name, slots_of, targets, two_lines)
from tiny_tokenizer import BREAKS, FIRST, LAST, NOT_SPECIAL, SPACE, shape

PIECES = 560
SENTENCEPIECES = 400
SIGLIP_TOKENS = 64
ASKS, BOXES = 10, 4  # examples kept of each record
REPORT_MAX, BOX_MAX, COMPARE_MAX = 200, 128, 160
PICTURE = 224
TARGETS = [(words, slots, sum(1 << slot for slot in slots)) for words, slots in targets()]
WORDS = re.compile(r"\n+| ?[^ \n]+| ")
END = "<end_of_turn>"


def build_tokenizer(texts):
    """Gemma's kind, learnt from the texts; digits stay single, as in Gemma's own."""
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(SPACE, "merged_with_next"), pre_tokenizers.Digits(True)])
    alphabet = [chr(c) for c in range(33, 127)] + [SPACE]
    trainer = BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False)
    learner.train_from_iterator((line for text in texts for line in text.split("\n") if line), trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    entries = FIRST + BREAKS + [f"<0x{b:02X}>" for b in range(256)] + pieces + LAST
    vocab = {entry: i for i, entry in enumerate(entries)}
    assert len(vocab) == len(entries)
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = shape(Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=True, unk_token="<unk>", byte_fallback=True)))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in FIRST + LAST if t not in NOT_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in [*sorted(NOT_SPECIAL), *BREAKS]])
    return tokenizer


def build_sentencepiece(texts):
    """SigLIP's kind, as make_siglip.py makes it: the bytes of spiece.model."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([canonical(text) for text in texts]), model_writer=out, vocab_size=SENTENCEPIECES,
        model_type="unigram", normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, num_threads=1, minloglevel=2)
    return out.getvalue()


class Coder:
    """Both tokenizers with a memory of words: no piece spans a space, so words can be encoded one by one."""

    def __init__(self, tokenizer, spiece):
        self.tokenizer, self.known, self.known_siglip = tokenizer, {}, {}
        self.siglip = sentencepiece.SentencePieceProcessor(model_proto=spiece)
        self.end = tokenizer.token_to_id(END)

    def answer(self, text):
        """Ids of the text and of the end of the turn."""
        ids = []
        for word in WORDS.findall(text):
            if word not in self.known:
                self.known[word] = self.tokenizer.encode(word, add_special_tokens=False).ids
            ids += self.known[word]
        return [*ids, self.end]

    def caption(self, text):
        """SIGLIP_TOKENS ids: the text's, then the end token (1) and that again as padding."""
        ids = []
        for word in canonical(text).split():
            if word not in self.known_siglip:
                self.known_siglip[word] = self.siglip.encode(word)
            ids += self.known_siglip[word]
        ids = ids[:SIGLIP_TOKENS - 1]
        return ids + [1] * (SIGLIP_TOKENS - len(ids))

    def check(self, texts):
        for text in texts:
            whole = self.tokenizer.encode(text, add_special_tokens=False).ids
            assert self.answer(text)[:-1] == whole, text
            assert self.caption(text)[:8] == (self.siglip.encode(canonical(text)) + [1] * 8)[:8], text


class Table(dict):
    """Numbers for strings, in the order they came."""

    def number(self, text):
        return self.setdefault(text, len(self))


def padded(rows, width):
    out = np.zeros((len(rows), width), np.int16)
    for place, ids in enumerate(rows):
        ids = ids[:width]
        out[place, :len(ids)] = ids
    return out


def truth(record):
    """[slots, 4] boxes in 0..1, and present, size, zone of each slot."""
    box = np.zeros((len(SLOTS), 4), np.float32)
    size, zone = np.full(len(SLOTS), -1, np.int8), np.full(len(SLOTS), -1, np.int8)
    present = np.zeros(len(SLOTS), bool)
    for finding in record["findings"]:
        for slot in slots_of(finding["label"], finding["side"]):
            present[slot] = True
            box[slot] = np.array(finding["box"], np.float32) / 1000
            size[slot] = SIZES.index(finding["size"]) if finding.get("size") in SIZES else -1
            zone[slot] = ZONES.index(finding["zone"]) if finding.get("zone") in ZONES else -1
    return box, present, size, zone


def boxes_text(box, present, slots):
    """The answer's JSON, spaced as the constrained decoder has it."""
    found = [dict(box_2d=[round(float(v) * 1000) for v in box[slot]], label=slot_name(slot)) for slot in slots if present[slot]]
    return json.dumps(found)


def mask_of(present):
    return sum(1 << int(slot) for slot in np.flatnonzero(present))


def asked(record, present, rng):
    """(prompt key, answer) of yes/no and short questions."""
    out = [(("answer", "question", q["question"]), q["answer"]) for q in record["questions"][:ASKS - 4]]
    here = mask_of(present)
    positives = [t for t in TARGETS if t[2] & here]
    negatives = [t for t in TARGETS if not t[2] & here]
    named = {SLOTS[slot][0] for slot in np.flatnonzero(present)}
    hard = [t for t in negatives if SLOTS[t[1][0]][0] in named]
    while len(out) < ASKS:
        yes = positives and rng.random() < 0.45
        words, _, _ = rng.choice(positives if yes else hard if hard and rng.random() < 0.4 else negatives)
        out.append((("classify", "label", words), f"Final Answer: {'yes' if yes else 'no'}"))
    return out


def looked_for(box, present, rng):
    """(prompt key, answer) of boxes: each finding once, and one that is absent."""
    out = []
    for slot in np.flatnonzero(present):
        words, slots, _ = rng.choice([t for t in TARGETS if t[2] >> slot & 1])
        out.append((("localise", "target", words), boxes_text(box, present, slots)))
    here = mask_of(present)
    words, _, _ = rng.choice([t for t in TARGETS if not t[2] & here])
    out.append((("localise", "target", words), "[]"))
    rng.shuffle(out)
    return [out[i % len(out)] for i in range(BOXES)]


SHARED = {}  # what a worker got when it was forked


def enter(coder):
    SHARED["coder"] = coder


def parse(job):
    """Arrays of one stretch of set.jsonl."""
    path, start, end = job
    coder = SHARED["coder"]
    prompts, short = Table(), Table()
    rows = {name: [] for name in ("box", "present", "size", "zone", "report", "caption", "ask", "ask_answer", "find",
                                  "find_answer", "prior", "compare", "labels")}
    with open(path, "rb") as file:
        file.seek(start)
        lines = file.read(end - start).splitlines()
    for line in lines:
        record = json.loads(line)
        rng = random.Random(record["index"])
        box, present, size, zone = truth(record)
        asks, finds = asked(record, present, rng), looked_for(box, present, rng)
        prior = record.get("prior")
        for name, value in dict(
            box=box, present=present, size=size, zone=zone, prior=prior["index"] if prior else -1,
            labels=[record["labels"][label] for label in LABELS],
            report=coder.answer(two_lines(record["report"])), caption=coder.caption(record["report"]),
            ask=[prompts.number(key) for key, _ in asks], ask_answer=[short.number(text) for _, text in asks],
            find=[prompts.number(key) for key, _ in finds],
            find_answer=padded([coder.answer(text) for _, text in finds], BOX_MAX),
            compare=coder.answer(prior["report"]) if prior else [],
        ).items():
            rows[name].append(value)
    longest = [max(map(len, rows["report"])), max(map(len, rows["compare"]))]
    rows["report"], rows["compare"] = padded(rows["report"], REPORT_MAX), padded(rows["compare"], COMPARE_MAX)
    return {name: np.array(value) for name, value in rows.items()}, list(prompts), list(short), longest


def stretches(path, count):
    """Byte ranges of whole lines."""
    size = os.path.getsize(path)
    cuts = [0]
    with open(path, "rb") as file:
        for part in range(1, count):
            file.seek(max(size * part // count, cuts[-1]))
            file.readline()
            cuts.append(file.tell())
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], size]) if a < b]


def first_records(folder, count):
    with open(folder / "set.jsonl") as file:
        return [json.loads(line) for _, line in zip(range(count), file)]


def parse_set(folder, coder, workers):
    """All stretches of a set, in parallel; before the device is first used, because the workers are forks."""
    path = folder / "set.jsonl"
    jobs = [(path, a, b) for a, b in stretches(path, workers * 4)]
    with multiprocessing.get_context("fork").Pool(workers, initializer=enter, initargs=(coder,)) as pool:
        return pool.map(parse, jobs, chunksize=1)


class Records:
    """A raw set on the device: images uint8 [n, S, S], truths, token ids; prompts of all tasks in one table."""

    def __init__(self, folder, parts, coder, prompts, device):
        keys, short = Table(), Table()
        self.contexts = [keys.number(("report", "context", context)) for context in ["", *CONTEXTS]]
        self.compare_prompt = keys.number(("compare", "context", ""))
        numbered = []
        for arrays, own_keys, own_short, _ in parts:
            key = np.array([keys.number(key) for key in own_keys])
            text = np.array([short.number(text) for text in own_short])
            numbered.append(dict(arrays, ask=key[arrays["ask"]], find=key[arrays["find"]], ask_answer=text[arrays["ask_answer"]]))
        rows = {name: np.concatenate([part[name] for part in numbered]) for name in numbered[0]}
        for name in ("report", "compare", "find_answer"):
            used = int((rows[name] != 0).reshape(-1, rows[name].shape[-1]).any(0).sum())
            rows[name] = rows[name][..., :max(used, 1)]
        longest = np.array([part[3] for part in parts]).max(0)
        print("longest report, comparison", longest, "kept", rows["report"].shape[1], rows["compare"].shape[1],
              "boxes", rows["find_answer"].shape[-1], "prompts", len(keys), "short answers", len(short), flush=True)
        for name, value in rows.items():
            setattr(self, name, torch.from_numpy(value).to(device))
        texts = [prompts.text(task, 2 if task == "compare" else 1, **{word: value}) for task, word, value in keys]
        ids = [coder.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        self.prompt_length = torch.tensor([len(row) for row in ids], device=device)
        self.widths = {}  # shortest and longest prompt of each kind of batch
        for task, kinds in dict(report=["report"], ask=["answer", "classify"], find=["localise"], compare=["compare"]).items():
            lengths = [len(row) for row, key in zip(ids, keys) if key[0] in kinds]
            self.widths[task] = (min(lengths), max(lengths))
        self.prompts = torch.from_numpy(padded(ids, max(map(len, ids)))).to(device)
        answers = [coder.answer(text) for text in short]
        self.short = torch.from_numpy(padded(answers, max(map(len, answers)))).to(device)
        self.images = self.read_images(folder / "images.u8", device)
        # Where this record and its prior are both in the set.
        self.pairs = torch.nonzero((self.prior >= 0) & (self.prior < len(self.images)))[:, 0]
        self.device = device

    def read_images(self, path, device):
        images = np.memmap(path, np.uint8, "r").reshape(-1, PICTURE, PICTURE)
        assert len(images) == len(self.prior), "images.u8 and set.jsonl differ in length"
        out = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(images), 8192):
            out[start:start + 8192] = torch.from_numpy(images[start:start + 8192].copy()).to(device)
        return out

    def __len__(self):
        return len(self.images)

    def pixels(self, index, shift=0, noise=0.0):
        """[n, 3, S, S] in [-1, 1], and by how much each was shifted (y, x as shares of the side)."""
        x = self.images[index]
        moved = torch.zeros(len(index), 2, device=self.device)
        if shift:
            by = torch.randint(-shift, shift + 1, (len(index), 2), device=self.device)
            at = torch.arange(PICTURE, device=self.device)
            rows, columns = (at + by[:, :1]).clamp(0, PICTURE - 1), (at + by[:, 1:]).clamp(0, PICTURE - 1)
            x = x.gather(1, rows[:, :, None].expand_as(x)).gather(2, columns[:, None].expand_as(x))
            moved = -by / PICTURE
        x = x.float() / 127.5 - 1
        if noise:
            one = lambda low, high: torch.rand(len(index), 1, 1, device=self.device) * (high - low) + low
            x = (x * one(0.9, 1.1) + one(-0.1, 0.1) + torch.randn_like(x) * one(0.0, noise)).clamp(-1, 1)
        return x[:, None].expand(-1, 3, -1, -1), moved

    def sequences(self, task, prompt, answer):
        """ids and labels [n, L] of prompts by number and answers' ids; labels are -100 outside the answer."""
        length = self.prompt_length[prompt][:, None]
        widest = self.widths[task][1]
        whole = (widest + answer.shape[1] + 7) // 8 * 8  # attention kernels want masks of such a width
        at = torch.arange(whole, device=self.device)[None]
        asked = torch.nn.functional.pad(self.prompts[prompt, :widest].long(), (0, whole - widest))
        answered = answer.long().gather(1, (at - length).clamp(0, answer.shape[1] - 1))
        inside = (at >= length) & (at < length + (answer != 0).sum(1, keepdim=True))
        ids = torch.where(at < length, asked, torch.where(inside, answered, 0))
        return ids, torch.where(inside, answered, -100)


def caption_tables(coder, device):
    """Phrases as ids [phrases, wordings, SIGLIP_TOKENS], their slots as a mask [phrases, slots], and their sign."""
    all_phrases = phrases()
    most = max(len(texts) for texts, _, _ in all_phrases)
    ids = [[coder.caption(texts[i % len(texts)]) for i in range(most)] for texts, _, _ in all_phrases]
    mask = torch.zeros(len(all_phrases), len(SLOTS), dtype=torch.bool)
    for place, (_, slots, _) in enumerate(all_phrases):
        mask[place, slots] = True
    sign = torch.tensor([sign for _, _, sign in all_phrases])
    return torch.tensor(ids, device=device), mask.to(device), sign.to(device)
