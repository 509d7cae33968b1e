"""The stage of networks that prune themselves for every input: what it may say, and what it does."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from prunus.core import InputError
from prunus.dynamic import Realised, dynamic_, realised, warm_start_
from prunus.dynamic.method import method_of
from prunus.recipes.stage import Training

SHOWN = 8  # images of least and of most multiply-adds
SIDE = 64  # pixels of their pictures at most


class Dynamic(Training):
    """Give the network gates, and train both.

    `options` are those of the `method`; `periods` says how often the gates close a step further (default: after every
    epoch).  `warm` lets saliencies begin as the strengths of the channels, and the network as it is: for networks
    that are trained.  Only exports may follow.
    """

    do: Literal["dynamic"]
    method: str = "manidp"
    options: dict[str, Any] = {}
    periods: int | None = Field(None, ge=1)
    warm: bool = False

    @model_validator(mode="after")
    def _can_be_made(self) -> Dynamic:
        made = method_of(self.method, self.options)
        if self.warm and not made.gate(2, 2).scales:
            raise InputError(f"warm: true: the gates of '{self.method}' are on or off, and begin all open without it.")
        return self


def train_gates(context: Any, stage: Dynamic, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Put the gates in, train, and measure what test images cost."""
    from prunus.recipes.fitting import fit  # which knows of recipes, and these of this stage

    torch.manual_seed(context.recipe.seed)
    placed = dynamic_(model, context.example, stage.method, **stage.options)
    at_one = warm_start_(model, (x for x, _ in context.batches(128, 8))) if stage.warm else []
    history = fit(context, stage, model, periods=stage.periods)
    said = on_test(context, model)
    order = said.macs.argsort(stable=True)
    shown = min(SHOWN, len(order))
    notes = [f"{stage.method}: {len(placed.placement.places)} gates; {said}"]
    notes += [f"saliencies of {', '.join(at_one)} began at one: no rectifier before the mask"] if at_one else []
    return model, {
        "macs": said.mean,
        "precision": history.precision,
        "device": history.device,
        "dynamic": said.facts()
        | {
            "method": stage.method,
            "places": [p.layer for p in placed.placement.places],
            "ungated": [{"what": what, "why": why} for what, why in placed.placement.refused],
            "easy": [_shown(context, int(i), said) for i in order[:shown]],
            "hard": [_shown(context, int(i), said) for i in order.flip(0)[:shown]],
        },
        "notes": notes,
    }


def _shown(context: Any, index: int, said: Realised) -> dict[str, Any]:
    """One test image for the report: what it cost, what it is, and a small picture of it."""
    from PIL import Image

    data = context.needed()
    pixels = data.test.images[index].permute(1, 2, 0).numpy()  # (H, W, C) uint8
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    png = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    label = str(data.classes[int(data.test.labels[index])])
    return {"image": index, "macs": int(said.macs[index]), "label": label, "png": png}


def on_test(context: Any, model: nn.Module) -> Realised:
    """What every test image costs."""
    model.eval()
    batches = context.needed().test.batches(256, context.preprocess)
    return realised(model, (x for x, _ in batches))
