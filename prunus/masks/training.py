"""Masks while a network trains: a method's masks, by its rule, around the steps of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from prunus.allocators import allocate
from prunus.core import Budget, FileError, InputError, Mask, Plan
from prunus.core.checks import anything, check_arguments, instance, optional, state_with
from prunus.core.held import check_free, give_back_, let_go_, take_
from prunus.core.stepping import after_gradients, plain_optimizers, skipped
from prunus.core.undo import all_or_nothing, keep_values
from prunus.core.words import a_plan
from prunus.core.wrappers import unwrapped
from prunus.criteria import score
from prunus.masks.at_init import without
from prunus.masks.mask import Masked, mask_
from prunus.masks.moment import Method, Moment, methods
from prunus.masks.rules import RULES, Covered, on_device
from prunus.masks.tensors import Tensors


class MaskPruner:
    r"""Trains a network under masks of its weights: `prunus.Pruner` for single weights.

    A step is: clip, gradients, the method's new masks where they are due, optimizer, masks.  The network's modules and
    ``state_dict`` keys stay as they are, and the parameters hold what forward sees at any time.

    Args:
        model: the network, wrapped or not; groups: what `prunus.tensors` returned of it, of any grain.
        method: a name in `prunus.masks.methods`, with `options`, or a `Method`.
        density: which fraction of the weights may stay.
        steps: how many steps the training takes: what the method's schedule is made for.
        plan: a mask plan to start from, instead of the method's own start.
        seed: of what is drawn.

    Raises: `InputError` for options that the method does not take, groups of another network, sharded parameters;
    `UnknownNameError`; `BudgetError` for a density out of reach.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> pruner = MaskPruner(net, prunus.tensors(net), "rigl", density=0.25, steps=8, every=2)
    >>> pruner.attach(optimizer)
    >>> for step in range(8):
    ...     optimizer.zero_grad()
    ...     net(torch.randn(4, 8)).square().mean().backward()
    ...     loss = optimizer.step()
    >>> pruner.finish_().density
    0.25
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Tensors,
        method: str | Method = "rigl",
        *,
        density: float,
        steps: int,
        plan: Plan | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        check_arguments(
            locals(),
            method=instance("the name of a method, or one made by prunus.masks", str, Method),
            plan=optional(a_plan),
            options=anything,
        )
        self.model, self.groups, self.seed = unwrapped(model), groups, seed
        self.method = made(method, density, steps, options)
        self._rule = self.method.rule
        parameters = dict(self.model.named_parameters())
        wrong = next((g.id for g in groups if parameters.get(g.id) is not g.slices[0].tensor), None)
        if wrong is not None or not groups.weights:
            raise InputError(
                f"the groups are not the weights of this network (first: {wrong!r}): groups = prunus.tensors(model)."
            )
        self.step = 0
        self.notes: tuple[str, ...] = ()
        self.memory: dict[str, Tensor] = {}
        self._budget = Budget(density=float(density))
        self.limit = self._budget.limits(groups.costs())["density"]
        self.keep = torch.ones(groups.units, dtype=torch.bool)  # True = keep
        allocate(groups, {g.id: torch.zeros(g.units) for g in groups}, self._budget)  # raises here, not after hours
        if plan is not None:
            self.keep = groups.mask(plan)
        elif self.method.start != "dense":
            scores = score(groups, "random", seed=seed)
            self.keep = groups.mask(allocate(groups, scores, self._budget, allocator=self.method.start))
        self.covered = Covered({g.id: parameters[g.id] for g in groups}, self._masks())
        self._optimizers: tuple[Optimizer, ...] = ()
        self._handles: list[Any] = []
        self._begun = False

    def attach(self, optimizer: Optimizer | Iterable[Optimizer]) -> None:
        """Put the masks on, and hook into the steps of the optimizer (of several: they step together, in this order).

        What the method learns beside the weights becomes one more parameter group of the (first) optimizer.

        Masks that held the weights before (`prunus.mask_`) are let go of, with a note: this pruner's count.

        Raises: `InputError` when it is attached already, another pruner moves the masks of these weights, or no
        optimizer holds a masked parameter.
        """
        check_arguments(locals())
        if self._optimizers:
            raise InputError("this pruner is attached already; make a new one, or detach() it.")
        optimizers = plain_optimizers(optimizer)
        held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
        missing = [n for n, p in self.covered.parameters.items() if p.requires_grad and id(p) not in held]
        if missing:
            raise InputError(
                f"the optimizer does not hold {len(missing)} of the masked parameters (first: '{missing[0]}'). Give "
                "the optimizer made from this very model's parameters, or set requires_grad_(False) on the others."
            )
        with self._whole(optimizers):
            take_(self.covered.parameters, self)
            if released := [name for name, p in self.covered.parameters.items() if let_go_(p)]:
                more = f" and {len(released) - 1} more" if len(released) > 1 else ""
                self.notes += (f"the masks that held '{released[0]}'{more} at zero before are let go of.",)
            self._begin()
            if self.covered.thresholds:
                group: dict[str, Any] = {"params": list(self.covered.thresholds.values())}
                group |= {} if self.method.decay is None else {"weight_decay": self.method.decay}
                optimizers[0].add_param_group(group)
            with torch.no_grad():
                self._rule.attach_(self.covered, optimizers)
            for one in optimizers:
                self._handles += [one.register_step_pre_hook(self._before), one.register_step_post_hook(self._after)]
            self._optimizers = optimizers

    @contextmanager
    def _whole(self, optimizers: Iterable[Optimizer]) -> Iterator[None]:
        """A failure leaves network, optimizers and the pruner itself as they were."""
        w = self.covered
        with all_or_nothing(self, w, self.model, *optimizers):
            for p in w.parameters.values():
                states = [one.state[p].values() for one in optimizers if p in one.state]
                keep_values(p, p.grad, *(v for state in states for v in state if isinstance(v, Tensor)))
            keep_values(*w.dense.values(), *w.thresholds.values())
            yield

    def detach(self) -> None:
        """Take all hooks out of the optimizer; the parameters stay as forward sees them, and are no longer held."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], ()
        give_back_(self.covered.parameters.values(), self)

    @torch.no_grad()
    def _begin(self) -> None:
        if not self._begun:
            self._rule.begin_(self.covered)
        self._begun = True

    def _check_begun(self, verb: str) -> None:
        if not self._begun:
            raise InputError(f"{verb}: no mask was ever put on. attach(optimizer) comes before training.")

    def _masks(self) -> dict[str, Tensor]:
        """The masks of the parameters, where they are."""
        rows = {g.id: g.slices[0].scatter(self.keep[g.offset : g.offset + g.units, None]) for g in self.groups}
        return on_device(rows, {g.id: g.slices[0].tensor for g in self.groups})  # type: ignore[misc]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if optimizer is not self._optimizers[0] or skipped(optimizer):
            return None
        return after_gradients(args, kwargs, self._gradients_are_there)

    @torch.no_grad()
    def _gradients_are_there(self) -> None:
        method = self.method
        self.covered.check()
        if self.step == method.freeze:
            self._freeze_()
        self._rule.reveal_(self.covered)
        frozen = method.freeze is not None and self.step >= method.freeze
        due = method.update is not None and not frozen and method.when(self.step)
        if due or method.watch is not None:
            moment = self.moment()
            if method.watch is not None:
                method.watch(moment)
            if due and method.update is not None:
                self._choose(method.update(moment))
        self._rule.hold_(self.covered)
        if due and method.skip:
            for p in (p for one in self._optimizers for group in one.param_groups for p in group["params"]):
                p.grad = None  # no optimizer moves a parameter that has no gradient

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self._optimizers[-1] and not skipped(optimizer):
            self._rule.conceal_(self.covered, self._optimizers)
            self.step += 1

    def moment(self) -> Moment:
        """What the parts of the method see now."""
        parameters = self.covered.parameters
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        keep = {g.id: self.keep[g.offset : g.offset + g.units] for g in self.groups}
        return Moment(self.groups, keep, grads, self.step, self.limit, self.seed, self.memory)

    def _choose(self, keep: Mapping[str, Tensor]) -> None:
        """Take on the masks of an update, those of the first rank."""
        chosen = [torch.cat([keep[g.id] for g in self.groups])]
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast_object_list(chosen)
        self.groups.check_proportions(chosen[0])
        self.keep = chosen[0]
        self.covered.masks = self._masks()
        self._rule.mask_(self.covered)

    @torch.no_grad()
    def finish_(self) -> Masked:
        """Hold the masks for good, whatever trains the network next; where too many weights are left, the least go.

        Returns: what `prunus.mask_` returns.  The optimizer goes on with what is left.

        Raises: `InputError` when neither `attach` nor `load_state_dict` came before, or where another pruner, attached
        since, moves the masks of these weights.
        """
        self._check_begun("finish_()")
        check_free(self.covered.parameters, self)
        with self._whole(self._optimizers):
            self._begin()
            self.detach()
            for name, p in self.covered.parameters.items():
                p.masked_fill_(~self.covered.masks[name], 0)
            alive, notes = self._within_budget()
            self.keep = alive
            done = mask_(self.model, self.groups, self.groups.plan(alive))
            notes = self.notes + notes + done.notes
            return Masked(done.model, done.plan, done.density, done.densities, 0, done.left_alone, notes)

    def _within_budget(self) -> tuple[Tensor, tuple[str, ...]]:
        """The units that are there, where they are too many those with the highest LAMP scores; what went, in words."""
        alive = self.keep & self.groups.alive_weights() if self.covered.thresholds else self.keep
        left = self.groups.costs(alive)["density"]
        if left <= self.limit:
            return alive, ()
        scores = without(self.groups, score(self.groups, "lamp"), alive)  # no layer is emptied
        alive = alive & self.groups.mask(allocate(self.groups, scores, self._budget))
        gone = left - self.groups.costs(alive)["density"]
        return alive, (f"{gone:,} of {left:,} weights were removed at step {self.step:,}, to meet the budget.",)

    def _freeze_(self) -> None:
        """From what forward sees now on, hard masks."""
        self.keep, self.notes = self._within_budget()
        self.covered.masks = self._masks()
        for s in self.covered.thresholds.values():
            s.grad = None  # no optimizer moves a parameter that has no gradient
        self._harden()
        self._rule.attach_(self.covered, self._optimizers)

    def _harden(self) -> None:
        self._rule, self.covered.dense, self.covered.thresholds = RULES["hard"], {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text and tensors: with the state of network and optimizer, all that a run needs to go on to the bit.

        Masks are a bit a weight.  Raises: `InputError` before `attach`.
        """
        self._check_begun("state_dict()")
        masks = Plan(masks={name: Mask.of(mask) for name, mask in self.covered.masks.items()})
        thresholds = {name: t.detach().clone() for name, t in self.covered.thresholds.items()}
        tensors = {"dense": self.covered.dense, "memory": self.memory, "thresholds": thresholds}
        copied = {kind: {name: t.clone() for name, t in found.items()} for kind, found in tensors.items()}
        frozen = self._rule is not self.method.rule
        return {"step": self.step, "masks": masks.to_json(), "frozen": frozen, "notes": list(self.notes), **copied}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, before or after `attach`; load the network's own state as well.

        Raises: `InputError` for masks of another network, or while another pruner moves those of these weights;
        `FileError` when the state is damaged.
        """
        check_arguments(
            locals(), state=state_with(step=int, masks=str, frozen=bool, dense=dict, thresholds=dict, memory=dict)
        )
        check_free(self.covered.parameters, self)
        keep = self.groups.mask(Plan.from_json(state["masks"]))
        with self._whole(self._optimizers):
            self._begin()
            if state["frozen"]:
                self._harden()
            self.notes = tuple(state["notes"])
            own: dict[str, Mapping[str, Tensor]] = {"dense": self.covered.dense, "thresholds": self.covered.thresholds}
            for kind, tensors in own.items():
                if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in state[kind].items()}:
                    raise FileError(
                        f"the state holds other {kind} tensors than this method has; it is of another method."
                    )
                for name, value in tensors.items():
                    value.copy_(state[kind][name])
            self.step, self.keep = int(state["step"]), keep
            self.memory.clear()
            self.memory |= {n: t.to(self.covered.parameters[n].device, copy=True) if n in self.covered.parameters
                            else t.clone() for n, t in state["memory"].items()}  # fmt: skip
            self.covered.masks = self._masks()


def made(method: str | Method, density: float, steps: int, options: Mapping[str, Any]) -> Method:
    """The method of a name, made for a density and so many steps; raises `InputError` for what it does not take."""
    if isinstance(method, Method):
        return method
    entry = methods[method]
    try:
        return entry.call(density, steps, **options)
    except TypeError as error:
        raise InputError(f"method '{method}': {str(error).partition('() ')[2] or error}.") from None
