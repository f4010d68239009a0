"""Loss of two tasks on the plane through three checkpoints (Zheng et al., 2025).

    theta(x, y) = theta_A + x (theta_B - theta_A) + y (theta_C - theta_B)

so A is (0, 0), B (1, 0) and C (1, 1). With A at the end of task 0, B after the first steps of task 1 and C at its end,
the answers to task 0 are lost along x, and task 1 is learned along y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from models.common.losses import answer_loss
from utils.dataloader import collate
from utils.dataset import Example
from utils.diagnose.finished_run import Opened
from utils.errors import UserError
from utils.model.weights import Weights, borrowed, eval_mode
from utils.run.tasks import task_of

FIRST, LAST = -0.25, 1.25  # of both axes


def axis(points: int) -> list[float]:
    """Evenly spaced points of an axis; 0 and 1 are among them if points - 1 is a multiple of 6.

    >>> axis(7)
    [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    """
    return np.linspace(FIRST, LAST, points).round(6).tolist()


def point(a: Weights, b: Weights, c: Weights, x: float, y: float) -> Weights:
    """theta(x, y); exact at the three checkpoints.

    >>> at = [{"w": torch.tensor([value])} for value in (1.0, 3.0, 10.0)]
    >>> [point(*at, x, y)["w"].item() for x, y in ((0, 0), (1, 0), (1, 1), (0.5, 2.0))]
    [1.0, 3.0, 10.0, 16.0]
    """
    return {  # a weighted sum: sums of differences would not be exact
        name: ((1 - x) * w.double() + (x - y) * b[name].double() + y * c[name].double()).to(w.dtype)
        for name, w in a.items()
    }


def measure(run: Opened, corners: Sequence[Weights], points: int, count: int) -> Iterator[dict[str, Any]]:
    """One row for each point of the grid: x, y, and the loss of tasks 0 and 1 there.

    Args:
        run: The run; the weights of its model are restored.
        corners: The weights in A, B and C.
        points: Points of each axis.
        count: Maximum number of test examples per task.

    Raises:
        UserError: the checkpoints hold different parameters.
    """
    a, b, c = corners
    if not a.keys() == b.keys() == c.keys():
        raise UserError(f"{run.folder}: the checkpoints hold different parameters, so there is no plane through them")
    moved = [name for name in a if not torch.equal(a[name], b[name]) or not torch.equal(a[name], c[name])]
    a, b, c = ({name: weights[name] for name in moved} for weights in corners)
    for y in axis(points):
        for x in axis(points):
            with borrowed(run.method.named(), point(a, b, c, x, y)):
                losses = {f"task_{k}": loss(run, k, run.method.stream.tasks[k].test[:count]) for k in (0, 1)}
            yield {"x": x, "y": y} | losses


def loss(run: Opened, index: int, examples: Sequence[Example]) -> float:
    """Mean over the answer tokens (classes) of these examples, in nats, of the model in its state after task 1."""
    method, size, total, tokens = run.method, run.method.config.evaluate_batch_size, 0.0, 0.0
    rows = method.encoder(examples, task_of(method, index).max_length)
    with eval_mode(method.model, method.extra), torch.no_grad():
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], examples[start : start + size], method.backbone.pad_id)
            scores, labels = method.scores(method.model, batch.to(method.model.device), 1)
            total += answer_loss(scores, labels, 1).item()
            tokens += batch.tokens["all"]
    return total / tokens
