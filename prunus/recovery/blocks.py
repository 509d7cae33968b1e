r"""Block reconstruction: the layers of a block that was cut learn together to give what the block gave before.

What least squares of one layer cannot do: the units that stay may come to make something else, if the block as a whole
is then nearer to what it was.  Block after block, in the order of execution, from the inputs :math:`\hat x` that it has
in the cut network:

.. math:: \min_\theta \sum_n \lVert B_\theta(\hat x_n) - B_0(x_n) \rVert^2

No labels, no loss of the whole network, a few hundred small steps a block; a block that is no better on samples that
the steps have not seen stays as it was.  A block is read off the trace: the smallest module that holds everything that
reads and writes the units of a cut group, and the residual sum that they end in.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021,
section 3 (there for rounded weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from prunus.core import Group, Groups, InputError, Inputs, Operator, Plan
from prunus.core.callbacks import own
from prunus.core.checks import a_function, check_arguments, instance, optional
from prunus.core.progress import progress
from prunus.core.replay import Replay
from prunus.core.running import removed, undisturbed
from prunus.core.undo import all_or_nothing, keep_values
from prunus.recovery.behind import residual
from prunus.recovery.calibration import bytes_of_a_sample, first, operators_of
from prunus.recovery.targets import MEMORY

STEPS = 240  # of Adam, a block
BATCH = 32  # samples a step
RATE = 0.03  # of a step, relative to the root mean square of a parameter; falls to zero
CHECKED = 8  # one sample in so many is not trained on, and decides whether the block got better
LARGE = 0.25  # of the multiply-adds: what holds a smaller block and costs more is none


@dataclass(frozen=True)
class Block:
    """A part of the network that is called once: a module, or consecutive children of a `Sequential`."""

    modules: tuple[str, ...]
    macs: float = 0.0  # as a fraction of the network's

    def holds(self, name: str) -> bool:
        """Whether the module `name` is in the block, or is it."""
        return any(name == module or name.startswith(module + ".") for module in self.modules)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What blocks of the original network give on the calibration data; see `block_targets`."""

    inputs: Inputs
    outputs: Mapping[Block, Tensor]  # (n, ...), of kept units, in the order of execution
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rebuilt:
    """What `rebuild_` did: relative squared errors of every block, before and after, on samples not trained on.

    Attributes:
        errors: before and after, of every block; no unit.
        samples: how many were looked at.
        notes: whether fewer samples than given were looked at; () by default.
    """

    errors: Mapping[Block, tuple[float, float]]
    samples: int
    notes: tuple[str, ...] = ()

    @property
    def better(self) -> int:
        """How many blocks changed."""
        return sum(after < before for before, after in self.errors.values())


def cut_blocks(model: nn.Module, groups: Groups, plan: Plan) -> tuple[Block, ...]:
    """The blocks that `plan` cuts inside, in the order of execution.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> groups = prunus.trace(net, torch.zeros(1, 4))
    >>> plan = groups.plan(torch.arange(groups.units) > 0)
    >>> [block.modules for block in cut_blocks(net, groups, plan)]
    [('0', '1', '2')]
    """
    keep, ops, modules = groups.mask(plan), groups.operators, dict(model.named_modules())
    cut = [group for group in groups if not bool(keep[group.offset : group.offset + group.units].all())]
    costs = [_macs(groups, op) for op in ops]
    found = []
    for names in dict.fromkeys(_around(modules, ops, group) for group in cut):
        inside = sum(cost for op, cost in zip(ops, costs) if Block(names).holds(op.module))
        found.append(Block(names, inside / max(sum(costs), 1.0)))

    def stays(block: Block) -> bool:
        smaller = any(all(map(block.holds, other.modules)) for other in found if other.modules and other != block)
        return bool(block.modules) and not (smaller and block.macs > LARGE)

    start = {block: next((i for i, op in enumerate(ops) if block.holds(op.module)), len(ops)) for block in found}
    return tuple(sorted(filter(stays, found), key=lambda block: (start[block], -block.macs)))


def block_targets(model: nn.Module, groups: Groups, plan: Plan, inputs: Inputs, *, memory: int = MEMORY) -> Wanted:
    """Run the network, before it is cut, and keep what the blocks give that `plan` cuts inside.

    Args:
        groups: what `prunus.trace` returned of `model`.
        inputs: calibration samples, as `prunus.recovery.targets` holds them.
        memory: bytes that what is kept and the activations of a forward may take; fewer samples are used otherwise (a
            note says so).
    """
    check_arguments(locals())
    found, ops, alive = cut_blocks(model, groups, plan), groups.operators, groups.alive(groups.mask(plan))
    widest = {block: max((_size(op) for op in ops if op.module == block.modules[-1]), default=0) for block in found}
    bytes_ = bytes_of_a_sample(groups) + 4 * sum(widest.values()) // max(groups.inputs.batch, 1)
    most = max(memory // max(bytes_, 1), 1)
    notes: tuple[str, ...] = ()
    if inputs.batch > most:
        notes = (f"blocks looked at {most} of {inputs.batch} samples: more do not fit in memory={memory / 2**30:g} GB",)
        inputs = first(inputs, most)
    seen: dict[Block, list[tuple[Tensor, Operator]]] = {}
    replay = Replay(ops, operators_of(model, groups, inputs))

    def after(block: Block) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            op, tensor = ops[replay.steps[replay.at - 1]], _output(out)
            if tensor is not None and op.shapes and tuple(op.shapes[0][1:]) == tuple(tensor.shape[1:]):
                seen.setdefault(block, []).append((tensor.clone(), op))

        return model.get_submodule(block.modules[-1]).register_forward_hook(hook)

    with undisturbed(model), removed(after(block) for block in found), replay:
        inputs.map(torch.clone)(model)
    sizes = {one.batch for one in inputs.calls}
    once = {block: calls[0] for block, calls in seen.items() if len(calls) == 1 and len(calls[0][0]) in sizes}
    return Wanted(inputs, {block: _kept(*once[block], alive) for block in found if block in once}, notes)


def rebuild_(
    model: nn.Module,
    wanted: Wanted,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    forward: Callable[[], Any] | None = None,
) -> Rebuilt:
    """Train every block of the cut network, one after the other, to give what it gave in the original.

    One forward of all calibration samples: a block is trained when it is reached, so that those behind it see what it
    gives now.  Only parameters that the block alone has are changed.  Batch norms stay in evaluation mode; the mode of
    the network, its gradients and the random state are as before.

    Args:
        model: the cut network, changed in place; best after `prunus.recovery.repair_`.
        wanted: what `block_targets` returned of the original.
        steps: of Adam, a block.
        rate: of a step, relative to the root mean square of each parameter.
        seed: for which samples a step sees.
        forward: runs `model` once on ``wanted.inputs``; give one that repairs what lies between the blocks.

    Raises: `InputError` when `wanted` is of another network.
    """
    check_arguments(
        locals(), wanted=instance("what prunus.recovery.block_targets returns", Wanted), forward=optional(a_function)
    )
    modules = dict(model.named_modules())
    if missing := [name for block in wanted.outputs for name in block.modules if name not in modules]:
        raise InputError(f"wanted= is of another network: there is no block '{missing[0]}' in this one.")
    generator = torch.Generator().manual_seed(seed)
    every = [(name.rpartition(".")[0], p) for name, p in model.named_parameters(remove_duplicate=False)]
    reached, busy = iter(progress(list(wanted.outputs), "rebuilding blocks")), list[Block]()
    errors: dict[Block, tuple[float, float]] = {}

    def before(block: Block) -> Any:
        modules = [model.get_submodule(name) for name in block.modules]
        part = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        elsewhere = {p for name, p in every if not block.holds(name)}
        alone = list(dict.fromkeys(p for name, p in every if block.holds(name) and p not in elsewhere))

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if block not in errors and not busy:  # below, this block and those inside it are called again
                busy.append(block)
                next(reached, None)
                with _disable_current_modes():  # of who watches the forward
                    errors[block] = _fit(part, args, kwargs, wanted.outputs[block], alone, steps, rate, generator)
                busy.pop()

        return modules[0].register_forward_pre_hook(hook, with_kwargs=True)

    with all_or_nothing(model):
        with undisturbed(model), removed(before(block) for block in wanted.outputs):
            own(forward, "forward=")() if forward is not None else wanted.inputs.map(torch.clone)(model)
        next(reached, None)  # takes the bar away
        return Rebuilt(errors, wanted.inputs.batch, wanted.notes)


def _fit(
    part: Any, args: Any, kwargs: Any, target: Tensor, own: list[nn.Parameter], steps: int, rate: float, generator: Any
) -> tuple[float, float]:
    """Relative squared errors of a block on the samples that are kept out, before and after."""
    n = len(target)
    out = torch.arange(n) % CHECKED == 0
    trained, kept_out = (~out).nonzero()[:, 0], out.nonzero()[:, 0]

    def loss(index: Tensor) -> Tensor:
        def pick(value: Any) -> Any:
            many = isinstance(value, Tensor) and value.dim() and len(value) == n
            return value[index.to(value.device)] if many else value

        given, named = tree_map(pick, (args, kwargs))
        found = _output(part(*given, **named))
        assert found is not None
        return (found - target[index.to(target.device)]).square().sum()

    def error() -> float:
        spread = (target[kept_out] - target[kept_out].mean(0)).square().sum()
        return float(torch.stack([loss(index) for index in kept_out.split(BATCH)]).sum() / spread.clamp(min=1e-30))

    before = error()
    if len(trained) == 0 or not own:
        return before, before
    keep_values(*own)
    old = [p.detach().clone() for p in own]
    with _trainable(own), torch.enable_grad():
        sizes = torch.stack([p.detach().float().square().mean().sqrt() for p in own])
        sizes = torch.where(sizes > 0, sizes, sizes.mean())  # of a bias that starts at zero
        adam = torch.optim.Adam([{"params": [p], "lr": rate * size} for p, size in zip(own, sizes.tolist())])
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for _ in range(steps):
            index = trained[torch.randint(len(trained), (min(BATCH, len(trained)),), generator=generator)]
            adam.zero_grad()
            loss(index).div(len(index)).backward(inputs=own)
            adam.step()
            falling.step()
    after = error()
    if after < before:
        return before, after
    for p, value in zip(own, old):  # also where the error is not a number
        p.copy_(value)
    return before, before


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters that ask for gradients; what they asked before, and the gradients they had, are put back."""
    asked = [(p.requires_grad, p.grad) for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, (wanted, grad) in zip(parameters, asked):
            p.requires_grad_(wanted)
            p.grad = grad


def _around(modules: Mapping[str, nn.Module], ops: Sequence[Operator], group: Group) -> tuple[str, ...]:
    """The modules of the smallest block around a group; none where that is the whole network."""
    own = {s.name for s in group.slices}
    at = [i for i, op in enumerate(ops) if own.intersection(op.parameters)]
    at += [s.number for i in at if ops[i].macs is not None and (s := residual(ops, i)) is not None]
    paths = [ops[i].module.split(".") if ops[i].module else [] for i in at]
    above = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*paths))]
    name = ".".join(above)
    module = modules.get(name)
    if isinstance(module, nn.Sequential) and all(len(path) > len(above) for path in paths):
        children = [child for child, _ in module.named_children()]
        places = [children.index(path[len(above)]) for path in paths]
        return tuple(".".join([*above, child]) for child in children[min(places) : max(places) + 1])
    return (name,) if name and module is not None else ()


def _macs(groups: Groups, op: Operator) -> float:
    """What an operator costs in the whole network."""
    if op.macs is None:
        return 0.0
    return op.macs.coefficient * float(torch.Size(len(groups.axes[axis]) for axis in op.macs.axes).numel())


def _size(op: Operator) -> int:
    """How many numbers an operator gives, of all samples that were traced."""
    return max((torch.Size(shape).numel() for shape in op.shapes), default=0)


def _output(out: Any) -> Tensor | None:
    """What a module is about: the tensor that it returns, or the first of several."""
    tensors = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
    return tensors[0] if tensors and tensors[0].is_floating_point() and tensors[0].dim() else None


def _kept(tensor: Tensor, op: Operator, alive: Sequence[Tensor]) -> Tensor:
    """Of an output of the original, what the cut network has as well."""
    for dim, axis in enumerate(op.axes[0]):
        if dim and axis is not None:
            tensor = tensor.index_select(dim, alive[axis].nonzero()[:, 0].to(tensor.device))
    return tensor
