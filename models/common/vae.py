"""Parts of a variational autoencoder around a language model. Shapes: B rows, T tokens, D width, Z latent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from utils.model.architecture import Model


class Gaussian(nn.Module):
    """Mean and log-variance of a normal distribution over latents, from hidden states by attention pooling."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.score, self.out = nn.Linear(width, 1), nn.Linear(width, 2 * size)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D), mask (B, T) -> (B, Z), (B, Z), in float32: a bfloat16 variance is off by 1 %."""
        scores = self.score(hidden).squeeze(-1).masked_fill(mask == 0, -math.inf)
        pooled = (scores.softmax(dim=-1).unsqueeze(-1) * hidden).sum(dim=1)
        return self.out(pooled).float().chunk(2, dim=-1)


def gaussian_kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q || p) of normal distributions given as mean and log-variance, (B, Z) each -> (B)."""
    (mean_q, log_q), (mean_p, log_p) = q, p
    return 0.5 * (log_p - log_q + ((mean_q - mean_p) ** 2 + log_q.exp()) / log_p.exp() - 1).sum(dim=-1)


def cyclic(step: int, steps: int, cycles: int, rise: float = 0.9) -> float:
    """beta at a step (from 0): in each cycle it rises from 0 to 1 over the share `rise`, then stays.

    >>> [round(cyclic(step, 20, 2), 2) for step in range(0, 20, 3)]
    [0.0, 0.33, 0.67, 1.0, 0.22, 0.56, 0.89]
    """
    return min(1.0, step * cycles / steps % 1.0 / rise)


@contextmanager
def shifted(model: Model, shift: Tensor) -> Iterator[None]:
    """Add a vector to the embedding of every token of a row, inside the `with`; shift: (B, D)."""

    def add(_module: nn.Module, _args: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return embedded + shift.unsqueeze(1).to(embedded.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
