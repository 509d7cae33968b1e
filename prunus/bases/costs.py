"""What a network in a basis costs: pruning rate, numbers to store, and multiply-adds of every way to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.bases.basis import coefficients, interspaced
from prunus.core import Inputs
from prunus.core.callbacks import EXAMPLE, forward
from prunus.core.checks import check_arguments
from prunus.core.running import removed, undisturbed
from prunus.masks.prunable import weights_of_layers


@dataclass(frozen=True)
class Costs:
    r"""Counts of nonzero weights and coefficients, and multiply-adds a sample of convolutions and linear layers.

    Attributes:
        prunable: weights of the plain dense layers, $D$; biases, norms and bases are none.
        nonzero: of these, and of the coefficients that stand for them.
        basis: entries of all bases, each counted once.
        dense: multiply-adds of the plain dense network, and of filters put together from sparse coefficients.
        sparse: of plain layers with as many nonzero weights: $d\, O I K^2 H' W'$.
        mixed: of the answers of the basis, then the sparse mix: $(I K^4 + d\, O I K^2) H' W'$; of a linear layer in
            blocks of $b$: $(I b + d\, O I)$ a row.
        recompose: of putting the filters together, $\mathrm{nnz}(\lambda) K^2$, once for every change of the weights.
        uncounted: layers that were not called as modules; their multiply-adds are in none of these.
    """

    prunable: int
    nonzero: int
    basis: int
    dense: int
    sparse: int
    mixed: int
    recompose: int
    uncounted: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        r"""The pruning rate $p = 1 - (\lVert \lambda \odot M \rVert_0 + \mathrm{nnz}(W)) / D$."""
        return 1 - self.nonzero / self.prunable if self.prunable else 0.0

    def __str__(self) -> str:
        rows = [
            f"pruning rate {self.rate:.2%}: {self.nonzero:,} of {self.prunable:,}, and {self.basis:,} in bases",
            f"MACs: dense {self.dense:,}, sparse {self.sparse:,}, basis and mix {self.mixed:,}",
            f"      {self.recompose:,} to put the filters together",
        ]
        return "\n".join(rows + [f"not counted: {name}" for name in self.uncounted])


@torch.no_grad()
def costs(model: nn.Module, example_inputs: Any) -> Costs:
    """Count what a network costs that has bases, or masks, or neither; runs it once on `example_inputs`.

    >>> import prunus
    >>> net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False))
    >>> report = prunus.interspace_(net)
    >>> found = costs(net, torch.zeros(1, 64, 28, 28))
    >>> found.dense, found.mixed - found.sparse, found.recompose
    (28901376, 4064256, 331776)
    """
    check_arguments(locals())
    sizes = {id(coefficients(m, leaf)): len(basis.vectors) for _, m, leaf, basis in interspaced(model)}
    weights = {id(p): (name, p, sizes.get(id(p), 1)) for name, _, p in weights_of_layers(model)}  # 1: no basis
    owners = {m: [id(p) for p in m.parameters(recurse=False) if id(p) in weights] for m in model.modules()}
    totals = {"dense": 0, "sparse": 0, "mixed": 0}
    nonzeros = {key: int(p.count_nonzero()) for key, (_, p, _) in weights.items()}
    counted: set[int] = set()

    def count(keys: list[int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            for key in keys:
                _, p, size = weights[key]
                counted.add(key)
                rows = _rows(module, args[0], out)
                inputs = p.shape[0] if isinstance(module, TRANSPOSED) else p.shape[1] * getattr(module, "groups", 1)
                answers = inputs * size * (size if p.dim() > 2 else 1) if size > 1 else 0  # I K^4, or I b
                totals["dense"] += p.numel() * rows
                totals["sparse"] += nonzeros[key] * rows
                totals["mixed"] += (nonzeros[key] + answers) * rows

        return hook

    inputs = Inputs.of(example_inputs)
    samples = max(inputs.batch, 1)
    simple = {m: keys for m, keys in owners.items() if isinstance(m, SIMPLE)}
    with undisturbed(model), removed(m.register_forward_hook(count(keys)) for m, keys in simple.items()):
        forward(model, inputs, "example_inputs", EXAMPLE)
    unseen = tuple(name for key, (name, _, _) in weights.items() if key not in counted)
    return Costs(
        prunable=sum(p.numel() for _, p, _ in weights.values()),
        nonzero=sum(nonzeros.values()),
        basis=sum(v.numel() for v in {id(b): b.vectors for *_, b in interspaced(model)}.values()),
        **{kind: total // samples for kind, total in totals.items()},
        recompose=sum(nonzeros[key] * size for key, (_, _, size) in weights.items() if size > 1),
        uncounted=unseen,
    )


TRANSPOSED = nn.modules.conv._ConvTransposeNd
SIMPLE = (nn.modules.conv._ConvNd, nn.Linear)


def _rows(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """How often a weight is used, over all samples: output positions, or input positions if transposed."""
    wide: Any = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return x.numel() // module.in_channels if isinstance(module, TRANSPOSED) else out.numel() // wide
