"""Every architecture of a list: cut to half of its MACs, proven, run, trained a step, saved, loaded, exported.

    python benchmarks/zoo.py --out records/zoo [--only GLOB ...] [--list FILE] [--onnx] [--jobs 2]

One line of JSON a model in OUT/results.jsonl (a model that is there already is skipped: the command resumes), and a
table in OUT/README.md.  Models whose half is out of reach are cut to the least they reach, which is stated.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import io
import json
import multiprocessing as mp
import os
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))


def _segmentation(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    encoder = "mit_b0" if name == "Segformer" else "resnet18"
    return getattr(smp, name)(encoder_name=encoder, encoder_weights=None, classes=3)


def _yolo(name: str) -> nn.Module:
    from ultralytics.nn import tasks

    return (tasks.SegmentationModel if "seg" in name else tasks.DetectionModel)(name, verbose=False)


def _diffusion(name: str) -> nn.Module:
    import diffusers

    small = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    if name == "unet2d":
        blocks = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        return diffusers.UNet2DModel(sample_size=32, **small, **blocks)
    if name == "unet2d-condition":
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        return diffusers.UNet2DConditionModel(cross_attention_dim=24, attention_head_dim=8, **small, **blocks)
    if name == "autoencoder":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return diffusers.AutoencoderKL(**small, **blocks)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )


OTHERS = {"smp": _segmentation, "ultralytics": _yolo, "diffusers": _diffusion}
LIBRARIES = {"smp": "segmentation_models_pytorch"}
AS_BUILT = ("timm:hiera_tiny_224", "timm:nf_resnet26")  # zeros that hide something stay zeros: the proof looks behind
SMALL = {  # of transformers, beside those whose sizes lie in the shared folder: class -> configuration
    "LevitForImageClassification": (
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 6], "depths": [1, 1, 1]},
    ),
    "Dinov2ForImageClassification": (
        "Dinov2Config",
        {"image_size": 56, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "BeitForImageClassification": (
        "BeitConfig",
        {
            "image_size": 64,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
        },
    ),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4},
    ),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96, "moe_intermediate_size": 32, "head_dim": 16}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
        | {"num_experts_per_tok": 2},
    ),
}


def factory_of(line: str) -> Any:
    """What builds the model of a line ``library:name:shape``."""
    library, name, _ = line.split(":")
    if library == "transformers":
        import transformers

        if name in SMALL:
            config, sizes = SMALL[name]
        else:
            entry = json.loads((SHARED / "zoo/transformers_configs.json").read_text())[name]
            config, sizes = entry["config_class"], entry["config_kwargs"]
        cls = getattr(transformers, name)

        def make() -> nn.Module:
            return cls(getattr(transformers, config)(**sizes))

        return make
    if library in OTHERS:
        return lambda: OTHERS[library](name)
    from prunus.zoo import build

    return build(f"{library}:{name}").factory


def inputs_of(line: str) -> Any:
    """Images, or integer token ids where a shape has two numbers."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for part in line.split(":")[2].split("+"):
        shape = [int(n) for n in part.split("x")]
        shape[0] = 2
        words = len(shape) == 2
        out.append(
            torch.randint(3, 100, shape, generator=generator) if words else torch.randn(shape, generator=generator)
        )
    if "unet2d" in line:
        more = {"encoder_hidden_states": torch.randn(2, 5, 24, generator=generator)} if "condition" in line else {}
        return prunus.Inputs((out[0],), {"timestep": torch.tensor([3, 7]), **more})
    if ":dit:" in line:
        return prunus.Inputs((out[0],), {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])})
    if "Bart" in line:
        out[0][:, -1] = 2  # the end of the sentence
    if "Whisper" in line:
        return prunus.Inputs((out[0],), {"decoder_input_ids": out[1]})
    return tuple(out)


def randomise(model: nn.Module) -> nn.Module:
    """Noise on every constant parameter and running statistic, so that no bookkeeping mistake stays unseen."""
    generator = torch.Generator().manual_seed(0)

    def noise(t: torch.Tensor) -> torch.Tensor:
        return torch.randn(t.shape, generator=generator).to(t)

    with torch.no_grad():
        for t in model.parameters():
            if t.is_floating_point() and t.numel() > 1 and bool((t == t.flatten()[0]).all()):
                t.add_(0.2 * noise(t))
        for name, t in model.named_buffers():
            if name.endswith("running_mean"):
                t.copy_(0.3 * noise(t))
            elif name.endswith("running_var"):
                t.copy_(0.5 + noise(t).abs())
    return model.eval()


def check(line: str, onnx: bool = False) -> dict[str, Any]:
    """Everything that is asked of one model; raises where something is not right."""
    from prunus.measure import macs, params

    torch.manual_seed(0)
    torch.set_num_threads(1)
    make = factory_of(line)
    row: dict[str, Any] = {"model": line.rsplit(":", 1)[0]}
    model = make().eval() if row["model"] in AS_BUILT else randomise(make())
    x = inputs_of(line)
    start = time.perf_counter()
    groups = prunus.trace(model, x)
    row["trace_s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    budget = 0.5
    try:
        report = prunus.prune_(model, x, budget=prunus.Budget(macs=budget), criterion="l1")
    except prunus.BudgetError as error:
        if error.least is None:
            raise
        budget = error.least["macs"] / groups.costs()["macs"] + 1e-9
        report = prunus.prune_(model, x, budget=prunus.Budget(macs=int(error.least["macs"])), criterion="l1")
    row["prune_s"] = round(time.perf_counter() - start, 2)
    row |= {
        "macs_left": round(report.after["macs"] / report.before["macs"], 4),
        "params_left": round(report.after["params"] / report.before["params"], 4),
        "groups": len(groups),
        "in_place": report.in_place,
        "error": report.verified.max_relative_error,
        "exact": report.verified.exact,
        "dtype": report.verified.dtype,
        "sensitive": report.verified.sensitive,
        "hidden": len(report.verified.hidden),
        "left_alone": sorted({f.why for f in report.left_alone}),
    }
    model = report.model
    assert report.after["macs"] < report.before["macs"], "nothing was cut"
    assert params(model) == report.after["params"], "parameters are not those foretold"
    found = macs(model, x).total
    assert abs(found - report.after["macs"]) <= 1, f"MACs {found} are not those foretold {report.after['macs']}"
    original = randomise(make()).train()
    try:
        prunus.Inputs.of(x)(original)
        model.train()
    except Exception:  # the original does not train on this input either
        model.eval()
        row["trains"] = "original does not"
    out = prunus.Inputs.of(x)(model)
    sum(t.float().pow(2).mean() for t in tensors_of(out) if t.is_floating_point() and t.requires_grad).backward()
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    assert not bad, f"gradients are not finite: {bad[:3]}"
    model.zero_grad()
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        prunus.save(model, file)
        loaded = (prunus.load(file, make) if report.in_place else prunus.load(file)).eval()
        with torch.no_grad():
            for a, b in zip(
                tensors_of(prunus.Inputs.of(x)(model)), tensors_of(prunus.Inputs.of(x)(loaded)), strict=True
            ):
                assert torch.equal(a, b), "the loaded network gives other outputs"
        if onnx:
            row["onnx"] = exported(line, model, make, x, Path(folder))
    return row


def exported(line: str, model: nn.Module, make: Any, x: Any, folder: Path) -> str:
    """Whether the cut network leaves as ONNX; ``original does not`` when the original does not either."""
    from prunus.export import to_onnx

    try:
        to_onnx(model, x, folder / "cut.onnx")
        return "yes"
    except Exception as error:
        try:
            to_onnx(make().eval(), x, folder / "original.onnx")
        except Exception:
            return "original does not"
        raise AssertionError(f"ONNX export fails on the cut network alone: {error}") from error


def tensors_of(out: Any) -> list[torch.Tensor]:
    from prunus.core.nested import tensors_in

    return list(tensors_in(out))


def _worker(line: str, onnx: bool, pipe: Any, verbose: bool) -> None:
    noise = io.StringIO()
    start = time.perf_counter()
    with redirect_stdout(noise), redirect_stderr(noise), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row = {"ok": True, **check(line, onnx)}
        except BaseException as error:
            row = {"ok": False, "model": line.rsplit(":", 1)[0], "why": f"{type(error).__name__}: {error}"[:600]}
            if verbose:
                row["trace"] = traceback.format_exc()[-3000:]
    row["seconds"] = round(time.perf_counter() - start, 1)
    pipe.send(row)


def _started(context: Any, line: str, onnx: bool, verbose: bool) -> tuple[Any, Any, float, str]:
    here, there = context.Pipe(False)
    process = context.Process(target=_worker, args=(line, onnx, there, verbose))
    process.start()
    there.close()
    return process, here, time.monotonic(), line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--list", type=Path, default=SHARED / "zoo/models.txt")
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a model may take")
    parser.add_argument("--verbose", action="store_true", help="keep the tracebacks")
    options = parser.parse_args()
    lines = [t.strip() for t in options.list.read_text().splitlines() if t.strip() and not t.startswith("#")]
    lines = [t for t in lines if any(fnmatch.fnmatch(t, f"*{g}*") for g in options.only)]
    libraries = dict.fromkeys(t.partition(":")[0] for t in lines)
    absent = [n for n in libraries if importlib.util.find_spec(LIBRARIES.get(n, n)) is None]
    if absent:
        print(f"left out, because it is not installed: {', '.join(absent)}", flush=True)
        lines = [t for t in lines if t.partition(":")[0] not in absent]
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = {json.loads(t)["model"] for t in results.read_text().splitlines()} if results.exists() else set()
    waiting = [t for t in lines if t.rsplit(":", 1)[0] not in done]
    torch.set_num_threads(1)
    _import_all(waiting)
    context = mp.get_context("fork")
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(_started(context, waiting.pop(0), options.onnx, options.verbose))
        for job in list(running):
            process, pipe, since, line = job
            row = None
            if pipe.poll(0.05):
                try:
                    row = pipe.recv()
                except EOFError:
                    row = {"ok": False, "model": line.rsplit(":", 1)[0], "why": "the process died"}
            elif time.monotonic() - since > options.limit:
                row = {"ok": False, "model": line.rsplit(":", 1)[0], "why": f"over {options.limit:.0f} s"}
                process.kill()
            if row is not None:
                process.join()
                running.remove(job)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                _tell(row)
    given = f" --list {options.list.name}" if options.list.parent.name == "benchmarks" else ""
    write_table(options.out, f"python benchmarks/zoo.py --out {options.out.name}{given}{' --onnx' * options.onnx}")


def _import_all(lines: list[str]) -> None:
    """Import what the models need once, before the forks."""
    from prunus.core.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    for library in {t.partition(":")[0] for t in lines}:
        importlib.import_module(LIBRARIES.get(library, library))
    import prunus.export
    import prunus.measure
    import prunus.zoo  # noqa: F401


def _tell(row: dict[str, Any]) -> None:
    if row["ok"]:
        how = "in place" if row["in_place"] else "rewritten"
        print(
            f"ok   {row['model']:<55} macs {row['macs_left']:.3f} params {row['params_left']:.3f} {how} "
            f"{row['error']:.0e} {'exact' if row['exact'] else 'stats'} trace {row['trace_s']}s all {row['seconds']}s",
            flush=True,
        )
    else:
        print(f"FAIL {row['model']:<55} {row['why'][:300]}\n{row.get('trace', '')}", flush=True)


def write_table(out: Path, command: str = "") -> None:
    """OUT/README.md from OUT/results.jsonl."""
    rows = sorted((json.loads(t) for t in (out / "results.jsonl").read_text().splitlines()), key=lambda r: r["model"])
    good = [r for r in rows if r["ok"]]
    inside = [r for r in good if r["in_place"]]
    half = [r for r in good if r["macs_left"] <= 0.5]
    text = [
        "# Architectures, cut to half of their multiply-adds\n",
        f"`{command}`, with {_versions()}. Random weights; batch of two; one thread a model, two at once, so that the "
        "times are no measurement. Criterion l1, allocator global. Right means: the cut network equals the silenced "
        "original in float64 (norms and the like over the kept units, where the column says so), costs what was "
        "foretold by another count, trains a step with finite gradients, and gives the same outputs to the bit after "
        "`save` and `load`.\n",
        f"**{len(good)} of {len(rows)} right; {len(inside)} of {len(good)} in place; {len(half)} of {len(good)} at "
        "half of their multiply-adds or less**, the others at the least they reach.\n",
        "| model | MACs left | params left | groups | how | relative error | silenced exactly | ONNX | left alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if not r["ok"]:
            text.append(f"| {r['model']} | **{r['why'][:160]}** | | | | | | | |")
            continue
        how = "in place" if r["in_place"] else "rewritten"
        reasons = [w for w in r["left_alone"] if w != "it is an output of the model"]
        text.append(
            f"| {r['model']} | {r['macs_left']:.3f} | {r['params_left']:.3f} | {r['groups']} | {how} | "
            f"{r['error']:.0e}{'' if r['dtype'] == 'float64' else ' (' + r['dtype'] + ')'} | "
            f"{'yes' if r['exact'] else 'over the kept'} | {r.get('onnx', 'not tried')} | {_shortly(reasons)} |"
        )
    text.append("\nOutputs of a model are never cut; that is left out of the last column.")
    (out / "README.md").write_text("\n".join(text) + "\n")


def _shortly(reasons: list[str]) -> str:
    """Alike reasons once, without the places."""
    kinds = list(dict.fromkeys(w.partition(" (")[0] for w in reasons))
    return "; ".join(kinds[:2]) + (f"; and {len(kinds) - 2} more" if len(kinds) > 2 else "")


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "torchvision", "timm", "transformers")
    found = []
    for name in (*names, "segmentation-models-pytorch", "ultralytics", "diffusers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
