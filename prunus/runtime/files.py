"""A compiled network as a file: the graph as JSON, the weights as tensors.  No code, no pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunus.core.checks import check_arguments, instance
from prunus.core.errors import FileError, MissingExtraError
from prunus.core.fields import parsed
from prunus.core.writing import replacing
from prunus.runtime import jit
from prunus.runtime.engine import CompiledNetwork
from prunus.runtime.graph import Graph, Node
from prunus.runtime.plain import network_of
from prunus.runtime.walk import some_threads

KEY, DIGEST = "prunus_engine", "prunus_engine_digest"


def save(network: CompiledNetwork, path: str | Path) -> None:
    """Writes a compiled network to one safetensors file, atomically.

    Kernels are not in it: `load` takes them from this machine's cache, or makes them for the processor it runs on.
    Raises `WriteError`, an `OSError`, when the disk does not take it.

    >>> import tempfile
    >>> from prunus.runtime import compile
    >>> network = compile(torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9))
    >>> x = torch.randn(1, 3, 9, 9)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(network, folder + "/network.safetensors")
    ...     torch.equal(load(folder + "/network.safetensors")(x), network(x))
    True
    """
    check_arguments(locals(), network=instance("what prunus.runtime.compile returned", CompiledNetwork))
    path = Path(path)
    graph = network.graph
    nodes = [
        [number, n.kind, n.inputs, list(n.shape), n.numbers, sorted(n.tensors), n.name]
        for number, n in graph.nodes.items()
    ]
    tensors = {f"{number}.{name}": _stored(t) for number, n in graph.nodes.items() for name, t in n.tensors.items()}
    whole = {"nodes": nodes, "outputs": graph.outputs, "structure": graph.structure, "apart": graph.apart}
    whole |= {"images": network.images, "lanes": jit.lanes()}
    text = json.dumps(whole)
    with replacing(path) as new:
        save_file(tensors, new, {KEY: text, DIGEST: _digest(text, tensors)})


def load(path: str | Path, *, threads: int = 1) -> CompiledNetwork:
    """The compiled network that `save` wrote, for this processor and so many threads.

    Nothing that the file declares is believed: every shape, index and list is derived again from the graph.
    Raises `FileError` when the file is missing, truncated, edited, or something else, `InputError` for a number of
    threads that the engine cannot have.
    """
    check_arguments(locals(), threads=some_threads)
    try:
        with safe_open(str(path), "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except FileNotFoundError:
        raise FileError(f"there is no file '{path}'. Write it first: prunus.runtime.save(network, path).") from None
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: the file is truncated or is not a safetensors file ({error}).") from None
    if KEY not in header:
        raise FileError(f"{path} is no compiled network. Write one with prunus.runtime.save(network, path).")
    if header.get(DIGEST) != _digest(header[KEY], tensors):
        raise FileError(f"{path}: the checksum is wrong, so the file was damaged or edited. Save the network again.")
    try:
        return _built(parsed(header[KEY]), tensors, path, threads)
    except (FileError, MissingExtraError):  # say what is wrong
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise FileError(
            f"{path}: what it holds is no network that can be run ({type(error).__name__}: {error}). Save it again."
        ) from error


def _built(whole: dict[str, Any], tensors: dict[str, Tensor], path: str | Path, threads: int) -> CompiledNetwork:
    nodes = {
        number: Node(kind, inputs, tuple(shape), numbers, {name: tensors[f"{number}.{name}"] for name in names}, title)
        for number, kind, inputs, shape, numbers, names, title in whole["nodes"]
    }
    images, here = whole["images"], jit.lanes()
    if type(images) is not int or len(nodes) != len(whole["nodes"]):
        raise FileError(f"{path}: two nodes have one number, or the number of samples is none.")
    if images > here:
        raise FileError(
            f"{path}: the network was compiled for {images} samples at a time; a vector here holds {here}. "
            f"Compile the model again, here or with example_inputs of at most {here} samples."
        )
    graph = Graph(nodes, whole["outputs"], whole["structure"], whole["apart"])
    if whole.get("lanes") != here:  # how a layer is best run was chosen for another processor
        for node in nodes.values():
            node.numbers.pop("choice", None)
    return network_of(graph, images=images, threads=threads)


def _stored(tensor: Tensor) -> Tensor:
    single = tensor.float() if tensor.dtype == torch.float64 else tensor
    return single.detach().contiguous().clone()


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
