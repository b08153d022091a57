"""Makes vectors.json: what scikit-learn, sacrebleu, rouge-score, RadGraph's reward code, coco-caption's BLEU (as RadEval
carries it) and SQuAD's token F1 give for fixed inputs. Run by hand:

    python3 -m venv venv && venv/bin/pip install scikit-learn==1.9.1 sacrebleu==2.6.0 rouge-score==0.1.2
    venv/bin/python tests/reference/make_score_vectors.py REWARDS_PY BLEU_SCORER_PY > crates/score/tests/vectors.json

REWARDS_PY: `radgraph/rewards.py` of Stanford-AIMI/radgraph@87f11a1. BLEU_SCORER_PY:
`radeval/metrics/bleu/bleu_scorer.py` of jbdel/RadEval@e0a3909. The graphs are random: annotated reports are patients'.
"""

import importlib.metadata
import importlib.util
import json
import random
import re
import string
import sys
from collections import Counter

import numpy
import sacrebleu
from rouge_score import rouge_scorer
from nltk.stem.porter import PorterStemmer
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, roc_auc_score


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


rewards = module(sys.argv[1], "rewards")
bleu_scorer = module(sys.argv[2], "bleu_scorer")
rng = random.Random(7)

# Texts of RadEval's tests (tests/fixtures/regression_samples.py, tests/test_basics.py), and hard cases for tokenizers.
PAIRS = [
    ("No acute cardiopulmonary process.", "No acute cardiopulmonary process."),
    ("Mildly enlarged cardiac silhouette with small pleural effusions and dependent bibasilar atelectasis.", "Mild cardiomegaly with small bilateral pleural effusions and basilar atelectasis."),
    ("Relatively lower lung volumes with no focal airspace consolidation appreciated.", "1. Left PICC tip appears to terminate in the distal left brachiocephalic vein.2. Mild pulmonary vascular congestion."),
    ("Crowding of the pulmonary vasculature with possible minimal perihilar edema, but no overt pulmonary edema.", "No definite acute cardiopulmonary process. Enlarged cardiac silhouette could be accentuated by patient's positioning."),
    ("No pleural effusions or pneumothoraces.", "Increased mild pulmonary edema and left basal atelectasis."),
    ("Findings: There is a small left pleural effusion. No pneumothorax. Impression: Small left pleural effusion.", "Findings: A moderate left pleural effusion is seen. There is no pneumothorax. Impression: Moderate left pleural effusion."),
    ("A 3.5-cm mass (left upper lobe), 1,000 HU; \"stable\" & well-defined...", "There's a 3.5 cm mass in the left upper lobe, well-defined; stable &amp; 1,000 HU."),
    ("e.g.., ,x 5-6 a-b 7.x .8 9, [x] {y} ~z~ `q` $5 @home #1 %2 ^3 _4_ a/b <skipped> *", "e.g. x 5 - 6 a-b 7 .x .8 9 , [ x ] y z q"),
    ("", "The heart is enlarged."),
    ("The", "The heart is enlarged."),
    ("the the the the the the", "the heart of the lung"),
    ("Line one\nline two hyphen-\nated", "Line one line two hyphenated"),
    ("Größe des Herzens: normal – keine Ergüsse", "Größe des Herzens normal, keine Ergüsse"),
]
SPACED = [pair for pair in PAIRS if "Größe" not in pair[0]]
WORDS = sorted(set(re.findall(r"[a-z0-9]+", " ".join(a + " " + b for a, b in PAIRS).lower())))
WORDS += """effusions opacities bilaterally atelectatic consolidative calcified improving resolved sizes enlarged
unchanged stability hyperinflated relational conditional rational valenci hesitanci digitizer conformabli radicalli
differentli vileli analogousli vietnamization predication operator feudalism decisiveness hopefulness callousness
formaliti sensitiviti sensibiliti triplicate formative formalize electriciti electrical hopeful goodness revival
allowance inference airliner gyroscopic adjustable defensible irritant replacement adjustment dependent adoption
homologou communism activate angulariti homologous effective bowdlerize probate rate cease controll roll dies died
spied flies skies dying news agreed feed plastered motoring sing conflated troubled sized hopping tanned falling
hissing fizzed failing filing happy sky enjoy say by oedema pneumothoraces pacemaker theologi geologi analogies
zoology fulli successfulli totally generally syzygy yyyy ying cry cries crying toy toys abli able ion action
tension oxygenation visualised visualized is as ax ed ing being seeing eed exceed yes""".split()


def bleus():
    corpus = {}
    for name, chosen in [("all", PAIRS), ("short", [("The", "The")]), ("five", PAIRS[:5])]:
        corpus[name] = [
            sacrebleu.BLEU(max_ngram_order=order).corpus_score([a for a, _ in chosen], [[b for _, b in chosen]]).score / 100
            for order in range(1, 5)
        ]
    tokenize = sacrebleu.BLEU().tokenizer
    return {"corpus": corpus, "words": [[tokenize(a.rstrip()).split(), tokenize(b.rstrip()).split()] for a, b in PAIRS]}


def coco():
    def score(pairs, order):
        scorer = bleu_scorer.BleuScorer(n=order)
        for said, truth in pairs:
            scorer += (said, [truth])
        total, each = scorer.compute_score(option="closest", verbose=0)
        return total[order - 1], each[order - 1]

    corpus = [score(PAIRS[:5], order)[0] for order in range(1, 5)]
    return {"five": corpus, "five_each_2": score(PAIRS[:5], 2)[1], "five_each_4": score(PAIRS[:5], 4)[1], "all_each_2": score(PAIRS, 2)[1]}


def rouges():
    out = []
    for said, truth in PAIRS:
        row = {}
        for stemmed in (False, True):
            scores = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmed).score(truth, said)
            row["stemmed" if stemmed else "whole"] = [scores[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
        out.append(row)
    return out


def multilabel(rows, labels, seed):
    generator = numpy.random.default_rng(seed)
    truth = generator.random((rows, labels)) < 0.25
    said = truth ^ (generator.random((rows, labels)) < 0.15)
    truth[:, -1] = False
    said[:, -1] = False
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average=None, zero_division=0)
    return {
        "truth": truth.astype(int).tolist(),
        "said": said.astype(int).tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "macro_f1": f1_score(truth, said, average="macro", zero_division=0),
        "micro_f1": f1_score(truth, said, average="micro", zero_division=0),
        # tn, fp, fn, tp
        "counts": [confusion_matrix(truth[:, k], said[:, k], labels=[False, True]).ravel().tolist() for k in range(labels)],
    }


def areas():
    out = []
    for count, steps, seed in [(40, 8, 1), (200, 1000, 2), (30, 2, 3), (10, 1, 4)]:
        generator = numpy.random.default_rng(seed)
        truth = generator.random(count) < 0.3
        truth[0], truth[1] = True, False
        scores = numpy.round((generator.random(count) + 0.4 * truth) * steps) / steps
        weights = generator.integers(0, 4, count)
        weights[0] = weights[1] = 1
        out.append({
            "truth": truth.astype(int).tolist(),
            "scores": scores.tolist(),
            "auc": roc_auc_score(truth, scores),
            "weights": weights.tolist(),
            "weighted_auc": roc_auc_score(numpy.repeat(truth, weights), numpy.repeat(scores, weights)),
        })
    return out


def squad_f1(said, truth):
    def words(text):
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    said, truth = words(said), words(truth)
    common = sum((Counter(said) & Counter(truth)).values())
    if not said or not truth:
        return float(said == truth)
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(truth)
    return 2 * precision * recall / (precision + recall)


ANSWERS = [
    ("Left.", "left"), ("The left side", "left"), ("yes", "Yes."), ("a central venous catheter", "Central venous catheter"),
    ("right upper zone consolidation is seen", "consolidation in the right upper zone"), ("", "left"), ("", ""), ("x x y", "x y y"),
    ("no", "yes"), ("The patient's heart", "patients heart"), ("it is on the left, not on the right", "left"),
]


def radgraphs():
    def set_f1(a, b):
        common = len(a & b)
        precision = common / len(b) if b else 0.0
        recall = common / len(a) if a else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def entities(graph):
        return {(tuple(e["tokens"]), e["label"]) for e in graph["entities"].values()}

    def relations(graph):
        all_of = graph["entities"]
        return {((tuple(e["tokens"]), e["label"]), (tuple(all_of[to]["tokens"]), all_of[to]["label"]), kind) for e in all_of.values() for kind, to in e["relations"]}

    def short(graph):
        return {"entities": {n: {k: e[k] for k in ("tokens", "label", "relations")} for n, e in graph["entities"].items()}}

    def graph():
        count = rng.randint(1, 9)
        tokens = ["acute", "Process", "pleural", "effusion", "effusions", "left", "small", "Heart", "size"]
        labels = ["Observation::definitely present", "Observation::definitely absent", "Observation::uncertain", "Anatomy::definitely present"]
        made = {}
        for number in range(1, count + 1):
            others = [str(other) for other in range(1, count + 1) if other != number]
            ends = rng.sample(others, min(len(others), rng.choice([0, 0, 1, 2])))
            relations = [[rng.choice(["modify", "located_at", "suggestive_of"]), end] for end in ends]
            made[str(number)] = {"tokens": rng.choice(tokens), "label": rng.choice(labels), "relations": relations}
        return {"entities": made}

    hernia = json.loads(HERNIA)
    chosen = [graph() for _ in range(24)]
    out = []
    pairs = [(chosen[n], chosen[(n * 7 + 1) % len(chosen)]) for n in range(len(chosen))]
    pairs += [(chosen[0], chosen[0]), (chosen[0], {"entities": {}})]
    # Drafts that share most of the reference.
    for graph in chosen[:8]:
        draft = short(graph)
        keys = list(draft["entities"])
        gone = rng.choice(keys)
        del draft["entities"][gone]
        for entity in draft["entities"].values():
            entity["relations"] = [r for r in entity["relations"] if r[1] != gone]
            if rng.random() < 0.3:
                entity["tokens"] = entity["tokens"].upper()
        pairs.append((draft, graph))
    pairs.append((hernia, hernia))
    for said, truth in pairs:
        simple, partial, complete = rewards.compute_reward(said, truth, "all")
        out.append({
            "said": short(said), "truth": short(truth),
            "rewards": {"simple": simple, "partial": partial, "complete": complete},
            "radcliq_part": (set_f1(entities(truth), entities(said)) + set_f1(relations(truth), relations(said))) / 2,
        })
    return out


# The graph of the fifth draft in radgraph's tests/radgraph_test.py, the only one that test spells out.
HERNIA = '{"entities": {"1": {"tokens": "acute", "label": "OBS-DA", "relations": []}, "2": {"tokens": "cardiopulmonary", "label": "ANAT-DP", "relations": []}, "3": {"tokens": "process", "label": "OBS-DA", "relations": [["located_at", "2"]]}, "4": {"tokens": "moderate", "label": "OBS-DP", "relations": []}, "5": {"tokens": "hiatal", "label": "ANAT-DP", "relations": []}, "6": {"tokens": "hernia", "label": "OBS-DP", "relations": []}}}'


def radcliqs():
    means = numpy.array([0.53792312, 0.61757256, 0.76479421, 0.44738335])
    scales = numpy.array([0.30282584, 0.22430938, 0.25394391, 0.29892717])
    coefs = numpy.array([-3.77083683e-01, -3.70300100e-01, -2.52616218e-01, 4.31504841e-12, 2.46655256e-10])
    generator = numpy.random.default_rng(5)
    out = []
    for row in numpy.vstack([generator.random((6, 4)), numpy.ones((1, 4)), numpy.zeros((1, 4)), means]):
        value = float(numpy.hstack([(row - means) / scales, [1.0]]) @ coefs)
        out.append({"scores": dict(zip(("radgraph", "bertscore", "chexbert", "bleu2"), row.tolist())), "radcliq": value})
    return out


def ious():
    generator = numpy.random.default_rng(6)
    out = []
    for _ in range(12):
        boxes = []
        for _ in range(2):
            top, left = generator.integers(0, 600, 2)
            height, width = generator.integers(1, 400, 2)
            boxes.append([int(top), int(left), int(top + height), int(left + width)])
        # By counting the cells of a grid.
        grid = numpy.zeros((2, 1000, 1000), bool)
        for number, (top, left, bottom, right) in enumerate(boxes):
            grid[number, top:bottom, left:right] = True
        out.append({"boxes": boxes, "iou": float((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())})
    return out


stemmer = PorterStemmer()
json.dump({
    "versions": {name: importlib.metadata.version(name) for name in ("scikit-learn", "sacrebleu", "rouge-score", "nltk", "numpy")}
    | {"radgraph": "Stanford-AIMI/radgraph@87f11a1 rewards.py", "radeval": "jbdel/RadEval@e0a3909 bleu_scorer.py, radcliq.py", "python": sys.version.split()[0]},
    "pairs": PAIRS,
    "bleu": bleus(),
    "coco": coco(),
    "rouge": rouges(),
    "stems": {word: stemmer.stem(word) for word in WORDS},
    "multilabel": [multilabel(60, 9, 11), multilabel(25, 3, 12)],
    "auc": areas(),
    "squad": [{"said": said, "truth": truth, "f1": squad_f1(said, truth)} for said, truth in ANSWERS],
    "radgraph": radgraphs(),
    "radcliq": radcliqs(),
    "iou": ious(),
    "quantile": [{"share": q, "value": float(numpy.quantile([0.0, 1.0, 4.0, 9.0, 16.0], q))} for q in (0, 0.025, 0.3, 0.5, 0.975, 1)],
}, sys.stdout)
print()
