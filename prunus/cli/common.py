"""What the verbs share: printing, and finding the network that MODEL or DIR names."""

from __future__ import annotations

import json as json_
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from torch import nn

from prunus.core import FileError, Inputs

if TYPE_CHECKING:
    from prunus.recipes.schema import Recipe

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else.")]
Model = Annotated[
    str, typer.Argument(help="prunus:NAME, torchvision:NAME, timm:NAME, transformers:CONFIG.json or file.py:factory")
]
Input = Annotated[
    str | None,
    typer.Option(help="Shape of the inputs: 1,3,224,224; text: 1,16:int64<1000; several joined by +. "
                      "Default: the model's own."),
]  # fmt: skip
Weights = Annotated[str | None, typer.Option(help="A file of weights (.safetensors, .pt), or of prunus.save.")]
Classes = Annotated[int | None, typer.Option(help="The number of outputs, where the model can be told.")]


def emit(data: Any, show: Callable[[], Any], json: bool) -> None:
    """Print `data` as JSON, or what `show` renders for a person."""
    if json:
        typer.echo(json_.dumps(data, indent=1))
        return
    from rich.console import Console

    Console().print(show())


@dataclass(frozen=True, eq=False)
class Target:
    """A network that a verb works on: a fresh model, or the result of a run."""

    name: str
    module: nn.Module
    example: Inputs
    folder: Path | None = None


def target(name: str, *, input: str | None = None, weights: str | None = None, classes: int | None = None) -> Target:
    """The network that MODEL or DIR names, with example inputs.

    Raises: `InputError` when it is neither, or its inputs are not known.
    """
    from prunus.core.running import check_runs
    from prunus.recipes.inputs import parse_input
    from prunus.surgery.files import is_saved, reopen
    from prunus.zoo import build

    if (Path(name) / "recipe.yaml").is_file() or (Path(name).is_dir() and weights is None):
        found = _of_run(Path(name), input)
    else:
        cut = weights is not None and is_saved(weights)  # by prunus.save: the plan, or the operators, are in it
        model = build(name, weights=None if cut else weights, classes=classes, seed=0)
        module = reopen(str(weights), model.factory) if cut else model.module
        found = Target(name, module, parse_input(input) if input else Inputs.of(model.example(1)))
    check_runs(found.module, found.example)
    return found


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run folder; raises `FileError` when there is none."""
    from prunus.recipes import check
    from prunus.recipes.text import read

    path = folder / "recipe.yaml"
    if not path.is_file():
        raise FileError(f"'{folder}' is not a run folder: it has no recipe.yaml. Expected what `prunus run` wrote.")
    return check(*read(path), str(path))


def _of_run(folder: Path, input: str | None) -> Target:
    """The final network of a run."""
    from prunus.recipes.context import example_of_run, origin_of
    from prunus.recipes.inputs import parse_input
    from prunus.surgery import load

    recipe = recipe_of(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileError(f"the run in '{folder}' is not finished (no model.safetensors); continue it with --resume.")
    origin = origin_of(recipe.model_copy(update={"weights": None}))  # the run's own network has all of them
    example = parse_input(input) if input else example_of_run(recipe, origin, path)
    return Target(recipe.model, load(path, origin.factory), example, folder)
