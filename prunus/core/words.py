"""What the names of arguments stand for, the same in every room: one word, one thing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.core import checks as c
from prunus.core.budget import Budget
from prunus.core.groups import Groups
from prunus.core.inputs import Inputs
from prunus.core.plan import Plan


def _budget(value: object) -> bool:
    return isinstance(value, Budget)


def _plan(value: object) -> bool:
    """A plan whose kept units are whole numbers, each once, of as many as there are."""
    if not isinstance(value, Plan):
        return False
    for entry in value.groups.values():
        kept = entry.kept
        if not c.is_int(entry.units) or not isinstance(kept, (tuple, list, range)) or not set(map(type, kept)) <= {int}:
            return False
        if kept and (min(kept) < 0 or max(kept) >= entry.units or len(set(kept)) < len(kept)):
            return False
    return True


def _floor(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and v is not None and _floor(v) for k, v in value.items())
    return value is None or (c.is_int(value) and value >= 0) or (c.is_number(value) and 0 <= value <= 1)  # type: ignore[operator]


def _scores(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) and not v.is_complex() for k, v in value.items()
    )


def _registered(value: object) -> bool:
    return isinstance(value, str) or (callable(value) and not isinstance(value, nn.Module))


a_budget = c.Kind("a prunus.Budget: write budget=prunus.Budget(macs=0.5) to keep half of the multiply-adds", _budget)
a_plan = c.Kind(
    "a prunus.Plan, as prunus.allocate returns it, whose kept units are whole numbers, each once, within their group",
    _plan,
)
a_floor = c.Kind(
    "a number of units (a whole number), a fraction of a group in [0, 1], None, or a dictionary {group: one of these}",
    _floor,
)
a_seed = c.ints(0, 2**63 - 1, "a whole number of at least 0")
some_classes = c.ints(1, 10**6)
a_tensor = c.instance("a torch.Tensor", Tensor)
a_regularizer = c.Kind(
    "a Regularizer, a name, or {'name': ..., **arguments}",
    lambda v: (
        isinstance(v, str) or hasattr(v, "roles") or (isinstance(v, Mapping) and all(isinstance(k, str) for k in v))
    ),
)
a_matrix = c.Kind(
    "a matrix (n, m) of finite numbers",
    lambda v: isinstance(v, Tensor) and v.dim() == 2 and v.numel() > 0 and bool(v.isfinite().all()),
)
a_mask = c.Kind("a boolean tensor, True = keep", lambda v: isinstance(v, Tensor) and v.dtype is torch.bool)
a_split = c.Kind("a part of a prunus.data.Data, e.g. data.test", lambda v: callable(getattr(v, "batches", None)))
a_dataset = c.Kind(
    "a prunus.data.Data, as prunus.data.load gives it", lambda v: a_split.holds(getattr(v, "train", None))
)
a_rate = c.Kind(
    "a learning rate: a function of the step, a name, or {'name': ..., **options}",
    lambda v: callable(v) or isinstance(v, str) or (isinstance(v, Mapping) and all(isinstance(k, str) for k in v)),
)
a_preprocess = c.Kind("a prunus.data.Preprocess", lambda v: callable(v) and callable(getattr(v, "override", None)))
a_result = c.Kind(
    "the content of a result.json, as prunus.report.read_result gives it",
    lambda v: (
        isinstance(v, Mapping) and "model" in v and all(isinstance(v.get(k), Mapping) for k in ("before", "after"))
    ),
)
some_groups = c.instance(
    "prunus.Groups: groups = prunus.trace(model, example_inputs), or prunus.tensors(model)", Groups
)
a_network = c.Kind("an nn.Module, or the path of a file", lambda v: c.a_module.holds(v) or c.a_path.holds(v))

WORDS: dict[str, c.Kind] = {
    # the objects that the verbs hand on
    "self": c.anything,
    "cls": c.anything,
    "model": c.a_module,
    "network": c.a_module,
    "copy": c.a_module,
    "example_inputs": c.an_example,
    "inputs": c.instance("prunus.Inputs", Inputs),
    "groups": some_groups,
    "plan": a_plan,
    "scores": c.Kind("a dictionary {group id: scores}, as prunus.score returns it", _scores),
    "budget": a_budget,
    "optimizer": c.optional(c.an_optimizer),
    "optimizers": c.Kind("a list of torch.optim.Optimizer", lambda v: c.an_optimizer.holds(v) or v in ((), [])),
    "parameter": c.instance("an nn.Parameter", nn.Parameter),
    "tensor": a_tensor,
    # what is chosen by name, or brought by the user
    "criterion": c.Kind("the name of a criterion (prunus ls criteria), or a registered function", _registered),
    "allocator": c.Kind("the name of an allocator (prunus ls allocators), or a registered function", _registered),
    "normalize": c.optional(c.a_named_function),
    "per": c.optional(c.one_of("macs", "params")),
    "regularizer": c.optional(a_regularizer),
    "schedule": c.optional(c.Kind("a function of the step", callable)),
    "loss": c.optional(c.Kind("a function (output, batch) -> loss", callable)),
    "outputs": c.optional(c.Kind("a function of what forward returns", callable)),
    "evaluate": c.Kind("a function (model) -> number", callable),
    "factory": c.optional(c.Kind("a function that builds the network, e.g. prunus.zoo.resnet20", callable)),
    "data": c.optional(c.some_batches),
    "loader": c.some_batches,
    "batches": c.some_batches,
    "needs": c.some_names,
    # which part of the network
    "freeze": c.some_patterns,
    "only": c.some_patterns,
    "skip": c.some_names,
    "names": c.some_names,
    "ids": c.some_names,
    # numbers
    "round_to": c.ints(1, 65536, "a whole number from 1 to 65536, e.g. 16 (the vector width of most CPUs)"),
    "floor": a_floor,
    "density": c.a_share,
    "seed": a_seed,
    "classes": some_classes,
    "rounds": c.a_positive_int,
    "steps": c.a_positive_int,
    "periods": c.a_positive_int,
    "limit": c.optional(c.a_positive_int),
    "memory": c.ints(1, 2**63 - 1),
    "batch": c.a_positive_int,
    "threads": c.ints(1, 1024),
    "seconds": c.Kind("a number of seconds above 0, at most 3600", lambda v: c.above_zero.holds(v) and v <= 3600),
    "temperature": c.Kind("a number above 0, at most 10000", lambda v: c.above_zero.holds(v) and v <= 1e4),
    "weight": c.a_portion,
    "rate": c.above_zero,
    "strength": c.not_negative,
    "fraction": c.a_portion,
    "every": c.optional(c.a_positive_int),
    "start": c.a_number,
    "end": c.a_number,
    # switches
    "absorb": c.a_flag,
    "select": c.a_flag,
    "verify": c.a_flag,
    "merge": c.a_flag,
    "in_place": c.a_flag,
    "repair": c.instance("True, False, or the name of a repair", bool, str),
    "new_biases": c.a_flag,
    "compress": c.a_flag,
    "invert": c.a_flag,
    "back": c.a_flag,
    "rows": c.a_flag,
    "unit": c.a_flag,
    "tune": c.a_flag,
    "unfold": c.a_flag,
    "resume": c.a_flag,
    "quiet": c.a_flag,
    # files
    "path": c.a_path,
    "folder": c.a_folder,
    "metadata": c.optional(
        c.Kind(
            "a dictionary of text",
            lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for pair in v.items() for x in pair),
        )
    ),
    "name": c.a_text,
    "title": c.a_text,
    "backend": c.a_word,
    "spec": c.a_word,
    "state": c.Kind("a dictionary, as state_dict() returned it", lambda v: isinstance(v, Mapping)),
}
