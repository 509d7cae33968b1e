"""Save a cut network, and load it onto a freshly built original.  No pickle: one safetensors file, the plan as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.core import FileError, InputError, Plan
from prunus.core.callbacks import own
from prunus.core.checks import check_arguments, shown
from prunus.core.held import held, held_from, held_text, hold_weight_
from prunus.core.kinds import check_kind
from prunus.core.undo import all_or_nothing
from prunus.core.writing import replacing
from prunus.surgery.attached import PREFIX, attach_again_, described, in_header, of_attached
from prunus.surgery.depth import drop_
from prunus.surgery.fits import add_, check_fits
from prunus.surgery.memory import check_memory, memory_format, plan_of, replace_
from prunus.surgery.packed import pack, unpack
from prunus.surgery.restate import still_to_do
from prunus.surgery.rewritten import RewrittenModule
from prunus.surgery.rewritten_files import read, written
from prunus.surgery.shrink import apply_
from prunus.version import __version__

KEY, DIGEST, FORMAT, GRAPH = "prunus", "prunus_digest", "prunus_memory_format", "prunus_graph"
PACKED, HELD = "prunus_packed", "prunus_held"


def save(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None, *, compress: bool = False
) -> None:
    """Write weights and cumulative plan to one safetensors file, atomically.

    Tied tensors are stored once; a checksum covers weights and plan.  `metadata` adds text entries of the caller's own.
    Of a `RewrittenModule` its operators are stored too, as JSON.  What masks hold at zero is held again once loaded.

    `compress` stores tensors with many zeros (masked weights) as their values and where they are, without loss; `load`,
    `load_` and `read_plan` know by themselves, other readers of safetensors find ``NAME#values`` and ``NAME#bits`` or
    ``NAME#gaps`` instead of ``NAME``.

    Raises: `WriteError`, an `OSError`, when the disk does not take it; what was there before is then still whole.
    `InputError` for sparse tensors, which safetensors does not know.
    """
    check_arguments(locals())
    path = Path(path)
    check_kind(model, changes=False)
    check_memory(model)
    plan = (plan_of(model) or Plan(version=__version__)).to_json()
    graph, tensors = written(model) if isinstance(model, RewrittenModule) else ("", _stored(model))
    more = described(model)
    masks = held_text(model, held(model))
    header = {**(metadata or {}), KEY: plan, FORMAT: memory_format(model), **more}
    header |= {HELD: masks} if masks else {}
    header |= {GRAPH: graph} if graph else {}
    header |= {DIGEST: digest(tensors, header)}
    if compress:
        tensors, shapes = pack(tensors)
        header |= {PACKED: shapes} if shapes else {}
    with replacing(path) as new:
        save_file(tensors, new, header)


def load(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Build a fresh original with `factory` and make it the saved network; see `load_`.

    A file of a `RewrittenModule` holds its operators and needs no factory; the network comes in evaluation mode, and
    outputs that were objects of a class are plain dictionaries.

    Raises: `FileError` as `load_` does, and when a factory is missing or is given in vain; `InputError` when it gives
    no module.

    Example: ``net = prunus.load("out/model.safetensors", prunus.zoo.resnet20)``
    """
    check_arguments(locals())
    if factory is not None:
        model = own(factory, "factory=")()
        if not isinstance(model, nn.Module):
            raise InputError(f"factory= gave {shown(model)}; expected a freshly built nn.Module.")
        load_(model, path)
        return model
    plan, tensors, header = _read(path)
    if GRAPH not in header:
        raise FileError(
            f"{path}: this network was cut in place, so the file holds no operators. Give the function that builds the "
            "original: prunus.load(path, factory)."
        )
    try:
        model = read(header[GRAPH], tensors)
        masks = held_from(header.get(HELD, ""), tensors, dict(model.named_parameters()))
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    replace_(model, plan)
    for name, keep in masks.items():
        hold_weight_(model, name, keep)
    return model


def reopen(path: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """`load`, with the factory only where the file needs one."""
    return load(path, None if GRAPH in _read(path)[2] else factory)


def load_(model: nn.Module, path: str | Path) -> None:
    """Cut a freshly built original by the plan in the file and load the weights: same outputs to the bit.

    (On the same machine with the same number of threads; the memory format is restored.)

    Raises: `FileError` for a file that is missing, truncated, edited or of another architecture; the model is then as
    it was.
    """
    check_arguments(locals())
    check_kind(model)
    plan, tensors, header = _read(path)
    if GRAPH in header:
        raise FileError(
            f"{path}: this file holds a rewritten network, operators and all, not a cut of the original. Load it "
            "without a factory: prunus.load(path)."
        )
    if plan_of(model) is not None:
        raise FileError(f"{path}: load_ needs a freshly built network; this one was already cut.")
    whole, plan = plan, still_to_do(plan, model, tensors)
    _check(model, plan, {n: t for n, t in tensors.items() if not of_attached(n)}, path)
    try:
        names = {*dict(model.named_parameters()), *(a.name for a in plan.added)}
        masks = held_from(header.get(HELD, ""), tensors, names)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    with all_or_nothing(model):
        drop_(model, plan.dropped)
        add_(model, plan)
        apply_(model, plan)
        try:
            attach_again_(model, header)
        except FileError as error:
            raise FileError(f"{path}: {error}") from None
        with torch.no_grad():
            for name, tensor in _stored(model, detach=False).items():
                # a copy: in the file's own memory tensors lie unaligned, and kernels then sum in another order
                tensor.data = tensors[name].to(tensor.device, copy=True)
        if header.get(FORMAT) == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        replace_(model, whole)
        for name, keep in masks.items():
            hold_weight_(model, name, keep)


def is_saved(path: str | Path) -> bool:
    """Whether `save` wrote this file; False for a file that is missing, damaged or something else."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def read_plan(path: str | Path) -> Plan:
    """The cumulative plan in a file that `save` wrote; raises `FileError`."""
    check_arguments(locals())
    return _read(path)[0]


def _stored(model: nn.Module, detach: bool = True) -> dict[str, Tensor]:
    """The state that a file holds: every parameter and persistent buffer once, contiguous."""
    state = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    out = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen:  # extra state is the module's own affair
            continue
        seen.add(id(tensor))
        if not detach:
            out[name] = tensor
            continue
        if tensor.layout is not torch.strided:
            raise InputError(
                f"'{name}' is a sparse tensor ({tensor.layout}), which a safetensors file cannot hold: register it "
                "with persistent=False and let the network build it, or keep it dense."
            )
        whole = tensor.detach().contiguous().cpu()
        shared = whole.untyped_storage().data_ptr() in stored  # two tensors over one memory
        out[name] = whole.clone() if shared else whole
        stored.add(out[name].untyped_storage().data_ptr())
    return out


def digest(tensors: Mapping[str, Tensor], header: dict[str, str]) -> str:
    """The checksum of whole tensors and of what the header tells of them."""
    told, graph = [header[KEY], *in_header(header).values(), header.get(HELD, "")], header.get(GRAPH, "")
    sha = hashlib.sha256("".join(told).encode() + (b"\0" + graph.encode() if graph else b""))
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read(path: str | Path) -> tuple[Plan, dict[str, Tensor], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path}: the file is truncated or is not a safetensors file ({error}).") from None
    if KEY not in header:
        raise FileError(
            f"{path}: prunus.save did not write this file (it holds no plan); load it with load_state_dict, "
            "and if it is of a masked network, hold its zeros again by prunus.hold_(model)."
        )
    try:
        tensors = unpack(tensors, header.get(PACKED, ""))
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    if header.get(DIGEST) != digest(tensors, header):
        raise FileError(f"{path}: the checksum does not fit: the file was damaged or edited after it was saved.")
    try:
        return Plan.from_json(header[KEY]), tensors, header
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def _check(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise `FileError` unless the plan, applied to the model, gives exactly the tensors in the file."""
    check_fits(model, plan, path)
    added = {a.name: a.shape for a in plan.added}
    gone = tuple(f"{d.module}." for d in plan.dropped)
    stored = {n: t for n, t in _stored(model, detach=False).items() if not n.startswith(gone)}
    fresh = {n: tuple(t.shape) for n, t in stored.items()} | added
    for name, shape in fresh.items():
        kept = plan.tensors[name].kept if name in plan.tensors else {}
        expected = tuple(len(kept.get(d, range(n))) for d, n in enumerate(shape))
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected:
            raise FileError(
                f"{path}: the file is of another architecture: '{name}' should be {expected} after the cut, in "
                "the file it is "
                f"{found or 'missing'}."
            )
    if extra := sorted(set(tensors) - set(fresh)):
        raise FileError(
            f"{path}: the file is of another architecture: the network given has no {', '.join(extra[:3])}."
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The caller's own text entries of a saved file."""
    own = {KEY, DIGEST, FORMAT, GRAPH, PACKED, HELD}
    return {k: v for k, v in _read(path)[2].items() if k not in own and not k.startswith(PREFIX)}
