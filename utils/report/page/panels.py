"""Mean results matrices: one for each row of a comparison and each task order of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.report.differences import title_of
from utils.report.results import order_of_run

Floats = NDArray[np.float64]
Runs = Mapping[str, dict[str, Any]]  # path -> results


class Spread(NamedTuple):
    """Mean and sample standard deviation of what is known, and the number of known values; NaN: undefined."""

    mean: Floats
    std: Floats
    n: NDArray[np.int64]

    def column(self, number: int) -> Spread:
        """That of one task."""
        return Spread(self.mean[:, number], self.std[:, number], self.n[:, number])


class Panel(NamedTuple):
    """The runs of a row that learned the tasks in one order."""

    row: int  # number of the row in its section
    title: str
    names: list[str]  # of the tasks, as they were learned
    scores: Spread  # (K + 1, K) in percent: before training, and after each task


def best(section: dict[str, Any], most: int) -> list[int]:
    """Numbers of at most so many rows, those with the best average first, the baseline always; in their order."""
    sign = 1 if section["higher_is_better"][0] else -1
    means = [row["columns"]["average_accuracy"]["mean"] for row in section["rows"]]
    is_base = [title_of(row) == section.get("baseline") for row in section["rows"]]
    ranks = sorted(range(len(means)), key=lambda i: (not is_base[i], means[i] is None, -sign * (means[i] or 0), i))
    return sorted(ranks[:most])


def panels(section: dict[str, Any], rows: Sequence[int], runs: Runs) -> list[Panel]:
    """The mean matrices of these rows."""
    found = []
    for i in rows:
        row = section["rows"][i]
        by_order: dict[str, list[str]] = {}
        for path in row["runs"]:
            by_order.setdefault(order_of_run(Path(path)), []).append(path)
        for order, paths in by_order.items():
            title = title_of(row) if set(by_order) == {"stored"} else f"{title_of(row)}, order {order}"
            stack = np.array([_rows_of(runs[path], row["version"]) for path in paths], float)
            found.append(Panel(i, title, runs[paths[0]]["task_names"], spread(100 * stack)))
    return found


def first_run(row: dict[str, Any]) -> str:
    """The run that represents its row where only one is shown: smallest seed, in the stored order if there is one."""
    tagged = zip(row["orders"], row["seeds"], row["runs"], strict=True)
    return min(tagged, key=lambda run: (run[0] != "stored", run))[2]


def matrix_of(results: dict[str, Any], version: str) -> list[list[float | None]]:
    """R of a version of the weights; "": those of the method."""
    matrix: list[list[float | None]] = results["versions"][version] if version else results["R"]
    return matrix


def _rows_of(results: dict[str, Any], version: str) -> list[list[float | None]]:
    return [results["base"], *matrix_of(results, version)]


def spread(stack: Floats) -> Spread:
    """Over the first axis.

    >>> spread(np.array([[1.0, np.nan], [3.0, np.nan]])).mean
    array([ 2., nan])
    """
    n = (~np.isnan(stack)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, np.nansum(stack, axis=0) / n, np.nan)
        std = np.where(n > 1, np.sqrt(np.nansum((stack - mean) ** 2, axis=0) / (n - 1)), np.nan)
    return Spread(mean, std, n)


def known(values: Floats) -> list[float | None]:
    """None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
