"""ONNX Runtime as a backend that latency can be measured in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core import FileError, Inputs
from prunus.core.backends import backends
from prunus.core.checks import check_arguments
from prunus.core.words import a_network
from prunus.export.onnx import feed, to_onnx


def session(path: str | Path, *, threads: int) -> Any:
    """An ONNX Runtime session on the CPU with this many threads; raises `FileError` when the file is not a network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not Path(path).is_file():
        raise FileError(
            f"there is no file '{path}'. Write it first: prunus.export.to_onnx(model, example_inputs, path)."
        )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions are generated from C++ and share no base class
        reason = str(error).splitlines()[0]
        raise FileError(f"ONNX Runtime cannot read '{path}': {reason} Export the network again.") from error


@backends.register("onnxruntime", reads=("gates",))
def onnxruntime_backend(model: nn.Module | str | Path, inputs: Inputs, threads: int) -> Callable[[], Any]:
    """ONNX Runtime on the CPU: takes a module, which is exported first, or the path of an ONNX file.

    What it returns runs that once on `inputs`, in so many `threads`.
    """
    check_arguments(locals(), model=a_network)
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(model, inputs, path, verify=False)
            runner = session(path, threads=threads)
    else:
        runner = session(model, threads=threads)
    arrays = feed(runner, inputs)
    return lambda: runner.run(None, arrays)
