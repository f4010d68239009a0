"""How much a method's scores depend on the order of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean


def order_sensitivity(lasts: Sequence[tuple[str, Mapping[str, float | None]]]) -> list[float]:
    """AOPD (Yoon et al., ICLR 2020): largest difference of a task's last score between two orders, mean over tasks.

    The score of an order is the mean over its seeds.

    Args:
        lasts: Order of a run, and its scores after the last task, by name of the task.

    Returns:
        One number; empty with fewer than two orders.

    >>> order_sensitivity([("stored", {"a": 0.5, "b": 1.0}), ("reversed", {"a": 0.75, "b": 0.5})])
    [0.375]
    """
    by_order: dict[str, list[dict[str, float]]] = {}
    for order, last in lasts:
        scores = {name: score for name, score in last.items() if score is not None}
        if len(scores) == len(last):
            by_order.setdefault(order, []).append(scores)
    if len(by_order) < 2:
        return []
    means = [{name: fmean(run[name] for run in runs) for name in runs[0]} for runs in by_order.values()]
    return [fmean(max(m[name] for m in means) - min(m[name] for m in means) for name in means[0])]
