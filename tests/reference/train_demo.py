"""Trains the phantom demo: a small MedGemma and a small MedSigLIP on synthetic chest pictures. Not for clinical use.

First both vision towers learn small findings from windows of patches (demo_near.py), then whole pictures, from where each finding
lies (an auxiliary head on every patch, dropped at the end) and contrastively with reports and short phrases (SigLIP's loss); then
the language model learns reports, answers, boxes and comparisons, with loss on answers only. Steps are as many as the seconds allow.

Sets are taken up as soon as demo_data.py has parsed them. Run from the repository root; see README.md beside this file.
"""

import argparse
import json
import math
import os
import pathlib
import pickle
import sys
import time

BEGAN = time.time()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.nn import functional as F

import demo_eval
from demo_data import ASKED, Coder, Records, build_sentencepiece, build_tokenizer, caption_tables, coder_of, first_records, parse_set
from demo_model import (PAIR_TEXT, PAIR_VISION, TEXT, TOKENS_PER_IMAGE, VISION, Dense, Muon, build_demo, build_pair, check_forward, compile_layers,
                        demo_config, embed, pair_config, project, read, rotations, save_demo, save_pair, see, siglip_loss,
                        speak)
from demo_near import Near
from demo_words import Prompts, targets

ROOT = pathlib.Path(__file__).resolve().parents[2]

TOKENIZER_RECORDS = 20_000
WEIGHTS = dict(report=1.0, ask=1.5, find=1.0, compare=0.5)
ROW = ("report", "ask", "find")


def log(text):
    print(f"[{time.time() - BEGAN:6.1f} s] {text}", flush=True)


def flags():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=pathlib.Path, required=True, help="folder of raw sets to train on, each parsed by demo_data.py")
    a.add_argument("--held", type=pathlib.Path, help="raw set held out, to evaluate on")
    a.add_argument("--out", type=pathlib.Path, required=True, help="gets phantom-demo/, phantom-siglip/, eval.json, reference.json")
    a.add_argument("--start", type=pathlib.Path, help="begin from the phantom-demo/ and phantom-siglip/ of an earlier --out")
    a.add_argument("--prompts", type=pathlib.Path, default=ROOT / "crates/engine/prompts/2.toml")
    a.add_argument("--seconds", type=float, default=300, help="for everything but evaluation, from the start of the program")
    a.add_argument("--near", type=float, default=0.1, help="share of the training time for windows over small findings alone")
    a.add_argument("--near-batch", type=int, default=3072, help="windows, also of each batch of whole pictures")
    a.add_argument("--near-weight", type=float, default=0.5, help="of windows beside whole pictures")
    a.add_argument("--look", type=float, default=0.45, help="share of the training time for whole pictures")
    a.add_argument("--look-batch", type=int, default=512)
    a.add_argument("--batch", type=int, default=192)
    a.add_argument("--pairs", type=int, default=24, help="pairs of pictures to compare, in each batch")
    a.add_argument("--rate", type=float, default=1e-3, help="of AdamW: embeddings, norms, biases, heads")
    a.add_argument("--matrix-rate", type=float, default=2e-3, help="of Muon: the layers' matrices")
    a.add_argument("--tower-rate", type=float, default=0.5, help="the vision tower's share of the rates in the last step")
    a.add_argument("--auxiliary", type=float, default=0.5, help="weight of the auxiliary head in the last step")
    a.add_argument("--save-every", type=float, default=100, help="seconds between savings")
    a.add_argument("--sets-max", type=int, default=99, help="wait for no more sets than these")
    a.add_argument("--held-records", type=int, default=300)
    a.add_argument("--references", type=int, default=20)
    a.add_argument("--tokens-max", type=int, default=200, help="of a generated answer")
    a.add_argument("--layers", type=int, help="of every tower, for tries on a CPU")
    a.add_argument("--half", action="store_true", help="bf16 on a CPU too, as a try of a GPU's path")
    a.add_argument("--plain", action="store_true", help="without compiling")
    a.add_argument("--issued", action="store_true", help="without recording steps")
    a.add_argument("--evaluate", action="store_true", help="only evaluate what --out holds, on --held")
    return a.parse_args()


class Schedule:
    """Rates by the share of a step's seconds that has passed: warm-up, then down to nothing in a straight line."""

    def __init__(self, optimizers, seconds):
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.rates = [float(group["lr"]) for group in self.groups]
        self.seconds, self.began, self.steps = max(seconds, 1e-3), time.time(), 0

    def go(self):
        share = (time.time() - self.began) / self.seconds
        if share >= 1:
            return False
        self.set(min((self.steps + 1) / 100, 1.0) * min(1.0, (1 - share) / 0.7))
        self.steps += 1
        return True

    def set(self, factor):
        for group, rate in zip(self.groups, self.rates):
            group["lr"].fill_(rate * factor)


class Step:
    """A step of training, and the sums of its losses.

    On a GPU it is recorded and played back: issuing its 3,000 kernels one by one takes twice as long as they do.
    """

    EAGER = 3  # steps before a record: whatever is made at first use is there then

    def __init__(self, loss_of, optimizers, recorded):
        self.loss_of, self.optimizers, self.recorded = loss_of, optimizers, recorded
        self.parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self.clipped = [p for group in optimizers[0].param_groups for p in group["params"]]
        self.sums, self.count, self.eager, self.graph = {}, 0, self.EAGER, None

    def forget(self):
        """Records moved: what was recorded would read where they were."""
        self.graph, self.eager = None, self.EAGER

    def go(self):
        if self.graph is None and self.eager == 0 and self.recorded:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
                self.once()
        if self.graph is None:
            self.eager = max(self.eager - 1, 0)
            self.once()
        else:
            self.graph.replay()
        self.count += 1
        if self.recorded:
            # Not ahead of the clock, which the rates go by.
            torch.cuda.current_stream().synchronize()

    def once(self):
        for p in self.parameters:
            p.grad = None
        losses = self.loss_of()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.clipped, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        for name, loss in losses.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=loss.device)
            self.sums[name].add_(loss.detach())

    def means(self):
        """Each loss since the last time."""
        means = {name: float(value) / max(self.count, 1) for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        self.count = 0
        return means


def optimizers_of(parts, options, cuda):
    """Muon for the layers' matrices, AdamW for the rest; parts: (module, share of the rates)."""
    matrices, rest = {}, []
    for module, share in parts:
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            if p.dim() == 2 and "layers." in name:
                matrices.setdefault(share, []).append(p)
            else:
                decay = 0.02 if p.dim() >= 2 else 0.0
                rest.append(dict(params=[p], lr=options.rate * share, weight_decay=decay))
    merged = {}
    for group in rest:
        merged.setdefault((group["lr"], group["weight_decay"]), []).extend(group["params"])
    # Rates on the device, where a recorded step reads them.
    at = lambda rate: torch.tensor(rate, device=next(parts[0][0].parameters()).device)
    rest = [dict(params=params, lr=at(rate), weight_decay=decay) for (rate, decay), params in merged.items()]
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), eps=1e-8, fused=cuda, capturable=cuda)
    return [adam, *[Muon(some, at(options.matrix_rate * share)) for share, some in matrices.items()]]


class Trainer:
    def __init__(self, options, records, coder, spiece, config):
        self.options, self.records, self.coder, self.spiece, self.config = options, records, coder, spiece, config
        self.device = records.device
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda or options.half else torch.float32
        vocab = coder.siglip.vocab_size() + 4
        self.configs = dict(pair=pair_config(PAIR_VISION, vocab), wide=pair_config(VISION, vocab))
        modules = dict(pair=build_pair(self.configs["pair"]), wide=build_pair(self.configs["wide"]), demo=build_demo(config),
                       pair_dense=Dense(PAIR_VISION["hidden_size"]), dense=Dense(VISION["hidden_size"]))
        self.modules = {name: module.to(self.device).train() for name, module in modules.items()}
        self.near, self.phrases = None, caption_tables(coder, self.device)
        self.contexts = torch.tensor(records.contexts, device=self.device)
        self.layouts = {}
        for images, tasks in ((1, ROW), (2, ("compare",))):
            head, rooms, position = records.layout(images, tasks)
            places = torch.nonzero(head == records.soft)[:, 0]
            self.layouts[images] = head, rooms, places, rotations(self.modules["demo"], position)

    def save(self):
        save_demo(self.options.out / "phantom-demo", self.modules["demo"], self.coder.tokenizer, self.config)
        save_pair(self.options.out / "phantom-siglip", self.modules["pair"], self.spiece, self.configs["pair"])

    def load(self, folder):
        for name, where in (("demo", "phantom-demo"), ("pair", "phantom-siglip")):
            model = type(self.modules[name]).from_pretrained(folder / where, dtype=torch.float32)
            self.modules[name].load_state_dict(model.state_dict())
        self.give_tower("demo", "wide")

    def give_tower(self, giver, taker):
        """The vision tower of the contrastive model to the demo, or back."""
        tower = lambda name: self.modules[name].model.vision_tower if name == "demo" else self.modules[name].vision_model
        bare = lambda name: name.removeprefix("vision_model.")
        given = {bare(name): p for name, p in tower(giver).state_dict().items()}
        with torch.no_grad():
            for name, p in tower(taker).named_parameters():
                if not bare(name).startswith("head."):
                    p.copy_(given[bare(name)])

    def take_up(self):
        """The sets that have come since, up to what is wanted; whether there were any."""
        before = len(self.records.sets)
        for path in sorted(self.options.data.glob("*/parsed.pickle")):
            if path.parent.name not in self.records.sets and len(self.records.sets) < self.options.sets_max:
                self.records.add(path.parent, pickle.loads(path.read_bytes()))
                log(f"{len(self.records)} records, {len(self.records.pairs)} with a prior")
        return len(self.records.sets) > before

    def run(self, name, seconds, loss_of, parts):
        until = time.time() + seconds
        optimizers = optimizers_of(parts, self.options, self.cuda)
        schedule = Schedule(optimizers, 0)
        step = Step(loss_of, optimizers, self.cuda and not self.options.issued)
        # Compiled and recorded at a rate of nothing, so that the schedule is of steps alone.
        schedule.set(0.0)
        for _ in range(step.EAGER + 1):
            step.go()
        step.means()
        schedule.seconds, schedule.began = max(until - time.time(), 1e-3), time.time()
        shown = saved = time.time()
        log(f"{name}: compiled, {schedule.seconds:.0f} s to go")
        while schedule.go():
            step.go()
            if schedule.steps in (1, 10, 50) or time.time() - shown > 10:
                shown, means = time.time(), step.means()
                said = "  ".join(f"{loss} {mean:.3f}" for loss, mean in means.items())
                log(f"{name} step {schedule.steps}, {schedule.steps / (shown - schedule.began):.2f} a second: {said}")
                assert all(math.isfinite(mean) for mean in means.values()), "the loss is not finite"
                if self.take_up():
                    step.forget()
            if time.time() - saved > self.options.save_every:
                self.save()
                saved = time.time()
        log(f"{name}: {schedule.steps} steps")

    def draw(self, high, count):
        return torch.randint(high, (count,), device=self.device)

    def look_loss(self):
        r = self.records
        index = self.draw(len(r), self.options.look_batch)
        ids, _, _ = self.phrases
        wording = self.draw(ids.shape[1], len(ids))
        texts = torch.cat([r.rows["caption"][index].long(), ids[torch.arange(len(ids), device=self.device), wording]])
        losses = self.look_losses(r.pixels(index, varied=True).to(self.dtype), r.truth(index), texts)
        near = self.near.losses(self.options.near_batch, self.dtype)
        return losses | {name: self.options.near_weight * loss for name, loss in near.items()}

    def look_losses(self, pixels, truth, texts):
        losses, present = {}, truth[1]
        # A report fits every picture with the same findings.
        same = (present[:, None] == present[None]).all(-1)
        _, mask, sign = self.phrases
        fits = (present[:, None] & mask).any(-1) == sign
        for name, dense in (("pair", "pair_dense"), ("wide", "dense")):
            model = self.modules[name]
            seen = see(model.vision_model, pixels)
            losses[dense] = self.modules[dense](seen, truth)
            pooled = model.vision_model.head(seen.float())
            said = read(model.text_model, texts, self.dtype)
            many = len(pixels)
            losses[name] = 0.2 * siglip_loss(model, pooled, said[:many], same)
            losses[f"{name}_phrases"] = 0.2 * siglip_loss(model, pooled, said[many:], fits)
        return losses

    def features(self, pixels, truth):
        demo = self.modules["demo"]
        pooled, soft = project(demo, see(demo.model.vision_tower, pixels))
        return self.options.auxiliary * self.modules["dense"](pooled, truth), soft

    def token_losses(self, images, ids, labels, soft):
        """Each token's loss [n, L - head] of rows with so many pictures: 0 where nothing is answered."""
        demo, (head, rooms, places, turns) = self.modules["demo"], self.layouts[images]
        states = speak(demo, embed(demo, ids, soft, places), rooms, turns)
        start = len(head) - 1
        logits = F.linear(states[:, start:-1], demo.lm_head.weight.to(states.dtype)).float()
        each = F.cross_entropy(logits.flatten(0, 1), labels[:, start + 1:].flatten(), ignore_index=-100, reduction="none")
        return each.unflatten(0, (len(ids), -1))

    def rooms(self, index):
        """What is asked about each picture: its report, yes/no and short questions, boxes."""
        r, n = self.records, len(index)
        contexts = self.contexts
        context = torch.where(torch.rand(n, device=self.device) < 0.85, contexts[0], contexts[self.draw(len(contexts), n)])
        rooms = [r.room("report", context, r.rows["report"][index])]
        for task, answers in (("ask", lambda i, c: r.short[r.rows["ask_answer"][i, c]]), ("find", lambda i, c: r.rows["find_answer"][i, c])):
            # Different ones of each picture's.
            kept = r.rows[task].shape[1]
            columns = torch.rand(n, kept, device=self.device).argsort(1)[:, :ASKED[task]]
            rooms += [r.room(task, r.rows[task][index, column], answers(index, column)) for column in columns.unbind(1)]
        return rooms

    def write_loss(self):
        r, n, pairs = self.records, self.options.batch, self.options.pairs
        pair = r.pairs[self.draw(len(r.pairs), pairs)]
        index = torch.cat([pair, r.rows["prior"][pair].long(), self.draw(len(r), n - 2 * pairs)])
        losses = {}
        losses["dense"], soft = self.features(r.pixels(index, varied=True).to(self.dtype), r.truth(index))
        rooms = self.rooms(index)
        each = self.token_losses(1, *r.batch(self.layouts[1][0], rooms), soft)
        start = 0
        for task in ROW:
            width = sum(ids.shape[1] for ids, _ in rooms[:ASKED[task]])
            labels = torch.cat([labels for _, labels in rooms[:ASKED[task]]], 1)
            rooms = rooms[ASKED[task]:]
            # State k of the row says token k + 1, so that a room's tokens are those of its own columns.
            losses[task] = WEIGHTS[task] * each[:, start:start + width].sum() / (labels >= 0).sum().clamp(min=1)
            start += width
        prompt = torch.full_like(pair, r.compare_prompt)
        ids, labels = r.batch(self.layouts[2][0], [r.room("compare", prompt, r.rows["compare"][pair])])
        both = torch.cat([soft[pairs:2 * pairs], soft[:pairs]], 1)
        each = self.token_losses(2, ids, labels, both)
        losses["compare"] = WEIGHTS["compare"] * each.sum() / (labels >= 0).sum().clamp(min=1)
        return losses

    def check(self):
        """One prompt of one picture, and one of two, through training's forward and the model's own."""
        r = self.records
        for task, images in (("report", 1), ("compare", 2)):
            ids = torch.tensor([r.ids(task, images, "context", "")], device=self.device)
            distance = check_forward(self.modules["demo"], ids, r.pixels(torch.arange(images, device=self.device)))
            log(f"training's forward against the model's: {distance:.1e}")

    def train(self):
        o, m = self.options, self.modules
        if o.start:
            self.load(o.start)
        self.check()
        torch.backends.cuda.matmul.allow_tf32 = True
        if not o.plain:
            compile_layers()
        left = max(o.seconds - (time.time() - BEGAN), 2.0)
        log(f"{left:.0f} s to train")
        towers = {name: m[name].vision_model for name in ("pair", "wide")}
        self.near = Near(self.records, towers, keep=o.start is not None)
        heads = [(head, 1.0) for head in self.near.heads.values()]
        if o.near:
            parts = [*heads, *[(tower, 1.0) for tower in towers.values()]]
            self.run("near", o.near * left, lambda: self.near.losses(o.near_batch, self.dtype), parts)
        self.near.teachers = {}
        if o.look:
            parts = [(m[name], 1.0) for name in ("pair", "wide", "pair_dense", "dense")]
            self.run("look", o.look * left, self.look_loss, [*parts, *heads])
        self.give_tower("wide", "demo")
        self.save()
        tower = m["demo"].model.vision_tower
        rest = [m["demo"].model.language_model, m["demo"].model.multi_modal_projector, m["dense"]]
        left = o.seconds - (time.time() - BEGAN) - 3
        if left <= 0:
            return
        self.run("write", left, self.write_loss, [(tower, o.tower_rate), *[(part, 1.0) for part in rest]])
        self.save()
        log("saved")


def evaluate(options, held, coder, prompts):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    records = first_records(options.held, 500)
    out, asker, images = demo_eval.evaluate_demo(options.out / "phantom-demo", held, coder, prompts, records, options, log)
    out.update(demo_eval.evaluate_pair(options.out / "phantom-siglip", held, coder, records))
    write = lambda: (options.out / "eval.json").write_text(json.dumps(out, indent=1) + "\n")
    write()
    print(demo_eval.table(out), flush=True)
    print(json.dumps({name: out[name] for name in ("report_f1", "own_reports_f1", "iou_of", "zero_shot_auc_of")}), flush=True)
    cases = demo_eval.write_reference(options.out, asker, images, records, options)
    log("reference.json written")
    for case in cases[:5]:
        print(f"  {case['task']} {case['words']}: {case['text']!r}", flush=True)
    out["library_generate"] = demo_eval.check_generate(asker, [cases[0], cases[-1]], options.tokens_max)
    log(f"the library's generate: {out['library_generate']}")
    write()


def make_coder(options):
    """From the folders where they are there already, or else learnt from the sets' first records."""
    for folder in filter(None, (options.out if options.evaluate else None, options.start)):
        return coder_of(folder)
    records = [record for path in sorted(options.data.glob("*/set.jsonl")) for record in first_records(path.parent, TOKENIZER_RECORDS)]
    texts = [record["report"] for record in records] + [record["prior"]["report"] for record in records if record.get("prior")]
    target_texts = sorted({words for words, _ in targets()})
    asked = sorted({q["question"] for r in records for q in r["questions"]} | {q["answer"] for r in records for q in r["questions"]})
    prompts = Prompts(options.prompts, 0)
    fixed = [prompts.user(task, images, context="{context}") for task, images in
             (("report", 1), ("answer", 1), ("classify", 1), ("localise", 1), ("compare", 2))]
    fixed += ["user\nYou are an expert radiologist.", "model", "Final Answer: yes", "Final Answer: no",
              '[{"box_2d": [1, 2, 3, 4], "label": "left"}, {"box_2d": [1, 2, 3, 4], "label": "right"}]']
    tokenizer = build_tokenizer(texts + asked * 20 + (fixed + target_texts) * 200)
    spiece = build_sentencepiece(texts[:4000] + (target_texts + ["normal chest x-ray", "no acute finding", "a chest x-ray showing",
                                                                  "chest radiograph with", "there is", "without", "findings of"]) * 20)
    return Coder(tokenizer, spiece)


def main():
    options = flags()
    options.out.mkdir(parents=True, exist_ok=True)
    for sizes in (TEXT, VISION, PAIR_TEXT, PAIR_VISION) if options.layers else ():
        sizes["num_hidden_layers"] = options.layers
    torch.manual_seed(1)
    cuda = torch.cuda.device_count() > 0
    device = torch.device("cuda" if cuda else "cpu")
    prompts = Prompts(options.prompts, TOKENS_PER_IMAGE)
    coder = make_coder(options)
    if options.held:
        coder.check([record["report"] for record in first_records(options.held, 50)])
        parts = parse_set(options.held, coder, os.cpu_count())
    if not options.evaluate:
        records = Records(coder, prompts, device)
        config = demo_config(coder.tokenizer)
        while not list(options.data.glob("*/parsed.pickle")):
            time.sleep(1)
        first = sorted(options.data.glob("*/parsed.pickle"))[0]
        records.add(first.parent, pickle.loads(first.read_bytes()))
        log(f"{len(records)} records on {torch.cuda.get_device_name() if cuda else 'the CPU'}")
        trainer = Trainer(options, records, coder, coder.spiece, config)
        trainer.take_up()
        count = lambda name: sum(p.numel() for p in trainer.modules[name].parameters())
        log(f"parameters: demo {count('demo'):,}, pair {count('pair'):,}")
        # One stream for all, as recording wants it; the default one can't be recorded.
        stream = torch.cuda.Stream() if cuda else None
        with torch.cuda.stream(stream):
            if cuda:
                torch.cuda.synchronize()
            trainer.train()
        del trainer, records
    if options.held:
        held = Records(coder, prompts, device)
        held.add(options.held, parts)
        evaluate(options, held, coder, prompts)
    log("done")


if __name__ == "__main__":
    sys.exit(main())
