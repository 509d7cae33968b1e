"""Plans as text, carried out on a copy of the original."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from tests.security.formats.state import Net, cut
from tests.security.fuzz import Format
from tests.security.mutate import DEEPEST, dumped, mangled, mutated

X = (1, 3, 10, 10)
TEXTS = (
    "stem",
    "first",
    "first.a.weight",
    "head.bias",
    "width",
    "in_channels",
    "out_channels",
    "num_features",
    "weight",
)


def masked() -> prunus.Plan:
    torch.manual_seed(0)
    groups = prunus.tensors(Net().eval())
    return prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))


def write(folder: Path) -> list[Path]:
    made = {"plain": prunus.plan_of(cut(False)), "dropped": prunus.plan_of(cut(True)), "masked": masked()}
    for name, plan in made.items():
        (folder / f"{name}.json").write_text(plan.to_json())
    return [folder / f"{name}.json" for name in made]


def change(rng: random.Random, source: Path) -> bytes:
    if rng.random() < 0.1:
        return mangled(rng, source.read_bytes())
    prefer = rng.choice(("groups", "tensors", "edits", "added", "dropped", "masks", "scaled"))
    return dumped(mutated(rng, json.loads(source.read_text()), TEXTS, (prefer,))).encode(errors="surrogatepass")


def read(path: Path) -> list[nn.Module]:
    """A plan that somebody sent: followed by a copy, and cut by; or masked by."""
    plan = prunus.Plan.from_json(path.read_text(errors="replace"))
    assert prunus.Plan.from_json(plan.to_json()) == plan
    torch.manual_seed(0)
    follower, net = Net().eval(), Net().eval()
    if plan.masks:
        prunus.mask_(net, prunus.tensors(net), plan)
        return [net]
    with suppress(prunus.PrunusError):  # of the groups alone
        prunus.shrink_(net, prunus.trace(net, torch.zeros(X)), plan)
    prunus.follow_(follower, plan)
    return [follower, net]


def edited(apply: Callable[[Any], object]) -> Callable[[list[Path]], bytes]:
    """The plan changed in place."""

    def make(honest: list[Path]) -> bytes:
        data = json.loads(honest[0].read_text())
        apply(data)
        return dumped(data).encode()

    return make


def edit(module: str, attribute: str, old: Any, new: Any) -> Callable[[list[Path]], bytes]:
    return edited(lambda plan: plan["edits"].append({"module": module, "attribute": attribute, "old": old, "new": new}))


CORPUS = {
    "no plan": lambda honest: b"[]",
    "deep": edited(lambda plan: plan.__setitem__("inputs", DEEPEST)),
    "a hook": edit("head", "_forward_hooks", None, {}),
    "a method": edit("head", "forward", None, 1),
    "out of the model": edit("head.__class__", "in_features", 8, 1),
    "a dtype": edit("stem", "padding_mode", "zeros", 1),
    "a bias of 10^10": edited(
        lambda plan: plan["added"].append({"name": "head.bias", "kind": "bias", "shape": [10**10], "dtype": "float32"})
    ),
    "a drop of 10^9": edited(
        lambda plan: plan.__setitem__("dropped", [{"module": "first", "given": "", "length": 10**9}])
    ),
    "a cut in a dropped block": edited(
        lambda plan: plan.__setitem__("dropped", [{"module": "stem", "given": "", "length": 0}])
    ),
    "a mask of 10^18": edited(
        lambda plan: plan.__setitem__("masks", {"stem.weight": {"shape": [10**9, 10**9], "bits": "oA=="}})
    ),
}
FORMAT = Format("plan", write, change, read, CORPUS, need=lambda size: 1 << 24)
