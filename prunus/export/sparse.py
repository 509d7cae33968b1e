"""A network as one file of prunus's own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunus.core import Inputs, TraceError, VerificationError
from prunus.core.checks import check_arguments
from prunus.core.running import undisturbed, with_batch
from prunus.core.writing import replacing
from prunus.export.onnx import TOLERANCE, largest_error, like
from prunus.export.registry import exporters


def notes(path: str | Path) -> list[str]:
    """What to know of a file of the engine: which operators are left to torch, and their share of the time."""
    from prunus.runtime import load
    from prunus.runtime.profile import by_torch

    said = by_torch(load(path))
    return [said] if said else []


@exporters.register("sparse", notes=notes)
def to_sparse(model: nn.Module, example_inputs: Any, path: str | Path, *, verify: bool = True) -> float | None:
    """Write `model` compiled for prunus's own engine, in which weights that are zero take no time.

    How every layer is best run is measured on this processor.  The file holds graph and weights, no code:
    `prunus.runtime.load` reads it on any processor.  It is first written beside `path`, read again, and moved there
    only when the engine gives what torch gives, at batch sizes 1 and 3, on random inputs like the example; where
    samples know of each other, at the shapes of the example, which the file then takes alone.

    Args:
        model: any module that `torch.export` can follow, with zeros, cut, or neither; it is left as it was.
        example_inputs: what forward takes, all by position; compiled for one sample at a time, whatever the batch.
        path: where to write; an older file there is replaced, or kept when something goes wrong.
        verify: compare with torch.

    Returns: the largest relative error ``max|a - b| / max|b|`` over outputs and batch sizes; None without `verify`.

    Raises: `TraceError` when forward cannot be exported, `VerificationError` when the error is above 1e-4 (nothing is
        written), `InputError` for inputs by keyword.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     error = to_sparse(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9), folder + "/net")
    >>> error < 1e-6
    True
    """
    check_arguments(locals())
    from prunus.runtime import load, save

    path, inputs = Path(path), Inputs.of(example_inputs)
    with replacing(path) as partial:
        network, batches = _compiled(model, inputs)
        save(network, partial)
        error = _error(model, inputs, load(partial), batches) if verify else None
        if error is not None and not error <= TOLERANCE:
            raise VerificationError(
                f"the engine and torch differ by {error:.1e} (relative) on this network; at most {TOLERANCE:.0e} is "
                f"accepted, so '{path}' was not written. Does forward depend on the data, or on randomness?"
            )
    return error


def _compiled(model: nn.Module, inputs: Inputs) -> tuple[Any, tuple[int, ...]]:
    """The compiled network, and the batches that it is compared at."""
    from prunus.runtime import compile

    try:
        network = compile(model, with_batch(inputs, 1), tune=True)
        if network.graph.apart:
            return network, (1, 3)
    except TraceError:
        if inputs.batch == 1:
            raise
    return compile(model, inputs, tune=True), (inputs.batch,)  # it takes the example's shapes alone


def _error(model: nn.Module, inputs: Inputs, network: nn.Module, batches: tuple[int, ...]) -> float:
    """The largest difference between the engine and torch; infinite when shapes or not-a-numbers differ."""
    worst = 0.0
    with undisturbed(model):
        for batch in batches:
            some = like(inputs, batch)
            worst = max(worst, largest_error(network(*some.args), some(model)))
    return worst
