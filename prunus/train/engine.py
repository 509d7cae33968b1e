"""A network and its optimizer on their device: one step, one measurement, and their state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.callbacks import cross_entropy, forward
from prunus.core.errors import InputError
from prunus.core.groups import Groups
from prunus.core.inputs import Inputs
from prunus.dynamic import GateTraining, dynamic_of
from prunus.masks import MaskPruner, tensors
from prunus.recovery.distillation import distill
from prunus.train.evaluation import count_correct, logits
from prunus.train.launch import average_buffers, averaged, launch
from prunus.train.optimizers import attach_regularizer, build_optimizer
from prunus.train.settings import Settings


class Engine:
    """What makes a step: the network, its teacher, the optimizer with its regularizer, and Fabric under them."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Settings, precision: str) -> None:
        self.model, self.teacher, self.settings = model, teacher, settings
        self.fabric, self.precision = launch(precision)
        self.world, self.rank, self.device = self.fabric.world_size, self.fabric.global_rank, self.fabric.device
        if settings.batch % self.world:
            raise InputError(f"batch={settings.batch} cannot be divided among {self.world} processes.")
        images = settings.channels_last and any(p.dim() == 4 for p in model.parameters())
        self.layout = torch.channels_last if images else torch.preserve_format
        for network in (model, teacher):
            if network is not None:
                network.to(self.device).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(
            model,
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            decay=settings.decay,
        )
        self._regularizer: Any = None
        self._pressure: Any = None  # the state of the regularizer, from a checkpoint
        self._masks: MaskPruner | None = None
        self.gates: GateTraining | None = None

    def cover(self, steps: int) -> None:
        """Train under masks that move, or with gates, if there are such; before the state is restored."""
        if dynamic_of(self.model) is not None:
            if self.teacher is not None:
                raise InputError("a network with gates learns by the loss of its method; train it without distill.")
            self.gates = GateTraining(self.model, steps=steps, periods=self.settings.periods or self.settings.epochs)
        if self.settings.sparse is not None:
            sparse = dict(self.settings.sparse)
            if unknown := [k for k in sparse if k not in ("method", "density", "options", "groups")]:
                raise InputError(f"sparse= has no {unknown[0]!r}. Known: method, density, options, groups.")
            if "density" not in sparse:
                raise InputError("sparse= needs density: how many of the weights stay, e.g. {'density': 0.1}.")
            groups, options = sparse.pop("groups", None) or tensors(self.model), sparse.pop("options", {})
            self._masks = MaskPruner(self.model, groups, **sparse, **options, steps=steps, seed=self.settings.seed)
            self._masks.attach(self.optimizer)

    def finish(self) -> tuple[str, ...]:
        """Training is over: masks stay as they are.  Returns what there is to say of them."""
        return () if self._masks is None else self._masks.finish_().notes

    def start(self, groups: Groups | None) -> None:
        """Attach the regularizer and set up Fabric; after the state was restored, before the first step."""
        self._regularizer = attach_regularizer(self.settings.regularizer, groups, self.optimizer)
        if self._regularizer is not None and self._pressure is not None:
            self._regularizer.load_state_dict(self._pressure)
        self._forward, self._stepper = self.fabric.setup(self.model, self.optimizer)
        if self.teacher is not None:
            self.teacher.eval()

    def close(self) -> None:
        """Take regularizer and masks off."""
        if self._regularizer is not None:
            self._regularizer.remove()
        if self._masks is not None:
            self._masks.detach()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of a batch, or its mixture with what the teacher says."""
        layout = self.layout if x.dim() == 4 else torch.preserve_format
        x = x.to(self.device, non_blocking=True, memory_format=layout)
        y = y.to(self.device, non_blocking=True)
        if self.gates is not None:
            with self.gates.watching():
                z = self._logits(x)
            return self.gates.loss(z, y)
        z = self._logits(x)  # (N, C)
        if self.teacher is None:
            return cross_entropy(z, y, "mean")
        with torch.no_grad(), self.fabric.autocast():
            taught = logits(forward(self.teacher, Inputs((x,)), "the images (as teacher=)")).float()  # (N, C)
        return distill(z, taught, y, **(self.settings.distill or {}))

    def _logits(self, x: Tensor) -> Tensor:
        return logits(forward(self.model, Inputs((x,)), "the images", call=lambda: self._forward(x)))

    def update(self, loss: Tensor, lr: float) -> None:
        """Backward, clip, penalty gradient, optimizer, proximal map."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self._stepper.step()
        if self.gates is not None:
            self.gates.step()

    def accuracy(self, split: Any, preprocess: Any) -> float | None:
        """Top-1 on a split, each rank measuring a share, after the ranks' buffers were joined; None if empty."""
        average_buffers(self.model, self.world)
        if split is None or not len(split):
            return None
        batches = split.batches(max(self.settings.batch, 256), preprocess)
        counts = torch.tensor(count_correct(self.model, batches, self.rank, self.world), device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(counts)
        correct, total = counts.tolist()
        return correct / total

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def state(self, finished: bool) -> dict[str, Any]:
        """The network, and unless the stage is finished the optimizer, the masks and the gates' statistics."""
        model: dict[str, Any] = dict(self.model.state_dict())
        if self.world > 1:
            model = averaged(model, [name for name, _ in self.model.named_buffers()], self.world)
        masks = None if finished or self._masks is None else self._masks.state_dict()
        optimizer = None if finished else self.optimizer.state_dict()
        gates = None if finished or self.gates is None else self.gates.state_dict()
        pressure = None if finished or self._regularizer is None else self._regularizer.state_dict()
        return {"model": model, "optimizer": optimizer, "masks": masks, "gates": gates, "regularizer": pressure}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned; raises RuntimeError or ValueError when it does not fit."""
        self.model.load_state_dict(state["model"])
        self._pressure = state.get("regularizer")
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self._masks is not None and state["masks"] is not None:
            self._masks.load_state_dict(state["masks"])
        if self.gates is not None and state["gates"] is not None:
            self.gates.load_state_dict(state["gates"])
