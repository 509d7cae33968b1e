"""Every criterion on a vision transformer, a language model and a residual network: what works, and what it leaves.

    python benchmarks/every_criterion.py [--out every_criterion.jsonl] [--criteria flap l2] [--networks vit bert]

Cuts a small network to a fraction of its multiply-adds by every registered criterion, without repair and with it, and
prints a line each: accuracy before, after the cut, repaired, and the seconds of the repaired cut; or the error.  The
vision transformer (4 blocks, of timm) and ResNet-20 are trained for a moment on the handwritten digits of scikit-learn;
the language model (a BERT of transformers, 3 layers) on made-up sentences whose class is their most frequent token.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core import Inputs, PrunusError
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.criteria import criteria

declare_torchvision_operators()
WAYS = {"cut": False, "bias": "bias", "least-squares": "least-squares"}
WORDS, LENGTH, CLASSES = 40, 16, 8


class Classifier(nn.Module):
    """A network of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of token numbers ``(N, length)``."""
        return self.model(x).logits


def vit() -> nn.Module:
    """A ViT of four blocks for 32 x 32 images."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10)


def bert() -> nn.Module:
    """A BERT of three layers."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return Classifier(BertForSequenceClassification(BertConfig(intermediate_size=96, num_labels=CLASSES, **sizes)))


def resnet() -> nn.Module:
    """ResNet-20 as for CIFAR."""
    return prunus.zoo.resnet20()


def digits() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 3, 32, 32)`` and classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return F.interpolate(images, 32, mode="bilinear").expand(-1, 3, -1, -1).contiguous(), torch.tensor(y)


def sentences() -> tuple[Tensor, Tensor]:
    """Tokens ``(2400, length)``, and which of the first few tokens comes most often."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, WORDS, (2400, LENGTH), generator=generator)
    y = torch.randint(0, CLASSES, (2400,), generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, y[:, None], x), y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], float, int]] = {
    "vit": (vit, digits, 2e-3, 14),  # network, data, learning rate, epochs
    "bert": (bert, sentences, 2e-3, 10),
    "resnet": (resnet, digits, 3e-3, 3),
}


def trained(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """The network after a moment of training; samples and classes of the training part, and of the test part."""
    build, data, rate, epochs = NETWORKS[name]
    torch.manual_seed(0)
    model, (x, y) = build(), data()
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    test = len(x) // 5
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = epochs * (len(x) - test) // 64
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        rows = test + torch.randint(len(x) - test, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        rates.step()
    return model.eval(), x[test:], y[test:], x[:test], y[:test]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Top-1, from 0 to 1."""
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def trial(
    model: nn.Module, criterion: str, parts: tuple[Tensor, ...], budget: float, repair: Any, images: int
) -> dict[str, Any]:
    """Accuracy of a cut copy and the seconds taken, or the error."""
    x, y, test_x, test_y = parts
    start = time.perf_counter()
    try:
        report = prunus.prune_(
            copy.deepcopy(model),
            Inputs((x[:2],)),
            budget=prunus.Budget(macs=budget),
            criterion=criterion,
            data=[(x[i : i + 64], y[i : i + 64]) for i in range(0, images, 64)],
            repair=repair,
        )
    except PrunusError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    except Exception as error:  # what should not happen is what this looks for
        return {"broken": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - start
    return {
        "accuracy": accuracy(report.model, test_x, test_y),
        "macs": report.after["macs"] / report.before["macs"],
        "seconds": seconds,
        "left_alone": len(report.left_alone),
        "in_place": report.in_place,
    }


def main() -> None:
    """Every network, every criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--criteria", nargs="*", default=[entry.name for entry in criteria])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--images", type=int, default=512, help="samples that criteria and repair look at")
    parser.add_argument("--budget", type=float, default=0.7)
    args = parser.parse_args()
    for network in args.networks:
        model, *parts = trained(network)
        before = accuracy(model, *parts[2:])
        print(f"{network}: accuracy before {before:.3f}", flush=True)
        for criterion in args.criteria:
            found = {way: trial(model, criterion, (*parts,), args.budget, WAYS[way], args.images) for way in args.ways}
            line = {"network": network, "criterion": criterion, "budget": args.budget, "before": before, **found}
            wrong = next(
                (f"{k}: {v}" for r in found.values() for k, v in r.items() if k in ("refused", "broken")), None
            )
            values = "  ".join(f"{way} {r.get('accuracy', float('nan')):.3f}" for way, r in found.items())
            told = wrong or f"{values}  {found[args.ways[-1]]['seconds']:.1f} s"
            print(f"  {criterion:<22}{told}", flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
