"""Gradients that are measured, not stepped along. A gradient is a dict of tensors by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from utils.backbone import answer_logits
from utils.dataloader import Batch
from utils.losses import answer_loss

Gradient = dict[str, Tensor]


def answer_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Batch, tokens: float = 1
) -> Gradient:
    """Gradient of the batch's answer loss, summed over its tokens and divided by `tokens`, in float32.

    Nothing is added to `.grad`, and no hook of data parallelism fires: what a process measures stays its own.
    """
    loss = answer_loss(*answer_logits(model, batch), tokens)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {name: g.float() for name, g in zip(parameters, found, strict=True)}
