"""OpenVINO as a backend that latency can be measured in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core import FileError, Inputs
from prunus.core.backends import backends
from prunus.core.checks import check_arguments
from prunus.core.errors import MissingExtraError
from prunus.core.words import a_network
from prunus.export.onnx import to_onnx


def installed() -> bool:
    """Whether OpenVINO is there; it is an extra."""
    return find_spec("openvino") is not None


@backends.register("openvino", reads=("gates",), installed=installed)
def openvino_backend(model: nn.Module | str | Path, inputs: Inputs, threads: int) -> Callable[[], Any]:
    """OpenVINO on the CPU in float32: takes a module, which is exported to ONNX first, or the path of an ONNX file.

    What it returns runs that once on `inputs`, in so many `threads`.
    """
    check_arguments(locals(), model=a_network)
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(model, inputs, path, verify=False)
            compiled = read(path, threads)
    else:
        compiled = read(model, threads)
    request, arrays = compiled.create_infer_request(), [t.detach().cpu().contiguous().numpy() for t in inputs.tensors]
    return lambda: list(request.infer(arrays).values())


def read(path: str | Path, threads: int) -> Any:
    """An ONNX file compiled by OpenVINO for so many threads; raises `FileError`, `MissingExtraError` without it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("OpenVINO is not installed. Install it with:  pip install openvino") from error
    if not Path(path).is_file():
        raise FileError(
            f"there is no file '{path}'. Write it first: prunus.export.to_onnx(model, example_inputs, path)."
        )
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(str(path)), "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileError(f"OpenVINO cannot read '{path}': {reason} Export the network again.") from error
