"""Forgetting against the divergence of the model from the one before, over finished runs ("RL's Razor", 2025).

One point is a run (any method, seed, learning rate) and a task k > 0 of it. With s[i, j] the score on task j after
task i, higher being better:

    since stream   divergence from the model before the stream, and  mean_{j<k} max_{l<k} s[l, j] - s[k, j]
    since task     divergence from the model before task k, and      mean_{j<k} s[k-1, j] - s[k, j]

Divergences are those of utils/drift.py on training questions of task k. The paper's claim is that a quadratic function
of the forward divergence explains forgetting, whatever the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.diagnose.finished_run import Opened, open_run
from utils.drift import first_weights, measure
from utils.errors import UserError
from utils.model import adapters
from utils.model.weights import Weights, snapshot
from utils.report.results import build
from utils.run.checkpoint import Place
from utils.run.tasks import task_of
from utils.storage import drift as stored

Since = Literal["stream", "task"]
LEAST = 4  # points of a fit: with three a quadratic goes through all of them


def points(folder: Path, since: Since, questions: int) -> Iterator[dict[str, Any]]:
    """One row for each task of a run but the first: forgetting and divergences.

    Args:
        folder: The run's. Its drift.json is used if it is there and `since` is "stream", else its checkpoints.
        since: See above.
        questions: Most questions of each task; those of drift.json are as many as the run measured.

    Raises:
        UserError: neither is there, or the method adds an adapter per task, so that no weights are those before a task.
    """
    results = build(folder)
    lost = forgotten(results["R"], results["higher_is_better"], since)
    known = {row["task"]: row for row in stored.rows(folder)} if since == "stream" else {}
    wanted = [k for k in range(1, len(lost)) if lost[k] is not None]
    if missing := [k for k in wanted if k not in known]:
        known |= _measured(open_run(folder, drift=True), missing, since, questions)
    for k in wanted:
        values = {name: known[k][name] for name in stored.NUMBERS}
        yield {"run": folder.name, "method": results["method"], "task": k, "forgetting": lost[k], **values}


def forgotten(R: Sequence[Sequence[float | None]], is_higher_better: Sequence[bool], since: Since) -> list[Any]:
    """What task k has cost the tasks before it, for each k; None: scores are missing, or there is none before it.

    >>> forgotten([[0.8, None, None], [0.5, 0.9, None], [0.6, 0.5, 1.0]], [True] * 3, "stream")
    [None, 0.3, 0.3]
    >>> forgotten([[0.8, None, None], [0.5, 0.9, None], [0.6, 0.5, 1.0]], [True] * 3, "task")
    [None, 0.3, 0.15]
    """
    s = np.array(R, dtype=float) * np.where(is_higher_better, 1, -1)
    found: list[float | None] = [None]
    for k in range(1, len(s)):
        before = s[k - 1, :k] if since == "task" else np.array([s[j:k, j].max() for j in range(k)])
        lost = float((before - s[k, :k]).mean())
        found.append(None if np.isnan(lost) else round(lost, 12))
    return found


def _measured(run: Opened, tasks: Sequence[int], since: Since, questions: int) -> dict[int, stored.Row]:
    method, found = run.method, {}
    before = first_weights(method, [task_of(method, k) for k in range(len(method.stream.tasks))])
    for k in tasks:
        if since == "task":
            before = _at_end(run, k - 1)
        _at_end(run, k)
        if since == "task" and adapters.count(method.model) > 1:
            raise UserError(f"{run.folder}: adds adapters, so no weights are those before a task; use --since stream")
        found[k] = measure(method, before, task_of(method, k), questions)
    return found


def _at_end(run: Opened, task: int) -> Weights:
    """The weights that answer at the end of a task, which the model has afterwards."""
    (place,) = run.find([Place(task).name])
    run.load(place)
    return snapshot(run.method.named())


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], float] | None:
    """The quadratic c_0 + c_1 x + c_2 x^2 with least squares, and R^2, the share of the variance of y that it explains.

    None with fewer than 4 points, or if x or y is constant.

    >>> coefficients, share = fit([0, 1, 2, 3], [1, 2, 5, 10])
    >>> [round(c, 6) for c in coefficients], round(share, 6)
    ([1.0, 0.0, 1.0], 1.0)
    """
    if len(x) < LEAST or len(set(x)) < LEAST - 1 or len(set(y)) < 2:
        return None
    values = np.asarray(y, float)
    polynomial = np.polynomial.Polynomial.fit(x, values, 2)
    rest, whole = ((values - other) ** 2 for other in (polynomial(np.asarray(x, float)), values.mean()))
    return polynomial.convert().coef.tolist(), float(1 - rest.sum() / whole.sum())


def summary(rows: Sequence[dict[str, Any]], since: Since) -> str:
    """What the points are, and both fits, in a line each."""
    lines = [f"forgetting against the divergence since the {since}, {len(rows)} points"]
    for name in ("forward", "reverse"):
        found = fit([row[name] for row in rows], [row["forgetting"] for row in rows])
        if found is None:
            lines.append(f"{name}: no fit, which needs {LEAST} different points")
        else:
            a, b, c = (f"{value:.3g}" for value in [*found[0], 0.0, 0.0][:3])
            lines.append(f"{name}: forgetting = {a} + {b} KL + {c} KL^2, R^2 = {found[1]:.3f}")
    return "\n".join(lines)
