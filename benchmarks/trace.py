"""Trace, cut and proof beside Torch-Pruning's graph, pruner and step, in one process; and growth with the model's size.

    python benchmarks/trace.py [--only NAME ...] [--repeats 3] [--limit 120] [--growth]

Needs torchvision, timm, transformers and torch-pruning.  Both tools cut half by l1 (half of the parameters, half of the
widths); one thread; the median of the repeats, interleaved; every run in a fork of this process.  Torch-Pruning is told
to ignore the classifier: what it cannot cut so, or not within the limit, is said.  `memory` is the peak of a trace over
that of a plain forward (resident memory above the model's).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing as mp
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


def llama(layers: int, width: int = 512, attention: str = "sdpa") -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1000,
        use_cache=False,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def deep_resnet(blocks: int) -> nn.Module:
    """A residual network of 2 * blocks + 2 layers, narrow enough to be deep."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.na, self.nb = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))

    return nn.Sequential(
        nn.Conv2d(3, 16, 3), *(Block() for _ in range(blocks)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def model_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network and its example input."""
    if name.startswith("llama"):
        return llama(24, attention="eager" if "eager" in name else "sdpa").eval(), torch.randint(3, 900, (1, 32))
    if name.startswith(("resnet", "densenet", "swin_t")):
        import torchvision

        return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
    import timm

    names = {
        "convnext_base": "convnext_base",
        "vit_base": "vit_base_patch16_224",
        "swin_base": "swin_base_patch4_window7_224",
        "efficientnet_b7": "efficientnet_b7",
    }
    return timm.create_model(names[name], pretrained=False).eval(), torch.randn(1, 3, 224, 224)


NAMES = (
    *("resnet18", "resnet50", "resnet152", "densenet121", "densenet201", "convnext_base", "vit_base", "swin_base"),
    *("efficientnet_b7", "llama24", "llama24_eager"),
)


def ours(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Seconds of trace, of everything up to the cut network, and of the proof apart."""
    import prunus

    start = time.perf_counter()
    groups = prunus.trace(model, x)
    traced = time.perf_counter() - start
    scores = prunus.score(groups, "l1")
    plan = prunus.allocate(groups, scores, prunus.Budget(params=0.5), allocator="uniform")
    planned = time.perf_counter() - start
    twin = copy.deepcopy(model)
    begin = time.perf_counter()
    prunus.shrink_(twin, groups, plan, verify=True)
    proved = time.perf_counter() - begin
    begin = time.perf_counter()
    prunus.shrink_(model, groups, plan, verify=False)
    cut = time.perf_counter() - begin
    return {"trace": traced, "trace and cut": planned + cut, "proof": proved - cut}


def theirs(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Seconds of Torch-Pruning's whole way."""
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    start = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=last
    )
    pruner.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        model(x)
    return {"torch-pruning": seconds}


def plain(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Seconds of a float32 and of a float64 forward."""
    out = {}
    with torch.no_grad():
        for name, net, y in (("forward", model, x), ("float64 forward", None, None)):
            if net is None:
                net, y = copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x
            net(y)
            start = time.perf_counter()
            net(y)
            out[name] = time.perf_counter() - start
    return out


def _run(function: str, name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = model_of(name)
    try:
        pipe.send(globals()[function](model, x))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}")


def limited(function: str, name: str, limit: float) -> Any:
    """The function's result on the model, from a fork of this process; text when it fails or takes too long."""
    here, there = mp.get_context("fork").Pipe(False)
    process = mp.get_context("fork").Process(target=_run, args=(function, name, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else f"over {limit:.0f} s"
    except EOFError:
        return "died"
    finally:
        process.kill()
        process.join()


def peak(function: Any) -> float:
    """Peak resident bytes above those at the start, sampled every millisecond."""
    page = 4096
    status = Path("/proc/self/statm")

    def resident() -> int:
        return int(status.read_text().split()[1]) * page

    start, highest, running = resident(), [0], [True]

    def watch() -> None:
        while running[0]:
            highest[0] = max(highest[0], resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    running[0] = False
    thread.join()
    return highest[0] - start


def memory(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Peak bytes of a plain forward and of a trace."""
    import prunus

    with torch.no_grad():
        forward = peak(lambda: model(x))
    return {"forward bytes": forward, "trace bytes": peak(lambda: prunus.trace(model, x))}


def growth() -> None:
    """Seconds per operator as the network grows."""
    import prunus

    torch.set_num_threads(1)
    cases = [(f"resnet-{2 * n + 2}", deep_resnet(n), torch.randn(1, 3, 8, 8)) for n in (24, 99, 249, 499)]
    cases += [(f"llama-{n}", llama(n, 64), torch.randint(3, 900, (1, 16))) for n in (4, 12, 24, 48, 96)]
    for name, model, x in cases:
        start = time.perf_counter()
        groups = prunus.trace(model.eval(), x)
        plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(params=0.5))
        prunus.shrink_(model, groups, plan, verify=False)
        seconds = time.perf_counter() - start
        ops = len(groups.operators)
        print(f"{name:<14} {ops:>6} operators {seconds:7.2f} s  {seconds / ops * 1e3:6.2f} ms an operator", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from prunus.core.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    import timm  # noqa: F401
    import torch_pruning  # noqa: F401
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    if options.growth:
        return growth()
    gc.collect()
    gc.freeze()  # what was imported is no rubbish: else one run or the other pays for looking through all of it
    rows = []
    print(
        f"{'':<16}{'trace':>8}{'+ cut':>8}{'proof':>8}{'torch-pruning':>16}{'ratio':>8}{'proof/f64':>11}{'memory':>8}"
    )
    for name in options.only:
        times: dict[str, list[float]] = {}
        failed = ""
        for _ in range(options.repeats):
            for function in ("ours", "theirs", "plain"):
                if function == "theirs" and failed:
                    continue
                got = limited(function, name, options.limit)
                if isinstance(got, str):
                    failed = got if function == "theirs" else failed
                    if function == "ours":
                        print(name, got)
                    continue
                for key, value in got.items():
                    times.setdefault(key, []).append(value)
        row: dict[str, Any] = {"name": name, **{key: statistics.median(v) for key, v in times.items()}}
        row |= {"torch-pruning": row.get("torch-pruning", failed)}
        used = limited("memory", name, options.limit)
        row |= used if isinstance(used, dict) else {}
        rows.append(row)
        if "trace" not in row:
            continue
        both = isinstance(row["torch-pruning"], float)
        print(
            f"{name:<16}{row['trace']:8.2f}{row['trace and cut']:8.2f}{row['proof']:8.2f}"
            f"{row['torch-pruning'] if not both else format(row['torch-pruning'], '.2f'):>16}"
            f"{row['trace and cut'] / row['torch-pruning'] if both else float('nan'):8.2f}"
            f"{row['proof'] / row['float64 forward']:11.1f}"
            f"{row.get('trace bytes', 0) / max(row.get('forward bytes', 1), 1):8.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return None


if __name__ == "__main__":
    main()
