"""A cut transformer: the plan in ``config.json``."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from tests.security.fuzz import Format
from tests.security.mutate import DEEPEST, dumped, mutated

SETTINGS = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 32}
IDS = torch.arange(8).reshape(1, 8)


def bert() -> Any:
    declare_torchvision_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.BertConfig(**SETTINGS, vocab_size=20, max_position_embeddings=16, num_labels=2)
    return transformers.BertForSequenceClassification, config


def write(folder: Path) -> list[Path]:
    if not (folder / "config.json").exists():
        kind, config = bert()
        torch.manual_seed(0)
        model = kind(config).eval()
        budget = prunus.Budget(params=0.8)
        prunus.prune_(model, {"input_ids": IDS}, budget=budget, allocator="uniform", verify=False)
        model.save_pretrained(folder)
    return [folder / "config.json"]


def signed(data: Any) -> bytes:
    """The configuration with the checksum of its plan."""
    section = data.get("quantization_config")
    if isinstance(section, dict) and isinstance(section.get("plan"), str):
        section["digest"] = hashlib.sha256(section["plan"].encode(errors="replace")).hexdigest()
    return dumped(data).encode(errors="surrogatepass")


def change(rng: random.Random, source: Path) -> bytes:
    data = json.loads(source.read_text())
    section = data["quantization_config"]
    texts = ("config.hidden_size", "num_attention_heads", "bert", "bert.encoder.layer.0.attention.self")
    kind = rng.random()
    if kind < 0.5:
        prefer = rng.choice(("edits", "tensors", "ties", "added"))
        section["plan"] = dumped(mutated(rng, json.loads(section["plan"]), texts, (prefer,)))
    elif kind < 0.75:
        plan = json.loads(section["plan"])
        plan["edits"] = mutated(rng, plan["edits"], (*texts, *data), ("module", "attribute", "old", "new"))
        section["plan"] = dumped(plan)
    else:
        data["quantization_config"] = mutated(rng, section, ("num_hidden_layers", "hidden_size", "dtype"), ("before",))
    return signed(data)


def read(path: Path) -> Any:
    """`from_pretrained` of a folder with this configuration; the weights are those of the honest file."""
    kind, _ = bert()
    folder = path.parent / "folder"
    if path.name == "config.json":
        folder = path.parent
    else:
        folder.mkdir(exist_ok=True)
        shutil.copy(path.parent / "honest" / "model.safetensors", folder)
        shutil.copy(path, folder / "config.json")
    return kind.from_pretrained(folder).eval()


def edited(apply: Callable[[Any, Any], None]) -> Callable[[list[Path]], bytes]:
    """The configuration with its section and its plan changed in place."""

    def make(honest: list[Path]) -> bytes:
        data = json.loads(honest[0].read_text())
        section = data["quantization_config"]
        plan = json.loads(section["plan"])
        apply(section, plan)
        section["plan"] = dumped(plan)
        return signed(data)

    return make


def before(**entries: Any) -> Callable[[list[Path]], bytes]:
    return edited(lambda section, plan: section["before"].update(entries))


CORPUS = {
    "10^9 layers": before(num_hidden_layers=10**9),
    "10^9 layers by an edit": edited(
        lambda section, plan: (
            section["before"].update(num_hidden_layers=10**9),
            plan["edits"].append({"module": "", "attribute": "config.num_hidden_layers", "old": 10**9, "new": 1}),
        )
    ),
    "another type": before(hidden_size="x"),
    "a path out": before(**{"__class__.model_type": 1}),
    "a method": before(to_dict=1),
    "no plan": edited(lambda section, plan: section.pop("before")),
    "deep": edited(lambda section, plan: plan.__setitem__("inputs", DEEPEST)),
    "a bias of 10^10": edited(
        lambda section, plan: plan["added"].append(
            {"name": "classifier.bias", "kind": "bias", "shape": [10**10], "dtype": "float32"}
        )
    ),
    "a hook": edited(
        lambda section, plan: plan["edits"].append(
            {"module": "classifier", "attribute": "_forward_hooks", "old": None, "new": {}}
        )
    ),
}
FORMAT = Format(
    "pretrained",
    write,
    change,
    read,
    CORPUS,
    lambda model: model(input_ids=IDS),
    theirs=True,
    need=lambda size: 1 << 26,
)
