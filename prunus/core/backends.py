"""The runtimes a network can be timed in: each registers itself here, so that `measure` imports none of them.

A backend is a function ``(model, inputs, threads) -> call``: it makes the network ready to run on `inputs` with that
many threads, once and untimed, and returns a function of no arguments that runs it one time.  It is given the network
as it is run (`inference_form`); kinds of networks that it declares to read itself, `reads=`, as they train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core.checks import a_word, check_arguments
from prunus.core.inference import Inference, inference_form
from prunus.core.inputs import Inputs
from prunus.core.registry import Entry, Registry

Backend = Callable[[nn.Module | str | Path, Inputs, int], Callable[[], Any]]

# rooms that register backends, imported when a name is first looked up
HOMES = ("prunus.measure", "prunus.export", "prunus.runtime")


def form_for(backend: str, model: nn.Module, example_inputs: Any) -> Inference:
    """The network as a backend runs it, and what was done to it, in words: `inference_form` by what it reads.

    Args: backend: its name; model, example_inputs: the network, which stays as it is, and what its forward takes.

    >>> import torch
    >>> form_for("torch", nn.Linear(2, 2), torch.zeros(1, 2)).notes
    ()
    """
    check_arguments(locals(), backend=a_word)
    return inference_form(model, example_inputs, reads=backends[backend].declares.get("reads", ()))


class Backends(Registry[Backend]):
    """A registry that knows where its entries live, so that a name is found before anyone imported its room.

    >>> backends["onnxruntime"].line
    'ONNX Runtime on the CPU: takes a module, which is exported first, or the path of an ONNX file.'
    """

    def __getitem__(self, name: str) -> Entry[Backend]:
        if not super().__contains__(name):
            self._visit()
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[Entry[Backend]]:
        self._visit()
        return super().__iter__()

    def __contains__(self, name: object) -> bool:
        self._visit()
        return super().__contains__(name)

    def __len__(self) -> int:
        self._visit()
        return super().__len__()

    @staticmethod
    def _visit() -> None:
        for home in HOMES:
            import_module(home)


backends = Backends("backend")
