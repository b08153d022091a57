"""Trains the phantom demo: a small MedGemma and a small MedSigLIP on synthetic chest pictures. Not for clinical use.

First both vision towers learn to see, contrastively with reports and short phrases (SigLIP's loss); then the language
model learns reports, answers, boxes and comparisons, with loss on answers only. In both steps an auxiliary head that is
dropped at the end says of each image token which findings cover it. Steps are as many as the seconds allow.

Run from the repository root; see README.md beside this file.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import time

BEGAN = time.time()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.nn import functional as F

import demo_eval
from demo_data import Coder, Records, build_sentencepiece, build_tokenizer, caption_tables, first_records, parse_set
from demo_model import (PAIR_TEXT, PAIR_VISION, TEXT, TOKENS_PER_IMAGE, VISION, Dense, build_demo, build_pair, check_forward, demo_config,
                        fast_norms, hidden_states, pair_config, project, save_demo, save_pair, siglip_loss)
from demo_words import Prompts, targets

ROOT = pathlib.Path(__file__).resolve().parents[2]

TOKENIZER_RECORDS = 20_000
WEIGHTS = dict(report=1.0, ask=1.5, find=1.0, compare=0.5)


def log(text):
    print(f"[{time.time() - BEGAN:6.1f} s] {text}", flush=True)


def flags():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=pathlib.Path, required=True, help="raw set to train on")
    a.add_argument("--held", type=pathlib.Path, required=True, help="raw set held out")
    a.add_argument("--out", type=pathlib.Path, required=True, help="gets demo/, pair/, eval.json, reference.json, state.pt")
    a.add_argument("--prompts", type=pathlib.Path, default=ROOT / "crates/engine/prompts/2.toml")
    a.add_argument("--seconds", type=float, default=300, help="for everything, from the start of the program")
    a.add_argument("--reserve", type=float, default=50, help="of these, kept for evaluation")
    a.add_argument("--look", type=float, default=0.32, help="share of the training time for the contrastive step")
    a.add_argument("--look-batch", type=int, default=512)
    a.add_argument("--batch", type=int, default=256)
    a.add_argument("--look-rate", type=float, default=1e-3)
    a.add_argument("--rate", type=float, default=1.2e-3)
    a.add_argument("--tower-rate", type=float, default=0.5, help="the vision tower's share of --rate in the second step")
    a.add_argument("--auxiliary", type=float, default=0.5, help="weight of the auxiliary head in the second step")
    a.add_argument("--save-every", type=float, default=60, help="seconds between intermediate states")
    a.add_argument("--workers", type=int, default=os.cpu_count())
    a.add_argument("--held-records", type=int, default=300)
    a.add_argument("--references", type=int, default=20)
    a.add_argument("--tokens-max", type=int, default=200, help="of a generated answer")
    a.add_argument("--layers", type=int, help="of every tower, for tries on a CPU")
    a.add_argument("--autocast", action="store_true", help="bf16 on a CPU too, as a try of the other path")
    a.add_argument("--threads", type=int, default=0)
    a.add_argument("--compile", action="store_true", help="compile the layers; untried on this architecture's masks")
    a.add_argument("--resume", action="store_true", help="go on from --out/state.pt")
    a.add_argument("--start", type=pathlib.Path, help="begin from the demo/ and pair/ of an earlier --out")
    a.add_argument("--evaluate", action="store_true", help="only evaluate what --out holds")
    return a.parse_args()


class Schedule:
    """Learning rate by the share of a step's seconds that has passed: warm-up, then cosine."""

    def __init__(self, optimizer, seconds, used=0.0):
        self.optimizer, self.seconds, self.used, self.steps = optimizer, max(seconds, 1e-3), used, 0
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.last = time.time()

    def go(self):
        now = time.time()
        self.used += now - self.last
        self.last = now
        share = self.used / self.seconds
        if share >= 1:
            return False
        factor = min(share / 0.03, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        # The very first steps by their number: a share of a long run may not be that small.
        factor *= min((self.steps + 1) / 50, 1.0)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.steps += 1
        return True


def optimizer_of(groups, cuda):
    """AdamW, decay on matrices only; groups: (parameters, rate)."""
    lists = []
    for parameters, rate in groups:
        parameters = [p for p in parameters if p.requires_grad]
        lists.append(dict(params=[p for p in parameters if p.dim() >= 2], lr=rate, weight_decay=0.05))
        lists.append(dict(params=[p for p in parameters if p.dim() < 2], lr=rate, weight_decay=0.0))
    return torch.optim.AdamW(lists, betas=(0.9, 0.98), eps=1e-8, fused=cuda)


class Trainer:
    def __init__(self, options, records, coder, spiece, config):
        self.options, self.records, self.coder, self.spiece, self.config = options, records, coder, spiece, config
        self.device = records.device
        self.cuda = self.device.type == "cuda"
        self.state = dict(look=0.0, write=0.0)  # seconds used
        vocab = coder.siglip.vocab_size() + 4
        self.configs = dict(pair=pair_config(PAIR_VISION, vocab), wide=pair_config(VISION, vocab))
        modules = dict(pair=build_pair(self.configs["pair"]), wide=build_pair(self.configs["wide"]), demo=build_demo(config),
                       pair_dense=Dense(PAIR_VISION["hidden_size"]), dense=Dense(VISION["hidden_size"]))
        self.modules = {name: module.to(self.device).train() for name, module in modules.items()}
        self.phrases = caption_tables(coder, self.device)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda or self.options.autocast)

    def truth(self, index, moved=None):
        r = self.records
        box = r.box[index]
        if moved is not None:
            box = (box + moved.repeat(1, 2)[:, None]).clamp(0, 1)
        return box, r.present[index], r.size[index], r.zone[index]

    def save_state(self):
        part = self.options.out / "state.part"
        torch.save(dict(state=self.state, optimizer=self.optimizer.state_dict(),
                        modules={name: m.state_dict() for name, m in self.modules.items()}), part)
        part.rename(self.options.out / "state.pt")
        save_demo(self.options.out / "demo", self.modules["demo"], self.coder.tokenizer, self.config)
        save_pair(self.options.out / "pair", self.modules["pair"], self.spiece, self.configs["pair"])

    def load_state(self):
        saved = torch.load(self.options.out / "state.pt", map_location=self.device)
        self.state = saved["state"]
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
        return saved["optimizer"]

    def load_folders(self, folder):
        demo = type(self.modules["demo"]).from_pretrained(folder / "demo", dtype=torch.float32)
        self.modules["demo"].load_state_dict(demo.state_dict())
        pair = type(self.modules["pair"]).from_pretrained(folder / "pair", dtype=torch.float32)
        self.modules["pair"].load_state_dict(pair.state_dict())
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

    def run(self, step, seconds, loss_of, optimizer, before=None):
        self.optimizer = optimizer
        if before:
            rates = [group["lr"] for group in optimizer.param_groups]  # the saved ones are in mid-schedule
            optimizer.load_state_dict(before)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate
        schedule = Schedule(optimizer, seconds, self.state[step])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sums, shown, saved, began = {}, time.time(), time.time(), time.time()
        while schedule.go():
            losses = loss_of()
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.state[step] = schedule.used
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach()
            sums["steps"] = sums.get("steps", 0) + 1
            if schedule.steps in (1, 10, 50) or time.time() - shown > 10:
                steps, shown = sums.pop("steps"), time.time()
                mean = "  ".join(f"{name} {float(value) / steps:.3f}" for name, value in sums.items())
                log(f"{step} step {schedule.steps}, {schedule.steps / (time.time() - began):.2f} a second: {mean}")
                assert all(math.isfinite(float(value)) for value in sums.values()), "the loss is not finite"
                sums = {}
            if time.time() - saved > self.options.save_every:
                self.save_state()
                saved = time.time()
        # The step is over even where the clock says a little less.
        self.state[step] = max(self.state[step], seconds)
        log(f"{step}: {schedule.steps} steps")

    def look_loss(self):
        r, losses = self.records, {}
        index = torch.randint(len(r), (self.options.look_batch,), device=self.device)
        pixels, moved = r.pixels(index, shift=4, noise=0.08)
        truth = self.truth(index, moved)
        present, captions = truth[1], r.caption[index].long()
        # A report fits every picture with the same findings.
        same = (present[:, None] == present[None]).all(-1)
        ids, mask, sign = self.phrases
        wording = torch.randint(ids.shape[1], (len(ids),), device=self.device)
        texts = torch.cat([captions, ids[torch.arange(len(ids), device=self.device), wording]])
        fits = (present[:, None] & mask).any(-1) == sign
        for name, dense in (("pair", "pair_dense"), ("wide", "dense")):
            model = self.modules[name]
            with self.autocast():
                seen = model.vision_model(pixel_values=pixels)
                read = model.text_model(input_ids=texts).pooler_output
                losses[dense] = self.modules[dense](seen.last_hidden_state, truth)
            many = len(captions)
            losses[name] = 0.2 * siglip_loss(model, seen.pooler_output, read[:many], same)
            losses[f"{name}_phrases"] = 0.2 * siglip_loss(model, seen.pooler_output, read[many:], fits)
        return losses

    def answer_loss(self, task, features, prompt, answer):
        ids, labels = self.records.sequences(task, prompt, answer)
        start = self.records.widths[task][0] - 1
        states = hidden_states(self.modules["demo"], ids, features)[:, start:-1]
        logits = self.modules["demo"].lm_head(states)
        return F.cross_entropy(logits.float().flatten(0, 1), labels[:, start + 1:].flatten(), ignore_index=-100)

    def write_loss(self):
        r, demo, n = self.records, self.modules["demo"], self.options.batch
        draw = lambda high, count: torch.randint(high, (count,), device=self.device)
        pairs = r.pairs[draw(len(r.pairs), n // 8)] if len(r.pairs) else r.pairs
        index = torch.cat([pairs, r.prior[pairs].long(), draw(len(r), n - 2 * len(pairs))])
        pixels, _ = r.pixels(index, noise=0.03)
        losses = {}
        with self.autocast():
            vision = demo.model.vision_tower(pixel_values=pixels).last_hidden_state
            pooled, soft = project(demo, vision)
            losses["dense"] = self.options.auxiliary * self.modules["dense"](pooled, self.truth(index))

            context = torch.tensor(r.contexts, device=self.device)[draw(len(r.contexts), n)]
            plain = torch.rand(n, device=self.device) < 0.85
            losses["report"] = self.answer_loss("report", soft, torch.where(plain, r.contexts[0], context), r.report[index])

            each = torch.arange(n, device=self.device).repeat(2)
            row, column = index[each], draw(r.ask.shape[1], 2 * n)
            losses["ask"] = self.answer_loss("ask", soft[each], r.ask[row, column], r.short[r.ask_answer[row, column]])

            # Pictures with something to find more often than those without.
            worth = r.present[index].any(1).float() + 0.25
            each = torch.multinomial(worth, n, replacement=True)
            row, column = index[each], draw(r.find.shape[1], n)
            losses["find"] = self.answer_loss("find", soft[each], r.find[row, column], r.find_answer[row, column])

            if len(pairs):
                both = torch.cat([soft[len(pairs):2 * len(pairs)], soft[:len(pairs)]], 1)
                prompt = torch.full_like(pairs, r.compare_prompt)
                losses["compare"] = self.answer_loss("compare", both, prompt, r.compare[pairs])
        return {name: loss * WEIGHTS.get(name, 1.0) for name, loss in losses.items()}

    def check(self):
        """One prompt of one picture, and one of two, through training's forward and the model's own."""
        r = self.records
        asks = [(r.contexts[0], 1)] + ([(r.compare_prompt, 2)] if len(r.pairs) else [])
        for prompt, images in asks:
            ids = r.prompts[prompt, :int(r.prompt_length[prompt])].long()[None]
            pixels, _ = r.pixels(torch.arange(images, device=self.device))
            log(f"training's forward against the model's: {check_forward(self.modules['demo'], ids, pixels):.1e}")

    def train(self):
        o, m = self.options, self.modules
        before = self.load_state() if o.resume and (o.out / "state.pt").exists() else None
        if o.start and before is None:
            self.load_folders(o.start)
        self.check()
        left = o.seconds - o.reserve - (time.time() - BEGAN)
        whole = max(left, 1.0) + sum(self.state.values())
        log(f"{left:.0f} s to train, {sum(self.state.values()):.0f} s trained already")
        begun = self.state["write"] > 0
        look = self.state["look"] if begun else o.look * whole
        write = whole - look
        if not begun and self.state["look"] < look:
            names = ("pair", "wide", "pair_dense", "dense")
            groups = [([p for name in names for p in m[name].parameters()], o.look_rate)]
            self.run("look", look, self.look_loss, optimizer_of(groups, self.cuda), before)
            before = None
            self.give_tower("wide", "demo")
        elif not begun:
            self.give_tower("wide", "demo")
            before = None
        tower = list(m["demo"].model.vision_tower.parameters())
        known = {id(p) for p in tower}
        rest = [p for p in m["demo"].parameters() if id(p) not in known] + list(m["dense"].parameters())
        optimizer = optimizer_of([(tower, o.rate * o.tower_rate), (rest, o.rate)], self.cuda)
        if o.compile:
            for layer in m["demo"].model.language_model.layers:
                layer.compile()
        self.run("write", write, self.write_loss, optimizer, before if begun else None)
        self.save_state()
        log("saved")


def evaluate(options, held, coder, prompts):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    records = first_records(options.held, 500)
    out, asker, images = demo_eval.evaluate_demo(options.out / "demo", held, coder, prompts, records, options, log)
    out.update(demo_eval.evaluate_pair(options.out / "pair", held, coder, records))
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
    """From the folders where they are there already, or else learnt from the set's first records."""
    for folder in filter(None, (options.out if options.resume or options.evaluate else None, options.start)):
        if (folder / "demo/tokenizer.json").exists():
            from tokenizers import Tokenizer
            return Tokenizer.from_file(str(folder / "demo/tokenizer.json")), (folder / "pair/spiece.model").read_bytes()
    records = first_records(options.data, TOKENIZER_RECORDS)
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
    return tokenizer, spiece


def main():
    options = flags()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    for sizes in (TEXT, VISION, PAIR_TEXT, PAIR_VISION) if options.layers else ():
        sizes["num_hidden_layers"] = options.layers
    torch.manual_seed(1)
    cuda = torch.cuda.device_count() > 0
    device = torch.device("cuda" if cuda else "cpu")
    prompts = Prompts(options.prompts, TOKENS_PER_IMAGE)
    tokenizer, spiece = make_coder(options)
    coder = Coder(tokenizer, spiece)
    coder.check([record["report"] for record in first_records(options.data, 50)])
    log(f"tokenizers: {tokenizer.get_vocab_size()} and {coder.siglip.vocab_size()} pieces")
    sets = {folder: parse_set(folder, coder, options.workers) for folder in
            ([options.held] if options.evaluate else [options.held, options.data])}
    log("records read")
    held = Records(options.held, sets[options.held], coder, prompts, device)
    if not options.evaluate:
        records = Records(options.data, sets[options.data], coder, prompts, device)
        log(f"{len(records)} records, {len(records.pairs)} with a prior, on {torch.cuda.get_device_name() if cuda else 'the CPU'}")
        fast_norms()
        config = demo_config(tokenizer)
        trainer = Trainer(options, records, coder, spiece, config)
        count = lambda name: sum(p.numel() for p in trainer.modules[name].parameters())
        log(f"parameters: demo {count('demo'):,}, pair {count('pair'):,}")
        trainer.train()
        del trainer, records
    evaluate(options, held, coder, prompts)
    log("done")


if __name__ == "__main__":
    sys.exit(main())
