"""What the trained folders can do on held-out phantoms, measured on the files as written, in f32."""

import json
import re
import time

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Gemma3ForConditionalGeneration, SiglipModel

from demo_data import END, first_records
from demo_model import hidden_states, project
from demo_words import LABELS, NAMES, SIDED, SLOTS, slot_name, slots_of

BARS = dict(report_macro_f1=0.85, laterality=0.95, yes_no=0.92, iou=0.5, zero_shot_auc=0.85)
BATCH = 256
BOX_TOKENS, SHORT_TOKENS = 128, 12
MENTIONS = {
    "cardiomegaly": r"cardiomegaly|enlarged heart|heart[a-z ]* enlarged|enlarged cardiac|cardiac enlargement",
    "pleural_effusion": r"effusion",
    "pneumothorax": r"pneumothora",
    "consolidation": r"consolidation",
    "nodule": r"nodule",
    "atelectasis": r"atelectasis",
    "oedema": r"o?edema",
    "support_device": r"endotracheal tube|catheter|pacemaker|support device|central line",
    "fracture": r"fracture",
}
NEGATION = re.compile(r"\b(no|not|without|free of|absent|resolved|neither|nor|negative)\b")


def mentioned(report):
    """(label, side or None) of every finding that the text affirms."""
    out = set()
    for part in re.split(r"[.;\n]|, (?=no\b|without\b)|\bbut\b", report.lower()):
        if NEGATION.search(part):
            continue
        for item in re.split(r",|\band\b", part):
            sides = {side for side in ("left", "right") if re.search(rf"\b{side}\b", item)}
            if re.search(r"\b(bilateral|both)\b", item):
                sides = {"left", "right"}
            for label, pattern in MENTIONS.items():
                if re.search(pattern, item):
                    out |= {(label, side) for side in sides or {None}}
    return out


@torch.no_grad()
def generate(model, prompts, features, tokens_max, ends):
    """Greedy continuations of prompts (lists of ids), each by whole forwards; also the smallest lead of a chosen token.

    features [prompts, images per prompt * tokens, hidden].
    """
    device = features.device
    out, leads = [], []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first:first + BATCH]
        length = torch.tensor([len(ids) for ids in some], device=device)
        ids = torch.zeros(len(some), int(length.max()) + tokens_max, dtype=torch.long, device=device)
        for row, prompt in enumerate(some):
            ids[row, :len(prompt)] = torch.tensor(prompt, device=device)
        start, done, rows = length.clone(), torch.zeros_like(length, dtype=torch.bool), torch.arange(len(some), device=device)
        lead = torch.full((len(some),), 1e9, device=device)
        for _ in range(tokens_max):
            states = hidden_states(model, ids[:, :int(length.max())], features[first:first + BATCH])
            best = model.lm_head(states[rows, length - 1]).float().topk(2)
            lead = torch.where(done, lead, torch.minimum(lead, best.values[:, 0] - best.values[:, 1]))
            token = best.indices[:, 0]
            ids[rows[~done], length[~done]] = token[~done]
            length = length + (~done).long()
            done = done | torch.isin(token, ends)
            if bool(done.all()):
                break
        out += [row[a:b].tolist() for row, a, b in zip(ids.cpu(), start.tolist(), length.tolist())]
        leads += lead.tolist()
    return out, leads


def colour(pixels):
    """Grey pictures [n, S, S] as the models' own forward takes them, [n, 3, S, S]."""
    return pixels[:, None].expand(-1, 3, -1, -1)


@torch.no_grad()
def features_of(model, records, index):
    """Soft tokens [n, tokens, hidden] of pictures by index."""
    parts = []
    for some in torch.as_tensor(index, device=records.device).split(BATCH):
        vision = model.model.vision_tower(pixel_values=colour(records.pixels(some))).last_hidden_state
        parts.append(project(model, vision)[1])
    return torch.cat(parts)


def overlap(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0) * max(width, 0)
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    return both / max(area(a) + area(b) - both, 1e-9)


def boxes_in(text):
    try:
        return [found["box_2d"] for found in json.loads(text) if len(found["box_2d"]) == 4]
    except (ValueError, TypeError, KeyError):
        return []


def auc(scores, positive):
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1.0
    n, m = int(positive.sum()), int((~positive).sum())
    return (order[positive].sum() - n * (n + 1) / 2) / (n * m) if n and m else None


class Asker:
    """Puts one task's questions about records to the model."""

    def __init__(self, model, records, coder, prompts):
        self.model, self.records, self.coder, self.prompts = model, records, coder, prompts
        self.ends = torch.tensor([coder.end, coder.tokenizer.token_to_id("<eos>")], device=records.device)

    def ids(self, task, images=1, **words):
        return self.coder.tokenizer.encode(self.prompts.text(task, images, **words), add_special_tokens=False).ids

    def texts(self, prompts, features, tokens_max):
        tokens, leads = generate(self.model, prompts, features, tokens_max, self.ends)
        return [self.coder.tokenizer.decode(row, skip_special_tokens=True) for row in tokens], tokens, leads


def report_scores(texts, records):
    counts = {label: [0, 0, 0] for label in LABELS}
    right = named = 0
    for text, record in zip(texts, records):
        found = mentioned(text)
        sides = {(f["label"], SLOTS[s][1]) for f in record["findings"] for s in slots_of(f["label"], f["side"])}
        for label in LABELS:
            said, true = any(name == label for name, _ in found), bool(record["labels"][label])
            counts[label][0] += said and true
            counts[label][1] += said and not true
            counts[label][2] += true and not said
        for label, side in found:
            if label in SIDED and record["labels"][label]:
                named += 1
                right += (label, side) in sides
    f1 = {label: 2 * tp / max(2 * tp + fp + fn, 1) for label, (tp, fp, fn) in counts.items()}
    return f1, right / max(named, 1)


def evaluate_demo(folder, held, coder, prompts, records, options, log):
    began = time.time()
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    model = model.to(held.device).eval()
    asker = Asker(model, held, coder, prompts)
    records = records[:options.held_records]
    images = features_of(model, held, list(range(len(records))))
    out = dict(records=len(records))

    texts, _, _ = asker.texts([asker.ids("report")] * len(records), images, options.tokens_max)
    f1, out["laterality"] = report_scores(texts, records)
    out["report_f1"], out["report_macro_f1"] = f1, sum(f1.values()) / len(f1)
    out["own_reports_f1"] = report_scores([r["report"] for r in records], records)[0]
    out["report_form"] = sum(t.startswith("Findings:") and "\nImpression:" in t for t in texts) / len(texts)
    log(f"reports {time.time() - began:.1f} s")

    asks = [(i, "answer", dict(question=q["question"]), q["answer"]) for i, r in enumerate(records) for q in r["questions"]]
    answered, _, _ = asker.texts([asker.ids(task, **words) for _, task, words, _ in asks], images[[a[0] for a in asks]], SHORT_TOKENS)
    right = [said.strip().lower() == a[3].strip().lower() for said, a in zip(answered, asks)]
    binary = [a[3].lower() in ("yes", "no") for a in asks]
    out["yes_no"] = sum(r for r, b in zip(right, binary) if b) / max(sum(binary), 1)
    out["short_answers"] = sum(r for r, b in zip(right, binary) if not b) / max(len(binary) - sum(binary), 1)
    log(f"questions {time.time() - began:.1f} s")

    asks = [(i, label, bool(r["labels"][label])) for i, r in enumerate(records) for label in LABELS]
    answered, _, _ = asker.texts([asker.ids("classify", label=NAMES[label][0]) for _, label, _ in asks], images[[a[0] for a in asks]], SHORT_TOKENS)
    right = [said == f"Final Answer: {'yes' if a[2] else 'no'}" for said, a in zip(answered, asks)]
    out["classify"] = sum(right) / len(right)
    kinds = [[r for r, a in zip(right, asks) if a[2] == kind] for kind in (True, False)]
    out["classify_balanced"] = sum(sum(k) / max(len(k), 1) for k in kinds) / 2
    log(f"labels {time.time() - began:.1f} s")

    finds = [(i, slot, f) for i, r in enumerate(records) for f in r["findings"] for slot in slots_of(f["label"], f["side"])]
    absent = [(i, s) for i, r in enumerate(records) for s in [(i * 7) % len(SLOTS)] if not r["labels"][SLOTS[s][0]]]
    asked = [asker.ids("localise", target=slot_name(f[1])) for f in [*finds, *absent]]
    texts, _, _ = asker.texts(asked, images[[f[0] for f in [*finds, *absent]]], min(BOX_TOKENS, options.tokens_max))
    found = [boxes_in(text) for text in texts]
    each = [max([overlap(box, f[2]["box"]) for box in boxes], default=0.0) for boxes, f in zip(found, finds)]
    out["iou"] = sum(each) / max(len(each), 1)
    out["iou_where_found"] = sum(each) / max(sum(bool(b) for b in found[:len(finds)]), 1)
    out["iou_of"] = {l: float(np.mean(v)) for l in LABELS if (v := [e for e, f in zip(each, finds) if f[2]["label"] == l])}
    out["empty_when_absent"] = sum(text == "[]" for text in texts[len(finds):]) / max(len(absent), 1)
    log(f"boxes {time.time() - began:.1f} s")
    return out, asker, images


@torch.no_grad()
def evaluate_pair(folder, held, coder, records):
    model = SiglipModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).to(held.device).eval()
    ids = torch.tensor([coder.caption(NAMES[label][0]) for label in LABELS], device=held.device)
    texts = F.normalize(model.text_model(input_ids=ids).pooler_output, dim=-1)
    parts = []
    for some in torch.arange(len(records), device=held.device).split(BATCH):
        parts.append(F.normalize(model.vision_model(pixel_values=colour(held.pixels(some))).pooler_output, dim=-1) @ texts.T)
    scores = torch.cat(parts).cpu().numpy()
    true = np.array([[r["labels"][label] for label in LABELS] for r in records], bool)
    each = {label: auc(scores[:, i], true[:, i]) for i, label in enumerate(LABELS)}
    known = [value for value in each.values() if value is not None]
    return dict(zero_shot_auc=sum(known) / max(len(known), 1), zero_shot_auc_of=each)


def write_reference(folder, asker, images, records, options):
    """Greedy texts of held-out records and the pictures they are of, for comparison with another implementation."""
    held, cases = asker.records, []
    pictures = {}
    picture = lambda i: pictures.setdefault(i, len(pictures))
    for i, record in enumerate(records[:options.references]):
        add = lambda task, index, **words: cases.append(dict(task=task, words=words, records=index, images=[picture(k) for k in index],
                                                             prompt=asker.ids(task, len(index), **words)))
        add("report", [i])
        add("answer", [i], question=record["questions"][0]["question"])
        name = NAMES[LABELS[i % len(LABELS)]][0]
        add("classify", [i], label=name)
        first = record["findings"][0] if record["findings"] else None
        add("localise", [i], target=slot_name(slots_of(first["label"], first["side"])[0]) if first else name)
        if record.get("prior") and record["prior"]["index"] < len(images):
            add("compare", [record["prior"]["index"], i])
    for many in (1, 2):
        some = [case for case in cases if len(case["records"]) == many]
        if some:
            features = torch.stack([torch.cat([images[k] for k in case["records"]]) for case in some])
            texts, tokens, leads = asker.texts([case["prompt"] for case in some], features, options.tokens_max)
            for case, text, row, lead in zip(some, texts, tokens, leads):
                case.update(text=text, greedy=row, lead=lead)
    (folder / "reference.u8").write_bytes(b"".join(held.images[i].cpu().numpy().tobytes() for i in pictures))
    (folder / "reference.json").write_text(json.dumps(dict(pictures=len(pictures), cases=cases)) + "\n")
    return cases


@torch.no_grad()
def check_generate(asker, cases, tokens_max):
    """The library's own generate, with its cache, says the same as the whole forwards did."""
    for case in cases:
        ids = torch.tensor([case["prompt"]], device=asker.records.device)
        pixels = colour(asker.records.pixels(torch.tensor(case["records"], device=ids.device)))
        soft = asker.model.config.image_token_id
        out = asker.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=(ids == soft).long(),
                                   pixel_values=pixels, do_sample=False, max_new_tokens=tokens_max)
        said = out[0, ids.shape[1]:].tolist()
        if said != case["greedy"]:
            return f"differs on {case['task']} of {case['records']}, lead {case['lead']:.1e}"
    return "same"


def table(out):
    rows = [f"{name:18} {out[name]:.3f}  bar {bar}  {'met' if out[name] >= bar else 'MISSED'}" for name, bar in BARS.items() if name in out]
    more = ["report_form", "short_answers", "classify", "classify_balanced", "iou_where_found", "empty_when_absent"]
    return "\n".join(rows + [f"{name:18} {out[name]:.3f}" for name in more if name in out])
