"""Networks, examples and surroundings of every kind: each is built anew, with the context in which it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Small(nn.Module):
    """Two convolutions with a norm between, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class Holding(Small):
    """With another network where the second convolution was."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.b = part  # type: ignore[assignment]


class Checkpointed(Small):
    """Whose first half is computed again in backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: torch.relu(self.norm(self.a(x))), x, use_reentrant=self.reentrant)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class Complex(nn.Module):
    """Complex layers, and magnitudes at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8, dtype=torch.cfloat), nn.Linear(8, 4, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.view_as_complex(torch.stack([x.mean((2, 3)), x.amax((2, 3))], -1).contiguous()) @ self._w())
        return y.abs()

    def _w(self) -> Tensor:
        return self.a.weight.t()


class Spectral(nn.Module):
    """A real network with one complex weight between two Fourier transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
        self.filter = nn.Parameter(torch.randn(8, 6, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.irfft2(torch.fft.rfft2(self.a(x)) * self.filter, s=x.shape[2:])
        return self.head(self.b(x).mean((2, 3)))


class Lazy(nn.Module):
    """Layers whose sizes the first input tells."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.LazyConv2d(8, 3), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu().mean((2, 3)))


class Functional(nn.Module):
    """Calls another network by its parameters, over each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, x: Tensor) -> Tensor:
        named = dict(self.net.named_parameters()) | dict(self.net.named_buffers())

        def one(x: Tensor) -> Tensor:
            return torch.func.functional_call(self.net, named, (x[None],))[0]

        return torch.vmap(one)(x)


class Named(Tensor):
    """A tensor of a class of its own, as libraries for images have them."""


class Wrapping(Tensor):
    """A tensor that holds another, and computes with it."""

    inner: Tensor

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        out = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_map_only

        args, kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*args, **kwargs))


@dataclass
class Kind:
    """A network, what it takes, and the surroundings of every call."""

    model: Callable[[], nn.Module]
    example: Callable[[], Any] = lambda: picture()
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def picture(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return small()


def exported() -> nn.Module:
    return torch.export.export(small(), (picture(),)).module()


def qat(fx: bool) -> nn.Module:
    from torch.ao import quantization as q

    if fx:
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        return prepare_qat_fx(small().train(), q.get_default_qat_qconfig_mapping("fbgemm"), (picture(),)).eval()
    model = nn.Sequential(q.QuantStub(), small(), q.DeQuantStub()).train()
    model.qconfig = q.get_default_qat_qconfig("fbgemm")
    return q.prepare_qat(model).eval()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(small(), nn.Linear(4, 8), nn.Linear(8, 4)), {nn.Linear})


KINDS = {
    "plain": Kind(small),
    "scripted part": Kind(lambda: Holding(torch.jit.script(nn.Conv2d(8, 6, 3, padding=1))).eval()),
    "scripted": Kind(lambda: torch.jit.script(small())),
    "traced by jit": Kind(lambda: torch.jit.trace(small(), picture())),
    "exported": Kind(exported),
    "exported part": Kind(
        lambda: Holding(torch.export.export(nn.Conv2d(8, 6, 3, padding=1), (torch.randn(2, 8, 6, 6),)).module())
    ),
    "graph module": Kind(lambda: torch.fx.symbolic_trace(small())),
    "QAT": Kind(lambda: qat(False)),
    "QAT by fx": Kind(lambda: qat(True)),
    "dynamically quantised": Kind(quantised),
    "compiled": Kind(lambda: torch.compile(small(), backend="eager")),
    "compiled part": Kind(lambda: Holding(torch.compile(nn.Conv2d(8, 6, 3, padding=1), backend="eager")).eval()),
    "data parallel": Kind(lambda: nn.DataParallel(small())),
    "vmap": Kind(lambda: Functional().eval()),
    "lazy": Kind(Lazy),
    "complex weights": Kind(lambda: Complex().eval()),
    "one complex weight": Kind(lambda: Spectral().eval()),
    "built in inference mode": Kind(in_inference_mode),
    "called in inference mode": Kind(small, around=torch.inference_mode),
    "built and called in inference mode": Kind(in_inference_mode, around=torch.inference_mode),
    "no gradients": Kind(small, around=torch.no_grad),
    "autocast": Kind(small, around=lambda: torch.autocast("cpu", torch.bfloat16)),
    "default float64": Kind(small, around=lambda: default(torch.float64)),
    "default bfloat16": Kind(small, around=lambda: default(torch.bfloat16)),
    "half precision": Kind(lambda: small().half(), lambda: picture().half()),
    "bfloat16": Kind(lambda: small().bfloat16(), lambda: picture().bfloat16()),
    "reentrant checkpoints": Kind(lambda: Checkpointed(True).eval()),
    "checkpoints": Kind(lambda: Checkpointed(False).eval()),
    "no samples": Kind(small, lambda: picture(0)),
    "a parameter as the example": Kind(small, lambda: nn.Parameter(picture())),
    "an example with gradients": Kind(small, lambda: picture().requires_grad_()),
    "an inference tensor as the example": Kind(small, lambda: inference(picture())),
    "a subclass as the example": Kind(small, lambda: picture().as_subclass(Named)),
    "a wrapping subclass as the example": Kind(small, lambda: Wrapping(picture())),
}


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()
