"""AdamW over the trainable parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from utils.config import Config

RATE_OF_BFLOAT16 = 1e-4  # with 8 bits a weight of 0.02 takes up a step of 4e-5 or more


@dataclass
class Group:
    """Parameters that share a learning rate and a weight decay."""

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float


def make_optimizer(groups: list[Group], config: Config) -> torch.optim.Optimizer:
    """A fresh AdamW; `initial_lr` of each group is what the schedule scales.

    It is torch's fused one, several times as fast as the default. Its moments are stored without flags (`place`), so a
    resumed run steps with the same code.
    """
    rows = [{"params": g.parameters, "lr": g.lr, "initial_lr": g.lr, "weight_decay": g.weight_decay} for g in groups]
    if config.adam_states == "int8":
        from bitsandbytes.optim import AdamW8bit  # seconds to import, and not always installed

        short: torch.optim.Optimizer = AdamW8bit(rows, eps=config.adam_epsilon)
        return short
    return torch.optim.AdamW(rows, eps=config.adam_epsilon, fused=True)


def moment_bytes(sizes: Iterable[int], config: Config, itemsize: int) -> int:
    """Bytes of the two moments of tensors of these sizes, whose values take `itemsize` bytes.

    With 8 bits, every 256 values share a scale of 32 bits, and tensors of fewer than 4096 values keep 32 bits.

    >>> [moment_bytes([256, 4096], Config(adam_states=kind), 4) for kind in ("float32", "int8")]
    [34816, 10368]
    """
    if config.adam_states == "float32":
        return 2 * itemsize * sum(sizes)
    return sum(2 * (n + 4 * math.ceil(n / 256) if n >= 4096 else 4 * n) for n in sizes)


def lost_updates(config: Config, dtype: torch.dtype) -> list[str]:
    """A warning about weights whose type rounds most updates away."""
    rate = min(config.lr_list or (config.lr,))
    if dtype != torch.bfloat16 or config.PEFT_type is not None or rate >= RATE_OF_BFLOAT16:
        return []
    return [
        f"backbone_dtype: at a learning rate of {rate:g} most updates are smaller than what a bfloat16 weight can take "
        "up, and are lost; use backbone_dtype float32 with mixed_precision bfloat16, or PEFT_type"
    ]


def as_laid_out(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients in the memory layout of their parameters, as autograd makes them: the fused AdamW assumes it."""
    for w in parameters:
        if w.grad is not None and w.grad.stride() != w.stride():
            w.grad = torch.empty_like(w).copy_(w.grad)


def schedule_factor(kind: str, step: int, steps: int, warmup_ratio: float, min_ratio: float) -> float:
    """Factor on the learning rate at step `step` (from 0) of `steps`.

    Rises linearly over the first `warmup_ratio` of the steps, then stays (constant) or falls to `min_ratio`
    along a line (linear) or half a cosine (cosine).

    >>> [round(schedule_factor("linear", s, 6, 1 / 3, 0.0), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = math.ceil(warmup_ratio * steps - 1e-9)  # 0.07 * 100 is 7.000000000000001
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]
    return fall if kind == "constant" else min_ratio + (1 - min_ratio) * fall


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, step: int, steps: int) -> float:
    """Scale every group's rate for this step; returns the first group's."""
    factor = schedule_factor(config.lr_scheduler, step, steps, config.warmup_ratio, config.lr_min_ratio)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optimizer.param_groups[0]["lr"]
