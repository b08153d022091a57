"""Training's first step: towers learn findings of a few pixels from windows of a few patches.

In whole pictures such findings are one patch of hundreds, and a loss over all of them hardly feels it. A window costs a small part
of a picture, so that many more of them are seen. deploy/demo/README.md says what came of it.
"""

import copy

import torch
from torch.nn import functional as F

from demo_data import CELLS, PICTURE
from demo_model import layer_norm, linear, siglip_layers
from demo_words import SLOTS

SMALL = ("nodule", "fracture")
WINDOW = 3  # patches along a side
PATCH = PICTURE // CELLS
SHARES = (0.25, 0.45)  # of a batch's windows: over a nodule, over a fracture; the others are where fractures can be
COUNT_MIN = 4.0  # so that a batch with hardly any does not weigh without limit
KEEP = 0.5  # weight of staying as it was, where nothing small lies


def pick(weights):
    """One of each row's places, as often as its weight says; unlike multinomial without asking the device first."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(1)


def see_window(tower, pixels, places):
    """Windows [n, side, side] in [-1, 1] and the numbers of their patches [n, patches] → the tower's states [n, patches, width]."""
    e, side = tower.embeddings, pixels.shape[-1] // PATCH
    patches = pixels.unflatten(2, (side, PATCH)).unflatten(1, (side, PATCH)).transpose(2, 3).flatten(3).flatten(1, 2)
    kernel = e.patch_embedding.weight.sum(1).flatten(1).to(pixels.dtype)
    x = F.linear(patches, kernel, e.patch_embedding.bias.to(pixels.dtype)) + e.position_embedding.weight[places].to(pixels.dtype)
    return layer_norm(tower.post_layernorm, siglip_layers(tower.encoder, x))


class Near:
    """Windows of the records, and for each tower a head that says what each patch shows; heads and teachers are dropped at the end.

    `towers` are by name; with `keep`, a tower's states of patches without a small finding stay near what they were.
    """

    def __init__(self, records, towers, keep):
        self.records, self.towers, self.device = records, towers, records.device
        slots = [[of == label for of, _ in SLOTS] for label in SMALL]
        self.slots = torch.tensor(slots, device=self.device)
        self.heads = {name: torch.nn.Linear(tower.config.hidden_size, len(SMALL)).to(self.device) for name, tower in towers.items()}
        for head in self.heads.values():
            torch.nn.init.constant_(head.bias, -3.0)
        self.teachers = {name: copy.deepcopy(tower).requires_grad_(False) for name, tower in towers.items()} if keep else {}
        self.taken = 0

    def take_up(self):
        """Where small findings lie in the records that are there by now."""
        if self.taken == len(self.records):
            return
        self.taken = len(self.records)
        cells, place = self.records.rows["cells"], torch.arange(CELLS, device=self.device, dtype=torch.int16)
        # [records, patches, small findings]
        self.shown = torch.stack([(cells[:, slots, :, None] >> place & 1).amax(1).flatten(1) for slots in self.slots], -1).bool()
        self.having = [torch.nonzero(self.shown[..., which].any(1))[:, 0] for which in range(len(SMALL))]
        self.likely = self.shown[..., SMALL.index("fracture")].float().sum(0)

    def draw(self, count):
        """Windows: pixels [n, side, side], numbers of their patches, and what these show [n, patches, small findings]."""
        self.take_up()
        r, rand = self.records, lambda high, n: torch.randint(high, (n,), device=self.device)
        index, middle = [], []
        for which, share in enumerate(SHARES):
            some = self.having[which][rand(len(self.having[which]), int(count * share))]
            index.append(some)
            middle.append(pick(self.shown[some, :, which].float()))
        rest = count - sum(map(len, index))
        index, middle = torch.cat([*index, rand(len(r), rest)]), torch.cat([*middle, pick(self.likely.expand(rest, -1))])
        top, left = ((at - rand(WINDOW, count)).clamp(0, CELLS - WINDOW) for at in (middle // CELLS, middle % CELLS))
        steps = torch.arange(WINDOW, device=self.device)
        at = lambda left: ((top[:, None] + steps)[:, :, None] * CELLS + (left[:, None] + steps)[:, None, :]).flatten(1)
        pixels = r.pixels(index, varied=True, window=(top * PATCH, left * PATCH, WINDOW * PATCH))
        shown = self.shown[index[:, None], at(left)].float().unflatten(1, (WINDOW, WINDOW))
        # Half of them as in a mirror: what is small has no side in a window.
        turned = (torch.rand(count, device=self.device) < 0.5)[:, None, None]
        pixels, shown = torch.where(turned, pixels.flip(2), pixels), torch.where(turned[..., None], shown.flip(2), shown)
        places = at(torch.where(turned[:, 0, 0], CELLS - WINDOW - left, left))
        return pixels, places, shown.flatten(1, 2)

    def losses(self, count, dtype):
        pixels, places, shown = self.draw(count)
        pixels, losses = pixels.to(dtype), {}
        weight = 1 / shown.sum((0, 1)).clamp(min=COUNT_MIN)
        for name, tower in self.towers.items():
            seen = see_window(tower, pixels, places)
            said = linear(self.heads[name], seen).float()
            each = (F.binary_cross_entropy_with_logits(said, shown, reduction="none").sum((0, 1)) * weight).sum()
            any_of = F.binary_cross_entropy_with_logits(said.amax(1), shown.amax(1), reduction="none").mean(0).sum()
            losses[f"{name}_patches"], losses[f"{name}_windows"] = each, 2 * any_of
            if name in self.teachers:
                with torch.no_grad():
                    before = see_window(self.teachers[name], pixels, places).float()
                free = (shown.amax(2) == 0)[..., None]
                losses[f"{name}_kept"] = KEEP * ((seen.float() - before).square() * free).mean() / before.var()
        return losses
