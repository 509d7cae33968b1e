"""Which units for this input?  Gates, their losses, and their fast path."""

from prunus.dynamic import channel_gating, fbs, manidp  # noqa: F401  (they register themselves)
from prunus.dynamic.engine import by_lists
from prunus.dynamic.gate import Gate, Seen
from prunus.dynamic.method import Method, methods
from prunus.dynamic.network import Dynamic, dynamic_, dynamic_of, gate_parameters, gates, opened, static_, watched
from prunus.dynamic.places import Place, Placement, placement
from prunus.dynamic.realised import Realised, realised
from prunus.dynamic.skip import fixed_, report, skipping
from prunus.dynamic.training import GateTraining
from prunus.dynamic.warm import warm_start_

__all__ = [
    "Dynamic",
    "Gate",
    "GateTraining",
    "Method",
    "Place",
    "Placement",
    "Realised",
    "Seen",
    "by_lists",
    "dynamic_",
    "dynamic_of",
    "fixed_",
    "gate_parameters",
    "gates",
    "methods",
    "opened",
    "placement",
    "realised",
    "report",
    "skipping",
    "static_",
    "warm_start_",
    "watched",
]
