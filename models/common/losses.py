"""Loss terms. Shapes: B rows, K answer columns, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.classifier import MASKED
from utils.dataloader import IGNORE


def answer_loss(logits: Tensor, labels: Tensor, tokens: float) -> Tensor:
    """Cross-entropy on the answer tokens.

    Args:
        logits: (B, K, V) float; logits[:, k] predicts labels[:, k].
        labels: (B, K) int64; IGNORE where no loss is taken.
        tokens: What the sum is divided by: `Batch.tokens["all"]`, which makes the mean over micro-batches and
            processes the mean over all answer tokens of the step.

    Returns:
        () float, in nats per token; infinite, which stops training, if a label is of a class that is masked.
    """
    labelled = labels != IGNORE
    asked, wanted = logits[labelled].float(), labels[labelled]
    is_masked = (asked.gather(1, wanted[:, None]) <= MASKED).any()
    loss = F.cross_entropy(asked, wanted, reduction="sum") / tokens
    return torch.where(is_masked, torch.inf, loss)


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, tokens: float, temperature: float = 1.0) -> Tensor:
    """Knowledge distillation on the answer tokens: tau^2 KL(teacher || student), each softened by the temperature tau.

    Args:
        student: (B, K, V) float; logits[:, k] predicts labels[:, k], as in `answer_loss`.
        teacher: (B, K, V) float, without gradient.
        labels: (B, K) int64; only where they are not IGNORE something is distilled.
        tokens: As in `answer_loss`.
        temperature: tau; its square keeps the size of the gradient (Hinton et al., 2015, section 2).

    Returns:
        () float, in nats per token.
    """
    labelled = labels != IGNORE
    log_student = F.log_softmax(student[labelled].float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher[labelled].float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) / tokens


def squared_error(own: Tensor, target: Tensor) -> Tensor:
    """Squared differences of logits (N, V) to others: mean over a position's, sum over positions, () float.

    Of classes those that are not in question (MASKED in the target) do not count.
    """
    asked = target > MASKED
    errors = (own - target).float().square().masked_fill(~asked, 0)
    return (errors.sum(dim=-1) / asked.sum(dim=-1).clamp(min=1)).sum()
