"""How does sparsity run fast?  Kernels made for this processor, in which every weight that is zero saves time."""

from prunus.runtime.engine import CompiledNetwork, compile

__all__ = ["CompiledNetwork", "compile"]
