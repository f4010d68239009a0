"""Probing results of a run (utils/probing.py): from its files to numbers and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.report.tables import markdown, mean, percent
from utils.storage.files import read_jsonl
from utils.storage.moment import BASE, Moment

PROBES = {
    "LinearProb": "linear",
    "CosineLinearProb": "cosine-linear",
    "PrototypeProb": "prototype",
    "CosinePrototypeProb": "cosine-prototype",
}
NOTE = (
    "Probing: accuracy of new heads fitted on frozen features of the training examples of all tasks, seen and unseen. "
    "If only observed accuracy drops, the head has forgotten; if both drop, the backbone has."
)

Scores = list[float | None]  # one per task


def accuracies(run: Path, moment: Moment, tasks: int) -> dict[str, Scores]:
    """Accuracy of each probe on each task at one moment; None where it was not probed.

    Raises:
        UserError: a file is broken.
    """
    found: dict[str, Scores] = {name: [None] * tasks for name in PROBES}
    for j in range(tasks):
        path = moment.probing(run, j)
        if not path.exists():
            continue
        rows = read_jsonl(path)
        if not rows or not all({"label", *PROBES} <= row.keys() for row in rows):
            raise UserError(f"{path}: expected rows with label, {', '.join(PROBES)}; delete it and resume the run")
        for name in PROBES:
            found[name][j] = sum(row[name] == row["label"] for row in rows) / len(rows)
    return found


def read(run: Path, tasks: int) -> dict[str, dict[str, Any]]:
    """For each probe its matrix, laid out as R, and the row before training; empty if the run was not probed."""
    if not (run / "probing").is_dir():
        return {}
    base = accuracies(run, BASE, tasks)
    after = [accuracies(run, Moment(i), tasks) for i in range(tasks)]
    return {name: {"base": base[name], "R": [row[name] for row in after]} for name in PROBES}


def matrices(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Observed accuracy and that of each probe, by title; each with "base" and "R"."""
    return {"observed": results, **{PROBES[name]: matrix for name, matrix in results["probing"].items()}}


def last_mean(results: dict[str, Any]) -> float | None:
    """Accuracy of the linear probe after the last task, mean over all tasks; None if there is none."""
    matrix = results.get("probing", {}).get("LinearProb")
    return average(matrix["R"][-1]) if matrix else None


def average(scores: Scores) -> float | None:
    """Mean over tasks; None where one is missing, or all are."""
    return mean(scores, []) if scores else None


def table(results: dict[str, Any], names: list[str], last_only: bool) -> str:
    """Observed and probing accuracy, one row for each moment and probe, as text (aligned Markdown).

    Args:
        results: Those of a run with probes.
        names: Titles of the tasks.
        last_only: Show the last probed moment alone.
    """
    rows = [["", "accuracy", *names, "seen tasks", "all tasks"]]
    blocks = [_block(results, names, i) for i in range(-1, len(names))]
    blocks = [block for block in blocks if any(row[-1] != percent(None) for row in block[1:])]
    for block in blocks[-1:] if last_only else blocks:
        rows += block
    return markdown(rows, left=(0, 1))


def _block(results: dict[str, Any], names: list[str], i: int) -> list[list[str]]:
    """Rows of the moment after task i, -1 being before training."""
    title = f"after {names[i]}" if i >= 0 else "before training"
    lines = []
    for number, (who, matrix) in enumerate(matrices(results).items()):
        scores = matrix["R"][i] if i >= 0 else matrix["base"]
        means = [percent(average(scores[: i + 1])), percent(average(scores))]
        lines.append(["" if number else title, who, *map(percent, scores), *means])
    return lines
