"""Questions that a run answered right directly after their task, and wrong after the last one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.report.results import scores_of
from utils.scoring import find
from utils.storage.files import read_jsonl
from utils.storage.moment import Moment

MOST_CHARACTERS = 300  # of a text that is shown
DROP = 0.5  # of a score in [0, 1]
RULE = (
    "Forgotten: the score of the question was at least 0.5 directly after its task, and is at least 0.5 lower after "
    "the last one (for right-or-wrong metrics: right, then wrong). An answer that was refuted at its first wrong word "
    "is stored, and shown, only up to there."
)


@dataclass(frozen=True)
class Example:
    """A forgotten question; texts are cut to `MOST_CHARACTERS`."""

    index: int  # in the test split
    question: str
    target: str
    then: str
    now: str


@dataclass(frozen=True)
class Lost:
    """What a run forgot of one task."""

    task: str
    count: int
    asked: int  # questions of the task
    examples: list[Example]  # the first ones


def lost(run: Path, version: str, results: dict[str, Any], most: int) -> list[Lost]:
    """What a finished run forgot, by task; tasks without a comparison are left out.

    Args:
        run: Its folder.
        version: Of the weights; "": those of the method.
        results: Of the run.
        most: Examples of each task.
    """
    last, found = len(results["task_names"]) - 1, []
    for j, (name, metric) in enumerate(zip(results["task_names"], results["metrics"], strict=True)):
        files = [Moment(k).of(version).predictions(run, f"task_{j}") for k in (j, last)]
        if j == last or find(metric).corpus or not all(file.is_file() for file in files):
            continue
        sign = 1 if find(metric).higher_is_better else -1
        then, now = (scores_of(run, k, version, j, metric) for k in (j, last))
        which = [i for i, pair in enumerate(zip(then, now, strict=True)) if _is_lost(sign, *pair)]
        before, after = (
            (sorted(read_jsonl(file), key=lambda row: row["index"]) for file in files) if which else ([], [])
        )
        found.append(Lost(name, len(which), len(then), [_example(before[i], after[i]) for i in which[:most]]))
    return found


def _is_lost(sign: int, then: float, now: float) -> bool:
    was = then if sign > 0 else 1 - then
    return was >= DROP and sign * (then - now) >= DROP


def _example(before: dict[str, Any], after: dict[str, Any]) -> Example:
    target = " | ".join(before.get("references", [before["target"]]))
    texts = (before.get("input", ""), target, before["prediction"], after["prediction"])
    return Example(before["index"], *(clean(text) for text in texts))


def clean(text: str) -> str:
    """A text without the space around it; a long one loses its middle.

    >>> clean(" abc "), len(clean("a" * 9999))
    ('abc', 303)
    """
    text = text.strip()
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"
