"""The phantom demo's data: its two tokenizers, and the records of raw sets as padded tensors.

Everything is tokenised once, before training; a batch is then a few gathers on the device. Run as a program it tokenises
sets, so that training can take up one after the other while more are being made:

    python3 demo_data.py --coders deploy/demo SET...
"""

import argparse
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import re

import numpy as np
import sentencepiece
import torch
from torch.nn import functional as F
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from demo_words import (CONTEXTS, LABELS, SIZES, SLOTS, ZONES, canonical, phrases, slot_name, slots_of, targets, two_lines)
from tiny_tokenizer import BREAKS, FIRST, LAST, NOT_SPECIAL, SPACE, shape

PIECES = 560
SENTENCEPIECES = 400
SIGLIP_TOKENS = 64
ASKS, BOXES = 10, 4  # examples kept of each record
REPORT_MAX, BOX_MAX, COMPARE_MAX, SHORT_MAX = 64, 64, 40, 12
PICTURE, CELLS = 224, 16
# Tokens after the pictures, prompt and answer together, and how many of each kind are asked in one row.
ROOM = dict(report=112, ask=40, find=144, compare=112)
ASKED = dict(report=1, ask=6, find=2, compare=1)
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
        self.tokenizer, self.spiece, self.known, self.known_siglip = tokenizer, spiece, {}, {}
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
    """Rows of ids as one array, zeros behind them; a row that is too long has none at all, and so is never learnt in part."""
    out = np.zeros((len(rows), width), np.int16)
    for place, ids in enumerate(rows):
        if len(ids) <= width:
            out[place, :len(ids)] = ids
    return out


def truth(record):
    """[slots, 4] boxes in 0..1, and present, size, zone of each slot, and its cells as CELLS rows of bits."""
    box, cells = np.zeros((len(SLOTS), 4), np.float32), np.zeros((len(SLOTS), CELLS), np.uint16)
    size, zone = np.full(len(SLOTS), -1, np.int8), np.full(len(SLOTS), -1, np.int8)
    present = np.zeros(len(SLOTS), bool)
    for finding in record["findings"]:
        for slot in slots_of(finding["label"], finding["side"]):
            present[slot] = True
            box[slot], cells[slot] = np.array(finding["box"], np.float32) / 1000, finding["cells"]
            size[slot] = SIZES.index(finding["size"]) if finding.get("size") in SIZES else -1
            zone[slot] = ZONES.index(finding["zone"]) if finding.get("zone") in ZONES else -1
    return box, present, size, zone, cells.view(np.int16)


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
    rows = {name: [] for name in ("box", "present", "size", "zone", "cells", "report", "caption", "ask", "ask_answer", "find",
                                  "find_answer", "prior", "compare")}
    with open(path, "rb") as file:
        file.seek(start)
        lines = file.read(end - start).splitlines()
    for line in lines:
        record = json.loads(line)
        rng = random.Random(record["index"])
        box, present, size, zone, cells = truth(record)
        asks, finds = asked(record, present, rng), looked_for(box, present, rng)
        prior = record.get("prior")
        for name, value in dict(
            box=box, present=present, size=size, zone=zone, cells=cells, prior=prior["index"] if prior else -1,
            report=coder.answer(two_lines(record["report"])), caption=coder.caption(record["report"]),
            ask=[prompts.number(key) for key, _ in asks], ask_answer=[short.number(text) for _, text in asks],
            find=[prompts.number(key) for key, _ in finds],
            find_answer=padded([coder.answer(text) for _, text in finds], BOX_MAX),
            compare=coder.answer(prior["report"]) if prior else [],
        ).items():
            rows[name].append(value)
    rows["report"], rows["compare"] = padded(rows["report"], REPORT_MAX), padded(rows["compare"], COMPARE_MAX)
    return {name: np.array(value) for name, value in rows.items()}, list(prompts), list(short)


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
    jobs = [(path, a, b) for a, b in stretches(path, workers)]
    with multiprocessing.get_context("fork").Pool(workers, initializer=enter, initargs=(coder,)) as pool:
        return pool.map(parse, jobs, chunksize=1)


def coder_of(folder):
    """The tokenizers that lie in the folders of a trained demo and pair."""
    tokenizer = Tokenizer.from_file(str(folder / "phantom-demo/tokenizer.json"))
    return Coder(tokenizer, (folder / "phantom-siglip/spiece.model").read_bytes())


def seen_by(ids, soft):
    """[L, L] of one prompt [L]: causal, and the soft tokens of one picture see each other."""
    picture = (ids == soft).long()
    block = torch.where(picture == 1, torch.cumsum((picture.diff(prepend=picture.new_zeros(1)) == 1).long(), 0), 0)
    same = (block[:, None] == block[None]) & (block[:, None] > 0)
    return torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril() | same


class Records:
    """Raw sets on the device: images uint8 [n, S, S], truths, token ids; prompts of all tasks in one table.

    A row of a batch is a prompt's beginning, which all tasks share (system text and pictures), and after it one or more
    prompts with their answers, each in a room of its own and blind to the others.
    """

    def __init__(self, coder, prompts, device):
        self.coder, self.prompts, self.device = coder, prompts, device
        self.keys, self.short_keys, self.sets = Table(), Table(), set()
        self.contexts = [self.keys.number(("report", "context", context)) for context in ["", *CONTEXTS]]
        self.compare_prompt = self.keys.number(("compare", "context", ""))
        self.rows, self.images, self.tails, self.shorts = {}, None, [], []
        ids = self.ids("report", 1, "context", ""), self.ids("compare", 2, "context", "")
        self.soft, end = (coder.tokenizer.token_to_id(name) for name in ("<image_soft_token>", "<end_of_image>"))
        self.heads = {count: row[:len(row) - row[::-1].index(end)] for count, row in zip((1, 2), ids)}

    def __len__(self):
        return len(self.images)

    def ids(self, task, images, word, value):
        text = self.prompts.text(task, images, **{word: value})
        return self.coder.tokenizer.encode(text, add_special_tokens=False).ids

    def add(self, folder, parts):
        """Takes up a set that was parsed; its numbers of records are counted on from those before."""
        already = 0 if self.images is None else len(self)
        numbered = []
        for arrays, own_keys, own_short in parts:
            key = np.array([self.keys.number(key) for key in own_keys])
            text = np.array([self.short_keys.number(text) for text in own_short])
            prior = np.where(arrays["prior"] >= 0, arrays["prior"] + already, -1)
            numbered.append(dict(arrays, ask=key[arrays["ask"]], find=key[arrays["find"]], ask_answer=text[arrays["ask_answer"]],
                                 prior=prior))
        for name in numbered[0]:
            more = torch.from_numpy(np.concatenate([part[name] for part in numbered])).to(self.device)
            self.rows[name] = torch.cat([self.rows[name], more]) if name in self.rows else more
        images = np.memmap(folder / "images.u8", np.uint8, "r").reshape(-1, PICTURE, PICTURE)
        more = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(images), 8192):
            more[start:start + 8192] = torch.from_numpy(images[start:start + 8192].copy()).to(self.device)
        self.images = more if self.images is None else torch.cat([self.images, more])
        assert len(self.images) == len(self.rows["prior"]), "images.u8 and set.jsonl differ in length"
        for task, word, value in list(self.keys)[len(self.tails):]:
            images = 2 if task == "compare" else 1
            row, head = self.ids(task, images, word, value), self.heads[images]
            assert row[:len(head)] == head, f"the prompt of {task} begins otherwise"
            self.tails.append(row[len(head):])
        self.shorts += [self.coder.answer(text) for text in list(self.short_keys)[len(self.shorts):]]
        self.tail = torch.from_numpy(padded(self.tails, max(map(len, self.tails)))).to(self.device)
        self.tail_length = torch.tensor([len(row) for row in self.tails], device=self.device)
        self.short = torch.from_numpy(padded(self.shorts, SHORT_MAX)).to(self.device)
        # Where this record and its prior are both there.
        self.pairs = torch.nonzero((self.rows["prior"] >= 0) & (self.rows["prior"] < len(self)))[:, 0]
        self.sets.add(folder.name)

    def truth(self, index):
        return tuple(self.rows[name][index] for name in ("box", "present", "size", "zone", "cells"))

    def pixels(self, index, varied=False, window=None):
        """Grey [n, S, S] in [-1, 1]; varied: brightness and contrast a little, and smoothed as bringing a large film down does.

        With a window (tops [n], lefts [n], side), only that of each picture.

        The fleet's frames of films of 1024 columns are to pictures rendered at 224 pixels as if 0.4 of each pixel were the
        mean of its four neighbours (by least squares, on 200 of both).
        """
        if window is None:
            x = F.pad(self.images[index][:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0] / 127.5 - 1
        else:
            # With a pixel around it, where the picture has one.
            top, left, side = window
            around = torch.arange(-1, side + 1, device=self.device)
            rows, columns = ((start[:, None] + around).clamp(0, PICTURE - 1) for start in (top, left))
            x = self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]].float() / 127.5 - 1
        near, x = (x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]) / 4, x[:, 1:-1, 1:-1]
        if not varied:
            return x
        one = lambda low, high: torch.rand(len(index), 1, 1, device=self.device) * (high - low) + low
        x = x + one(0.25, 0.5) * (near - x)
        return (x * one(0.93, 1.07) + one(-0.06, 0.06)).clamp(-1, 1)

    def room(self, task, prompt, answer):
        """ids and labels [n, ROOM] of prompts by number [n] and answers' ids [n, length]; labels are -100 outside the answer."""
        length = self.tail_length[prompt][:, None]
        at = torch.arange(ROOM[task], device=self.device)[None]
        fits = (length + (answer != 0).sum(1, keepdim=True) <= ROOM[task]) & (answer[:, :1] != 0)
        asked = self.tail[prompt].long().gather(1, at.clamp(max=self.tail.shape[1] - 1).expand(len(prompt), -1))
        answered = answer.long().gather(1, (at - length).clamp(0, answer.shape[1] - 1))
        inside = (at >= length) & (at < length + (answer != 0).sum(1, keepdim=True)) & fits
        ids = torch.where(at < length, asked, torch.where(inside, answered, 0))
        return ids, torch.where(inside, answered, -100)

    def layout(self, images, tasks):
        """Of rows with these rooms: the head's ids [H]; the rooms as (count, width, what a place of one sees [width, seen]), the
        head first; each place's position [L]. The head is filled up with places that nothing else sees."""
        head = torch.tensor(self.heads[images], device=self.device)
        known = len(head)
        full = -(-known // 8) * 8  # attention kernels want masks of such a width
        mask = torch.eye(full, dtype=torch.bool, device=self.device)
        mask[:known, :known] = seen_by(head, self.soft)
        rooms, position = [(1, full, mask)], [torch.arange(full, device=self.device)]
        for task in tasks:
            width, count = ROOM[task], ASKED[task]
            shared = torch.arange(full, device=self.device).expand(width, -1) < known
            own = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
            rooms.append((count, width, torch.cat([shared, own], 1)))
            position.append(torch.arange(known, known + width, device=self.device).repeat(count))
        return F.pad(head, (0, full - known)), rooms, torch.cat(position)

    def batch(self, head, rooms):
        """ids and labels [n, L] of rows from their rooms [(ids, labels), …]."""
        n = len(rooms[0][0])
        ids = [head.expand(n, -1), *[ids for ids, _ in rooms]]
        labels = [head.new_full((n, len(head)), -100), *[labels for _, labels in rooms]]
        return torch.cat(ids, 1), torch.cat(labels, 1)


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


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--coders", type=pathlib.Path, required=True, help="folder with phantom-demo and phantom-siglip")
    a.add_argument("--workers", type=int, default=4)
    a.add_argument("sets", type=pathlib.Path, nargs="+")
    options = a.parse_args()
    coder = coder_of(options.coders)
    for folder in options.sets:
        part = folder / "parsed.part"
        part.write_bytes(pickle.dumps(parse_set(folder, coder, options.workers)))
        part.rename(folder / "parsed.pickle")


if __name__ == "__main__":
    main()
