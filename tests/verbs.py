"""Every verb that changes a network in place, each called on something small."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import prunus
from prunus.core.held import hold_weight_
from prunus.masks.at_init import at_init
from prunus.masks.controls import redraw_
from prunus.masks.hold import release_
from prunus.masks.rewind import lottery_
from prunus.masks.training import MaskPruner
from prunus.recovery import compensate_, lost, merge_, recalibrate_, repair_, targets
from prunus.surgery import give_biases_, slice_optimizer_
from tests.hand_built import batches, chain, residual
from tests.striking import Case
from tests.surgery.rewriting import Fixed

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = batches(2, 8)
HALF = prunus.Budget(macs=0.5)


class Entrance(nn.Module):
    """A stream that a batch norm at the entrance of a block reads too; forward notes in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.conv = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)
        self.calls, self.seen = 0, {"last": 0}
        with torch.no_grad():
            self.bn.weight.copy_(torch.linspace(0.1, 1, 6)), self.bn.bias.copy_(torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen["last"] = self.calls
        x = self.stem(x)
        return self.head((x + self.conv(self.bn(x).relu())).mean((2, 3)))


def trained(model: nn.Module, kind: type = torch.optim.Adam) -> torch.optim.Optimizer:
    """An optimizer with a state, and gradients left in the parameters."""
    optimizer = kind(model.parameters(), lr=0.01)
    model.train()
    for x, y in DATA:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer


def network(seed: int = 0) -> nn.Module:
    return chain(5, 7, seed)[0].train()


def entrance() -> nn.Module:
    torch.manual_seed(1)
    return Entrance()


def halved(groups: prunus.Groups) -> prunus.Plan:
    keep = torch.ones(groups.units, dtype=torch.bool)
    for g in groups:
        keep[g.offset : g.offset + g.units : 2] = False
    return groups.plan(keep)


def prune(make: Callable[[], nn.Module] = network, optimizer: bool = False, **options: object) -> Callable[[], Case]:
    def case() -> Case:
        model = make()
        found = trained(model) if optimizer else None
        options_ = dict(options, budget=HALF, optimizer=found)
        return Case({"model": model, "optimizer": found}, lambda: prunus.prune_(model, X, **options_))

    return case


def shrink(optimizer: bool) -> Case:
    model = network()
    found = trained(model) if optimizer else None
    groups = prunus.trace(model, X)
    call = lambda: prunus.shrink_(model, groups, halved(groups), optimizer=found)  # noqa: E731
    return Case({"model": model, "optimizer": found}, call)


def rewriting() -> Case:
    torch.manual_seed(0)
    model = Fixed().train()
    asked = {"budget": HALF, "absorb": True, "repair": "bias", "data": [X]}
    return Case({"model": model}, lambda: prunus.prune_(model, X, **asked))


def weights(model: nn.Module, density: float = 0.4) -> tuple[prunus.masks.Tensors, prunus.Plan]:
    groups = prunus.tensors(model)
    return groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=density))


def mask(repair: bool | str, make: Callable[[], nn.Module] = network) -> Case:
    model = make()
    optimizer = trained(model)
    groups, plan = weights(model)
    data = [x for x, _ in DATA]
    call = lambda: prunus.mask_(model, groups, plan, repair=repair, data=data if repair else None)  # noqa: E731
    return Case({"model": model, "optimizer": optimizer}, call)


def drop() -> Case:
    torch.manual_seed(0)
    model = prunus.zoo.resnet20().train()
    blocks = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), *model.layer1[:2])
    x = torch.randn(2, 3, 8, 8)
    return Case({"model": blocks}, lambda: prunus.drop_blocks_(blocks, x, data=[x], n=1))


def fold() -> Case:
    model = network()
    prunus.interspace_(model)
    hold_weight_(model, "conv1.weight", torch.arange(135).reshape(5, 3, 3, 3) % 2 > 0)
    return Case({"model": model}, lambda: prunus.fold_(model))


def gated() -> nn.Module:
    torch.manual_seed(2)
    model = network().eval()
    prunus.dynamic.dynamic_(model, X)
    return model


def saved(make: Callable[[], nn.Module]) -> Path:
    path = Path(tempfile.mkdtemp()) / "net.safetensors"
    prunus.save(make(), path)
    return path


def cut() -> nn.Module:
    model = entrance()
    prunus.prune_(model, X, budget=HALF, criterion="bn-gamma", select=True, absorb=True)
    return model.to(memory_format=torch.channels_last)


def load(make: Callable[[], nn.Module], fresh: Callable[[], nn.Module]) -> Case:
    path, model = saved(make), fresh()
    return Case({"model": model}, lambda: prunus.load_(model, path))


def planned(verb: Callable[..., object], make: Callable[[], nn.Module] = network, **options: object) -> Case:
    model = make()
    groups = prunus.trace(model, X)
    return Case({"model": model}, lambda: verb(model, groups, halved(groups), **options))


def repair() -> Case:
    model = network()
    groups = prunus.trace(model, X)
    wanted = targets(model, groups, [x for x, _ in DATA])
    report = prunus.shrink_(model, groups, halved(groups))
    after = prunus.trace(model, X)
    return Case({"model": model}, lambda: repair_(model, after, report.plan, wanted))


def compensate() -> Case:
    model = network()
    groups = prunus.trace(model, X)
    means = lost(model, groups, [x for x, _ in DATA], halved(groups))
    prunus.shrink_(model, groups, halved(groups))
    after = prunus.trace(model, X)
    return Case({"model": model}, lambda: compensate_(model, after, means))


def follow() -> Case:
    model = network()
    other = copy.deepcopy(model)
    plan = prunus.prune_(model, X, budget=HALF).plan
    return Case({"model": other}, lambda: prunus.follow_(other, plan))


def slicing() -> Case:
    model = network()
    optimizer = trained(model)
    groups = prunus.trace(model, X)
    plan = prunus.shrink_(model, groups, halved(groups)).plan
    return Case({"model": model, "optimizer": optimizer}, lambda: slice_optimizer_([optimizer], model, plan))


def pruner(step: str) -> Case:
    model = network()
    optimizer = trained(model)
    found = prunus.Pruner(model, X, budget=HALF, regularizer="bn-gamma", schedule=lambda step: 0.5)
    subjects = {"model": model, "optimizer": optimizer, "pruner": found}
    if step == "attach":
        return Case(subjects, lambda: found.attach(optimizer))
    found.attach(optimizer)
    found.advance_(0.5)
    return Case(subjects, (lambda: found.advance_(1.0)) if step == "advance_" else found.finish_)


def masks(method: str, step: str) -> Case:
    model = network()
    optimizer = trained(model, torch.optim.SGD)
    found = MaskPruner(model, prunus.tensors(model), method, density=0.4, steps=8)
    subjects = {"model": model, "optimizer": optimizer, "pruner": found}
    if step == "attach":
        return Case(subjects, lambda: found.attach(optimizer))
    found.attach(optimizer)
    if step == "load_state_dict":
        state = copy.deepcopy(found.state_dict())
        return Case(subjects, lambda: found.load_state_dict(state))
    return Case(subjects, found.finish_)


def step(model: nn.Module, round: int) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)


def lottery() -> Case:
    model = network()
    groups = prunus.tensors(model)
    call = lambda: lottery_(model, groups, step, density=0.3, rounds=2, control="redraw")  # noqa: E731
    return Case({"model": model}, call)


def of_weights(verb: str) -> Case:
    model = network()
    groups, plan = weights(model)
    calls = {
        "at_init": lambda: at_init(model, groups, "snip", density=0.5, rounds=2, data=DATA),
        "redraw_": lambda: redraw_(groups),
        "interspace_": lambda: prunus.interspace_(model),
        "release_": lambda: release_(model),
    }
    prunus.mask_(model, groups, plan)
    return Case({"model": model}, calls[verb])


def seeing(verb: str) -> Case:
    model = network()
    groups = prunus.trace(model, X)
    scores = prunus.score(groups, "l1")
    calls = {
        "trace": lambda: prunus.trace(model, X),
        "collect": lambda: prunus.collect(model, groups, DATA, ("grad", "gate")),
        "sensitivity": lambda: prunus.sensitivity(model, groups, scores, lambda m: float(m(X).sum()), (0.5,)),
        "recalibrate_": lambda: recalibrate_(model, DATA),
    }
    return Case({"model": model}, calls[verb])


def of_gates(verb: str) -> Case:
    if verb == "dynamic_":
        model = network()
        return Case({"model": model}, lambda: prunus.dynamic.dynamic_(model, X))
    model = gated()
    calls = {
        "static_": lambda: prunus.dynamic.static_(model),
        "warm_start_": lambda: prunus.dynamic.warm_start_(model, [X]),
    }
    return Case({"model": model}, calls[verb])


VERBS: dict[str, Callable[[], Case]] = {
    "prune_": prune(),
    "prune_ with an optimizer": prune(optimizer=True),
    "prune_ absorb select": prune(entrance, absorb=True, select=True, criterion="bn-gamma"),
    "prune_ repair": prune(repair=True, data=[x for x, _ in DATA]),
    "prune_ repair bias absorb": prune(entrance, repair="bias", absorb=True, data=[x for x, _ in DATA]),
    "prune_ repair blocks": prune(lambda: residual(4, 5)[0], repair="blocks", data=[x for x, _ in DATA]),
    "prune_ merge": prune(merge=True),
    "prune_ rewriting": rewriting,
    "shrink_": lambda: shrink(False),
    "shrink_ with an optimizer": lambda: shrink(True),
    "absorb_": lambda: planned(prunus.absorb_, entrance),
    "give_biases_": lambda: planned(give_biases_, entrance),
    "merge_": lambda: planned(merge_),
    "select_": lambda: (lambda m: Case({"model": m}, lambda: prunus.select_(m, X)))(entrance()),
    "repair_": repair,
    "compensate_": compensate,
    "follow_": follow,
    "slice_optimizer_": slicing,
    "load_": lambda: load(cut, entrance),
    "load_ of gates": lambda: load(gated, network),
    "drop_blocks_": drop,
    "mask_": lambda: mask(False),
    "mask_ repair": lambda: mask("exact"),
    "mask_ repair sparsegpt": lambda: mask("sparsegpt"),
    "interspace_": lambda: of_weights("interspace_"),
    "fold_": fold,
    "at_init": lambda: of_weights("at_init"),
    "lottery_": lottery,
    "redraw_": lambda: of_weights("redraw_"),
    "release_": lambda: of_weights("release_"),
    "trace": lambda: seeing("trace"),
    "collect": lambda: seeing("collect"),
    "sensitivity": lambda: seeing("sensitivity"),
    "recalibrate_": lambda: seeing("recalibrate_"),
    "dynamic_": lambda: of_gates("dynamic_"),
    "static_": lambda: of_gates("static_"),
    "warm_start_": lambda: of_gates("warm_start_"),
    "Pruner.attach": lambda: pruner("attach"),
    "Pruner.advance_": lambda: pruner("advance_"),
    "Pruner.finish_": lambda: pruner("finish_"),
    "MaskPruner.attach": lambda: masks("dpf", "attach"),
    "MaskPruner.finish_": lambda: masks("rigl", "finish_"),
    "MaskPruner.load_state_dict": lambda: masks("str", "load_state_dict"),
}
