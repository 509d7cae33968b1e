"""What a network costs on paper: parameters, multiply-adds, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prunus.core import FileError, Inputs
from prunus.core.callbacks import EXAMPLE, forward
from prunus.core.checks import check_arguments
from prunus.core.counting import FORMULAS
from prunus.core.inference import inference_form
from prunus.core.process import plain_attention
from prunus.core.running import undisturbed

aten = torch.ops.aten


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one sample (one per multiply-add, additions of biases and normalisations are not counted).

    Attributes:
        total: multiply-adds per sample.
        by_operator: the same by operator, e.g. ``{"aten.convolution": 40_551_424, "aten.addmm": 640}``.
        by_module: the same by qualified module name, ``""`` for the whole; children count in their parents.
        not_counted: calls of operators that compute but have no multiply-add formula (activations, norms, sums ...).
    """

    total: int
    by_operator: Mapping[str, int]
    by_module: Mapping[str, int]
    not_counted: Mapping[str, int]


def params(model: nn.Module) -> int:
    """The number of parameter elements; a tied parameter counts once.

    >>> layer = nn.Linear(3, 2)
    >>> params(layer), params(nn.Sequential(layer, layer))
    (8, 8)
    """
    check_arguments(locals())
    return sum(p.numel() for p in model.parameters())


def state_size(model: nn.Module) -> int:
    """Bytes of the parameters and buffers held in memory; tied tensors count once.

    >>> state_size(nn.BatchNorm1d(4))  # 4 x (scale, shift, mean, variance) of 4 bytes, and one int64 counter
    72
    """
    check_arguments(locals())
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def size_on_disk(path: str | Path) -> int:
    """Bytes of a file, or of all files below a folder; raises `FileError` when there is nothing at `path`."""
    check_arguments(locals())
    path = Path(path)
    if not path.exists():
        raise FileError(f"there is no file or folder '{path}', so it has no size. Check the path.")
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def macs(model: nn.Module, example_inputs: Any) -> Macs:
    """Multiply-adds per sample of one forward in evaluation mode, with what could not be counted.

    A convolution costs ``batch * positions * C_out * C_in / groups * prod(kernel)`` (output positions; input positions
    when transposed), a matrix product ``n * m * k``, attention its two products.  Counted on the operators that really
    run, by `torch.utils.flop_counter` (a FLOP there is half a multiply-add), and divided by the batch.  Filters in a
    basis, and weights that parametrizations compute, are put together once (`inference_form`) and count as plain ones.

    The model, its modes and the random state are left as they were.

    Args:
        model: any module.
        example_inputs: what forward takes; the first dimension of the first tensor is the batch.

    >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 10, 10)).total  # 10 * 10 * 8 * 3 * 9
    21600
    """
    check_arguments(locals())
    inputs = Inputs.of(example_inputs)
    model = inference_form(model, inputs, reads=("gates",)).model  # what gates save, `prunus.dynamic.realised` says
    batch = max(inputs.batch, 1)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    leaves = _Leaves()
    # the counter decomposes before `leaves` sees a call
    with undisturbed(model), plain_attention(), _without_gradients(model), leaves, counter:
        forward(model, inputs, "example_inputs", EXAMPLE)
    root = type(model).__name__
    counts = {name.removeprefix(root).removeprefix("."): ops for name, ops in counter.get_flop_counts().items()}
    by_operator = {str(op): _per_sample(flops, batch) for op, flops in counts.pop("Global", {}).items()}
    by_module = {name: _per_sample(sum(ops.values()), batch) for name, ops in counts.items()}
    not_counted = {str(op): n for op, n in leaves.calls.items() if op not in counter.flop_registry}
    total = _per_sample(counter.get_total_flops(), batch)
    return Macs(total, by_operator, by_module | {"": total}, not_counted)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients: the counter's hooks do not take views of those that do."""
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


class _Leaves(TorchDispatchMode):
    """Counts the calls of operators that compute something: views, copies and constants are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        reads = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        if reads and not func.is_view and func.overloadpacket not in _FREE:
            self.calls[func.overloadpacket] += 1
        return out


def _per_sample(flops: int, batch: int) -> int:
    return round(flops / 2 / batch)


_FREE_NAMES = """
    clone copy_ _to_copy detach empty_like zeros_like ones_like cat stack index_select constant_pad_nd unsafe_split
    _local_scalar_dense lift_fresh _unsafe_view _reshape_copy contiguous
"""
_FREE = frozenset(getattr(aten, name) for name in _FREE_NAMES.split())
