"""What a run came to: the content of ``result.json``."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.core import PrunusError
from prunus.recipes.context import Context, weights_in
from prunus.recipes.masking import density
from prunus.recipes.schema import Export

SCHEMA = 1
READ_ONNX = ("onnxruntime", "openvino")
LIBRARIES = ("numpy", "onnx", "onnxruntime", "lightning")


def accuracy(context: Context, model: nn.Module) -> float | None:
    """Top-1 in [0, 1] on the test part, which no decision has seen; None without data."""
    from prunus.train import evaluate

    if context.data is None:
        return None
    return evaluate(model, context.data.test, context.preprocess, progress=not context.quiet)


def compose(context: Context, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure the network before and after, in turns, and gather what the stages said."""
    from prunus.surgery import plan_of

    index = {"before": context.unpruned, "after": len(context.recipe.stages)}
    models = {side: context.load(i) for side, i in index.items()}
    top1 = {
        "before": stages[context.unpruned - 1]["accuracy"] if context.unpruned else accuracy(context, models["before"]),
        "after": stages[-1]["accuracy"],
    }
    sides = {
        side: {**_side(context, model, context.network(index[side])), "accuracy": top1[side]}
        for side, model in models.items()
    }
    left, whole = (
        density(context, models[side], weights_in(models[side], context.example)) or 1.0 for side in ("after", "before")
    )
    gated = next((s["dynamic"] for s in stages if "dynamic" in s), None)
    zeros = left < whole or gated is not None
    times, notes = _latency(context, models, context.recipe.measure.chosen(zeros=zeros))
    if not zeros and context.recipe.measure.backends == "auto":  # it was not asked for, and nothing depends on it
        notes = [said for said in notes if not said.startswith("not timed in sparse")]
    if gated is not None:
        sides["after"]["macs"] = gated["mean"]
        notes.append(
            "timed in torch as it skips channels (prunus.dynamic.skipping), in the engine with its gates, elsewhere "
            "masked, which skips none"
        )
    for key, both in times.items():
        for side, ms in both.items():
            sides[side]["latency_ms"][key] = ms
    plan = plan_of(models["after"])
    return {
        "schema": SCHEMA,
        "recipe": context.recipe.recipe,
        "model": context.recipe.model,
        "seed": context.recipe.seed,
        "versions": versions(),
        "seconds": round(sum(s["seconds"] for s in stages), 3),
        **sides,
        "stages": [{k: s[k] for k in ("name", "seconds", "params", "macs", "density", "accuracy")} for s in stages],
        "verified": verified(stages),
        "plan": {} if plan is None else {k: {"units": g.units, "kept": len(g.kept)} for k, g in plan.groups.items()},
        "left_alone": left_alone(stages),
        "exported": {k: v for s in stages for k, v in s.get("exported", {}).items()},
        "dynamic": gated,
        "notes": list(dict.fromkeys([note for s in stages for note in s.get("notes", [])] + notes)),
    }


def _side(context: Context, model: nn.Module, file: Path) -> dict[str, Any]:
    """Costs and quality of one network and its `file`, its latencies to be filled in."""
    from prunus.measure import size_on_disk

    side: dict[str, Any] = {**context.cost(model), "size_bytes": size_on_disk(file)}
    side |= {"density": density(context, model), "accuracy": None, "metric": None}
    if context.evaluate is not None:
        name = (context.recipe.evaluate or "").rpartition(":")[2]
        side["metric"] = {"name": name, "value": context.evaluate(model)}
    return {**side, "latency_ms": {}}


def _latency(
    context: Context, models: Mapping[str, nn.Module], backends: Sequence[str]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Median milliseconds by ``backend,b<batch>,t<threads>`` and side, both sides timed in turns.

    Also returns, in words, in which form the networks were run, and the backends that could not run them: a finished
    run is not lost over a timing.
    """
    import prunus.export  # noqa: F401 (registers its backends)
    from prunus.measure import form_for, key, race

    m, times, said = context.recipe.measure, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            try:
                forms = {side: form_for(backend, model, context.example) for side, model in models.items()}
                said += [f"{side}: {note}" for side, form in forms.items() for note in form.notes]
                ready: Mapping[str, Any] = {side: form.model for side, form in forms.items()}
                ready = _as_files(context, ready, Path(folder)) if backend in READ_ONNX else ready
                for n in m.batches:
                    raced = race(ready, context.example, backend=backend, batch=n, threads=m.threads, seconds=m.seconds)
                    times[key(backend, n, m.threads)] = {side: round(t.median_ms, 6) for side, t in raced.items()}
            except PrunusError as error:
                said.append(f"not timed in {backend}: {error}")
    return times, said


def _as_files(context: Context, models: Mapping[str, nn.Module], folder: Path) -> dict[str, nn.Module | str | Path]:
    """The networks as ONNX files, written once and not for every batch size; one may lie in the run folder already."""
    from prunus.export import to_onnx

    paths = {side: folder / f"{side}.onnx" for side in models}
    last, written = context.recipe.stages[-1], context.folder.path / "model.onnx"
    if isinstance(last, Export) and "onnx" in last.to and written.is_file() and "after" in models:
        paths["after"] = written
    for side, model in models.items():
        if not paths[side].is_file():
            to_onnx(model, context.example, paths[side], verify=False)
    return dict(paths)


def verified(stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The proofs of all cuts as one: the largest error; None when a cut was not verified, or nothing was cut."""
    proofs = [s["verified"] for s in stages if "verified" in s]
    if not proofs or any(p is None for p in proofs):
        return None
    return {
        "max_relative_error": max(p["max_relative_error"] for p in proofs),
        "exact": all(p["exact"] for p in proofs),
        "in_place": all(p["in_place"] for p in proofs),
    }


def left_alone(stages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the last cut could not touch, and why."""
    said = [s["left_alone"] for s in stages if "left_alone" in s]
    return said[-1] if said else []


def versions() -> dict[str, str]:
    """Of prunus, Python and the libraries that the numbers depend on."""
    from prunus.version import __version__

    found = {"prunus": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in LIBRARIES}
