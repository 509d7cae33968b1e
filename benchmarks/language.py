"""Feed-forward units of a language model cut in one shot, with and without repair: perplexity, memory, seconds.

    python benchmarks/language.py --model FOLDER --out trials.jsonl
    python benchmarks/language.py --out trials.jsonl --table

FOLDER holds a causal language model and its tokenizer as transformers saves them, e.g. SmolLM2-135M.  Ratios are of the
parameters that are no embeddings.  Criteria and repair look at windows of WikiText-2's validation part, perplexity is
measured on windows of the test part, all spread evenly.  Scores of a criterion are made once; every cut is a process of
its own, so that its peak of memory is known.  Goes on where it stopped.  The text is in the folder named by
PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.criteria import needs
from prunus.recovery import prepare
from prunus.surgery import give_biases_

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
PLACE = "model.layers.*.mlp.*"
KEPT = ("ratio", "criterion", "allocator", "repair", "windows", "length", "test", "test_length")
AT_ONCE = 4  # windows, where statistics or perplexities are made


def main() -> None:
    """Parse the command line, and run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--criteria", nargs="+", default=["fisher", "flap", "wanda", "random"])
    parser.add_argument("--repair", nargs="+", default=["none", "bias", "least-squares"])
    parser.add_argument("--allocator", default="uniform")
    parser.add_argument("--windows", type=int, default=128, help="to calibrate on")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--test", type=int, default=32, help="windows to measure on")
    parser.add_argument("--test-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--place", default=PLACE, help="which modules are cut")
    parser.add_argument("--table", action="store_true", help="print what was written, and do nothing else")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.table:
        table(args.out)
    elif args.trial:
        trial(args, json.loads(args.trial))
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    """Every trial that is not yet in the file, in a process of its own."""
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    tried = {key(one) for one in done}
    common = {name: getattr(args, name) for name in ("allocator", "windows", "length", "test", "test_length")}
    asked = [{"ratio": 1.0, "criterion": "whole network", "repair": "none"}]
    asked += [
        {"ratio": ratio, "criterion": name, "repair": repair}
        for name in args.criteria
        for ratio in args.ratios
        for repair in args.repair
    ]
    for one in (common | one for one in asked):
        if key(one) not in tried:
            scores = scores_file(args, one["criterion"])
            if one["criterion"] != "whole network" and not scores.exists():
                subprocess.run([*again(args), "--trial", json.dumps({"scores": one["criterion"]})], check=True)
            subprocess.run([*again(args), "--trial", json.dumps(one)], check=True)


def again(args: argparse.Namespace) -> list[str]:
    """The command of this program with the same settings."""
    names = ("out", "model", "windows", "length", "test", "test_length", "threads", "place")
    said = [[f"--{name.replace('_', '-')}", str(getattr(args, name))] for name in names]
    return [sys.executable, __file__, *(word for words in said for word in words)]


def scores_file(args: argparse.Namespace, criterion: str) -> Path:
    """Where the scores of a criterion lie, with the seconds and the memory that they took."""
    name = f"{args.out.stem}-{criterion}-{args.windows}x{args.length}.pt"
    return args.out.with_name(name)


def key(one: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a trial another one."""
    return tuple(one[name] for name in KEPT)


def network(args: argparse.Namespace) -> tuple[Any, Any]:
    """The language model in float32, and its tokenizer."""
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(args.model)


def windows(tokenizer: Any, part: str, length: int, count: int) -> torch.Tensor:
    """So many of the consecutive windows of a part of the text, spread evenly: ``(count, length)``."""
    text = (SHARED / f"data/wikitext2/{part}.txt").read_text()
    ids = torch.tensor(tokenizer(text)["input_ids"])
    every = ids[: len(ids) // length * length].reshape(-1, length)
    return every[torch.linspace(0, len(every) - 1, count).round().long()]


def perplexity(model: Any, text: torch.Tensor) -> float:
    """``exp`` of the mean cross-entropy of every token but a window's first."""
    total = 0.0
    with torch.inference_mode():
        for part in text.split(AT_ONCE):
            scores = model(part).logits[:, :-1]
            total += float(F.cross_entropy(scores.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return float(torch.tensor(total / text[:, 1:].numel()).exp())


def trial(args: argparse.Namespace, asked: dict[str, Any]) -> None:
    """The scores of a criterion, or one cut, its repair and its perplexity: what was found goes into the file."""
    model, tokenizer = network(args)
    calibration = windows(tokenizer, "valid", args.length, args.windows)
    example = calibration[:1, : min(16, args.length)]
    if "scores" in asked:
        return note_scores(args, asked["scores"], model, calibration, example)
    told, seconds = dict(asked), dict[str, float]()
    if asked["criterion"] != "whole network":
        known = torch.load(scores_file(args, asked["criterion"]), weights_only=True)
        model, seconds, told["notes"] = cut(args, asked, known["scores"], model, calibration, example)
        told["score"] = {"seconds": known["seconds"], "gigabytes": known["gigabytes"]}
        told["params"] = sum(p.numel() for p in model.parameters())
    told |= {"gigabytes": gigabytes(), "seconds": seconds}
    told["perplexity"] = perplexity(model, windows(tokenizer, "test", args.test_length, args.test))
    print(json.dumps(told), flush=True)
    with args.out.open("a") as file:
        file.write(json.dumps(told) + "\n")
    return None


def note_scores(args: argparse.Namespace, criterion: str, model: Any, calibration: Any, example: Any) -> None:
    """Statistics and scores of a criterion, into its file."""
    groups = prunus.trace(model, example, only=args.place)
    start = time.perf_counter()
    wanted = needs(criterion)
    stats = prunus.collect(model, groups, list(calibration.split(AT_ONCE)), wanted, next_words) if wanted else None
    scores = prunus.score(groups, criterion, stats)
    took = {"seconds": round(time.perf_counter() - start, 1), "gigabytes": gigabytes()}
    torch.save({"scores": scores, **took}, scores_file(args, criterion))


def next_words(out: Any, batch: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of a window's next tokens: ``(windows,)``."""
    losses = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.reshape(len(batch), -1).mean(1)


def cut(
    args: argparse.Namespace, asked: dict[str, Any], scores: Any, model: Any, calibration: Any, example: Any
) -> tuple[Any, dict[str, float], list[str]]:
    """The cut and repaired network, the seconds of its steps, and what the repair says."""
    seconds: dict[str, float] = {}
    embeddings = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    words, every = sum(p.numel() for p in embeddings), sum(p.numel() for p in model.parameters())
    budget = prunus.Budget(params=(words + asked["ratio"] * (every - words)) / every)

    def timed(name: str, start: float) -> None:
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)

    start = time.perf_counter()
    groups = prunus.trace(model, example, only=args.place)
    plan = prunus.allocate(groups, scores, budget, allocator=asked["allocator"])
    timed("trace", start)
    start, mend = time.perf_counter(), None
    if asked["repair"] == "bias" and give_biases_(model, groups, plan):
        groups = prunus.trace(model, example, only=args.place)
    if asked["repair"] != "none":
        mend = prepare(asked["repair"], model, groups, plan, [calibration])
    timed("repair", start)
    start = time.perf_counter()
    model = prunus.shrink_(model, groups, plan, verify=False).model
    timed("cut", start)
    start = time.perf_counter()
    notes = list(mend(model, prunus.trace(model, example, in_place=False))) if mend is not None else []
    timed("repair", start)
    return model, seconds, notes


def gigabytes() -> float:
    """The most memory that this process had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def table(path: Path) -> None:
    """A row a criterion and kind of repair: perplexity at every ratio, peak of memory and seconds."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    ratios = sorted({t["ratio"] for t in trials if t["ratio"] < 1}, reverse=True)
    print("| criterion | repair | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " | GB | seconds to repair |")
    print("|---" * (len(ratios) + 4) + "|")
    for name, repair in dict.fromkeys((t["criterion"], t["repair"]) for t in trials):
        mine = {t["ratio"]: t for t in trials if (t["criterion"], t["repair"]) == (name, repair)}
        cells = [f"{mine[r]['perplexity']:.2f}" if r in mine else "" for r in ratios]
        if name == "whole network":
            cells = [f"{mine[1.0]['perplexity']:.2f}"] * len(ratios)
        most = max(t["gigabytes"] for t in mine.values())
        took = max(t["seconds"].get("repair", 0) for t in mine.values())
        print(f"| {name} | {repair} | " + " | ".join(cells) + f" | {most:.1f} | {took:.0f} |")


if __name__ == "__main__":
    main()
