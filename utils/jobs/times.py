"""How long runs will take, from how long earlier ones took: <dump_path>/times.jsonl has a row for each.

Work is counted in training examples, once per epoch, and test questions, once per evaluation. Time per unit is the
median of earlier runs with the same backbone and method, or with the same backbone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.options.stream_view import epochs_of
from utils.progress import duration
from utils.storage.files import read_jsonl

if TYPE_CHECKING:
    from utils.options.checks import Plan

FILE = "times.jsonl"


def training_work(plan: Plan) -> int:
    """Training examples that a run visits, without replayed or generated ones."""
    tasks = enumerate(plan.stream.tasks)
    return sum(epochs_of(plan.config, k) * len(task.train) for k, task in tasks) if plan.method.trains else 0


def work_of(plan: Plan) -> int:
    """Examples and questions of a run."""
    count = len(plan.stream.tasks)
    return training_work(plan) + sum((count - k) * len(task.test) for k, task in enumerate(plan.stream.tasks))


def kind_of(plan: Plan) -> dict[str, str]:
    """What decides the time per unit of work."""
    config = plan.config
    return {"backbone": config.backbone_cache_path or config.backbone, "method": config.method}


def note(root: Path, plan: Plan, seconds: float) -> None:
    """Keep how long a run took from start to end."""
    row = kind_of(plan) | {"work": work_of(plan), "seconds": round(seconds, 2)}
    with open(root / FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def forecast(root: Path, plans: Sequence[Plan], workers: int) -> float | None:
    """Seconds that these runs will take, this many at a time; None: no earlier run is known.

    Args:
        root: Folder with times.jsonl.
        plans: Of the runs.
        workers: Runs at a time.
    """
    rows = _rows(root)
    each = [_seconds(plan, rows) for plan in plans]
    known = [seconds for seconds in each if seconds is not None]
    return sum(known) / workers if plans and len(known) == len(each) else None


def in_words(root: Path, plans: Sequence[Plan], workers: int) -> str:
    """The forecast as a sentence."""
    seconds = forecast(root, plans, workers)
    if seconds is None:
        return f"time not known yet ({root / FILE} has no run with this backbone)" if plans else "nothing to do"
    return f"about {duration(seconds)} with {workers} at a time"


def _seconds(plan: Plan, rows: list[dict[str, Any]]) -> float | None:
    wanted = kind_of(plan)
    same = [row for row in rows if row["backbone"] == wanted["backbone"]]
    same = [row for row in same if row["method"] == wanted["method"]] or same
    return work_of(plan) * median(row["seconds"] / row["work"] for row in same) if same else None


def _rows(root: Path) -> list[dict[str, Any]]:
    try:
        rows = read_jsonl(root / FILE) if (root / FILE).is_file() else []
        return [row for row in rows if row["work"] > 0 and row["seconds"] > 0 and {"backbone", "method"} <= row.keys()]
    except (UserError, TypeError, KeyError, AttributeError):  # a damaged file costs the forecast, no run
        return []
