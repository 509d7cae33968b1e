"""Where a regularizer acts: whole parameters where the groups cover them, shares of them otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.core import Groups, Slice


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter under pressure.

    `mask` is None when all of it is, else True where it is; `view` is the slice that shows it as ``(units, fan)``, or
    None when the function acts element by element on the parameter's own shape.
    """

    name: str
    tensor: Tensor
    mask: Tensor | None = None
    view: Slice | None = None

    @property
    def grad(self) -> Tensor:
        """The gradient of the parameter, which is there for every weight that a step moves."""
        assert self.tensor.grad is not None
        return self.tensor.grad

    def read(self) -> Tensor:
        """The weights as the regularizer sees them."""
        weight = self.tensor.detach()
        return weight if self.view is None else self.view.view(weight)

    def read_grad(self) -> Tensor:
        """The loss's gradient, as the regularizer sees weights."""
        return self.grad if self.view is None else self.view.view(self.grad)

    def write_grad(self, values: Tensor) -> None:
        """Put another gradient where there is pressure."""
        self._put(self.grad, values)

    def shape_like_grad(self, penalty: Tensor) -> Tensor:
        """A penalty gradient in the shape of the parameter, zero where there is no pressure."""
        if self.view is not None:
            return self.view.scatter(penalty).to(self.grad.dtype)
        return (penalty if self.mask is None else penalty * self._mask()).to(self.grad.dtype)

    def write(self, values: Tensor) -> None:
        """Put new weights where there is pressure."""
        self._put(self.tensor, values)

    def _put(self, to: Tensor, values: Tensor) -> None:
        new = values if self.view is None else self.view.scatter(values)
        to.copy_(new if self.mask is None else torch.where(self._mask(), new, to))

    def _mask(self) -> Tensor:
        assert self.mask is not None
        return self.mask.to(self.tensor.device)


def targets(groups: Groups, roles: Iterable[str], *, joint: bool) -> list[list[Target]]:
    """The parameters of the slices with these roles.

    Joint: one list a group, of ``(units, fan)`` shares.  Otherwise one list in all, each parameter once however many
    groups share it, and whole where together they cover it: the fast path.
    """
    slices = [[s for s in group.with_role(*roles) if s.tensor.is_floating_point()] for group in groups]
    if joint:
        return [[Target(s.name, s.tensor, _covered([s]), s) for s in members] for members in slices if members]
    by_tensor: dict[int, list[Slice]] = {}
    for s in (s for members in slices for s in members):
        by_tensor.setdefault(id(s.tensor), []).append(s)
    one = [Target(shares[0].name, shares[0].tensor, _covered(shares)) for shares in by_tensor.values()]
    return [one] if one else []


def _covered(shares: list[Slice]) -> Tensor | None:
    """Which elements of the parameter the slices cover, or None for all of them."""
    mask = torch.zeros(shares[0].tensor.shape, dtype=torch.bool)
    for s in shares:
        mask |= s.scatter(torch.ones(1, 1)) > 0
    return None if bool(mask.all()) else mask.to(shares[0].tensor.device)
