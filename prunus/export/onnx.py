"""A network as an ONNX file: any batch size, weights inside, compared with the network before it is kept."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunus.core import InputError, Inputs, TraceError, VerificationError
from prunus.core.backends import form_for
from prunus.core.callbacks import EXAMPLE, forward
from prunus.core.checks import a_positive_int, check_arguments, optional
from prunus.core.kinds import check_kind
from prunus.core.process import EXPORTING, without_warnings
from prunus.core.running import undisturbed, with_batch
from prunus.core.writing import replacing
from prunus.export.registry import exporters

TOLERANCE = 1e-4
LARGEST = 2**31 - 2**20  # bytes of weights that fit in one protobuf message


@exporters.register("onnx")
def to_onnx(
    model: nn.Module, example_inputs: Any, path: str | Path, *, verify: bool = True, batch: int | None = None
) -> float | None:
    """Write `model` in evaluation mode as one ONNX file for any batch size, BatchNorm folded into convolutions.

    The file is first written beside `path` and moved there only when ONNX Runtime gives what torch gives, at batch
    sizes 1 and 3, on random inputs like the example.

    Args:
        model: any module that `torch.export` can follow; it is left as it was.
        example_inputs: what forward takes; tensors whose first dimension is the batch get a free first dimension.
        path: where to write; an older file there is replaced, or kept when something goes wrong.
        verify: compare with torch.
        batch: the file takes so many samples and no other number, all shapes are static.

    Returns: the largest relative error ``max|a - b| / max|b|`` over outputs and batch sizes; None without `verify`.

    Raises: `TraceError` when forward cannot be exported, `VerificationError` when the error is above 1e-4 (nothing is
        written), `InputError` when the weights do not fit in one file (2 GB).
    """
    check_arguments(locals(), batch=optional(a_positive_int))
    check_kind(model, changes=False)
    path = Path(path)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if size > LARGEST:
        raise InputError(f"the weights are {size / 2**30:.1f} GB; an ONNX file with weights inside holds at most 2 GB.")
    inputs = Inputs.of(example_inputs)
    if not inputs.tensors or not all(t.numel() and _ordinary(t) for t in inputs.tensors):
        raise InputError("to_onnx needs example_inputs of ordinary tensors (none that wrap others) that are not empty.")
    with replacing(path) as partial:
        with EXPORTING, undisturbed(model), _said(f"writing {path.name}"):
            # torch.export takes a batch of 1 for a constant
            _write(_plain(model, inputs), with_batch(inputs, batch or 2), partial, free=batch is None)
            sizes = (1, 3) if batch is None else (batch,)
            error = max(_error(model, like(inputs, n), partial) for n in sizes) if verify else None
        if error is not None and not error <= TOLERANCE:
            raise VerificationError(
                f"ONNX Runtime and torch differ by {error:.1e} (relative) on this network; at most {TOLERANCE:.0e} is "
                f"accepted, so '{path}' was not written. Does forward depend on the data, or on randomness?"
            )
    return error


def _ordinary(t: Tensor) -> bool:
    return type(t).__torch_dispatch__ is Tensor.__torch_dispatch__


def _plain(model: nn.Module, inputs: Inputs) -> nn.Module:
    """As it is run, in the contiguous format: channels_last pooling is exported as a gather, which no runtime likes."""
    model = form_for("onnxruntime", model, inputs).model
    if all(p.is_contiguous() for p in model.parameters()):
        return model
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _write(model: nn.Module, inputs: Inputs, path: Path, free: bool = True) -> None:
    """Export, with a free batch or as the inputs are; what the exporter notes of this machine is taken out."""
    import onnx

    batch = torch.export.Dim("batch")
    named = _by_name(model, inputs)
    shapes = tree_map(lambda t: {0: batch} if isinstance(t, Tensor) and t.dim() and len(t) == 2 else None, named)
    with _silence():
        try:
            program = torch.onnx.export(
                model,
                inputs.args,
                kwargs=dict(inputs.kwargs),
                dynamo=True,
                dynamic_shapes=shapes if free else None,
                verbose=False,
            )
        except Exception as error:  # the exporter has no common base class
            raise TraceError(_why(error)) from error
        assert program is not None  # dynamo=True
        graph = program.model_proto
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save_model(graph, str(path))


def _why(error: BaseException) -> str:
    """The innermost reason of an exporter error, which comes wrapped in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return (
        f"the network could not be exported to ONNX: {type(error).__name__}: {first}  "
        "torch.export.export(model, args) shows the whole story; forward must not branch on values or fix the batch."
    )


def _by_name(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The inputs by the parameter names of forward, in the order of its signature."""
    return dict(inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments)


def _error(model: nn.Module, inputs: Inputs, path: Path) -> float:
    """``max|a - b| / max|b|`` between ONNX Runtime (a) and torch (b); infinite when shapes or not-a-numbers differ."""
    from prunus.export.onnxruntime import session

    outputs = forward(model, inputs, "example_inputs", EXAMPLE)
    runner = session(path, threads=1)
    try:
        given = runner.run(None, feed(runner, inputs))
    except Exception as error:  # of ONNX Runtime, which has no public base class for them
        first = str(error).strip().splitlines()[0]
        raise VerificationError(
            f"ONNX Runtime does not run the exported network on {inputs.batch} samples ({first}), so nothing was "
            f"written: does forward fix the number of samples? to_onnx(..., batch={inputs.batch}) writes a file for "
            "that number alone."
        ) from error
    return largest_error([torch.from_numpy(a) for a in given], outputs)


def largest_error(found: Any, expected: Any) -> float:
    """The largest `relative` error of the tensors in `found`; infinite when there is nothing finite to compare.

    >>> nan = torch.tensor([float("nan")])
    >>> largest_error(nan, nan), largest_error((torch.ones(2), nan), (torch.ones(2), nan))
    (inf, 0.0)
    """
    a, b = ([leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)] for of in (found, expected))
    if len(a) != len(b) or not any(bool(t.isfinite().any()) for t in b):
        return float("inf")
    return max(relative(x, y.cpu()) for x, y in zip(a, b))


def relative(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max|b|``; infinite when shapes differ, or where the one is finite and the other is not."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    worst = float((a - b)[finite].abs().nan_to_num(nan=float("inf")).max())
    return worst / max(float(b[finite].abs().max()), torch.finfo(torch.float32).tiny)


def feed(runner: Any, inputs: Inputs) -> dict[str, Any]:
    """The arrays that a session takes, by the names in the file, which stand in the order they were given in."""
    tensors = inputs.tensors
    names = [node.name for node in runner.get_inputs()]
    if len(names) != len(tensors):
        raise InputError(f"the ONNX file takes {len(names)} inputs ({', '.join(names)}); {len(tensors)} were given.")
    return {name: t.detach().cpu().contiguous().numpy() for name, t in zip(names, tensors)}


def like(inputs: Inputs, batch: int) -> Inputs:
    """Random inputs of `batch` samples in the manner of the example: floats get noise of their own spread."""
    generator = torch.Generator().manual_seed(0)

    def shake(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        noise = torch.randn(t.shape, generator=generator).to(t)
        spread = float(t.std()) if t.numel() > 1 else 0.0
        return t + noise * (spread or 1.0)

    return with_batch(inputs, batch).map(shake)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No prints, warnings or log lines: the exporter writes many, about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    void = io.StringIO()
    try:
        with without_warnings(), contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """A line that moves while something of unknown length runs; silent where there is no terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
