"""The baseline every criterion must beat."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion


@criterion("random", kind="group", roles=ROLES, seeded=True, weights="none")
def random(group: Group, *, seed: int) -> Tensor:
    """Random numbers, uniform in [0, 1), a pure function of seed, group and unit.  Gives ``(units,)``.

    Equal on every rank, machine and torch version, whatever was drawn before.
    """
    drawn = (blake2b(f"{seed}/{group.id}/{unit}".encode(), digest_size=6).digest() for unit in range(group.units))
    return torch.tensor([int.from_bytes(b, "big") / 2**48 for b in drawn], dtype=torch.float64)
