"""From LLVM's language to a function of this processor, kept on disk for the next time."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunus.core.errors import InputError, MissingExtraError

ENGINES: list[Any] = []  # what holds the machine code; never freed, as addresses of it are given away
ADDRESSES: dict[str, int] = {}


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


@cache
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


@cache
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


def folder() -> Path:
    """Where object code is kept: ``$PRUNUS_CACHE``, else the user's cache folder."""
    given = os.environ.get("PRUNUS_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "prunus" / "kernels"


def key_of(text: str) -> str:
    """A name for what belongs to a text, this processor and these versions."""
    import llvmlite

    return hashlib.sha256("\n".join((text, repr(machine()), llvmlite.__version__)).encode()).hexdigest()[:32]


def address(text: str) -> int:
    """The address of the function ``kernel`` of a module in LLVM's language: in memory, on disk, or assembled now.

    The key is the text, the processor and the versions.  An object file whose checksum is wrong is made again.
    """
    binding, here = llvm(), machine()
    key = key_of(text)
    if key in ADDRESSES:
        return ADDRESSES[key]
    code = stored(key)
    if code is None:
        code = assemble(text.replace("@kernel(", f"@k{key}(").replace('@"kernel"(', f"@k{key}("), here)
        store(key, code)
    holder = binding.create_mcjit_compiler(binding.parse_assembly(""), target(here))
    holder.add_object_file(binding.ObjectFileRef.from_data(code))
    holder.finalize_object()
    ENGINES.append(holder)
    ADDRESSES[key] = holder.get_function_address(f"k{key}")
    return ADDRESSES[key]


def stored(key: str) -> bytes | None:
    """What `store` wrote under a key, on this machine; None where there is nothing, or its checksum is wrong."""
    try:
        data = (folder() / key).read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def store(key: str, code: bytes) -> None:
    """Keeps bytes on disk for the next time."""
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)  # it is code: nobody else may write there
        with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, folder() / key)
    except OSError:
        pass  # a disk that cannot be written to costs time, nothing else
