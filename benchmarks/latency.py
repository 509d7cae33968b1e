"""How much faster is a pruned network really?  Ratios in one process, medians, against the multiply-adds it has left.

    python benchmarks/latency.py --model prunus:resnet56 --budgets 0.75 0.5 0.25 --batches 1 64 --out latency.json

Every pruned network takes turns with the original.  Rounding the widths to 16, the vector width of AVX-512, is compared
with exact widths, at the same budget of multiply-adds.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import prunus
from prunus.core import Budget, BudgetError
from prunus.export import to_onnx
from prunus.measure import key, macs, race
from prunus.zoo import build


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="prunus:resnet56")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.5, 0.25], help="multiply-adds left")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 16], help="widths are multiples of these")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "torch"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for every network in every backend and batch")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    return parser.parse_args()


def variants(args: argparse.Namespace) -> tuple[dict[str, torch.nn.Module], torch.Tensor]:
    """The original and every pruned network, by name."""
    model = build(args.model, seed=0)
    example = torch.randn(1, *model.input_shape[-3:], generator=torch.Generator().manual_seed(0))
    networks = {"original": model.module}
    for budget in args.budgets:
        for step in args.rounds:
            twin = copy.deepcopy(model.module)
            try:
                report = prunus.prune_(twin, example, criterion="l2", allocator="uniform", budget=Budget(macs=budget),
                                       round_to=step)  # fmt: skip
            except BudgetError as error:
                print(f"macs={budget}, multiples of {step}: {error}")
                continue
            networks[f"macs={budget}, multiples of {step}"] = report.model
    return networks, example


def as_files(networks: dict[str, torch.nn.Module], example: torch.Tensor, folder: Path) -> dict[str, Path]:
    """The networks as ONNX files."""
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(networks)}
    for name, network in networks.items():
        to_onnx(network, example, files[name], verify=False)
    return files


def main() -> None:
    """Measure, print a table, write JSON."""
    args = parse()
    networks, example = variants(args)
    costs = {name: macs(network, example).total for name, network in networks.items()}
    rows: dict[str, dict[str, Any]] = {
        name: {"macs": cost, "macs_left": cost / costs["original"], "latency": {}} for name, cost in costs.items()
    }
    for backend, batch in ((b, n) for b in args.backends for n in args.batches):
        with tempfile.TemporaryDirectory() as folder:
            ready = as_files(networks, example, Path(folder)) if backend == "onnxruntime" else networks
            times = race(ready, example, backend=backend, batch=batch, threads=args.threads, seconds=args.seconds)
        for name, t in times.items():
            left = t.median_ms / times["original"].median_ms
            rows[name]["latency"][key(backend, batch, args.threads)] = {**asdict(t), "left": left}
    Console().print(table(args.model, rows))
    if args.out:
        about = {"model": args.model, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        args.out.write_text(json.dumps({**about, "networks": rows}, indent=1))


def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """Multiply-adds left, and time left per backend and batch."""
    out = Table(title=f"{title}: what is left, in per cent of the original")
    out.add_column("network")
    out.add_column("multiply-adds", justify="right")
    columns = list(rows["original"]["latency"])
    for column in columns:
        out.add_column(f"time\n{column}", justify="right")
    for name, row in rows.items():
        times = [f"{100 * row['latency'][c]['left']:.0f} %  ({row['latency'][c]['median_ms']:.3g} ms)" for c in columns]
        out.add_row(name, f"{100 * row['macs_left']:.0f} %", *times)
    return out


if __name__ == "__main__":
    main()
