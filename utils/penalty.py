"""Quadratic penalties on weights that are whole or sharded during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Part = tuple[Tensor, Tensor, Tensor | float]  # A, m and c of A (theta - m)^2 + c on one parameter tensor; c is summed
Cut = Callable[[Tensor, nn.Parameter], Tensor]
Own = Callable[[nn.Parameter], Tensor]
Add = Callable[[nn.Parameter, Tensor], None]


@dataclass(frozen=True)
class Penalty:
    """weight * sum_k (A_k (theta_k - m_k)^2 + c_k), summed over the elements of each parameter tensor theta_k.

    A and m, float32 in the shape of the parameter, may be on the CPU and are moved to its device one by one.
    Parameters that are frozen in a task are left out.
    """

    weight: float
    parts: Mapping[str, Part]  # by parameter name

    @classmethod
    def around(cls, weight: float, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Penalty | None:
        """The penalty on changes from an anchor m, with an importance A by parameter name; None: nothing has one."""
        return cls(weight, {name: (a, anchor[name], 0.0) for name, a in importance.items()}) if importance else None

    def on(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """Its value, () float32, with a gradient for which nothing of the size of a parameter is kept.

        Args:
            parameters: The trainable ones, whole.
        """
        total = torch.zeros((), device=next(iter(parameters.values())).device)
        for name, w in parameters.items():
            if name in self.parts:
                a, m, c = self.parts[name]
                total = total + Quadratic.apply(w, a, m) + c
        return self.weight * total


class ShardedPenalty:
    """A `Penalty` on sharded parameters.

    Args:
        penalty: On whole parameters.
        parameters: The trainable ones.
        shard: Cuts out of a tensor in the shape of a parameter what this process has of that parameter.
    """

    def __init__(self, penalty: Penalty, parameters: Mapping[str, nn.Parameter], shard: Cut):
        known = [(w, *penalty.parts[name]) for name, w in parameters.items() if name in penalty.parts]
        self.parts = [(w, shard(a, w), shard(m, w)) for w, a, m, _ in known]
        self.weight, self.constant = penalty.weight, sum(float(c) for *_, c in known)

    @torch.no_grad()
    def add_gradient(self, own: Own, add: Add, processes: int) -> Tensor:
        """Add its gradient; returns its value, () float32, as a mean over the processes.

        Args:
            own: Gives the shard of a parameter that this process has.
            add: Adds to the gradient of that shard.
            processes: How many there are.
        """
        total = torch.zeros((), device=self.parts[0][1].device)
        for w, a, m in self.parts:
            away = own(w).float() - m
            add(w, 2 * self.weight * a * away)
            total += _local(a * away.square()).sum()
        return self.weight * (processes * total + self.constant)


class Quadratic(torch.autograd.Function):
    """sum_i A_i (theta_i - m_i)^2, () float32, for one tensor theta."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, a: Tensor, m: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(theta, a, m)
        return (a.to(theta.device) * (theta.float() - m.to(theta.device)).square()).sum()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """2 A (theta - m)."""
        theta, a, m = ctx.saved_tensors
        gradient = 2 * slope * a.to(theta.device) * (theta.float() - m.to(theta.device))
        return gradient.to(theta.dtype), None, None


def _local(value: Tensor) -> Tensor:
    """The shard of this process, if torch has sharded the tensor."""
    return value.to_local() if hasattr(value, "to_local") else value
