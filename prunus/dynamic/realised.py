"""What inputs really cost: multiply-adds image by image, the gates' own included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError
from prunus.core.callbacks import each, forward
from prunus.core.checks import check_arguments
from prunus.core.inputs import Inputs
from prunus.core.wrappers import unwrapped
from prunus.dynamic.network import _of, gates, watched
from prunus.dynamic.places import Placement


@dataclass(frozen=True, eq=False)
class Realised:
    """Multiply-adds as they were.

    Attributes:
        macs: ``(N,)``, of every input, in the order given.
        dense: of the backbone.
        gates: of the gates, for every input.
        kept: ``(N, gates)``, active channels.
        channels: ``(gates,)``, channels.
        floored: by layer, the share of inputs for which the floor held a channel on.
    """

    macs: Tensor
    dense: int
    gates: int
    kept: Tensor
    channels: Tensor
    floored: dict[str, float]

    @property
    def mean(self) -> int:
        """The mean over the inputs."""
        return round(float(self.macs.double().mean()))

    @property
    def reduction(self) -> float:
        """The share of the backbone's multiply-adds that is saved, on average."""
        return 1 - self.mean / self.dense

    def facts(self, bins: int = 20) -> dict[str, Any]:
        """Plain data for ``result.json``: mean, quantiles, a histogram of so many `bins`, channels a layer."""
        share = self.macs.double() / self.dense
        low, high = float(share.min()), float(share.max())
        counts = torch.histc(share.float(), bins, low, max(high, low + 1e-6))
        return {
            "inputs": len(self.macs),
            "mean": self.mean,
            "dense": self.dense,
            "gates": self.gates,
            "quantiles": [round(float(q), 6) for q in share.quantile(share.new_tensor([0, 0.05, 0.5, 0.95, 1]))],
            "histogram": {"from": low, "to": high, "counts": [int(c) for c in counts]},
            "kept": [round(float(k), 3) for k in self.kept.double().mean(0)],
            "channels": self.channels.tolist(),
            "floored": {layer: round(share, 4) for layer, share in self.floored.items() if share > 0},
        }

    def __str__(self) -> str:
        low, high = float(self.macs.min()) / self.dense, float(self.macs.max()) / self.dense
        rows = [
            f"{self.mean:,} of {self.dense:,} multiply-adds on average ({-self.reduction:+.1%}), "
            f"{low:.0%} to {high:.0%} by input; {self.gates:,} of them are the gates'"
        ]
        held = [f"{layer} ({share:.1%} of inputs)" for layer, share in self.floored.items() if share > 0]
        return "\n".join(rows + ([f"the floor held a channel on in {', '.join(held)}"] if held else []))


def cost(placement: Placement, kept: Tensor, channels: Tensor) -> Tensor:
    r"""$\sum_l \mathrm{macs}_l \frac{n_{out}}{C_{out}} \frac{n_{in}}{C_{in}}$ over active channels, without the gates.

    ``kept (N, gates)``, ``channels (gates,)`` -> ``(N,)``.
    """
    share = torch.cat([kept.double() / channels, torch.ones(len(kept), 1, dtype=torch.float64)], 1)  # -1: no gate
    out, into = (torch.tensor([getattr(w, key) for w in placement.work]) for key in ("out", "into"))
    whole = torch.tensor([w.macs for w in placement.work], dtype=torch.float64)
    return (whole * share[:, out] * share[:, into]).sum(1).round().long()


@torch.no_grad()
def realised(model: nn.Module, batches: Iterable[Any]) -> Realised:
    """Run inputs through a network with gates, in evaluation mode, and count what they cost.

    An input channel that is off is not computed with where the layer reads the masked map itself (through pools at
    most), not behind a sum, a concatenation or a norm.

    Args:
        batches: what forward takes, or ``(x, y)``.

    Raises: `InputError` for a network without gates, in training mode, or without a batch.

    >>> import prunus, torch
    >>> net, x = prunus.zoo.resnet20().eval(), torch.randn(4, 3, 32, 32)
    >>> found = prunus.dynamic.dynamic_(net, x, "fbs", keep=0.5)
    >>> for gate in prunus.dynamic.gates(net):
    ...     _ = gate.count.fill_(gate.outputs // 2)
    >>> said = realised(net, [x])
    >>> said.macs.shape, said.gates
    (torch.Size([4]), 29696)
    """
    check_arguments(locals())
    model = unwrapped(model)
    placement, found = _of(model).placement, gates(model)
    if any(module.training for module in (model, *found)):
        raise InputError("the network is in training mode, in which batch norms and gates act otherwise: model.eval().")
    device, kept, floored = next(model.parameters()).device, [], []
    with watched(model) as tapes:
        for batch in each(batches):
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            x = Inputs.of(batch[0] if pair else batch).map(lambda t: t.to(device))
            forward(model, x, "a batch of the data")
            kept.append(torch.stack([tape[-1].active.sum(1) for tape in tapes], 1).cpu())
            floored.append(torch.stack([tape[-1].floored for tape in tapes], 1).cpu())
            for tape in tapes:
                tape.clear()
    if not kept:
        raise InputError("realised: there is no batch of inputs.")
    counts, short = torch.cat(kept), torch.cat(floored).double().mean(0).tolist()
    channels = torch.tensor([gate.outputs for gate in found])
    own = sum(gate.macs for gate in found)
    return Realised(
        cost(placement, counts, channels) + own,
        sum(work.macs for work in placement.work),
        own,
        counts,
        channels,
        {place.layer: share for place, share in zip(placement.places, short, strict=True)},
    )
