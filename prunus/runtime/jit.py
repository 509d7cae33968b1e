"""From LLVM's language to a function of this processor, kept on disk for the next time."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache as once
from typing import Any

from prunus.core.errors import InputError, MissingExtraError
from prunus.core.forked import Lock
from prunus.runtime import cache

ENGINES: list[Any] = []  # what holds the machine code; never freed, as addresses of it are given away
ADDRESSES: dict[str, int] = {}
MAKING = Lock()  # kernels are made by one thread at a time


@dataclass(frozen=True)
class Machine:
    """A processor as LLVM names it, and the floats in its vectors: 16 with AVX-512, 8 with AVX2, 4 with NEON."""

    triple: str
    cpu: str
    features: str
    lanes: int

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 16 if self.lanes == 8 else 32


def llvm() -> Any:
    """llvmlite's binding, set up; raises `MissingExtraError` where it is not installed."""
    try:
        import llvmlite.binding as binding
    except ImportError as error:
        raise MissingExtraError("the sparse engine needs llvmlite. Install it with:  pip install llvmlite") from error
    _set_up(binding)
    return binding


@once
def _set_up(binding: Any) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


def lanes_of(features: dict[str, bool], architecture: str) -> int:
    """Floats in the vectors that a processor with these `features` has; raises `InputError` when it has none.

    >>> lanes_of({"avx512f": True, "avx512vl": True, "avx2": True, "fma": True}, "x86_64")
    16
    >>> lanes_of({}, "arm64")
    4
    """
    if architecture.lower() in ("aarch64", "arm64"):
        return 4
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    if features.get("avx2") and features.get("fma"):
        return 8
    raise InputError(
        f"the sparse engine has kernels for AVX-512, AVX2 with FMA and NEON; this processor ({architecture}) has none "
        "of them."
    )


@once
def machine() -> Machine:
    """The processor this process runs on."""
    binding = llvm()
    features = binding.get_host_cpu_features()
    lanes = lanes_of(dict(features), platform.machine())
    return Machine(binding.get_process_triple(), binding.get_host_cpu_name(), features.flatten(), lanes)


def vectors() -> bool:
    """Whether this processor has vectors that kernels are made for."""
    try:
        return bool(machine().lanes)
    except InputError:
        return False


def lanes() -> int:
    """Floats in a vector of this processor; the most there can be where it has none that kernels are made for."""
    return machine().lanes if vectors() else 16


def target(of: Machine) -> Any:
    """LLVM's code generator for a processor, this one or another."""
    # Without prefer-256-bit off, LLVM halves the vectors of some processors that have AVX-512.
    wide = of.features + (",-prefer-256-bit" if of.lanes == 16 else "")
    return llvm().Target.from_triple(of.triple).create_target_machine(cpu=of.cpu, features=wide, opt=2, jit=True)


def assemble(text: str, of: Machine) -> bytes:
    """The object code of a module in LLVM's language."""
    module = llvm().parse_assembly(text)
    module.verify()
    return bytes(target(of).emit_object(module))


def key_of(text: str) -> str:
    """A name for what belongs to a text, this processor and these versions."""
    import llvmlite

    return hashlib.sha256("\n".join((text, repr(machine()), llvmlite.__version__)).encode()).hexdigest()[:32]


def address(text: str) -> int:
    """The address of the function ``kernel`` of a module in LLVM's language: in memory, on disk, or assembled now.

    The key is the text, the processor and the versions.  A file that is damaged, or another's, is made again.
    """
    here, key = machine(), key_of(text)
    with MAKING:
        if key not in ADDRESSES:
            code = cache.stored(key)
            if code is None:
                code = assemble(text.replace("@kernel(", f"@k{key}(").replace('@"kernel"(', f"@k{key}("), here)
                cache.store(key, code)
            ADDRESSES[key] = _loaded(code, key)
        return ADDRESSES[key]


def _loaded(code: bytes, key: str) -> int:
    binding = llvm()
    holder = binding.create_mcjit_compiler(binding.parse_assembly(""), target(machine()))
    holder.add_object_file(binding.ObjectFileRef.from_data(code))
    holder.finalize_object()
    ENGINES.append(holder)
    return int(holder.get_function_address(f"k{key}"))
