"""How is it cut?  The physical cut and its proof, constants absorbed, selections, save and load."""

from prunus.surgery.absorb import absorb_, give_biases_
from prunus.surgery.files import load, load_, read_plan, save
from prunus.surgery.follow import follow_
from prunus.surgery.hold import gaps, kept_units, silence_, silence_gradients_
from prunus.surgery.memory import plan_of
from prunus.surgery.optimizer import check_holds, slice_optimizer_
from prunus.surgery.rewrite import rewrite
from prunus.surgery.rewritten import RewrittenModule
from prunus.surgery.select import select_
from prunus.surgery.shrink import shrink_

__all__ = [
    "RewrittenModule",
    "absorb_",
    "check_holds",
    "follow_",
    "gaps",
    "give_biases_",
    "kept_units",
    "load",
    "load_",
    "plan_of",
    "read_plan",
    "rewrite",
    "save",
    "select_",
    "shrink_",
    "silence_",
    "silence_gradients_",
    "slice_optimizer_",
]
