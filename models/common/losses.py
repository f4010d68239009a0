"""Loss terms. Shapes: B rows, K answer columns, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.classifier import MASKED
from utils.dataloader import IGNORE
from utils.model.head import Scores, as_scores, sum_over_pieces


def answer_loss(logits: Tensor | Scores, labels: Tensor, tokens: float, count: int | None = None) -> Tensor:
    """Cross-entropy on the answer tokens.

    Args:
        logits: (B, K, V) float, or scores of this shape; logits[:, k] predicts labels[:, k].
        labels: (B, K) int64; IGNORE where no loss is taken.
        tokens: What the sum is divided by: `Batch.tokens["all"]`, which makes the mean over micro-batches and
            processes the mean over all answer tokens of the step.
        count: Number of labels that are not IGNORE, if it is known; otherwise a GPU is waited for.

    Returns:
        () float, in nats per token; infinite, which stops training, if a label is of a class that is masked.
    """
    is_labelled = labels != IGNORE
    places = is_labelled.nonzero() if count is None else is_labelled.nonzero_static(size=count)
    at = tuple(places.unbind(dim=1))
    return sum_over_pieces(_negative_log_likelihood, as_scores(logits)[at], labels[at]) / tokens


def _negative_log_likelihood(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum over positions: logits (N, V), labels (N,) -> () float32; infinite if a label's class is masked."""
    asked = logits.float()
    is_masked = (asked.gather(1, wanted[:, None]) <= MASKED).any()
    return torch.where(is_masked, torch.inf, F.cross_entropy(asked, wanted, reduction="sum"))


def distillation(
    student: Tensor | Scores, teacher: Tensor | Scores, labels: Tensor, tokens: float, temperature: float = 1.0
) -> Tensor:
    """Knowledge distillation on the answer tokens: tau^2 KL(teacher || student), each softened by the temperature tau.

    Args:
        student: (B, K, V) float, or scores; logits[:, k] predicts labels[:, k], as in `answer_loss`.
        teacher: (B, K, V) float, or scores; it gets no gradient.
        labels: (B, K) int64; only where they are not IGNORE something is distilled.
        tokens: As in `answer_loss`.
        temperature: tau; its square keeps the size of the gradient (Hinton et al., 2015, section 2).

    Returns:
        () float, in nats per token.
    """
    labelled = labels != IGNORE

    def divergence(own: Tensor, other: Tensor) -> Tensor:
        log_student = F.log_softmax(own.float() / temperature, dim=-1)
        log_teacher = F.log_softmax(other.float() / temperature, dim=-1)
        return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)

    total = sum_over_pieces(divergence, as_scores(student)[labelled], as_scores(teacher)[labelled])
    return temperature**2 * total / tokens


def squared_error(own: Tensor, target: Tensor) -> Tensor:
    """Squared differences of logits (N, V) to others: mean over a position's, sum over positions, () float.

    Of classes those that are not in question (MASKED in the target) do not count.
    """
    asked = target > MASKED
    errors = (own - target).float().square().masked_fill(~asked, 0)
    return (errors.sum(dim=-1) / asked.sum(dim=-1).clamp(min=1)).sum()
