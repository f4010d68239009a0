"""The one module that is given to accelerate."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from utils.dataloader import Batch


class Step(nn.Module):
    """Its forward *is* the loss, so the hooks of DDP, ZeRO and FSDP fire whatever a method computes.

    Nobody reaches around it for the inner model while training.

    Args:
        method: Whose loss.
        task: What is learned.
        model: The language model, or a twin of it.
        autocast: Type to compute in; None: accelerate sees to it.
    """

    def __init__(self, method, task, model: nn.Module, autocast: torch.dtype | None = None):
        super().__init__()
        self.model, self.extra = model, method.extra
        self._method, self._task, self._autocast = method, task, autocast

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, () float each; their sum is what is minimised."""
        # Switched off, an autocast of ours would switch off accelerate's.
        own = torch.autocast(batch.labels.device.type, self._autocast) if self._autocast else nullcontext()
        with own:
            return self._method.loss(self.model, batch, self._task)
