"""Does the engine give what torch gives, on every CNN of the zoo with any part of its weights zero; what has no kernel?

    python benchmarks/runtime_zoo.py --out runtime_zoo.jsonl [--only GLOB ...] [--sparsities 0.9 0 0.5 0.95 0.8]
    python benchmarks/runtime_zoo.py --out runtime_zoo.jsonl --table

Networks: those of `prunus.zoo`, and of torchvision and timm in the list of architectures ($PRUNUS_SHARED/zoo) that have
no attention.  Batch 1, a picture of odd height and width where the network takes one.  Errors are the largest
difference from torch in float64 by the largest output, of the engine, and of torch in float32 beside it; `moved` is how
much of the output depends on the picture at all.  Operators that torch runs, and their share of the time, are listed.
One line of JSON a network and sparsity; --out goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo import SHARED, factory_of, randomise

from prunus.runtime import compile, profile
from prunus.zoo import build

OWN = ("resnet20", "resnet56", "resnet20_b", "vgg16", "densenet_bc40", "mobilenetv2", "preresnet164")
ATTENTION = ("vit", "swin", "mixer", "mlp", "deit", "eva", "cait", "coat", "twins", "volo", "pvt", "former", "hybrid")
ATTENTION += ("xcit", "botnet", "halonet")
CLOSE = 1e-4


def lines() -> list[str]:
    """``library:name:shape`` of every network."""
    found = [f"prunus:{name}:1x3x32x32" for name in OWN]
    for line in (SHARED / "zoo/models.txt").read_text().split():
        library, name, _ = line.split(":")
        if library in ("torchvision", "timm") and not any(word in name for word in ATTENTION):
            found.append(line)
    return found


def network(line: str, sparsity: float) -> nn.Module:
    """A network in which this fraction of the weights of layers is zero; scales and statistics are all different."""
    torch.manual_seed(0)
    library, name, _ = line.split(":")
    model = randomise((build(f"prunus:{name}").factory if library == "prunus" else factory_of(line))())
    for p in model.parameters():
        if p.dim() > 1:
            p.data[torch.rand_like(p) < sparsity] = 0
            p.data /= (1 - sparsity) ** 0.5
    return settle(model, [int(n) for n in line.split(":")[2].split("x")])


def settle(model: nn.Module, shape: list[int]) -> nn.Module:
    """Batch norms get the statistics of noise, or what goes through a network of random weights would die out."""
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in momenta:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(1)))
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    return model.eval()


def picture(line: str, model: nn.Module) -> Tensor:
    """A picture three pixels higher and five wider than asked for, or as asked for where the network takes no other."""
    shape = [int(n) for n in line.split(":")[2].split("x")]
    random = torch.Generator().manual_seed(0)
    odd = torch.randn(*shape[:2], shape[2] + 3, shape[3] + 5, generator=random)
    try:
        with torch.no_grad():
            model(odd)
        return odd
    except (RuntimeError, AssertionError, ValueError):
        return torch.randn(shape, generator=random)


def outputs(made: Any) -> list[Tensor]:
    """The tensors that a network gives."""
    if isinstance(made, Tensor):
        return [made]
    return [t for part in (made.values() if isinstance(made, dict) else made) for t in outputs(part)]


def off(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference by the largest output."""
    assert [g.shape for g in got] == [w.shape for w in want], "other shapes"
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, want, strict=True))


def check(line: str, sparsity: float) -> dict[str, Any]:
    """Errors, what torch runs, and its share of the time."""
    model = network(line, sparsity)
    x = picture(line, model)
    start = time.process_time()
    compiled = compile(model, x)
    seconds = time.process_time() - start
    with torch.no_grad():
        single = outputs(model(x))
        exact = outputs(model.double()(x.double()))
        still = outputs(model(torch.zeros_like(x, dtype=torch.float64)))
    assert all(bool(e.isfinite().all()) and bool(e.abs().max() > 0) for e in exact), (
        "torch gives nothing to compare with"
    )
    shares = profile(compiled, 2)
    return {
        "size": list(x.shape[2:]),
        "error": off(outputs(compiled(x)), exact),
        "torch_error": off(single, exact),
        "moved": max(float((e - s).abs().max() / e.abs().max()) for e, s in zip(exact, still)),
        "by_torch": dict(Counter(s.name for s in shares if s.kind == "torch")),
        "torch_share": round(sum(s.share for s in shares if s.kind == "torch"), 4),
        "operations": dict(Counter(s.kind for s in shares)),
        "compile_seconds": round(seconds, 2),
    }


def table(done: list[dict[str, Any]]) -> None:
    """A row a network: the largest errors over its sparsities, what torch runs."""
    print("| network | picture | sparsities | error | torch's in float32 | left to torch | share of the time |")
    print("|---" * 7 + "|")
    for name in dict.fromkeys(d["model"] for d in done):
        rows = [d for d in done if d["model"] == name]
        if any("failed" in d for d in rows):
            print(f"| {name} | | | failed: {rows[-1].get('failed')} | | | |")
            continue
        by_torch = ", ".join(f"{k} ({n})" if n > 1 else k for k, n in rows[0]["by_torch"].items())
        share = " to ".join(f"{100 * f(d['torch_share'] for d in rows):.0f} %" for f in (min, max)) if by_torch else ""
        error, single = (max(d[k] for d in rows) for k in ("error", "torch_error"))
        size = "x".join(map(str, rows[0]["size"]))
        print(f"| {name} | {size} | {len(rows)} | {error:.0e} | {single:.0e} | {by_torch} | {share} |")


def main() -> None:
    """Check what is not yet in the file; print and write a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.0, 0.5, 0.95, 0.8])
    parser.add_argument("--table", action="store_true", help="print what is in --out, and do nothing else")
    args = parser.parse_args()
    done = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        table(done)
        return
    torch.set_num_threads(1)
    tried = {(d["model"], d["sparsity"]) for d in done}
    for sparsity in args.sparsities:
        for line in lines():
            name = line.rsplit(":", 1)[0]
            if (name, sparsity) in tried or not any(fnmatch.fnmatch(name, pattern) for pattern in args.only):
                continue
            try:
                row = check(line, sparsity)
                said = f"{row['error']:.0e} (torch {row['torch_error']:.0e}) {'' if row['error'] < CLOSE else 'OFF'}"
                print(f"{name} {sparsity}: {said} {row['by_torch']}", flush=True)
            except Exception as error:  # the others are checked all the same
                row = {"failed": f"{type(error).__name__}: {error}"[:300]}
                print(f"{name} {sparsity}: {row['failed']}", flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps({"model": name, "sparsity": sparsity, **row}) + "\n")


if __name__ == "__main__":
    main()
