"""Recovery curve: the score of task 0 after recovery training, from each checkpoint (Zheng et al., 2025).

From each checkpoint a copy of the model is trained on the first part of task 0's training examples, as at the end of a
run with `recovery`; then task 0 is evaluated. If the observed score has dropped and the recovered one has not, the
knowledge is still in the model: the forgetting is spurious.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.diagnose.finished_run import Opened
from utils.evaluation import evaluate
from utils.run.checkpoint import Place
from utils.run.recovery import relearn
from utils.run.tasks import cell_of, questions_of


def choose(places: list[Place], every: int) -> list[Place]:
    """Every n-th checkpoint from the end of task 0 on, and the ends of all tasks."""
    later = [place for place in places if place.finished or place.task > 0]
    inside = [place for place in later if not place.finished][every - 1 :: every]
    return [place for place in later if place.finished or place in inside]


def measure(run: Opened, places: list[Place], epochs: int, out: Path) -> Iterator[dict[str, Any]]:
    """One row per checkpoint; predictions in `out` are reused."""
    setting = f"{epochs}_epochs_{run.method.config.recovery_ratio:g}"
    for place in places:
        step = run.load(place)
        row = {"checkpoint": place.name, "task": place.task, "step": step}
        row["task_0"] = _score(run, out / "observed" / place.name, 0)
        row["learned_task"] = _score(run, out / "observed" / place.name, place.task)
        folder = out / setting / place.name
        if not (folder / "task_0.jsonl").exists():
            relearn(run.method, epochs)
        row["task_0_recovered"] = _score(run, folder, 0)
        yield row


def _score(run: Opened, folder: Path, index: int) -> float:
    """Score of the model's current weights on one task; the predictions go to `folder`."""
    file, questions = folder / f"task_{index}.jsonl", questions_of(run.method, index, "test")
    return evaluate(run.method, run.session, cell_of(run.method, index, file, questions))
