"""How is it cut?  The physical cut and its proof, constants absorbed, selections, save and load."""

from prunus.surgery.absorb import absorb_
from prunus.surgery.files import load, load_, read_plan, save
from prunus.surgery.memory import plan_of
from prunus.surgery.rewrite import rewrite
from prunus.surgery.rewritten import RewrittenModule
from prunus.surgery.select import select_
from prunus.surgery.shrink import shrink_

__all__ = [
    "RewrittenModule",
    "absorb_",
    "load",
    "load_",
    "plan_of",
    "read_plan",
    "rewrite",
    "save",
    "select_",
    "shrink_",
]
