"""Gates that learn: the loss of a method around any training loop, and the statistics by which gates close."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from prunus.core import FileError, InputError
from prunus.core.callbacks import cross_entropy, each, own
from prunus.core.checks import a_function, check_arguments, optional, state_with
from prunus.core.errors import TrainingError
from prunus.core.running import undisturbed
from prunus.core.wrappers import unwrapped
from prunus.dynamic.network import _of, gates, watched


class GateTraining:
    r"""The loss of a network with gates, and what its method does at the end of every period.

    A period is an epoch, unless there are more `periods` than that.  During one the saliencies of every gate and the
    cross-entropies are summed up; at its end the sums of all processes are added, so that all set the same thresholds.

    Args:
        model: a network with gates (`dynamic_`), wrapped or not.
        steps: steps of the whole training.
        periods: into how many periods they are divided.

    Raises: `InputError` for a network without gates, or more periods than steps.

    >>> import prunus, torch
    >>> net, x, y = prunus.zoo.resnet20(), torch.randn(8, 3, 32, 32), torch.arange(8)
    >>> found = prunus.dynamic.dynamic_(net, x, keep=0.5, init="ones")
    >>> training = GateTraining(net, steps=2, periods=2)
    >>> training.begin([(x, y)])
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    >>> for _ in range(2):
    ...     with training.watching():
    ...         z = net(x)
    ...     training.loss(z, y).backward()
    ...     optimizer.step()
    ...     training.step()
    >>> [bool(g.threshold > 0) for g in prunus.dynamic.gates(net)][:2]
    [True, True]
    """

    def __init__(self, model: nn.Module, *, steps: int, periods: int) -> None:
        check_arguments(locals())
        if not 1 <= periods <= steps:
            raise InputError(f"periods={periods!r}: expected at least 1, and no more than the {steps} steps.")
        self.model = unwrapped(model)
        self.method, self.gates = _of(self.model).method, gates(self.model)
        self.steps, self.periods, self.at = steps, periods, 0
        self.usual: float | None = None  # mean cross-entropy of the period before
        self._tapes: list[Any] = []
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(2 + sum(g.outputs for g in self.gates), dtype=torch.float64)  # samples, CE, saliencies

    def begin(
        self, batches: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """One pass over the training data: the mean cross-entropy that the first period compares with.

        A method whose loss compares with nothing can do without.

        Args:
            batches: inputs and labels, ``(x, y)``.
            forward: gives the logits of inputs; None: the network itself.

        Raises: `InputError` when there is no batch; `TrainingError` when the cross-entropy is not finite.
        """
        check_arguments(locals(), forward=optional(a_function))
        run, total = own(forward or self.model, "forward="), torch.zeros(2, dtype=torch.float64)
        place = next(self.model.parameters()).device
        with undisturbed(self.model):
            for x, y in each(batches):
                ce = cross_entropy(run(x.to(place)), y.to(place), reduction="sum")
                total += torch.tensor([len(y), float(ce)], dtype=torch.float64)
        self.usual = float(_means(total, place, "begin: there is no batch of training data.")[0])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the forward whose output goes into `loss`."""
        with watched(self.model) as tapes:
            yield
        self._tapes = tapes

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The method's loss of logits `z` ``(N, C)`` and labels `y` ``(N,)``: a scalar.

        Raises: `InputError` unless forward was run once, inside `watching`, since the last loss, and where the method
        compares with a cross-entropy that is not known before `begin`.
        """
        if not all(len(tape) == 1 for tape in self._tapes) or not self._tapes:
            raise InputError("loss: run the network's forward once, inside `with training.watching():`, before.")
        seen, self._tapes = [tape[0] for tape in self._tapes], []
        ce = F.cross_entropy(z, y, reduction="none")
        loss = self.method.loss(ce, seen, self.usual)
        with torch.no_grad():
            head = torch.stack([torch.full_like(ce[0], len(ce)), ce.sum()])
            self._sums += torch.cat([head, *(s.saliency.sum(0) for s in seen)]).double().cpu()
        return loss

    def step(self) -> None:
        """After the optimizer's step; the last of a period closes the gates.

        Raises: `InputError` when the period saw no `loss`; `TrainingError` when one in it was not finite.
        """
        self.at += 1
        period = (self.at - 1) * self.periods // self.steps  # of the step just made
        if self.at * self.periods // self.steps == period:
            return
        none = "step: gates close by what training.loss(z, y) saw in the period, and it was not called; take that loss."
        means = _means(self._sums, next(self.model.parameters()).device, none)
        self.usual, means = float(means[0]), means.float()
        progress = min((period + 1) / (self.method.until * self.periods), 1.0)
        self.method.close_(self.gates, means[1:].split([g.outputs for g in self.gates]), progress)
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: with network and optimizer, all that a run needs to go on to the bit."""
        return {"at": self.at, "usual": self.usual, "sums": self._sums.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; raises `FileError` for the state of another network."""
        check_arguments(locals(), state=state_with(at=int, usual=(float, NoneType), sums=Tensor))
        if state["sums"].shape != self._sums.shape:
            raise FileError(
                f"this state is of gates with {len(state['sums']) - 2} channels; these have {len(self._sums) - 2}."
            )
        self.at, self.usual, self._sums = int(state["at"]), state["usual"], state["sums"].clone()


def _means(sums: Tensor, device: torch.device, none: str) -> Tensor:
    """By the first, how many there are, of all processes, the other `sums`; `none` says that there are none."""
    total = added(sums, device)
    if not total[0] > 0:
        raise InputError(none)
    if not bool(total.isfinite().all()):
        raise TrainingError("cross-entropies or saliencies are not finite, so that gates cannot close by their means.")
    return (total / total[0])[1:]


def added(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes, the same on each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.to(device, copy=True)
    distributed.all_reduce(total)
    return total.cpu()
