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
from safetensors.torch import save_file
from torch import Tensor, nn

import prunus
from prunus.core.callbacks import noted
from tests.report.sample import result, write

ROOMS = (
    "", ".allocators", ".bases", ".criteria", ".data", ".dynamic", ".export", ".masks", ".measure", ".observe",
    ".recipes", ".recovery", ".regularizers", ".report", ".runtime", ".schedules", ".surgery", ".tracing", ".train",
    ".zoo",
)  # fmt: skip
# called at every step of training, on what `gaps` has just given
INNER = {"silence_", "silence_gradients_"}
# classes that users make themselves; the others come out of verbs
MADE = (
    prunus.Pruner, prunus.masks.MaskPruner, prunus.dynamic.GateTraining, prunus.Budget, prunus.bases.Basis,
    prunus.data.Preprocess, prunus.data.Augment, prunus.zoo.VGG, prunus.zoo.CifarResNet, prunus.zoo.DenseNetBC,
    prunus.zoo.MobileNetV2, prunus.zoo.PreActResNet, prunus.runtime.DynamicConv2d,
)  # fmt: skip
# methods that users call on what verbs gave them
METHODS = {
    "Budget": ("limits", "on_the_way", "parse"),
    "Groups": ("costs", "plan", "mask", "select", "without", "seen", "bind"),
    "Tensors": ("costs", "costs_of_counts", "plan", "mask"),
    "Plan": ("then", "without", "from_json"),
    "Pruner": ("attach", "advance_", "load_state_dict"),
    "MaskPruner": ("attach", "load_state_dict"),
    "GateTraining": ("begin", "load_state_dict"),
    "Sensitivity": ("drops", "widest", "plan", "ranking"),
    "Stats": ("of", "of_group", "check"),
    "Preprocess": ("override",),
    "Augment": ("of",),
    "Split": ("take", "batches"),
    "Model": ("example",),
}
# methods that the library calls, on what it made: by class, with the reason
OTHERS = {
    "Groups": "alive kept_rows edit quanta check_proportions costs_of_counts of_calls",  # of allocators and the proof
    "Tensors": "quanta",
    "GateTraining": "loss",  # of what forward gave, at every step
    "Preprocess": "fit",  # of every batch
    "Group": "statistic with_role computes",  # of criteria, for every group
    "Slice": "view scatter statistic",
    "Inputs": "of each map to outputs_in",  # what a verb was given as example_inputs=, which the door has seen
    "Problem": "allows remove_lowest",  # given to an allocator, which is the user's own code if it is none of prunus
    "Moment": "magnitude slope seen draw",  # the same, to a method of masks
    "Seen": "run handles forwards batches value call_of replay",  # the same, to a collector
    "Gate": "pool respond estimate see choose look mask_of as_operator before after",  # called by forward
    "Method": "gate loss close_ when",  # called by dynamic_ and by GateTraining
    "Rule": "begin_ attach_ reveal_ mask_ hold_ conceal_",  # called by MaskPruner
    "Attached": "load_state_dict",  # of a Pruner, and of training, with what they saved
    "RewrittenModule": "forward train",  # the network's own
    "CompiledNetwork": "forward",  # of a network's inputs: tests/runtime/test_bad_input.py
    "Latency": "of",
    "Realised": "facts",
    "Basis": "forward",
    **dict.fromkeys(("VGG", "CifarResNet", "DenseNetBC", "MobileNetV2", "PreActResNet", "PadShortcut"), "forward"),
}
WIDER = {("prunus.Preprocess", "mean"), ("prunus.Preprocess", "std"), ("prunus.Preprocess", "size")}  # one for all
LONG = bool(os.environ.get("PRUNUS_LONG"))  # all calls, not one in SHARE
SHARE = 5


class Boom(Exception):
    """What a user's own function raises."""


def boom(*args: Any, **kwargs: Any) -> Any:
    raise Boom("the user's own")


Call = Callable[..., Any]


def classes() -> dict[str, type]:
    """Every public class that is no error, by its name."""
    found = (
        getattr(import_module(f"prunus{room}"), n) for room in ROOMS for n in import_module(f"prunus{room}").__all__
    )
    return {c.__name__: c for c in found if inspect.isclass(c) and not issubclass(c, BaseException)}


def calls() -> dict[str, Callable[[World], Call]]:
    """Every public function, class, method and entry of a registry, by a full name: what gives it in a world."""
    found: dict[int, tuple[str, Call]] = {}
    for room in ROOMS:
        package = import_module(f"prunus{room}")
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) and name not in INNER:
                found.setdefault(id(value), (f"{value.__module__}.{name}", value))
    named = dict(sorted(found.values())) | {f"prunus.{c.__name__}": c for c in MADE}
    for registry in (prunus.masks.methods, prunus.dynamic.methods, prunus.regularizers.regularizers):
        named |= {f"{registry.kind} {entry.name}": entry.call for entry in registry}
    plain: dict[str, Callable[[World], Call]] = {name: lambda world, call=call: call for name, call in named.items()}
    for kind, names in METHODS.items():
        plain |= {f"{kind}.{n}": lambda world, kind=kind, n=n: getattr(world.object(kind), n) for n in names}
    return plain


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
        self.weights = ".masks." in verb or verb.endswith("MaskPruner") or verb.startswith(("Tensors", "MaskPruner"))
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
        self.made |= {"regularizer": "bn-gamma", "per_class": 1}
        self.made |= {"optimizer": torch.optim.SGD(self.model.parameters(), lr=0.1)}
        self.made |= {"loader": self.made["data"], "batches": self.made["data"], "limit": 2, "counts": [1]}
        self.made |= {"seconds": 0.01, "trained": lambda t: 0.1, "total": 10, "name": "odd", "roles": ["out"]}
        if verb == "prunus.criteria.base.criterion":
            self.made["needs"] = ()
        if ".train." in verb:
            data = prunus.data.load("digits", limit=8)
            self.made |= {"model": prunus.zoo.digits_net(), "data": data, "split": data.test, "optimizer": "sgd"}
            self.made |= {"schedule": "cosine", "regularizer": None, "quiet": True, "progress": False}
        if verb.startswith(("prunus.dynamic", "prunus.GateTraining")) and not verb.endswith(("dynamic_", "placement")):
            prunus.dynamic.dynamic_(self.model, x)
        if verb.endswith("dynamic_"):
            self.made["method"] = "manidp"
        if verb.endswith("drop_blocks_"):
            self.made["method"] = "shortgpt"
        if verb.startswith("prunus.runtime.") and not verb.endswith(("compile", "load")):
            self.made["network"] = prunus.runtime.compile(self.model, x)
        self.made |= {"progress_": 0.5, "why": "a test", "text": "macs=0.5", "drop": 0.1, "kind": "l1", "depth": 20}
        self.made |= {"vectors": torch.eye(9), "widths": (4, 0), "conv": nn.Conv2d(1, 4, 3), "example": x, "size": 2}
        self.made |= {"rows": torch.tensor([0, 1]), "original": {"params": 99, "macs": 99}, "modules": ["0"]}
        self.made |= {"later": prunus.Plan(), "json": prunus.Plan().to_json(), "default": prunus.data.Augment()}
        self.made |= {"backend": "torch", "batch": 1, "threads": 1, "precision": "32", "device": torch.device("cpu")}
        self.made |= {"result": result(), "raw": {"recipe": "a"}, "lines": {}, "dense": "auto"}
        if verb.startswith(("Preprocess", "Augment")):
            self.made["given"] = {"scale": 2.0} if verb.startswith("Preprocess") else "shift"
        if verb in ("Pruner.advance_", "Budget.on_the_way"):
            self.made["progress"] = 0.5
        if verb.endswith("fixed_"):
            self.made["counts"] = [1, 1]
        if verb.endswith(("recipes.run.run", "load.dump")):
            self.made["recipe"] = prunus.recipes.load("quickstart")
        if verb.endswith("load.check"):
            self.made["raw"] = prunus.recipes.load("quickstart").model_dump(mode="json")
        if ".regularizers.base.attach" in verb:
            self.made["regularizer"] = prunus.regularizers.regularizer_of("bn-gamma")
        if verb.startswith("prunus.report."):
            write(folder)
        if verb.endswith(".repair_"):
            self["wanted"], self["groups"]
            prunus.shrink_(self.model, self["groups"], self["plan"])
            self.made["groups"] = prunus.trace(self.model, x)
        if verb.endswith(".compensate_"):
            self["lost"], self["groups"]
            prunus.shrink_(self.model, self["groups"], self["plan"])
            self.made["groups"] = prunus.trace(self.model, x)
        if verb.endswith("costs_of_counts"):
            self.made["counts"] = {g.id: 1 for g in self["groups"]}
        if verb.endswith("load_state_dict"):
            self.made["state"] = self.object(verb.partition(".")[0]).state_dict()

    def __getitem__(self, name: str) -> Any:
        if name == "path":
            path = self.folder / "net.safetensors"
            if self.verb == "prunus.runtime.files.load":
                prunus.runtime.save(prunus.runtime.compile(self.model, self["example_inputs"]), path)
            elif self.verb.endswith("load_weights_"):
                save_file(self.model.state_dict(), path)
            elif self.verb.endswith("recipes.load.expand"):
                return str(path)
            else:
                prunus.save(self.model, path)
            return path
        if name not in self.made and hasattr(self, f"make_{name}"):
            self.made[name] = getattr(self, f"make_{name}")()
        if name not in self.made:
            raise KeyError(f"{self.verb}: no example of an argument '{name}'; add one to World.")
        return self.made[name]

    def object(self, kind: str) -> Any:
        """An object of a public class, as verbs give it."""
        if kind in self.made:
            return self.made[kind]
        made: dict[str, Callable[[], Any]] = {
            "Budget": lambda: self["budget"],
            "Groups": lambda: self["groups"],
            "Tensors": lambda: self["groups"],
            "Plan": lambda: self["plan"],
            "Pruner": lambda: prunus.Pruner(self.model, self["example_inputs"], budget=self["budget"]),
            "MaskPruner": lambda: prunus.masks.MaskPruner(self.model, self["groups"], density=0.5, steps=8),
            "GateTraining": self.make_gates,
            "Sensitivity": lambda: prunus.sensitivity(
                self.model, self["groups"], self["scores"], lambda m: 1.0, (0.5,)
            ),
            "Stats": lambda: prunus.collect(self.model, self["groups"], self["data"], {"grad"}),
            "Preprocess": prunus.data.Preprocess,
            "Augment": prunus.data.Augment,
            "Split": lambda: prunus.data.load("digits", limit=8).test,
            "Model": lambda: prunus.zoo.build("prunus:digits_net", seed=0),
        }
        found = self.made[kind] = made[kind]()
        if self.verb.endswith("Pruner.load_state_dict"):
            found.attach(self["optimizer"])
        return found

    def make_gates(self) -> Any:
        prunus.dynamic.dynamic_(self.model, self["example_inputs"])
        return prunus.dynamic.GateTraining(self.model, steps=5, periods=1)

    def make_ids(self) -> Any:
        return [self["groups"][0].id]

    def make_id(self) -> Any:
        return self["groups"][0].id

    def make_view(self) -> Any:
        return prunus.report.View(self["groups"])

    def make_inputs(self) -> Any:
        return prunus.Inputs.of(self["example_inputs"])

    def make_optimizers(self) -> Any:
        return [self["optimizer"]]

    def make_keep(self) -> Any:
        if self.verb.startswith(("regularizer", "method")):
            return 0.5
        return torch.ones(self["groups"].units, dtype=torch.bool)

    def make_lost(self) -> Any:
        return prunus.recovery.lost(self.model, self["groups"], self["data"], self["plan"])

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


ALWAYS = (
    "seconds", "n", "density", "seed", "quiet", "progress", "schedule", "optimizer", "criterion", "factory",
)  # fmt: skip


def arguments(verb: Callable[..., Any], world: World) -> dict[str, Any]:
    """A good call: everything without a default, and what keeps the call short."""
    taken = calls_of(verb).items()
    given = {name: world[name] for name, p in taken if p.default is p.empty or (name in ALWAYS and name in world.made)}
    if world.verb.endswith("masks.collapse.collapse"):
        given["data"] = world["data"]
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
        "a short mask": torch.ones(3, dtype=torch.bool),
        "{'nowhere': 3}": {"nowhere": 3},
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


@pytest.mark.parametrize("name", calls())
def test_an_odd_call_works_or_is_one_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if ".openvino" in name:
        pytest.importorskip("openvino")
    call, bad, world = calls()[name], [], World(tmp_path, name)
    if not name.endswith("recipes.run.run"):  # a whole run
        end, message = outcome(call(world), arguments(call(world), world), "")
        assert end == "taken", f"the good call that the others are made of: {message}"
    world = None
    for number, parameter in enumerate(calls_of(call(World(tmp_path, name)))):
        for i, what in enumerate(nasty(tmp_path)):
            if not LONG and (i + number * 7) % SHARE:
                continue
            world = world or World(tmp_path, name)
            verb, value = call(world), nasty(tmp_path)[what]
            before = state_of(world)
            end, message = outcome(verb, arguments(verb, world) | {parameter: value}, parameter)
            if end == "raw":
                bad.append(f"{parameter}={what}: {message}")
            elif end == "refused" and not same(before, state_of(world)):
                bad.append(f"{parameter}={what}: the model was changed, and then: {message}")
            elif end == "taken" and not fits(value, hint_of(verb, parameter)) and (name, parameter) not in WIDER:
                bad.append(f"{parameter}={what}: taken in silence")
            if end != "refused" or not same(before, state_of(world)):
                world = None
    assert not bad, "\n".join([f"{len(bad)} odd calls of {name}:", *bad])


def test_every_method_of_a_public_class_is_at_the_door_or_inner() -> None:
    """A method that is new is put into `METHODS`, or into `OTHERS` with the reason."""
    found = {}
    for name, kind in classes().items():
        own = (m for m in vars(kind) if not m.startswith("_") and callable(getattr(kind, m)))
        taking = {m for m in own if set(inspect.signature(getattr(kind, m)).parameters) - {"self"}}
        if left := taking - set(METHODS.get(name, ())) - set(OTHERS.get(name, "").split()):
            found[name] = left
    assert found == {}
