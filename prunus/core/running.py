"""Running a network once, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from prunus.core.callbacks import forward
from prunus.core.errors import InputError
from prunus.core.inputs import Inputs
from prunus.core.process import Shared, plain_attention, same_random
from prunus.core.undo import all_or_nothing


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
    """What forward gives with other parameters and buffers, by name; the model keeps its own.

    As `torch.func.functional_call`, which leaves the other tensors in a module that has several names.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> with_tensors(nn.Sequential(layer, layer), {"0.weight": torch.full((1, 1), 3.0)}, Inputs.of(torch.ones(1, 1)))
    tensor([[9.]])
    >>> bool(layer.weight == 3)
    False
    """
    first: dict[int, str] = {}  # of a tied tensor, which `tensors` has under its first name
    swapped = {}
    for path, module in model.named_modules():  # every module once
        for leaf, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None:
                name = f"{path}.{leaf}" if path else leaf
                if first.setdefault(id(t), name) in tensors:
                    swapped[name] = tensors[first[id(t)]]
    return inputs.each(lambda one: functional_call(model, swapped, one.args, dict(one.kwargs), tie_weights=False))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule and the random state are put back afterwards.

    Where forward fails, or is interrupted, what it had noted in attributes and buffers goes too.

    Fused attention is off, as it is while tracing: it is other operators than those that forward calls with gradients.

    >>> model = nn.Dropout()
    >>> with undisturbed(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with all_or_nothing(model), torch.no_grad(), without_autocast(), plain_attention(), same_random():
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def removed(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that go again.  To be opened inside `undisturbed` or `all_or_nothing`: an interrupt may come among them.

    >>> net, seen = nn.Linear(1, 1), []
    >>> with undisturbed(net), removed([net.register_forward_hook(lambda *given: seen.append(1))]):
    ...     out = net(torch.ones(1))
    >>> len(seen), len(net._forward_hooks)
    (1, 0)
    """
    made = list(hooks)
    try:
        yield
    finally:
        for hook in made:
            hook.remove()


@contextmanager
def without_autocast() -> Iterator[None]:
    """Everything in the precision of the weights: what is compared, or summed over samples, is not to be rounded.

    >>> with torch.autocast("cpu"), without_autocast():
    ...     nn.Linear(1, 1)(torch.ones(1)).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class _Called:
    """In the place of torch's function that computes again in backward."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args)


def _call_at_once(stack: ExitStack) -> None:
    stack.callback(setattr, checkpoint, "CheckpointFunction", checkpoint.CheckpointFunction)
    checkpoint.CheckpointFunction = _Called  # type: ignore[misc, assignment]


without_checkpoints = Shared(_call_at_once)  # reentrant ones compute at once: they hide from the graph what is inside


def has_values(tensor: Tensor) -> bool:
    """Whether there is memory behind a tensor: not on the meta device, not fake.

    >>> has_values(torch.zeros(2)), has_values(torch.zeros(2, device="meta"))
    (True, False)
    """
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with its dimensions in the order in memory that those of `like` have.

    >>> last = torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last)
    >>> laid_out_as(torch.zeros(1, 5, 3, 4), last).is_contiguous(memory_format=torch.channels_last)
    True
    """
    if like.layout is not torch.strided:
        return tensor
    strides, step = [0] * like.dim(), 1
    for d in sorted(range(like.dim()), key=lambda d: (like.stride(d), -d)):
        strides[d], step = step, step * max(tensor.shape[d], 1)
    if list(tensor.stride()) == strides:  # also where a size is one: torch chooses kernels by the numbers
        return tensor
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def check_runs(model: nn.Module, inputs: Inputs) -> None:
    """Run `model` once on `inputs`; raises `InputError` that names their shapes when its forward does not take them.

    >>> check_runs(nn.Linear(3, 2), Inputs.of(torch.zeros(1, 4)))
    Traceback (most recent call last):
    prunus.core.errors.InputError: the forward of Linear does not take inputs of ...
    """
    hint = "Give the shape and type of what it takes, e.g. --input 1,3,224,224 or --input 1,16:int64<1000"
    with undisturbed(model):
        forward(model, inputs, "inputs", f"{hint} (input: in a recipe).")


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """The inputs with `batch` samples: tensors whose first dimension is the batch are repeated or cut.

    >>> with_batch(Inputs.of(torch.arange(2.)), 5).tensors
    [tensor([0., 1., 0., 1., 0.])]
    """
    old = inputs.batch
    if old < 1:
        raise InputError("the example inputs hold no sample: give a batch of at least 1.")
    rows = torch.arange(batch) % max(old, 1)

    def resize(t: Tensor) -> Tensor:
        if t.dim() == 0 or t.shape[0] != old:
            return t
        return laid_out_as(t[rows.to(t.device)], t)

    return inputs.map(resize)
