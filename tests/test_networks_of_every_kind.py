"""Every verb on every kind of network, example and surroundings: it works right, or is one clear error of ours.

Where it is an error, the network is as it was.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from tests.networks_of_every_kind import KINDS, Kind, picture

HALF = prunus.Budget(params=0.7)
REFUSED = {  # kind -> what is said, by the verbs that trace
    "scripted part": "'b' is compiled by TorchScript",
    "scripted": "the network is compiled by TorchScript",
    "traced by jit": "the network is compiled by TorchScript",
    "exported": "the network is an exported program",
    "exported part": "'b' is an exported program",
    "dynamically quantised": "quantised, or prepared",
    "QAT": "prepared for quantisation",
    "QAT by fx": "prepared for quantisation",
    "lazy": "parameters of lazy modules have no shape yet",
    "built in inference mode": "made under torch.inference_mode.*deepcopy",
    "called in inference mode": "called under torch.inference_mode",
    "built and called in inference mode": "called under torch.inference_mode",
    "no samples": "at least one sample",
}


def number(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def batch(model: nn.Module) -> Tensor:
    return picture(4).to(number(model))


def trace(model: nn.Module, x: Any, path: Path) -> nn.Module:
    assert prunus.trace(model, x).units > 0
    return model


def cut(model: nn.Module, x: Any, path: Path) -> nn.Module:
    report = prunus.prune_(model, x, budget=HALF)
    assert report.verified.max_relative_error <= 1e-7 and report.verified.sensitive
    assert sum(p.numel() for p in report.model.parameters()) <= 0.7 * report.before["params"]
    return report.model


def step_by_step(model: nn.Module, x: Any, path: Path) -> nn.Module:
    groups = prunus.trace(model, x)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), HALF)
    return prunus.shrink_(model, groups, plan).model


def collect(model: nn.Module, x: Any, path: Path) -> nn.Module:
    groups = prunus.trace(model, x)
    data = [(batch(model), torch.tensor([0, 1, 2, 3]))]
    stats = prunus.collect(model, groups, data, {"grad", "gate"})
    scores = prunus.score(groups, "taylor", stats)
    assert all(s.isfinite().all() and s.any() for s in scores.values())
    return model


def train(model: nn.Module, x: Any, path: Path) -> nn.Module:
    pruner = prunus.Pruner(model, x, budget=HALF)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner.attach(optimizer)
    with torch.enable_grad():
        model(batch(model)).float().square().mean().backward()
    optimizer.step()
    return pruner.finish_().model


def saved(model: nn.Module, x: Any, path: Path) -> nn.Module:
    kind = KINDS[path.name]
    prunus.save(model, path / "model.safetensors")
    found = prunus.load(path / "model.safetensors", kind.model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.state_dict()[name])
    return model


def mask(model: nn.Module, x: Any, path: Path) -> nn.Module:
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))
    assert prunus.mask_(model, groups, plan).density == pytest.approx(0.5, abs=0.01)
    return model


VERBS = [trace, cut, step_by_step, collect, train, saved, mask]
ALSO_REFUSED = {  # by some verbs alone
    ("data parallel", trace): "model.module",
    ("data parallel", step_by_step): "model.module",
    ("data parallel", collect): "model.module",
    ("complex weights", collect): "statistics of complex weights",
    ("one complex weight", collect): "statistics of complex weights",
    ("complex weights", mask): "no weight to mask",
}
NOT_REFUSED = [("no samples", saved), ("no samples", mask)]


def state_of(model: nn.Module) -> dict[str, Any]:
    tensors = {n: (t, t.detach().clone()) for n, t in (*model.named_parameters(), *model.named_buffers())}
    return {"tensors": tensors, "training": model.training, "hooks": [len(m._forward_hooks) for m in model.modules()]}


def made(name: str) -> tuple[Kind, nn.Module, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it will drop
        return KINDS[name], KINDS[name].model(), KINDS[name].example()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("name", KINDS)
def test_it_works_or_is_refused_and_nothing_is_changed(name, verb, tmp_path):
    kind, model, x = made(name)
    said = ALSO_REFUSED.get((name, verb), None if (name, verb) in NOT_REFUSED else REFUSED.get(name))
    (path := tmp_path / name).mkdir()
    if said is None:
        with kind.around(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smaller = verb(model, x, path)
        with torch.no_grad():
            out = smaller(batch(smaller))
        assert out.shape == (4, 4) and bool(out.isfinite().all())
        assert not any(p.is_inference() for p in smaller.parameters())
        return
    before = None if name == "lazy" else state_of(model)
    with kind.around(), pytest.raises(prunus.PrunusError, match=said):
        verb(model, x, path)
    if before is not None:
        after = state_of(model)
        assert after["training"] == before["training"] and after["hooks"] == before["hooks"]
        for n, (t, value) in before["tensors"].items():
            assert after["tensors"][n][0] is t and torch.equal(after["tensors"][n][1], value)


def test_a_copy_made_outside_of_inference_mode_is_cut():
    model = copy.deepcopy(KINDS["built in inference mode"].model())
    assert prunus.prune_(model, picture(), budget=HALF).verified.max_relative_error < 1e-7


@pytest.mark.parametrize("name", ["a subclass as the example", "a wrapping subclass as the example"])
def test_examples_of_other_classes_lose_no_label(name):
    plain = prunus.trace(KINDS["plain"].model(), picture())
    found = prunus.trace(KINDS[name].model(), KINDS[name].example())
    assert [(g.id, g.units) for g in found] == [(g.id, g.units) for g in plain]


def test_masked_tensors_and_images_of_torchvision():
    model = KINDS["plain"].model()
    from prunus.core.torchvision_ops import declare_torchvision_operators

    pytest.importorskip("torchvision", reason="torchvision is not installed") if declare_torchvision_operators() else 0
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    groups = prunus.trace(model, tv_tensors.Image(picture()))
    assert groups.units == prunus.trace(model, picture()).units


def test_statistics_under_autocast_and_checkpoints_are_those_of_the_plain_network():
    def scores(name: str) -> dict[str, Tensor]:
        kind, model, x = made(name)
        torch.manual_seed(0)
        model.load_state_dict(KINDS["plain"].model().state_dict())
        groups = prunus.trace(model, picture())
        with kind.around():
            stats = prunus.collect(model, groups, [(picture(4), torch.tensor([0, 1, 2, 3]))], {"grad", "gate"})
        return prunus.score(groups, "taylor", stats)

    plain = scores("plain")
    for name in ("autocast", "no gradients", "reentrant checkpoints", "checkpoints"):
        found = scores(name)
        assert all(torch.allclose(found[id], plain[id], rtol=1e-5) for id in plain), name
