"""What a plan is made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunus.core.errors import FileError


@dataclass(frozen=True)
class GroupPlan:
    """The kept units of one group, out of how many.

    Attributes:
        units: how many units the group has in the original.
        kept: numbers of the units that stay, in order, each below `units`.
    """

    units: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class TensorPlan:
    """One parameter or buffer: its original shape, and per cut dimension the kept indices in original coordinates."""

    shape: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]

    @property
    def left(self) -> tuple[int, ...]:
        """The shape after the cut."""
        return tuple(len(self.kept.get(d, range(n))) for d, n in enumerate(self.shape))


@dataclass(frozen=True)
class Edit:
    """An integer attribute that follows the cut: `attribute` of the submodule `module` goes from `old` to `new`."""

    module: str
    attribute: str
    old: int
    new: int


@dataclass(frozen=True)
class Added:
    """A tensor that the network did not have: a bias that absorbed a constant, or a channel selection.

    Attributes:
        name: qualified name of the tensor.
        kind: ``"bias"``, or ``"select"`` for the channel selection in front of a norm.
        shape: its one size, in the coordinates of the original: rows of the layer, or channels that are read.
        dtype: as torch names it, without ``torch.``; ``"int64"`` for a selection.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Dropped:
    """A residual block that is gone: the submodule `module` gives its input on.

    `given` names the keyword that the input comes by, "" for the first positional one; the output is the tensor alone
    (`length` 0), or the first of a tuple of `length`.
    """

    module: str
    given: str = ""
    length: int = 0


@dataclass(frozen=True)
class Scaled:
    """Rows of a tensor that a cut multiplies by `factor`, before it: what forward computes from a size is made good.

    Attributes:
        name: qualified name of the parameter or buffer.
        dim: the dimension that the rows are counted along.
        rows: which of them, in the coordinates before this cut.
    """

    name: str
    dim: int
    rows: tuple[int, ...]
    factor: float


@dataclass(frozen=True)
class Mask:
    """Which elements of one tensor stay: its shape, and a bit an element, in base64.

    Attributes:
        shape: of the tensor.
        bits: in the order of the flattened tensor, 1 = keep; the last byte is filled with zeros.

    >>> keep = torch.tensor([[True, False, True]])
    >>> Mask.of(keep), torch.equal(Mask.of(keep).keep, keep)
    (Mask(shape=(1, 3), bits='oA=='), True)
    """

    shape: tuple[int, ...]
    bits: str

    @classmethod
    def of(cls, keep: Tensor) -> Mask:
        """From a boolean tensor, True = keep."""
        flat = keep.detach().bool().flatten().cpu()
        packed = np.packbits(flat.numpy())
        return cls(tuple(keep.shape), base64.b64encode(packed.tobytes()).decode())

    @property
    def keep(self) -> Tensor:
        """The boolean tensor; raises `FileError` when the bits do not fit the shape."""
        packed = np.frombuffer(base64.b64decode(self.bits), dtype=np.uint8)
        count = torch.Size(self.shape).numel()
        if len(packed) * 8 < count:
            raise FileError(f"a mask of shape {self.shape} holds {len(packed) * 8} bits; it was damaged or edited.")
        return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).reshape(self.shape)
