"""Whatever holds or moves masks of the same weights: the second takes over, or is refused and nothing is changed."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError
from prunus.core.held import held
from prunus.masks import MaskPruner, release_

DENSITY = {"mask": 0.5, "hold": 0.4, "rigl": 0.3, "dpf": 0.35, "str": 0.45}
WEIGHTS = ["0.weight", "2.weight", "5.weight"]  # without those of gates
MOVING = ("rigl", "dpf", "str", "pruner")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    return nn.Sequential(*layers)


def steps(model, optimizer, count=4) -> None:
    for step in range(count):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 3, 6, 6, generator=g), torch.randint(0, 4, (8,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


class World:
    def __init__(self) -> None:
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        self.pruners = []

    def plan(self, density, seed):
        groups = prunus.tensors(self.model, only=WEIGHTS)
        scores = prunus.score(groups, "random", seed=seed)
        return groups, prunus.allocate(groups, scores, prunus.Budget(density=density), allocator="uniform")

    def hold(self, name):
        """Let `name` hold or move masks; the pruner, if it is one."""
        if name == "mask":
            prunus.mask_(self.model, *self.plan(DENSITY[name], len(held(self.model))))
        elif name == "hold":
            prunus.hold_(self.model, self.plan(DENSITY[name], 7)[1])
        elif name == "interspace":
            prunus.interspace_(self.model, init="orthonormal")
        elif name == "dynamic":
            prunus.dynamic.dynamic_(self.model, torch.zeros(1, 3, 6, 6), "fbs")
        elif name == "pruner":
            self.pruners.append(
                prunus.Pruner(self.model, torch.zeros(1, 3, 6, 6), budget=prunus.Budget(params=0.6), verify=False)
            )
            self.pruners[-1].attach(self.optimizer)
        else:
            options = {} if name in ("str",) else {"every": 2}
            groups = prunus.tensors(self.model, only=WEIGHTS)
            self.pruners.append(MaskPruner(self.model, groups, name, density=DENSITY[name], steps=8, **options))
            self.pruners[-1].attach(self.optimizer)


FIRST = ("mask", "hold", "rigl", "dpf", "str", "pruner", "interspace", "dynamic")
# what a second one may not do while the first moves masks: all but what touches no weight
REFUSED = {(a, b) for a in MOVING for b in FIRST if b != "dynamic"}
REFUSED |= {("interspace", "interspace"), ("dynamic", "dynamic"), ("dynamic", "pruner")}  # for other reasons


@pytest.mark.parametrize("second", FIRST)
@pytest.mark.parametrize("first", FIRST)
def test_the_second_takes_over_or_is_refused(first, second):
    world = World()
    world.hold(first)
    steps(world.model, world.optimizer, 2)
    if (first, second) in REFUSED:
        before = {n: t.clone() for n, t in world.model.state_dict().items()}
        masks = held(world.model)
        with pytest.raises(InputError) as refused:
            world.hold(second)
        assert first not in MOVING or "finish_() or detach() it first" in str(refused.value)
        assert all(torch.equal(t, before[n]) for n, t in world.model.state_dict().items())
        assert set(held(world.model)) == set(masks)
        steps(world.model, world.optimizer, 2)  # and the first goes on
        return
    world.hold(second)
    steps(world.model, world.optimizer)
    claims_are_true(world, [one for one in (first, second) if one in DENSITY][-1:], second)


def claims_are_true(world, last, second) -> None:
    """What the last one says stays trains, all else is zero; nothing of an older mask is left."""
    if not last:
        assert held(world.model) == {}
        return
    (name,) = last
    if name in MOVING:
        done = world.pruners[-1].finish_()
        masks = {n: mask.keep for n, mask in done.plan.masks.items()}
        assert done.density <= DENSITY[name] + 1e-9
        steps(world.model, world.optimizer)
    else:
        masks = held(world.model)
        share = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        assert share <= DENSITY[name]
    assert set(masks) == (set(WEIGHTS) if second != "interspace" else {"5.weight"}), "the others are represented anew"
    assert all(torch.equal(keep, masks[n]) for n, keep in held(world.model).items()) and set(held(world.model)) == set(
        masks
    )
    parameters = dict(world.model.named_parameters())
    for n, keep in masks.items():
        p = parameters[n]
        still = keep & (p.detach() == 0)
        assert (p.detach()[~keep] == 0).all() and still.sum() < 0.2 * keep.sum()
        assert (p.grad[still] == 0).all(), "nothing flows there"


def test_a_pruner_that_is_detached_gives_way_and_cannot_come_between():
    world = World()
    world.hold("rigl")
    first = world.pruners[0]
    state = first.state_dict()
    first.detach()
    world.hold("dpf")
    for late in (first.finish_, lambda: first.load_state_dict(state), lambda: release_(world.model)):
        with pytest.raises(InputError, match="MaskPruner moves the mask"):
            late()
    first.detach()  # once more: it is not what moves the masks now
    with pytest.raises(InputError, match="MaskPruner moves the mask"):
        world.hold("mask")
    groups = prunus.tensors(world.model)
    with pytest.raises(InputError, match="MaskPruner moves the mask"):
        prunus.masks.lottery_(world.model, groups, lambda model, round: pytest.fail("trained"), density=0.5)
    world.pruners[1].finish_()
    world.hold("mask")


def test_pruners_of_other_weights_go_side_by_side():
    world = World()
    one, other = (prunus.tensors(world.model, only=n) for n in ("0.weight", "5.weight"))
    pruners = [MaskPruner(world.model, g, "rigl", density=0.3, steps=8, every=2) for g in (one, other)]
    for pruner in pruners:
        pruner.attach(world.optimizer)
    steps(world.model, world.optimizer, 5)
    assert [round(p.finish_().density, 2) for p in pruners] == [0.3, 0.3]


def test_folding_waits_for_the_masks_of_coefficients():
    world = World()
    world.hold("interspace")
    world.optimizer = torch.optim.SGD(world.model.parameters(), lr=0.05)
    world.hold("rigl")
    with pytest.raises(InputError, match="MaskPruner moves the mask"):
        prunus.fold_(world.model)
    steps(world.model, world.optimizer, 2)
    world.pruners[0].finish_()
    prunus.fold_(world.model)
