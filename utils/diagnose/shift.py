"""Shift of the residual stream on task 0 between two checkpoints, layer by layer (Zheng et al., 2025).

For the same N questions h are the states after their last token before, h' those after; delta = h' - h, (N, D).

    relative       |delta| / |h|                      Frobenius norms: how far
    common         N |mean delta|^2 / |delta|^2       share of the shift that is common to all questions
    first, second  s_1^2 / |delta|^2, s_2^2 / ...     shares along its principal directions; s: singular values of delta
    angle          between mean delta and the first principal component of h, in degrees; random directions: 90

A shift that is mostly common (or along one direction) moves all questions alike, so a later layer could reverse it; a
shift at a right angle to the first principal component keeps the distances between the questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.diagnose.finished_run import Opened
from utils.errors import UserError
from utils.model.forward import forward, layer_states
from utils.model.weights import eval_mode
from utils.run.checkpoint import Place
from utils.run.tasks import task_of

States = NDArray[np.float64]


def describe_shift(before: States, after: States) -> dict[str, float | None]:
    """The numbers above for one layer; shares and angle are None if the shift is zero.

    >>> h = np.array([[1.0, 0.0], [2.0, 0.0]])
    >>> describe_shift(h, h + [0.0, 3.0])["common"], describe_shift(h, h + [0.0, 3.0])["angle"]
    (1.0, 90.0)
    """
    delta = after - before
    size = (delta**2).sum()
    relative = float(math.sqrt(size) / np.linalg.norm(before))
    if size == 0:
        return {"relative": relative, "common": None, "first": None, "second": None, "angle": None}
    shares = np.append(np.linalg.svd(delta, compute_uv=False) ** 2 / size, 0.0)
    mean = delta.mean(axis=0)
    return {
        "relative": relative,
        "common": float(len(delta) * (mean**2).sum() / size),
        "first": float(shares[0]),
        "second": float(shares[1]),
        "angle": line_angle(mean, first_component(before)),
    }


def first_component(rows: States) -> States:
    """(D,): first principal component of the rows."""
    return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][0]


def line_angle(a: States, b: States) -> float | None:
    """Angle in 0..90 degrees between two lines; None if a vector is zero.

    >>> round(line_angle(np.array([1.0, 1.0]), np.array([-2.0, 0.0])), 6)
    45.0
    """
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return math.degrees(math.acos(min(1.0, abs(float(a @ b)) / lengths))) if lengths else None


def measure(run: Opened, places: Sequence[Place], count: int) -> list[dict[str, Any]]:
    """One row for the embeddings and one for each layer.

    Args:
        run: A run of a decoder.
        places: The checkpoints before and after.
        count: Maximum number of questions of task 0's test split.
    """
    if (kind := run.method.backbone.kind) != "decoder":
        raise UserError(
            f"{run.folder}: the shift is measured at the last token of a decoder; the backbone is an {kind}"
        )
    states = []
    for place in places:
        run.load(place)
        states.append(residual_stream(run, run.method.stream.tasks[0].test[:count]))
    names = ["embeddings", *(f"layer {i}" for i in range(len(states[0]) - 1))]
    pairs = zip(names, *states, strict=True)
    return [{"layer": name} | describe_shift(before, after) for name, before, after in pairs]


def residual_stream(run: Opened, examples: Sequence[Example]) -> list[States]:
    """(N, D) for the embeddings and for the output of each layer, after the last token of each question."""
    method, size = run.method, run.method.config.evaluate_batch_size
    rows = method.encoder.for_prediction(examples, task_of(method, 0).max_length)
    rows = [Encoded(row.prompt, ()) for row in rows]
    parts = []
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], examples[start : start + size], method.backbone.pad_id)
        with torch.no_grad(), eval_mode(method.model), layer_states(method.model) as states:
            forward(method.model, batch.to(method.model.device), logits_to_keep=1)
        parts.append([layer[:, -1] for layer in states])
    return [torch.cat(layer).double().cpu().numpy() for layer in zip(*parts, strict=True)]
