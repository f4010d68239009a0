"""Gates that weigh a LoRA on each example. Shapes: B examples, T tokens, D width of the embeddings, H hidden units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from utils.dataloader import IGNORE, Batch
from utils.model.architecture import Model


class Gate(nn.Module):
    """GainLoRA's gate: |2 sigmoid(4 cos(f(p), k)) - 1| with f(p) = SiLU(U SiLU(V p)); closed while the key k is 0."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.key = nn.Parameter(torch.zeros(width))
        for layer in (self.down, self.up):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(3))

    def forward(self, p: Tensor) -> Tensor:
        """(B, D) -> (B,) in [0, 0.964]."""
        cosine = F.cosine_similarity(self.inputs(p)["key"], self.key, dim=-1) * self.key.any()
        return (2 * torch.sigmoid(4 * cosine) - 1).abs()

    def inputs(self, p: Tensor) -> dict[str, Tensor]:
        """What each part reads: p (B, D), the hidden units (B, H) and f(p) (B, D)."""
        p = p.to(self.key.dtype)
        hidden = F.silu(self.down(p))
        return {"down": p, "up": hidden, "key": F.silu(self.up(hidden))}

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Weights by the name of their input; the last dimension is that of the input."""
        yield from (("down", self.down.weight), ("up", self.up.weight), ("key", self.key))


def prompts(batch: Batch) -> Tensor:
    """Mask (B, T) of the prompts of a batch: what comes before the answer, earlier turns of a chat included."""
    is_answer = (batch.labels != IGNORE).flip(1).cumprod(dim=1).flip(1)
    return batch.attention_mask * (1 - is_answer)


def mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) float32 of the vectors (B, T, D) where the mask (B, T) is 1."""
    chosen = mask.to(torch.float32)[..., None]
    return (vectors.float() * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)


def weigh(model: Model, names: Sequence[str], gain: Callable[[int], Tensor]) -> list[RemovableHandle]:
    """Multiply what each of these LoRA adds to a layer by its gain (B,) on each example.

    Args:
        model: With LoRA in layers, not in embeddings.
        names: Adapters.
        gain: Gives the present gain of an adapter by its place among the names.
    """

    def weighed(i: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def times_gain(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
            own = gain(i)
            own = own.repeat_interleave(len(y) // len(own))  # some layers read all tokens as rows
            return y * own.to(y.dtype).reshape(-1, *[1] * (y.dim() - 1))

        return times_gain

    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_B")]
    return [layer.lora_B[name].register_forward_hook(weighed(i)) for layer in layers for i, name in enumerate(names)]
