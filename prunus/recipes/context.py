"""What every stage of a run sees: the model's origin, the data, the folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.core import InputError, Inputs, TraceError
from prunus.core.running import check_runs
from prunus.data import Data, Preprocess, load
from prunus.masks import Tensors, tensors
from prunus.recipes.dynamic import Dynamic
from prunus.recipes.folder import START, Folder
from prunus.recipes.inputs import function, inputs_like, measure_of, parse_input
from prunus.recipes.load import expand
from prunus.recipes.parts import BasisSpec
from prunus.recipes.schema import DropBlocks, Prune, Recipe, basis_of
from prunus.recipes.sparsity import Weights
from prunus.zoo import Model, build


@dataclass(frozen=True, eq=False)
class Context:
    """The fixed surroundings of a run.

    `original` is the cost of the network that the run began with: what fractions of a budget refer to.  `evaluate` and
    `loss` are the user's own measure and loss, if the recipe names them.
    """

    recipe: Recipe
    folder: Folder
    origin: Model
    preprocess: Preprocess
    data: Data | None
    example: Inputs
    quiet: bool = False
    evaluate: Callable[[nn.Module], float] | None = None
    loss: Callable[..., Any] | None = None
    original: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, folder: Folder, *, quiet: bool = False) -> Context:
        """Build the model, read the data, and check that they fit each other and the user's own functions."""
        evaluate = measure_of(recipe.evaluate) if recipe.evaluate else None
        loss = function(recipe.loss, "loss") if recipe.loss else None
        origin = origin_of(recipe)
        preprocess = origin.preprocess
        data = None
        if recipe.data is not None:
            d = recipe.data
            preprocess = preprocess.override(d.preprocess)
            sizes: dict[str, Any] = {"seed": recipe.seed, "decide": d.decide, "limit": d.limit}
            data = load(expand(d.source), preprocess=preprocess, image=d.image, label=d.label, **sizes)
        example = example_of(recipe, origin, preprocess(data.train.images[:1]) if data is not None else None)
        check_runs(origin.module, example)
        context = cls(recipe, folder, origin, preprocess, data, example, quiet, evaluate, loss)
        if data is not None:
            _check_classes(origin.module, example, data)
        if evaluate is not None and folder.done(0, START) is None:
            evaluate(copy.deepcopy(origin.module))
        context.original.update(context.cost(origin.module))
        context.original["weights"] = weights_in(origin.module, example)
        return context

    def cost(self, model: nn.Module) -> dict[str, int]:
        """Parameters and multiply-adds per sample, of the network as it is run."""
        from prunus.measure import inference_form, macs, params

        run = inference_form(model, self.example, reads=("gates",)).model
        return {"params": params(run), "macs": macs(run, self.example).total}

    def needed(self) -> Data:
        """The data; raises `InputError` when the recipe names none."""
        if self.data is None:
            raise InputError("this stage needs data; give data: (a folder, Parquet files, or a name).")
        return self.data

    def load(self, index: int) -> nn.Module:
        """The network as stage number `index` left it (0: as the run began)."""
        from prunus.surgery import load as load_model

        basis = basis_of(self.recipe.stages[:index])

        def factory() -> nn.Module:
            return in_basis_(self.origin.factory(), basis)

        return load_model(self.network(index), factory)

    def network(self, index: int) -> Path:
        """The file of the network as stage number `index` left it."""
        name = START if index == 0 else self.recipe.stages[index - 1].name
        return self.folder.network(index, name)

    @property
    def unpruned(self) -> int:
        """The stage whose network is the measure of all: the start if it had weights, else what the first cut got."""
        kinds = (Prune, DropBlocks, Weights, Dynamic)
        cuts = [i for i, stage in enumerate(self.recipe.stages) if isinstance(stage, kinds)]
        return 0 if self.recipe.weights or not cuts else cuts[0]

    def index(self, teacher: str) -> int:
        """The stage number of a teacher's name."""
        if teacher == "unpruned":
            return self.unpruned
        return 1 + [stage.name for stage in self.recipe.stages].index(teacher)

    def batches(self, size: int, count: int) -> Iterable[Any]:
        """`count` batches of training data, shuffled by the seed, without augmentation."""
        split = self.needed().train
        return islice(split.batches(size, self.preprocess, seed=self.recipe.seed, train=True, augment="none"), count)


def in_basis_(model: nn.Module, basis: BasisSpec, seed: int = 0) -> nn.Module:
    """The network with its filters in a basis, if they are not yet."""
    from prunus.bases import interspace_, interspaced

    if basis and not any(interspaced(model)):
        interspace_(model, **basis.model_dump(), seed=seed)
    return model


def weights_of(model: nn.Module, example: Inputs, grain: Any = "element", **which: Any) -> Tensors:
    """The weights of the layers of a network, read off the operators of the example, by rule where that fails.

    `grain` and `which` (``only``, ``skip``) are as of `prunus.tensors`.
    """
    try:
        return tensors(model, grain, example_inputs=example, **which)
    except TraceError:
        return tensors(model, grain, **which)


def weights_in(model: nn.Module, example: Inputs) -> int:
    """How many weights of layers a network has: what a density is of."""
    try:
        return sum(group.slices[0].tensor.numel() for group in weights_of(model, example))
    except InputError:
        return 0


def origin_of(recipe: Recipe) -> Model:
    """The model of a recipe with its weights; the same initial weights for the same seed."""
    weights = expand(recipe.weights) if recipe.weights else None
    return build(expand(recipe.model), weights=weights, classes=recipe.classes, seed=recipe.seed)


def example_of(recipe: Recipe, origin: Model, image: Tensor | None = None) -> Inputs:
    """Example inputs: the recipe's, else of the model's own shape, else an `image` (1, C, H, W) of the data."""
    if recipe.input is not None:
        return parse_input(recipe.input)
    if origin.input_shape is None and image is not None:
        return Inputs.of(image)
    return Inputs.of(origin.example(1))


def example_of_run(recipe: Recipe, origin: Model, network: Path) -> Inputs:
    """Example inputs for a finished run; where neither recipe nor model say, as the file `network` remembers them."""
    from prunus.surgery import read_plan

    if recipe.input is None and origin.input_shape is None:
        remembered = read_plan(network).inputs
        if remembered:
            return inputs_like(remembered)
    return example_of(recipe, origin)


def _check_classes(model: nn.Module, example: Inputs, data: Data) -> None:
    """Raise `InputError` when the model has fewer outputs than the data has classes."""
    from prunus.core.running import undisturbed
    from prunus.train.evaluation import logits

    with undisturbed(model):
        outputs = logits(example(model)).shape[-1]
    if outputs < len(data.classes):
        raise InputError(
            f"the model has {outputs} outputs, the data '{data.name}' has {len(data.classes)} classes; "
            f"say classes={len(data.classes)}, or give a model made for this data."
        )
