"""prunus makes neural networks smaller and really faster.

The whole way, in five verbs::

    groups = prunus.trace(model, example_inputs)                     # what is coupled?
    stats = prunus.collect(model, groups, loader, needs, loss=None)  # what must be seen?
    scores = prunus.score(groups, "l2", stats)                       # what is unimportant?
    plan = prunus.allocate(groups, scores, prunus.Budget(macs=0.5))  # how much, from where?
    report = prunus.shrink_(model, groups, plan)                     # cut, verified

`prune_` is exactly these lines; `Pruner` does the same while a network trains.  The other rooms are imported where
they are used: ``prunus.measure``, ``prunus.export``, ``prunus.train``, ``prunus.report``, ``prunus.data``,
``prunus.zoo``, ``prunus.recipes``.
"""

from importlib import import_module
from typing import Any

from prunus.allocators import Sensitivity, allocate, sensitivity
from prunus.bases import fold_, interspace_
from prunus.core import (
    Budget,
    BudgetError,
    FileError,
    Group,
    GroupPlan,
    Groups,
    InputError,
    Inputs,
    Plan,
    PrunusError,
    Report,
    Slice,
    TraceError,
    UnknownNameError,
    VerificationError,
)
from prunus.criteria import criterion, score
from prunus.depth import drop_blocks_
from prunus.dynamic import network as _network  # noqa: F401  (files with gates are read)
from prunus.integrations import pretrained as _pretrained  # noqa: F401  (transformers loads what was cut)
from prunus.masks import hold_, mask_, tensors
from prunus.observe import collect
from prunus.prune import prune_
from prunus.pruner import Pruner
from prunus.surgery import (
    RewrittenModule,
    absorb_,
    follow_,
    load,
    load_,
    plan_of,
    read_plan,
    rewrite,
    save,
    select_,
    shrink_,
)
from prunus.tracing import trace
from prunus.tracing.blocks import blocks
from prunus.version import __version__

_ROOMS = (
    "bases", "data", "dynamic", "export", "integrations", "masks", "measure", "recipes", "recovery", "regularizers",
    "report", "schedules", "train", "zoo",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """The other rooms, imported when they are first named: ``prunus.zoo.resnet56()``."""
    if name in _ROOMS:
        return import_module(f"prunus.{name}")
    raise AttributeError(f"module 'prunus' has no attribute '{name}'")


__all__ = [
    "Budget",
    "BudgetError",
    "FileError",
    "Group",
    "GroupPlan",
    "Groups",
    "InputError",
    "Inputs",
    "Plan",
    "Pruner",
    "PrunusError",
    "Report",
    "RewrittenModule",
    "Sensitivity",
    "Slice",
    "TraceError",
    "UnknownNameError",
    "VerificationError",
    "__version__",
    "absorb_",
    "allocate",
    "blocks",
    "collect",
    "criterion",
    "drop_blocks_",
    "fold_",
    "follow_",
    "hold_",
    "interspace_",
    "load",
    "load_",
    "mask_",
    "plan_of",
    "prune_",
    "read_plan",
    "rewrite",
    "save",
    "score",
    "select_",
    "sensitivity",
    "shrink_",
    "tensors",
    "trace",
]
