"""Scores of a large vocabulary without all logits in memory: the head and a loss, a piece of the positions at a time.

Logits of 4,000 positions and 50,000 tokens are 0.8 GB, and a loss holds three to four tensors of this size. Here a
loss is a sum over pieces. The gradients of a piece are computed in the forward pass, while its logits are there, so
that nothing is computed twice. Shapes: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.model.weights import Weights, borrowed, eval_mode

PIECE = 2**24  # logits of a piece: 64 MB in float32


@dataclass(frozen=True)
class Scores:
    """Logits (..., V) that are not computed yet."""

    states: Tensor  # (..., D)
    head: Callable[[Tensor], Tensor]  # (..., D) -> (..., V)
    width: int  # V
    read: nn.Module | None = None  # what has the parameters that `head` reads; None: none of them is trained

    def __getitem__(self, index: Any) -> Scores:
        """Those of some positions."""
        return replace(self, states=self.states[index])

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., V)."""
        return (*self.states.shape[:-1], self.width)

    def first(self, count: int) -> Scores:
        """Those of the first classes."""
        return replace(self, head=lambda states: self.head(states)[..., :count], width=count)

    def whole(self) -> Tensor:
        """All logits (..., V)."""
        return self.head(self.states)

    def under(self, weights: Weights, named: Mapping[str, nn.Parameter], extra: nn.Module) -> Scores:
        """The same from a head in eval mode with other weights, whenever it is run; without gradients.

        Args:
            weights: By name, of the model or of `extra`.
            named: The parameters of both.
            extra: Modules that hooks of the head may read.
        """
        if (read := self.read) is None:
            return self
        inside = {id(w) for module in (read, extra) for w in module.parameters()}
        own = {name: w for name, w in weights.items() if id(named[name]) in inside}

        def head(states: Tensor) -> Tensor:
            with borrowed(named, own), eval_mode(read, extra):
                return self.head(states)

        return Scores(self.states, head, self.width)

    def detached(self) -> Scores:
        """The same without gradients."""
        return replace(self, states=self.states.detach(), read=None)


def as_scores(logits: Tensor | Scores) -> Scores:
    """Logits that are there, as scores."""
    return logits if isinstance(logits, Scores) else Scores(logits, _same, logits.shape[-1])


def _has_hooks(module: nn.Module) -> bool:
    return any("hooks" in name and bool(table) for name, table in vars(module).items())


def _same(states: Tensor) -> Tensor:
    return states


def sum_over_pieces(term: Callable[..., Tensor], scores: Scores, *others: Scores | Tensor) -> Tensor:
    """The sum over N positions of a term, () float.

    Args:
        term: (logits (n, V), ...) -> (), the sum over the n positions of a piece; gets the same rows of all others.
        scores: Of N positions, with gradients.
        others: Further scores or tensors of these positions, without gradients.
    """
    count = len(scores.states)
    size = max(1, PIECE // max(1, scores.width))
    fixed = [other.detached() if isinstance(other, Scores) else other for other in others]

    def piece(states: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            own = [other[rows].whole() if isinstance(other, Scores) else other[rows] for other in fixed]
        return term(scores.head(states), *own)

    if count <= size or scores.head is _same:
        return piece(scores.states, slice(None))
    pieces = [slice(start, start + size) for start in range(0, count, size)]
    weights = [] if scores.read is None else [w for w in scores.read.parameters() if w.requires_grad]
    if not torch.is_grad_enabled():
        return torch.stack([piece(scores.states[rows], rows) for rows in pieces]).sum()
    if scores.read is not None and _has_hooks(scores.read):  # which may bring weights (ZeRO-3) or use further ones
        parts = [checkpoint(piece, scores.states[rows], rows, use_reentrant=False) for rows in pieces]
        return torch.stack(parts).sum()
    total: Tensor = _InPieces.apply(piece, pieces, scores.states, *weights)
    return total


@torch.no_grad()
def log_likelihoods(scores: Scores, labels: Tensor) -> Tensor:
    """(N,) float32 log p(label) at each of N positions, in nats.

    Args:
        scores: (N, V).
        labels: (N,) int64.
    """
    size = max(1, PIECE // max(1, scores.width))
    pieces = zip(scores.states.split(size), labels.split(size), strict=True)
    found = [-F.cross_entropy(scores.head(states).float(), wanted, reduction="none") for states, wanted in pieces]
    return torch.cat(found) if found else labels.new_zeros(0, dtype=torch.float32)


class _InPieces(torch.autograd.Function):
    """The sum of a term over pieces, whose gradients are computed with it."""

    @staticmethod
    def forward(
        ctx: Any, piece: Callable[[Tensor, slice], Tensor], pieces: Sequence[slice], states: Tensor, *weights: Tensor
    ) -> Tensor:
        """The value."""
        needs = states.requires_grad
        slope = torch.empty_like(states) if needs else None
        slopes: list[Tensor | None] = [None] * len(weights)
        total = states.new_zeros((), dtype=torch.float32)
        for rows in pieces:
            with torch.enable_grad():
                own = states[rows].detach().requires_grad_(needs)
                value = piece(own, rows)
                inputs = [*([own] if needs else []), *weights]
                found = list(torch.autograd.grad(value, inputs)) if inputs else []
            total += value.detach()
            if slope is not None:
                slope[rows] = found.pop(0)
            slopes = [g if old is None else old.add_(g) for old, g in zip(slopes, found, strict=True)]
        ctx.found = slope, slopes
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients times the outer one; a second call would find nothing."""
        slope, slopes = ctx.found
        ctx.found = None
        for g in (slope, *slopes):
            if g is not None:
                g.mul_(outer.to(g.dtype))
        return None, None, slope, *slopes
