"""The module that accelerate wraps: its forward is the loss of a method."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.dataloader import Batch
from utils.model.architecture import Model


class Objective(Protocol):
    """What the training loop needs of a method: its model, its other modules and its loss."""

    extra: nn.ModuleDict

    @property
    def model(self) -> Model:
        """The language model."""

    def loss(self, model: Model, batch: Batch, task: Any) -> dict[str, Tensor]:
        """Named loss terms, () float each."""


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

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, () float each; the loop minimises their sum."""
        # No autocast(enabled=False) here: it would switch off the one of accelerate.
        own = torch.autocast(batch.labels.device.type, self._autocast) if self._autocast else nullcontext()
        with own:
            return self._method.loss(self.model, batch, self._task)
