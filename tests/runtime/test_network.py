"""Compiled networks give what torch gives, at any size and batch, and say what runs where."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus import zoo
from prunus.core.errors import InputError, TraceError
from prunus.runtime import compile

CLOSE = 1e-5


def sparse(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """Weights and statistics that are all different, a part of the weights zero."""
    random = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() > 1:
            p.data[torch.rand(p.shape, generator=random) < sparsity] = 0
        else:
            p.data.uniform_(-0.5, 1.5, generator=random)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2, generator=random)
            m.running_var.uniform_(0.5, 2, generator=random)
    return model.eval()


def error(model: nn.Module, x: Tensor, example: Tensor | None = None, **options) -> float:
    """max |engine - torch in float64| / max |torch|, for a model in evaluation mode."""
    got = compile(model, x if example is None else example, **options)(x)
    with torch.no_grad():
        want = model.double()(x.double())
    model.float()
    assert got.shape == want.shape and want.numel() > 0 and want.isfinite().all()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-2))  # bounds may leave zeros alone


@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])  # compiling is too slow to shrink
@given(st.data())
def test_random_chains(data) -> None:
    channels, layers = 3, []
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["conv", "depthwise", "max", "mean", "relu", "norm", "relu6"]))
        k, s = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        if kind == "conv":
            out = data.draw(st.integers(1, 9))
            layers.append(nn.Conv2d(channels, out, k, s, data.draw(st.integers(0, 2)), data.draw(st.integers(1, 2))))
            channels = out
        elif kind == "depthwise":
            layers.append(nn.Conv2d(channels, channels, k, s, k // 2, groups=channels, bias=False))
        elif kind == "max":
            layers.append(nn.MaxPool2d(k, s, k // 2))
        elif kind == "mean":
            layers.append(nn.AvgPool2d(k, s, k // 2))
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels))
        else:
            layers.append(nn.ReLU(inplace=True) if kind == "relu" else nn.ReLU6())
    model = sparse(nn.Sequential(nn.Conv2d(3, channels if not layers else 3, 1), *layers), 0.3)
    size = data.draw(st.tuples(st.integers(14, 23), st.integers(14, 23)))
    batch = data.draw(st.sampled_from([1, 2, 3]))
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    assert error(model, x) < CLOSE


class Branches(nn.Module):
    """Sums, a concatenation, padding, upsampling, and operators that only torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.norm, self.c = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, 2)
        self.last = nn.Linear(8 * 12 * 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = F.relu(a + b)
        y = self.norm(torch.cat([y, torch.erf(a)], 1)).relu_()
        y = self.c(y)
        y = F.pad(y[:, :, ::2, 1:-1], (1, 1, 2, 2, 0, 0))[:, :, :6, :6]
        y = F.interpolate(y, scale_factor=2.0)
        z = y + 1
        return self.last((z * torch.sigmoid(y)).flatten(1))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_branches_and_what_only_torch_can(batch: int) -> None:
    model = sparse(Branches(), 0.5)
    x = torch.randn(batch, 3, 17, 17)
    assert error(model, x) < CLOSE
    compiled = compile(model, x)
    assert compiled.report()["torch"] and set(compiled.report()["torch"]) <= {"erf"}
    assert "sparse" in compiled.report()


class InPlace(nn.Module):
    """Reads what was written in place, once through a view."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.view = nn.Conv2d(3, 4, 3), view

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        part = y[:, :2] if self.view else y
        F.relu_(y)
        return torch.cat([part, y], 1)


@pytest.mark.parametrize("view", [False, True])
def test_what_is_written_in_place_is_read(view: bool) -> None:
    assert error(sparse(InPlace(view), 0), torch.randn(1, 3, 9, 9)) < CLOSE


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_a_network_of_the_zoo(sparsity: float) -> None:
    model = sparse(zoo.resnet20(), sparsity)
    compiled = compile(model, torch.randn(1, 3, 32, 32))
    assert "torch" not in compiled.report()
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        want = model(x).detach()
        assert (compiled(x) - want).abs().max() < 1e-4 * want.abs().max()


def test_threads_share_the_work_and_calls_take_turns() -> None:
    model = sparse(zoo.resnet20(), 0.8)
    x = torch.randn(2, 3, 32, 32)
    assert error(model, x, threads=2) < CLOSE
    compiled, want, found = compile(model, x, threads=2), model(x).detach(), []

    def work() -> None:
        found.extend(float((compiled(x) - want).abs().max()) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 15 and max(found) < 1e-4 * float(want.abs().max())


def test_layers_with_few_zeros_share_their_lists() -> None:
    dense = compile(sparse(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), 0.0), torch.randn(1, 16, 28, 28))
    assert dense.report()["winograd"] and "sparse" not in dense.report()
    thin = compile(sparse(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), 0.95), torch.randn(1, 16, 28, 28))
    assert thin.report()["sparse"] and not {"dense", "winograd"} & set(thin.report())


def test_the_model_is_left_as_it_was() -> None:
    model = zoo.resnet20().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compile(model, torch.randn(2, 3, 32, 32))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_wrong_inputs_are_refused() -> None:
    compiled = compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9))
    for wrong in (torch.randn(1, 3, 8, 9), torch.randn(3, 9, 9), torch.randn(0, 3, 9, 9)):
        with pytest.raises(InputError, match="was compiled for inputs of shapes"):
            compiled(wrong)
    with pytest.raises(InputError, match="was compiled for inputs of shapes"):
        compiled(torch.randn(1, 3, 9, 9), torch.randn(1, 3, 9, 9))
    for threads in (0, -1, 10**9, 1.0, True, "x", None):
        with pytest.raises(InputError, match="threads=.*a whole number"):
            compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9), threads=threads)
    with pytest.raises(TraceError, match=r"torch\.export cannot follow"):

        class Decides(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        compile(Decides(), torch.randn(1, 3, 9, 9))
