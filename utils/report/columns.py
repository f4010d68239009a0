"""The numbers of a run that tables compare, and what is made of them over runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from utils.metric import METRICS, summary
from utils.report import general
from utils.report import probing as probed
from utils.storage import drift

# Questions outside the test split, where the scenario asks them: name in the results -> (files, metric or the task's).
EXTRA = {"R_train": ("train_task", None), "R_locality": ("locality_task", "exact_match")}
SIZES = ("trainable_parameters", "stored_parameters", "kept_bytes")  # after the last task
TRAINING = {"training_incremental_accuracy": "average_incremental_accuracy", "training_forgetting": "forgetting"}


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


def columns_of(results: dict[str, Any]) -> dict[str, float | None]:
    """Scores and cost of a run after its last task, by column; None: not measured."""
    final, recovery = results["R"][-1], results["recovery"]
    return {
        "task_0": final[0],
        "last_task": final[-1],
        **{name: results["summary"][name] for name in METRICS},
        "recovery": recovery["after"] if recovery else None,
        **{name: _last_mean(results, name) for name in EXTRA},
        **_training_columns(results),
        "probing": probed.last_mean(results),
        **general.columns(results),
        "routing": statistics.fmean(results["routing"]) if results.get("routing") else None,
        **drift.columns(results),
        **_cost_columns(results["cost"] or {}, len(final)),
    }


def _training_columns(results: dict[str, Any]) -> dict[str, float | None]:
    """Metrics of the matrix of training questions, where the scenario asks them."""
    if "R_train" not in results:
        return dict.fromkeys(TRAINING)
    found = summary(np.array(results["R_train"], dtype=float), None, results["higher_is_better"])
    return {name: found[metric] for name, metric in TRAINING.items()}


def _cost_columns(cost: dict[str, Any], tasks: int) -> dict[str, float | None]:
    """Cost of a finished run: sums over its tasks, and sizes after the last one."""

    def values(name: str) -> list[float] | None:
        found = cost.get(name) or []
        return found if len(found) == tasks and None not in found else None

    def ratio(above: str, below: str) -> float | None:
        top, bottom = values(above), values(below)
        return sum(top) / sum(bottom) if top and bottom and sum(bottom) else None

    seconds = values("train_seconds")
    return {
        "train_seconds": sum(seconds) if seconds else None,
        "train_passes": ratio("train_sequences", "train_visits"),
        "train_generated": ratio("train_generated_tokens", "train_visits") or None,
        "evaluate_passes": ratio("evaluate_sequences", "evaluate_examples"),
        **{name: sizes[-1] if (sizes := values(name)) else None for name in SIZES},
        "peak_memory_bytes": cost.get("peak_memory_bytes"),
    }


def _last_mean(results: dict[str, Any], name: str) -> float | None:
    """Mean of a matrix over all tasks after the last one; None if there is no such number."""
    last = results.get(name, [[None]])[-1]
    mixed = name != "R_locality" and len(set(results["higher_is_better"])) > 1
    return None if None in last or mixed else statistics.fmean(last)


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean and sample standard deviation of the known values, and their number."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }
