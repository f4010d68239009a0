"""The module that accelerate wraps: its forward is the loss of a method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from utils.dataloader import Batch
from utils.model.architecture import Model
from utils.model.head import Scores
from utils.penalty import Penalty


class Objective(Protocol):
    """What the training loop needs of a method: its model, its other modules, its loss and penalty."""

    extra: nn.ModuleDict
    has_teacher: ClassVar[bool]
    sharded_teacher: Callable[[Batch, int | None], Scores] | None

    @property
    def model(self) -> Model:
        """The language model."""

    def loss(self, model: Model, batch: Batch, task: Any) -> dict[str, Tensor]:
        """Named loss terms, () float each."""

    def penalty(self, task: Any) -> Penalty | None:
        """A penalty on the trainable weights."""

    def scores(self, model: Model, batch: Batch, index: int | None) -> tuple[Scores, Tensor]:
        """Scores (B, K, V) and labels (B, K)."""

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters by name."""


class Step(nn.Module):
    """A module whose forward is the loss, so that the hooks of DDP, ZeRO and FSDP fire whatever a method computes.

    During training the inner model is only run through this module.

    Args:
        method: The method whose loss is computed.
        task: The task that is trained on.
        model: The language model, or a twin of it.
        autocast: Type to compute in; None: accelerate decides.
    """

    def __init__(self, method: Objective, task: Any, model: Model, autocast: torch.dtype | None = None):
        super().__init__()
        self.model, self.extra = model, method.extra
        self._method, self._task, self._autocast = method, task, autocast
        self.penalty: Penalty | None = None  # on weights that are whole here

    def forward(self, batch: Batch, times: int = 0) -> dict[str, Tensor]:
        """Named loss terms, () float each; the loop minimises their sum.

        Args:
            batch: Rows of a micro-batch.
            times: What the penalty is multiplied by in this micro-batch.
        """
        # No autocast(enabled=False) here: it would switch off the one of accelerate.
        own = torch.autocast(batch.labels.device.type, self._autocast) if self._autocast else nullcontext()
        with own:
            terms = self._method.loss(self.model, batch, self._task)
            if self.penalty is not None and times:
                terms["penalty"] = times * self.penalty.on(self.learning())
            return terms

    def learning(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by their names in the method."""
        return {name.removeprefix("model."): w for name, w in self.named_parameters() if w.requires_grad}


class Teacher(nn.Module):
    """The teacher of a method as a second sharded model."""

    def __init__(self, method: Objective, model: Model):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._scores = method.scores

    @torch.no_grad()
    def forward(self, batch: Batch, index: int | None) -> Scores:
        """Scores (B, K, V), without gradients."""
        return self._scores(self.model, batch, index)[0].detached()
