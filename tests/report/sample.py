"""A run folder as `prunus run` leaves it, of a ResNet-56 slimmed to half of its multiply-adds."""

import io
import json
import math
import random

from rich.console import Console

RECIPE = """recipe: network-slimming
seed: 0
model: prunus:resnet56
weights: $PRUNUS_SHARED/models/cifar10/resnet56.safetensors
data: $PRUNUS_SHARED/data/cifar10
stages:
  - {do: sparsify, regularizer: {name: bn-gamma, strength: 1e-3}, lr: 1e-3, epochs: 3}
  - {do: prune, criterion: bn-gamma, allocator: global, budget: {macs: 0.5}}
  - {do: finetune, epochs: 8, distill: {temperature: 4, weight: 0.9}}
  - {do: export, to: [onnx]}
"""


def plan(seed=1):
    """Three residual groups and 27 inner ones."""
    draw, groups = random.Random(seed), {}
    for stage, width in enumerate((16, 32, 64), 1):
        groups["conv1" if stage == 1 else f"layer{stage}.0.conv2"] = {"units": width, "kept": width - stage * 2}
        for block in range(9):
            groups[f"layer{stage}.{block}.conv1"] = {
                "units": width,
                "kept": max(2, round(width * draw.uniform(0.1, 0.9))),
            }
    return groups


def result():
    return {
        "schema": 1,
        "recipe": "network-slimming",
        "model": "prunus:resnet56",
        "seed": 0,
        "versions": {"prunus": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "python": "3.11.7"},
        "seconds": 3725.2,
        "before": {
            "params": 853018,
            "macs": 125485696,
            "accuracy": 0.9339,
            "metric": None,
            "size_bytes": 3453520,
            "latency_ms": {"torch,b1,t1": 9.12, "onnxruntime,b1,t1": 2.81, "onnxruntime,b64,t1": 321.0},
        },
        "after": {
            "params": 447310,
            "macs": 62716416,
            "accuracy": 0.9261,
            "metric": None,
            "size_bytes": 1830112,
            "latency_ms": {"torch,b1,t1": 8.85, "onnxruntime,b1,t1": 1.63, "onnxruntime,b64,t1": 178.2},
        },
        "stages": [
            {"name": "sparsify", "seconds": 1130.0, "params": 853018, "macs": 125485696, "accuracy": 0.9282},
            {"name": "prune", "seconds": 4.1, "params": 447310, "macs": 62716416, "accuracy": 0.7411},
            {"name": "finetune", "seconds": 2550.0, "params": 447310, "macs": 62716416, "accuracy": 0.9261},
            {"name": "export", "seconds": 9.5, "params": 447310, "macs": 62716416, "accuracy": None},
        ],
        "verified": {"max_relative_error": 3.1e-15, "exact": True, "in_place": True},
        "plan": plan(),
        "exported": {"onnx": 2.4e-7},
        "notes": ["the learning rate was lowered once"],
        "left_alone": [
            {"what": "fc.weight", "why": "its rows are the outputs of the network"},
            {"what": "fc.bias", "why": "its rows are the outputs of the network"},
            {"what": "conv1.weight", "why": "its columns are the channels of the input image"},
        ],
    }


def metrics():
    rows, step = ["stage,epoch,step,loss,accuracy,lr,seconds"], 0
    for stage, epochs, start, end in (("sparsify", 3, 0.90, 0.927), ("finetune", 8, 0.86, 0.928)):
        for epoch in range(1, epochs + 1):
            step += 352
            done = 1 - math.exp(-2.5 * epoch / epochs)
            lr = 1e-3 if stage == "sparsify" else 0.01 * (1 + math.cos(math.pi * epoch / epochs)) / 2
            rows.append(
                f"{stage},{epoch},{step},{0.5 - 0.35 * done:.4f},{start + (end - start) * done:.4f},{lr:.6f},310.0"
            )
    return "\n".join(rows) + "\n"


def gammas():
    draw = random.Random(0)
    names = [f"layer{s}.{b}.bn1" for s in (1, 2, 3) for b in range(9)]
    before = {n: [abs(draw.gauss(0.9, 0.35)) for _ in range(16 * 2 ** (int(n[5]) - 1))] for n in names}
    after = {n: [0.0004 if draw.random() < 0.45 else abs(draw.gauss(0.75, 0.35)) for _ in v] for n, v in before.items()}
    return {"before": before, "after": after}


def write(folder, content=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content or result()))
    (folder / "metrics.csv").write_text(metrics())
    (folder / "gammas.json").write_text(json.dumps(gammas()))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def shown(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def row_of(text, start):
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(start))
