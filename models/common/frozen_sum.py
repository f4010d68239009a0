"""The sum of frozen LoRA adapters, read in one go instead of adapter by adapter.

Shapes: ... any, D_in and D_out of a layer, n adapters of rank r, R = n r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from utils.model.architecture import Model

LINEAR = ("Linear", "Linear8bitLt", "Linear4bit")  # peft's classes of linear layers with LoRA


class FrozenSum:
    """Adds sum_i s B_i A_i x of frozen adapters to the layers of a model, while these adapters are not active.

    Time and memory of a pass are bounded: a layer keeps either the factors, (R, D_in) and (D_out, R), or from the rank
    on at which that is less work their product (D_out, D_in). The base stays as it is. There is no dropout.
    """

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def set(self, model: Model, names: Sequence[str]) -> bool:
        """Add these adapters, in the place of those added before.

        Returns:
            False if that is impossible, as LoRA is on more than linear layers; then nothing is added.
        """
        for handle in self.handles:
            handle.remove()
        self.handles = []
        layers: list[Any] = [part for part in model.modules() if names and hasattr(part, "lora_A")]
        if any(type(layer).__name__ not in LINEAR for layer in layers):
            return False
        self.handles = [layer.register_forward_hook(_adding(*_factors(layer, names))) for layer in layers]
        return True


@torch.no_grad()
def _factors(layer: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
    """A (R, D_in) and s B (D_out, R) of all adapters together, or their product."""
    down = torch.cat([layer.lora_A[name].weight for name in names])
    up = torch.cat([layer.scaling[name] * layer.lora_B[name].weight for name in names], dim=1)
    is_wide = len(down) * (down.shape[1] + len(up)) > down.shape[1] * len(up)
    return (up @ down,) if is_wide else (down, up)


def _adding(*matrices: Tensor) -> Any:
    """A forward hook that adds the matrices' product with the layer's input to its output."""

    def add(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].to(matrices[0].dtype)
        for matrix in matrices:
            x = F.linear(x, matrix)
        return (output + x).to(output.dtype)

    return add
