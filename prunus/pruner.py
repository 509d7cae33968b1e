"""The composition while a network trains: pressure, masks by a schedule, and the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from prunus.allocators import Problem, allocate
from prunus.allocators.base import Floor
from prunus.core import Budget, Groups, InputError, Plan, Report
from prunus.core.callbacks import own
from prunus.core.checks import a_portion, batches_again, check_arguments, optional, shown, state_with
from prunus.core.held import give_back_, take_
from prunus.core.inputs import Outputs
from prunus.core.stepping import after_gradients, plain_optimizers, skipped
from prunus.core.undo import all_or_nothing
from prunus.core.wrappers import unwrapped
from prunus.criteria import criteria, needed, score, unscored
from prunus.observe import collect
from prunus.regularizers import Attached, Regularizer, attach_where, regularizer_of
from prunus.surgery import check_holds, gaps, kept_units, shrink_, silence_, silence_gradients_
from prunus.surgery.attached import check_cuttable
from prunus.surgery.memory import check_memory
from prunus.surgery.shrink import check_same_network
from prunus.tracing import check_prunable, trace


class Pruner:
    r"""Prunes a network while it trains: presses, masks step by step, and cuts at the end.

    A step is: clip, penalty gradient, gradients of removed units to zero, optimizer, proximal map, removed units to
    zero.  So training goes on as if the removed units were not there, and `finish_` changes nothing but the size.
    With the original cost :math:`C` and the budget :math:`B`, the masked network costs at most
    :math:`C - p_t (C - B)` after step :math:`t`, where :math:`p_t` is the largest value of `schedule` so far.

    Works with `DistributedDataParallel` and `torch.compile` (wrap again after `finish_`), with Lightning, Accelerate
    and the Trainer of transformers (`prunus.integrations`); not with sharded parameters (FSDP): shard what it returns.

    Args:
        model, example_inputs, budget, criterion, allocator, data, loss, freeze, only, round_to, floor, verify, seed,
            outputs: as for `prune_`.
        regularizer: pressure on the weights: a `Regularizer`, a name, or ``{"name": ..., **arguments}``.
        schedule: steps made -> progress in [0, 1], e.g. `prunus.schedules.gradual`; None: everything in `finish_`.

    Raises: `InputError` when no unit may be removed or the parameters are sharded, `BudgetError` for a budget out of
    reach, and what `trace` raises.

    >>> from prunus.schedules import gradual
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> pruner = Pruner(net, torch.zeros(1, 4), budget=Budget(params=0.5), schedule=gradual(0, 4, every=2))
    >>> pruner.attach(optimizer)
    >>> for step in range(6):
    ...     optimizer.zero_grad()
    ...     net(torch.randn(8, 4)).square().mean().backward()
    ...     loss = optimizer.step()
    >>> report = pruner.finish_()
    >>> report.after, optimizer.state[net[0].weight]["exp_avg"].shape
    ({'params': 43, 'macs': 35}, torch.Size([7, 4]))
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        budget: Budget,
        criterion: str | Callable[..., Tensor] = "l2",
        allocator: str | Callable[[Problem], Tensor] = "global",
        regularizer: Regularizer | str | Mapping[str, Any] | None = None,
        schedule: Callable[[int], float] | None = None,
        data: Iterable[Any] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        freeze: Any = (),
        only: Any = (),
        round_to: int = 1,
        floor: Floor = None,
        verify: bool = True,
        seed: int = 0,
        outputs: Outputs | None = None,
    ) -> None:
        check_arguments(locals(), data=optional(batches_again))
        self.model = unwrapped(model)
        check_cuttable(self.model)
        self.groups = trace(self.model, example_inputs, freeze=freeze, only=only, outputs=outputs)
        check_prunable(self.groups)
        self._regularizer = None if regularizer is None else regularizer_of(regularizer)
        self._schedule, self._budget, self._verify = schedule, budget, verify
        self._criterion, self._seed, self._data, self._loss = criterion, seed, () if data is None else data, loss
        self._spread: dict[str, Any] = {"round_to": round_to, "floor": floor}
        self._needs = needed(criterion, data)
        self._allocator, roles = allocator, criteria.find(criterion).declares["roles"]
        self._scored = {g.id: torch.zeros(g.units) for g in self.groups.seen(values=False) if g.with_role(*roles)}
        allocate(self.groups, self._scored, budget, **self._spread)  # raises here, not after hours of training
        self.keep = torch.ones(self.groups.units, dtype=torch.bool)  # True = keep
        self.step, self.progress = 0, 0.0
        self.report: Report | None = None
        self._optimizers: tuple[Optimizer, ...] = ()
        self._handles: list[Any] = []
        self._pressing: list[Attached] = []
        self._pressure: list[Any] = []  # the state of the regularizer, while it is at work in no optimizer
        self._holes = gaps(self.groups, self.keep)

    def attach(self, optimizer: Optimizer | Iterable[Optimizer]) -> None:
        """Hook into the steps of the optimizer, or of all that together train the network; the loop stays as it is.

        Raises: `InputError` when it is attached or finished already, when a trainable parameter that may be cut is in
        none of the optimizers (it says which), when the network was cut, replaced or sharded since, or while another
        pruner moves masks of its weights.
        """
        check_arguments(locals())
        if self._optimizers or self.report is not None:
            raise InputError("this pruner is attached, or has finished, already; make a new one, or detach() it.")
        optimizers = plain_optimizers(optimizer)
        check_same_network(self.model, self.groups)
        check_memory(self.model)
        groups = self.groups.bind(self.model)
        check_holds(optimizers, self.model, dict.fromkeys(s.name for g in groups for s in g.slices))
        with all_or_nothing(self, *optimizers):
            take_(parameters_in(groups), self)
            if self._regularizer is not None:
                self._pressing = attach_where(self._regularizer, groups, optimizers)
                self._handles += self._pressing
                self._restore_pressure()
            for one in optimizers:
                self._handles += [one.register_step_pre_hook(self._before), one.register_step_post_hook(self._after)]
            self.groups, self._optimizers, self._holes = groups, optimizers, gaps(groups, self.keep)

    def detach(self) -> None:
        """Take all hooks out of the optimizer; nothing is cut."""
        self._pressure, self._pressing = self._state_of_pressure(), []
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], ()
        give_back_(parameters_in(self.groups).values(), self)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        return after_gradients(args, kwargs, lambda: silence_gradients_(self._holes))

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if skipped(optimizer):
            return
        if optimizer is self._optimizers[-1]:
            self.step += 1
            if self._schedule is not None:
                progress = own(self._schedule, "schedule=")(self.step)
                if not a_portion.holds(progress):
                    raise InputError(f"schedule= gave {shown(progress)} at step {self.step}; expected one in [0, 1].")
                self.advance_(max(self.progress, progress))
        silence_(self._holes, (optimizer,))

    def advance_(self, progress: float) -> None:
        """Mask more units, so that the cost is `progress` of the way to the budget; what is removed stays removed.

        The schedule does this by itself.  Raises: `InputError` unless `progress` is in [0, 1].
        """
        check_arguments(locals(), progress=a_portion)
        if not 0 <= progress <= 1:
            raise InputError(f"progress {progress!r} (the value of schedule=) must lie in [0, 1]: 1 is the budget.")
        if progress <= self.progress:
            return
        groups = self.groups
        stats = collect(self.model, groups, self._data, self._needs, self._loss) if self._needs else None
        scores = score(groups, self._criterion, stats, seed=self._seed)
        lowest = min(float(s.min()) for s in scores.values())
        for g in (g for g in groups if g.id in scores):
            scores[g.id][~self.keep[g.offset : g.offset + g.units]] = lowest - max(abs(lowest), 1.0)
        budget = self._budget.on_the_way(progress, groups.costs())
        plan = allocate(groups, scores, budget, allocator=self._allocator, **self._spread)
        chosen = [self.keep & groups.mask(plan)]
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast_object_list(chosen)  # one choice for all, that of the first rank
        with all_or_nothing(self, self.model):
            self.keep, self.progress = chosen[0], float(progress)
            self._holes = gaps(groups, self.keep)
            silence_(self._holes, self._optimizers)

    def finish_(self) -> Report:
        """Cut what is masked, and first mask what the budget still asks for: the optimizer goes on with the rest.

        Returns the report, also as `report`.  Raises: `InputError` when not attached; what `shrink_` raises, with
        everything as it was before: what was masked until then is masked, nothing more, and the pruner is attached.
        """
        if not self._optimizers:
            raise InputError("there is nothing to finish: attach(optimizer) comes first, and finish_ once.")
        late = f"the schedule had come {self.progress:.0%} of the way; the rest was removed at the end, untrained."
        notes = (late,) if self._schedule is not None and self.progress < 1 else ()
        with all_or_nothing(self, self.model, *self._optimizers):
            self.advance_(1.0)
            plan = self.groups.plan(self.keep)
            report = shrink_(self.model, self.groups, plan, verify=self._verify, optimizer=self._optimizers)
            self.detach()
            left_alone = report.left_alone + unscored(self.groups, self._scored, self._criterion)
            self.report = replace(report, left_alone=left_alone, notes=report.notes + notes)
            return self.report

    def state_dict(self) -> dict[str, Any]:
        """Numbers and text: with the state of network and optimizer, all that a run needs to go on to the bit."""
        units, cut = kept_units(self.groups, self.keep), self.report is not None
        own = {"step": self.step, "progress": self.progress, "plan": units.to_json(), "cut": cut}
        return {**own, "regularizer": self._state_of_pressure()}

    def _state_of_pressure(self) -> list[Any]:
        """What the regularizer chose when it was attached, for each optimizer that it is at work in."""
        return [state for one in self._pressing if (state := one.state_dict())] or self._pressure

    def _restore_pressure(self) -> None:
        """The regularizer goes on with what it chose before, where it is a run that is resumed."""
        chosen = [one for one in self._pressing if one.state_dict()]
        for one, state in zip(chosen, self._pressure):
            one.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, before or after `attach`.

        Raises: `InputError` when the state is of another network, or of one that was cut already; `FileError` when it
        is damaged.
        """
        check_arguments(locals(), state=state_with(step=int, progress=(int, float), plan=str, cut=bool))
        if state["cut"]:
            raise InputError("this state is of a finished pruner, whose network was cut: load it with prunus.load.")
        self.keep = self.groups.mask(Plan.from_json(state["plan"]))
        self.step, self.progress = int(state["step"]), float(state["progress"])
        self._pressure = list(state.get("regularizer", ()))
        self._restore_pressure()
        self._holes = gaps(self.groups, self.keep)


def parameters_in(groups: Groups) -> dict[str, Tensor]:
    """The parameters that a cut of the groups slices, by name."""
    return {s.name: s.tensor for g in groups for s in g.slices if isinstance(s.tensor, nn.Parameter)}
