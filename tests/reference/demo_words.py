"""The phantom demo's words: findings and their names, and prompts exactly as the engine renders them.

The texts come from crates/engine/prompts/2.toml itself (later versions have the same words for radiographs); only what the chat form adds is written here.
"""

import re
import string
import tomllib

SIDED = ["pleural_effusion", "pneumothorax", "consolidation", "nodule", "atelectasis", "fracture"]
ONE_SIDE = {"cardiomegaly": "midline", "oedema": "bilateral", "support_device": "midline"}
LABELS = ["cardiomegaly", "pleural_effusion", "pneumothorax", "consolidation", "nodule", "atelectasis", "oedema",
          "support_device", "fracture"]
SLOTS = [(label, side) for label in LABELS for side in (["left", "right"] if label in SIDED else [ONE_SIDE[label]])]
SIZES = ["small", "moderate", "large"]
ZONES = ["upper", "mid", "lower"]

# The first name is the one that answers use.
NAMES = {
    "cardiomegaly": ["cardiomegaly", "enlarged heart"],
    "pleural_effusion": ["pleural effusion", "effusion"],
    "pneumothorax": ["pneumothorax"],
    "consolidation": ["consolidation"],
    "nodule": ["nodule", "pulmonary nodule", "lung nodule"],
    "atelectasis": ["atelectasis"],
    "oedema": ["pulmonary oedema", "oedema", "pulmonary edema"],
    "support_device": ["support device"],
    "fracture": ["rib fracture", "fracture"],
}
UNCOUNTED = {"cardiomegaly", "atelectasis", "oedema"}
CONTEXTS = ["Cough.", "Fever and cough.", "Shortness of breath.", "Chest pain.", "Follow up.", "Fall from a ladder.",
            "Check of the line.", "Before surgery.", "72-year-old, dyspnoea.", "Known heart failure."]


def slots_of(label, side):
    """Indices of the slots that a finding fills; a side that the label does not have fills all of the label's."""
    own = [i for i, slot in enumerate(SLOTS) if slot[0] == label]
    return [i for i in own if SLOTS[i][1] == side] or own


def slot_name(slot):
    label, side = SLOTS[slot]
    return f"{side} {NAMES[label][0]}" if label in SIDED else NAMES[label][0]


def with_articles(label, words, name):
    if label in UNCOUNTED and name not in ("enlarged heart",):
        return [words, words, words, f"the {words}"]
    return [words, words, f"{'an' if words[0] in 'aeiou' else 'a'} {words}", f"the {words}"]


def targets():
    """(words, slots) of all that can be asked for or looked for; plain names are listed more often."""
    out = []
    for label in LABELS:
        for place, name in enumerate(NAMES[label]):
            own = [i for i, slot in enumerate(SLOTS) if slot[0] == label]
            out += [(words, own) for words in with_articles(label, name, name)] * (2 if place == 0 else 1)
            for slot in own if label in SIDED else []:
                side = SLOTS[slot][1]
                out += [(words, [slot]) for words in with_articles(label, f"{side} {name}", name)]
                if place == 0:
                    out += [(f"{side} {name}", [slot])] * 2 + [(f"{side}-sided {name}", [slot])]
    return out


def phrases():
    """(texts, slots, sign) for the contrastive model: what an image may be compared with."""
    out = []
    for label in LABELS:
        for side in (None, "left", "right") if label in SIDED else (None,):
            slots = [i for i, slot in enumerate(SLOTS) if slot[0] == label and side in (None, slot[1])]
            texts = []
            for name in NAMES[label]:
                name = f"{side} {name}" if side else name
                article = name if label in UNCOUNTED and "heart" not in name else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
                texts += [name, name, article, f"chest x-ray with {article}", f"a chest x-ray with {article}",
                          f"a chest x-ray showing {article}", f"chest radiograph with {name}", f"there is {article}",
                          f"findings of {name}"]
            out.append((texts, slots, True))
            if side is None:
                out.append(([f"no {name}" for name in NAMES[label]] + [f"a chest x-ray without {name}" for name in NAMES[label]],
                            slots, False))
    normal = ["normal", "normal chest", "no finding", "no acute finding", "a normal chest x-ray", "normal chest x-ray"]
    out.append((normal, list(range(len(SLOTS))), False))
    return out


def canonical(text):
    """SigLIP's canonical text: lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def two_lines(report):
    """The impression on a line of its own: the decode service reads headings at the beginning of lines."""
    return re.sub(r"\s*\bImpression:\s*", "\n\nImpression: ", report.strip(), count=1)


class Prompts:
    """Prompts of one version as text, images as their special tokens."""

    def __init__(self, path, tokens_per_image):
        self.tasks = tomllib.loads(path.read_text())
        self.image = "\n\n<start_of_image>" + "<image_soft_token>" * tokens_per_image + "<end_of_image>\n\n"

    def user(self, task, images, context="", **words):
        """The user's text after the images."""
        holds = {"one image": images == 1, "several images": images > 1, "context": bool(context), "pictures": True,
                 "volume": False, "slide": False}
        used = [p for p in self.tasks[task]["turn"] if all(holds[when] for when in p.get("when", []))]
        text = "".join(p.get("text", "") for p in used)
        for name, value in dict(words, context=context).items():
            text = text.replace("{" + name + "}", value)
        return text.strip()

    def text(self, task, images=1, context="", **words):
        system = self.tasks[task]["system"]
        return (f"<bos><start_of_turn>user\n{system}\n\n" + self.image * images + self.user(task, images, context, **words)
                + "<end_of_turn>\n<start_of_turn>model\n")
