"""``save_pretrained`` and ``from_pretrained`` of cut transformers: the plan travels in ``config.json``, as data.

transformers builds a network from its configuration, lets a *quantizer* change it, and loads the weights.  Here the
quantizer is prunus: it cuts the fresh network by the plan.  So every ``from_pretrained`` of transformers loads a cut
network once prunus is imported, before or after transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from importlib.abc import MetaPathFinder
from typing import Any

from torch import nn

from prunus.core import FileError, Plan
from prunus.core.fields import LONG, record, shown
from prunus.core.fields import text as text_of
from prunus.core.undo import keep_item
from prunus.surgery import memory
from prunus.surgery.depth import drop_
from prunus.surgery.fits import add_, check_fits
from prunus.surgery.memory import replace_
from prunus.surgery.shrink import set_attributes_
from prunus.tracing.apply import narrow

METHOD = "prunus"
REGISTRY = "transformers.quantizers.auto"
ALIGNED = 64  # bytes
LAYERS = 10_000  # of a network that a configuration with a plan may describe
WHERE = "config.json (quantization_config)"


def watch() -> None:
    """Register with transformers, now or when it is imported; and note the plan of every transformer that is cut."""
    if note_ in memory.LISTENERS:
        return
    memory.LISTENERS.append(note_)
    if REGISTRY in sys.modules:
        register(sys.modules[REGISTRY])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    """Registers right after the registry of transformers is imported, by whomever."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def note_(model: nn.Module, plan: Plan) -> None:
    """Write the cumulative plan into the configuration of every transformer that `model` is or holds."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return
    _note_at_save(library.PreTrainedModel)
    inside: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, library.PreTrainedModel) or any(name.startswith(f"{p}.") or not p for p in inside):
            continue
        inside.append(name)
        part = _part(plan, name)
        keep_item(vars(module.config), "quantization_config")
        if not part.identity or part.added or part.edits:
            module.config.quantization_config = content(module, part)
        elif getattr(module.config, "quantization_config", {}).get("quant_method") == METHOD:
            del module.config.quantization_config


def _note_at_save(kind: Any) -> None:
    """Let `save_pretrained` write what a network is then: parts may have been replaced since the cut."""
    original = kind.save_pretrained
    if hasattr(original, METHOD):
        return

    @wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = memory.plan_with_replaced(self)
        if plan is not None:
            note_(self, plan)
        return original(self, *args, **kwargs)

    setattr(save_pretrained, METHOD, True)
    kind.save_pretrained = save_pretrained


def content(model: Any, plan: Plan) -> dict[str, Any]:
    """What ``config.json`` says of the cut: the plan, the class it is of, and what the configuration said before.

    The configuration itself tells the sizes that forward reads as they are after the cut.
    """
    text = plan.to_json()
    configs = {id(config): path for path, config in _configs(model.config, "")}
    before = {}
    for e in plan.edits:
        holder, _, key = e.attribute.partition(".")
        config = getattr(model.get_submodule(e.module), holder, None) if key else None
        if id(config) in configs:
            before[configs[id(config)] + key] = e.old
    return {
        "quant_method": METHOD,
        "model": type(model).__name__,
        "plan": text,
        "before": before,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def _configs(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A configuration and those inside it, each with the path to its entries."""
    yield path, config
    for key, value in vars(config).items():
        if hasattr(value, "to_diff_dict"):
            yield from _configs(value, f"{path}{key}.")


def restore_(config: Any, before: Any, plan: Plan) -> None:
    """Let the configuration say what it said before the cut: integers that the plan edits, and that it says came of it.

    Raises: `FileError` for anything else, with the configuration as it was; and for more layers than a network has.
    """
    found = []
    edited = {(e.attribute.rpartition(".")[2], e.old, e.new) for e in plan.edits if "." in e.attribute}
    holders = dict(_configs(config, ""))
    for path, value in (before if isinstance(before, dict) else {"": before}).items():
        way, _, key = path.rpartition(".")
        entry = vars(holders.get(f"{way}." if way else "", object))
        if key.startswith("_") or type(entry.get(key)) is not int:
            raise FileError(f"{WHERE}: the plan is of another network: the configuration has no number '{path[:80]}'.")
        if (key, value, entry[key]) not in edited or type(value) is not int or _counts_layers(key):
            raise FileError(f"{WHERE}: no cut of the plan changed '{path[:80]}' from {shown(value)} to {entry[key]}.")
        found.append((entry, key, value))
    for path, holder in holders.items():
        for key, value in vars(holder).items():
            if _counts_layers(key) and type(value) is int and value > LAYERS:
                raise FileError(f"{WHERE}: {path}{key} = {value}, a network has {LAYERS} layers at most.")
    for entry, key, value in found:
        entry[key] = value


def _counts_layers(key: str) -> bool:
    """Whether an entry says how many layers a network has: no cut edits these."""
    return key.endswith(("layer", "layers", "blocks", "depth"))


def read(data: Any) -> Plan:
    """The plan in a configuration; raises `FileError` when it was edited."""
    try:
        text_of(record(data, ("quant_method", "model", "plan"), ("before", "digest"))["model"])
        text = text_of(data["plan"], longest=LONG)
    except ValueError as error:
        raise FileError(f"{WHERE}: this is no plan that prunus wrote ({error}).") from None
    if hashlib.sha256(text.encode(errors="replace")).hexdigest() != data.get("digest"):
        raise FileError(f"{WHERE}: the checksum does not fit: the plan was damaged or edited after it was saved.")
    try:
        return Plan.from_json(text)
    except FileError as error:
        raise FileError(f"{WHERE}: {error}") from None


def for_class(plan: Plan, saved: str, model: Any) -> Plan:
    """The plan in the names of `model`: a base model may be loaded from one with a head, and the other way round."""
    if type(model).__name__ == saved:
        return plan
    prefix = model.base_model_prefix
    names = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    modules = {name for name, _ in model.named_modules()}

    def fits(plan: Plan) -> bool:
        return any(n in names for n in plan.tensors) or any(d.module in modules for d in plan.dropped)

    if not fits(plan):
        inner = _part(plan, prefix)
        plan = inner if fits(inner) else _under(plan, prefix)
    return replace(  # a head that this class does not have
        plan,
        tensors={n: t for n, t in plan.tensors.items() if n.rpartition(".")[0] in modules},
        edits=tuple(e for e in plan.edits if e.module in modules),
        added=tuple(a for a in plan.added if a.name.rpartition(".")[0] in modules),
        dropped=tuple(d for d in plan.dropped if d.module in modules),
    )


def _part(plan: Plan, prefix: str) -> Plan:
    """The plan of the submodule `prefix`, in its own names."""
    if not prefix:
        return plan
    dot, n = f"{prefix}.", len(prefix) + 1
    return replace(
        plan,
        groups={k[n:]: g for k, g in plan.groups.items() if k.startswith(dot)},
        tensors={k[n:]: t for k, t in plan.tensors.items() if k.startswith(dot)},
        edits=tuple(replace(e, module=e.module[n:]) for e in plan.edits if f"{e.module}.".startswith(dot)),
        added=tuple(replace(a, name=a.name[n:]) for a in plan.added if a.name.startswith(dot)),
        dropped=tuple(replace(d, module=d.module[n:]) for d in plan.dropped if d.module.startswith(dot)),
        ties=tuple(tuple(k[n:] for k in tie if k.startswith(dot)) for tie in plan.ties),
    )


def _under(plan: Plan, prefix: str) -> Plan:
    """The plan of a network that holds the one of `plan` as its submodule `prefix`."""
    return replace(
        plan,
        groups={f"{prefix}.{k}": g for k, g in plan.groups.items()},
        tensors={f"{prefix}.{k}": t for k, t in plan.tensors.items()},
        edits=tuple(replace(e, module=f"{prefix}.{e.module}".rstrip(".")) for e in plan.edits),
        added=tuple(replace(a, name=f"{prefix}.{a.name}") for a in plan.added),
        dropped=tuple(replace(d, module=f"{prefix}.{d.module}") for d in plan.dropped),
        ties=tuple(tuple(f"{prefix}.{k}" for k in tie) for tie in plan.ties),
    )


def narrow_(model: nn.Module, plan: Plan, computed: bool) -> None:
    """Narrow what a checkpoint holds, or (`computed`) the buffers that the network computes when it is built."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    stored = set(model.state_dict())
    tied = {name: names for names in plan.ties for name in names}
    done = set()
    for name, cut in plan.tensors.items():
        for other in tied.get(name, (name,)):
            tensor = tensors.get(other)
            if tensor is not None and id(tensor) not in done and (other in stored) is not computed:
                tensor.data = narrow(tensor.data, cut)
                done.add(id(tensor))


def align_(model: nn.Module) -> None:
    """Move what lies unaligned, in the memory of the file: kernels would sum it in another order than before."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNED:
            tensor.data = tensor.data.clone()


def register(library: Any) -> None:
    """Tell transformers what the method "prunus" of a configuration means."""
    if METHOD in library.AUTO_QUANTIZER_MAPPING:
        return

    @library.register_quantization_config(METHOD)
    class PrunusConfig(library.QuantizationConfigMixin):
        """The plan in a configuration."""

        def __init__(self, **data: Any) -> None:
            self.data = data
            self.quant_method = METHOD

        def to_dict(self) -> dict[str, Any]:
            """For ``config.json``."""
            return dict(self.data)

    @library.register_quantizer(METHOD)
    class PrunusQuantizer(library.HfQuantizer):
        """Cuts a freshly built network; nothing is quantized, and nothing of this stays on the network."""

        requires_calibration = False
        is_trainable = True

        def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
            """Whether the network can be saved."""
            return True

        def update_attn_implementation(self, config: Any) -> Any:
            """Called before the network is built."""
            data = self.quantization_config.data
            self.plan = read(data)
            restore_(config, data.get("before"), self.plan)
            return config

        def preprocess_model(self, model: Any, dtype: Any = None, **kwargs: Any) -> None:
            """Called when it is built, without weights."""
            self.plan = for_class(self.plan, str(self.quantization_config.data["model"]), model)
            check_fits(model, self.plan, WHERE)
            drop_(model, self.plan.dropped)
            add_(model, self.plan)
            narrow_(model, self.plan, computed=False)

        def postprocess_model(self, model: Any, **kwargs: Any) -> Any:
            """Called when the weights are loaded."""
            narrow_(model, self.plan, computed=True)
            align_(model)
            set_attributes_(model, self.plan)
            vars(model).pop("hf_quantizer", None)
            replace_(model, self.plan)
            return model


watch()
