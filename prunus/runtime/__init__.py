"""How does sparsity run fast?  Kernels made for this processor, in which every weight that is zero saves time."""

import prunus.runtime.backend  # noqa: F401  registers itself
from prunus.runtime.dynamic import DynamicConv2d
from prunus.runtime.engine import CompiledNetwork, compile
from prunus.runtime.files import load, save
from prunus.runtime.profile import profile

__all__ = ["CompiledNetwork", "DynamicConv2d", "compile", "load", "profile", "save"]
