"""The file drift.json of a run folder: how far the model was from the one before the stream, one row for each task.

utils/drift.py measures, and says what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.storage.files import read_json, write_json

FILE = "drift.json"
NUMBERS = ("forward", "reverse", "forward_per_token", "reverse_per_token")  # in nats

Row = dict[str, Any]  # the task, and NUMBERS


def rows(run: Path) -> list[Row]:
    """What was measured so far; empty if nothing was.

    Raises:
        UserError: the file is damaged.
    """
    file = run / FILE
    found = read_json(file) if file.exists() else []
    is_whole = isinstance(found, list) and all(map(_is_row, found))
    if not is_whole:
        raise UserError(f"{file} is damaged: expected rows with task, {', '.join(NUMBERS)}; delete it")
    return found


def _is_row(row: Any) -> bool:
    values = [row.get(name) for name in NUMBERS] if isinstance(row, dict) and isinstance(row.get("task"), int) else []
    return bool(values) and all(isinstance(value, float) and math.isfinite(value) for value in values)


def add(run: Path, row: Row) -> None:
    """Write the row of a task, in the place of an earlier one."""
    others = [other for other in rows(run) if other["task"] != row["task"]]
    write_json(run / FILE, sorted([*others, row], key=lambda other: other["task"]))


def by_task(run: Path, tasks: int) -> dict[str, list[float | None]]:
    """NUMBERS, each with a value per task; None: not measured. Empty if nothing was."""
    found = {row["task"]: row for row in rows(run)}
    return {name: [found.get(k, {}).get(name) for k in range(tasks)] for name in NUMBERS} if found else {}


def text(row: Mapping[str, Any]) -> str:
    """The divergences of a row for a line of text.

    >>> text({"forward": 1.5, "reverse": 0.25, "forward_per_token": 0.5, "reverse_per_token": 0.125})
    'forward 1.5 nats per answer (0.5 per token), reverse 0.25 (0.125)'
    """
    forward, reverse, forward_per_token, reverse_per_token = (f"{row[name]:.3g}" for name in NUMBERS)
    return f"forward {forward} nats per answer ({forward_per_token} per token), reverse {reverse} ({reverse_per_token})"


def columns(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Of the results of a run: the divergences after the last task; None: not measured."""
    drift = results.get("drift") or {}
    return {f"drift_{name}": drift[name][-1] if drift else None for name in NUMBERS[:2]}
