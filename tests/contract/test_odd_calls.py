"""Odd calls: whatever a public verb is given, it works, or says in one message what is wrong, and changes nothing.

Every function that a room exports is called with every value of a list of nasty ones in the place of every argument.
A verb that is new is covered without being named: its arguments are made from their names (`World`).
"""

from __future__ import annotations

import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.callbacks import noted

ROOMS = (
    "", ".allocators", ".bases", ".criteria", ".data", ".dynamic", ".export", ".masks", ".measure", ".observe",
    ".recipes", ".recovery", ".regularizers", ".report", ".schedules", ".surgery", ".tracing", ".train", ".zoo",
)  # fmt: skip
# called by the library, on what it made itself: kinds of verbs that users do not write
INNER = {
    "block_targets", "check", "gaps", "silence_", "silence_gradients_", "slice_optimizer_", "check_holds", "placement",
    "give_biases_", "onnxruntime_backend", "openvino_backend", "key", "choose_precision", "cosine", "last",
    "attach_where", "expand", "dump", "groups_page", "groups_table", "groups_tree", "headline", "terminal", "verdict",
}  # fmt: skip
LONG = bool(os.environ.get("PRUNUS_LONG"))  # all calls, not one in SHARE
SHARE = 5


class Boom(Exception):
    """What a user's own function raises."""


def boom(*args: Any, **kwargs: Any) -> Any:
    raise Boom("the user's own")


def functions() -> dict[str, Callable[..., Any]]:
    """Every public function, once, by its full name."""
    found: dict[int, tuple[str, Callable[..., Any]]] = {}
    for room in ROOMS:
        package = import_module(f"prunus{room}")
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) and name not in INNER:
                found.setdefault(id(value), (f"{value.__module__}.{name}", value))
    classes = (prunus.Pruner, prunus.masks.MaskPruner, prunus.dynamic.GateTraining, prunus.Budget)
    return dict(sorted(found.values())) | {f"prunus.{c.__name__}": c for c in classes}


class Block(nn.Module):
    """A residual block, which can be cut, gated, and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Block(), nn.Flatten(), nn.Linear(64, 3)).eval()


class World:
    """A network and all that the verbs hand on, made anew for every call: `world[name]` is an argument's example."""

    def __init__(self, folder: Path, verb: str) -> None:
        self.folder, self.verb = folder, verb
        self.model = net()
        self.weights = ".masks." in verb or verb.endswith("MaskPruner")
        x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.made: dict[str, Any] = {"example_inputs": x, "model": self.model, "network": self.model}
        self.made |= {"copy": net(), "budget": prunus.Budget(params=0.6), "data": [(x, torch.tensor([0, 1]))]}
        self.made |= {"evaluate": lambda model: 1.0, "factory": net, "needs": {"grad"}, "density": 0.5, "seed": 0}
        self.made |= {"criterion": "l1", "parameter": self.model[0].weight, "train": lambda model, round: None}
        self.made |= {"start": 1, "stop": 9, "end": 2.0, "steps": 5, "value": 1.0, "milestones": (1, 2), "to": 1.0}
        self.made |= {"then": lambda t: 1.0, "schedule": lambda t: 1.0, "spec": "prunus:digits_net", "n": 1}
        self.made |= {"recipe": "quickstart", "source": "digits", "method": "least-squares", "repair": False}
        self.made |= {"filters": torch.randn(8, 9), "student_logits": torch.randn(2, 3), "names": ["0.weight"]}
        self.made |= {"teacher_logits": torch.randn(2, 3), "y": torch.tensor([0, 1]), "sharing": "fine", "lr": 0.1}
        self.made |= {"calls": {"a": lambda: None}, "models": {"a": self.model}, "folder": folder, "epochs": 1}
        self.made |= {"folders": [folder], "given": "bn-gamma", "periods": 1, "preprocess": prunus.data.Preprocess()}
        self.made |= {"keep": torch.ones(10, dtype=torch.bool), "regularizer": "bn-gamma", "per_class": 1}
        self.made |= {"optimizer": torch.optim.SGD(self.model.parameters(), lr=0.1)}
        self.made |= {"loader": self.made["data"], "batches": self.made["data"], "limit": 2, "counts": [1]}
        self.made |= {"seconds": 0.01, "trained": lambda t: 0.1, "total": 10, "name": "odd", "roles": ["out"]}
        if verb == "prunus.criteria.base.criterion":
            self.made["needs"] = ()
        if ".train." in verb:
            data = prunus.data.load("digits", limit=8)
            self.made |= {"model": prunus.zoo.digits_net(), "data": data, "split": data.test, "optimizer": "sgd"}
            self.made |= {"schedule": "cosine", "regularizer": None, "quiet": True, "progress": False}
        if verb.startswith(("prunus.dynamic", "prunus.GateTraining")) and not verb.endswith("dynamic_"):
            prunus.dynamic.dynamic_(self.model, x)
        if verb.endswith("dynamic_"):
            self.made["method"] = "manidp"
        if verb.endswith("drop_blocks_"):
            self.made["method"] = "shortgpt"
        if verb.startswith("prunus.runtime.") and not verb.endswith("compile"):
            self.made["network"] = prunus.runtime.compile(self.model, x)

    def __getitem__(self, name: str) -> Any:
        if name == "path":
            path = self.folder / "net.safetensors"
            prunus.save(self.model, path)
            return path
        if name not in self.made and hasattr(self, f"make_{name}"):
            self.made[name] = getattr(self, f"make_{name}")()
        if name not in self.made:
            raise KeyError(f"{self.verb}: no example of an argument '{name}'; add one to World.")
        return self.made[name]

    def make_wanted(self) -> Any:
        found = prunus.recovery.targets(self.model, self["groups"], self["data"])
        if self.verb.endswith("rebuild_"):
            return prunus.recovery.block_targets(self.model, self["groups"], self["plan"], found.inputs)
        return found

    def make_groups(self) -> Any:
        return prunus.tensors(self.model) if self.weights else prunus.trace(self.model, self["example_inputs"])

    def make_scores(self) -> Any:
        return prunus.score(self["groups"], "l1")

    def make_plan(self) -> Any:
        budget = prunus.Budget(density=0.5) if self.weights else self["budget"]
        return prunus.allocate(self["groups"], self["scores"], budget)


def calls_of(verb: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a call can name."""
    both = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(verb).parameters.items() if p.kind in both}


ALWAYS = ("seconds", "n", "density", "seed", "quiet", "progress", "schedule", "optimizer", "criterion")


def arguments(verb: Callable[..., Any], world: World) -> dict[str, Any]:
    """A good call: everything without a default, and what keeps the call short."""
    taken = calls_of(verb).items()
    given = {name: world[name] for name, p in taken if p.default is p.empty or (name in ALWAYS and name in world.made)}
    return given | ({"density": 0.5} if world.verb.endswith("at_init") else {})


def nasty(folder: Path) -> dict[str, Any]:
    """Values that no argument, or few, can be."""
    blocked = folder / "a-file"
    blocked.write_text("")
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    return {
        **{repr(v): v for v in (None, 0, -1, 10**12, 0.5, -0.5, 1e300, True, float("nan"), float("inf"))},
        **{
            repr(v): v
            for v in ("", "x", "\0", b"x", "é/../x", "\udcff", [], {}, {"macs": 0.5}, [0.5, 1.5], {1: 2}, [None])
        },
        "['0', '1']": ["0", "1"],
        "object()": object(),
        "int": int,
        "boom": boom,
        "-> None": lambda *a, **k: None,
        "-> 'x'": lambda *a, **k: "x",
        "-> nan": lambda *a, **k: float("nan"),
        "exits": lambda *a, **k: sys.exit(0),
        "Linear": nn.Linear,
        "a Linear": nn.Linear(2, 2),
        "a ReLU": nn.ReLU(),
        "nan tensor": torch.full((2, 3), float("nan")),
        "no tensor": torch.zeros(0),
        "an int tensor": torch.tensor(3),
        "a generator": (x for x in [1, 2]),
        "wrong channels": [(torch.zeros(2, 5, 4, 4), labels)],
        "wrong labels": [(images, torch.tensor([0, 77]))],
        "bad batches": Failing(),
        "no folder": folder / "none" / "x.safetensors",
        "under a file": blocked / "x",
        "the folder": folder,
        "a device": Path("/dev/null"),
        **{f"a plan of {kept}": plan_of_kept(kept) for kept in (("0", "1"), (0.0, 1.5), (0, 9), (1, 1), (None,))},
    }


def plan_of_kept(kept: Any) -> prunus.Plan:
    return prunus.Plan({"0": prunus.GroupPlan(4, kept)})


class Failing:
    """Batches that cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        raise Boom("the user's own")

    def __len__(self) -> int:
        return 3


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; what cannot be told is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, (typing.TypeVar, str)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Iterable):
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
            return isinstance(value, str) and inner[:1] == (str,) and issubclass(str, origin)
        return not hasattr(value, "__len__") or isinstance(value, Failing) or all(fits(v, inner[0]) for v in value)
    return not isinstance(hint, type) or isinstance(value, hint)


def state_of(world: World) -> list[Any]:
    model = world.model
    state = [*model.state_dict(keep_vars=True).values()]
    flags = [(m.training, len(m._forward_hooks), len(m._parameters), type(m)) for m in model.modules()]
    return [flags, [(id(t), t.shape, t.requires_grad, t.detach().clone()) for t in state]]


def same(a: list[Any], b: list[Any]) -> bool:
    return a[0] == b[0] and all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in zip(a[1], b[1], strict=True))


def outcome(verb: Callable[..., Any], given: dict[str, Any], parameter: str) -> tuple[str, str]:
    """How a call ends: refused, failed (in the user's own code, and said so), taken, or raw; with its message."""
    try:
        out = verb(**given)
        if inspect.isgenerator(out):
            list(out)
        elif hasattr(out, "__enter__"):
            out.__enter__()
    except prunus.PrunusError as error:
        clear = str(error).strip() and "Traceback" not in str(error)
        return ("refused" if clear else "raw"), str(error)
    except Exception as error:
        lines = noted(error)
        whose = "the batches" if parameter in ("data", "loader", "batches") else f"{parameter}="
        theirs = any("your own code" in line and whose in line for line in lines)
        return ("failed" if theirs else "raw"), f"{type(error).__name__}: {str(error)[:200]} {lines}"
    return "taken", ""


def hint_of(verb: Callable[..., Any], parameter: str) -> Any:
    try:
        return typing.get_type_hints(verb.__init__ if inspect.isclass(verb) else verb).get(parameter, Any)
    except NameError:  # a name that only type checkers import
        return Any


@pytest.mark.parametrize("name", functions())
def test_an_odd_call_works_or_is_one_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verb, bad, world = functions()[name], [], None
    for number, parameter in enumerate(calls_of(verb)):
        for i, what in enumerate(nasty(tmp_path)):
            if not LONG and (i + number * 7) % SHARE:
                continue
            world = world or World(tmp_path, name)
            value = nasty(tmp_path)[what]
            before = state_of(world)
            end, message = outcome(verb, arguments(verb, world) | {parameter: value}, parameter)
            if end == "raw":
                bad.append(f"{parameter}={what}: {message}")
            elif end == "refused" and not same(before, state_of(world)):
                bad.append(f"{parameter}={what}: the model was changed, and then: {message}")
            elif end == "taken" and not fits(value, hint_of(verb, parameter)):
                bad.append(f"{parameter}={what}: taken in silence")
            if end != "refused" or not same(before, state_of(world)):
                world = None
    assert not bad, "\n".join([f"{len(bad)} odd calls of {name}:", *bad])
