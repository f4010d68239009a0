"""The state of sweeps and runs on one screen: `python -m utils.report FOLDER... --watch`.

It reads jobs.json of a sweep's or search's folder, what the runs printed, and the run folders, and writes nothing. So
it works for runs of another process or machine, and after they have ended.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.progress import duration, without_time
from utils.report.results import read_facts
from utils.report.tables import percent
from utils.storage.files import read_json

JOBS = "jobs.json"  # written by utils/jobs/work.py
QUIET_SECONDS = 600  # without news a run counts as stopped
TAIL = 20_000  # bytes of a log that are read
_STEP = re.compile(r"task (\d+), epoch \d+ of \d+, step (\d+) of (\d+)")
_EVALUATED = re.compile(r"after_(\d+): ")
_TIME = re.compile(r'"time": "([^"]+)"')
ORDER = ("running", "failed", "stopped", "waiting", "finished")


class State(NamedTuple):
    """What is known of a run."""

    title: str
    status: str  # one of ORDER
    share: float = 0.0  # done, in [0, 1]
    seconds: float | None = None  # since it began; of a finished run: that it took
    news: str = ""  # the last line of its log
    average: float | None = None  # over the tasks learned so far
    is_higher_better: bool = True

    @property
    def left(self) -> float | None:
        """Seconds left at the pace so far; None: not known."""
        return self.seconds * (1 - self.share) / self.share if self.seconds and self.share else None


def watch(folders: Sequence[Path], seconds: float, show: Callable[[str], None] | None = None) -> None:
    """Print the state again and again until all runs have ended.

    Args:
        folders: Of runs, or of sweeps and searches.
        seconds: Between two states.
        show: Prints a state; None: on a terminal the screen is replaced, elsewhere lines are printed.

    Raises:
        UserError: a folder is neither.
    """
    while True:
        states = [state for folder in folders for state in states_of(folder)]
        (show or _show)(screen(states, sum(map(at_a_time, folders)), *_size()))
        if all(state.status in ("finished", "failed") for state in states):
            return
        time.sleep(seconds)


def states_of(folder: Path) -> Iterator[State]:
    """The run in a folder, or all runs of a sweep or search.

    Raises:
        UserError: the folder is neither.
    """
    if (folder / "facts.json").is_file():
        yield _of_run(folder, folder.parent.name + "/" + folder.name, None)
        return
    if not (folder / JOBS).is_file():
        raise UserError(
            f"{folder} is neither a run folder nor that of a sweep or search: expected facts.json or {JOBS}"
        )
    for job in read_json(folder / JOBS)["jobs"]:
        output = folder / f"{job['name']}-seed{job['seed']}.out"
        names = (f"*-seed{job['seed']}", f"*-seed{job['seed']}-*")  # the second: several in one second
        begun = sorted(facts for name in names for facts in (folder.parent / job["name"]).glob(f"{name}/facts.json"))
        if begun:
            yield _of_run(begun[-1].parent, job["title"], output)
        else:
            yield _not_begun(job["title"], output)


def at_a_time(folder: Path) -> int:
    """How many runs of a folder are done at a time."""
    jobs = folder / JOBS
    return int(read_json(jobs)["at_a_time"]) if jobs.is_file() else 1


def _not_begun(title: str, output: Path) -> State:
    last = _last_line(output)
    if last.startswith("error: "):
        return State(title, "failed", news=last)
    return State(title, "running" if last or _is_new(output) else "waiting", news=last)


def _of_run(run: Path, title: str, output: Path | None) -> State:
    results = _results(run)
    R = results.get("R") or [[None]]
    seconds = _seconds(run)
    average, higher = _average(results)
    if None not in R[-1]:
        return State(title, "finished", 1.0, seconds, "", average, higher)
    last = _last_line(run / "train.log")
    printed = _last_line(output) if output is not None else ""
    if printed.startswith("error: "):
        return State(title, "failed", news=printed, average=average, is_higher_better=higher)
    status = "running" if _is_new(run / "train.log") or _is_new(run / "log.jsonl") else "stopped"
    return State(title, status, _share(run), seconds, last, average, higher)


def _results(run: Path) -> dict[str, Any]:
    """results.json, which is written after every task; empty if it is not there yet."""
    try:
        content = read_json(run / "results.json")
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _average(results: dict[str, Any]) -> tuple[float | None, bool]:
    """Mean score over the tasks learned so far, at the last complete evaluation; and whether higher is better."""
    higher = results.get("higher_is_better") or [True]
    rows = [row[: k + 1] for k, row in enumerate(results.get("R") or []) if None not in row[: k + 1]]
    return (sum(rows[-1]) / len(rows[-1]) if rows and len(set(higher)) == 1 else None), higher[0]


def _share(run: Path) -> float:
    """Tasks that are learned, and the part of the one that is being learned."""
    tasks = len(read_facts(run)["task_names"])
    for line in reversed(_tail(run / "train.log")):
        if step := _STEP.search(line):
            task, done, steps = map(int, step.groups())
            return min(1.0, (task + done / steps) / tasks)
        if evaluated := _EVALUATED.search(line):
            return min(1.0, (int(evaluated[1]) + 1) / tasks)
    return 0.0


def _seconds(run: Path) -> float | None:
    """From the first to the last event of a run."""
    log = run / "log.jsonl"
    if not log.is_file():
        return None
    with open(log, encoding="utf-8", errors="replace") as file:
        first = _TIME.search(file.readline())
    found = [_TIME.search(line) for line in _tail(log)]
    last = next((match for match in reversed(found) if match), None)
    if first is None or last is None:
        return None
    return (datetime.fromisoformat(last[1]) - datetime.fromisoformat(first[1])).total_seconds()


def _is_new(file: Path) -> bool:
    return file.is_file() and time.time() - file.stat().st_mtime < QUIET_SECONDS


def _tail(file: Path) -> list[str]:
    """The last lines of a file; empty if there is none."""
    if not file.is_file():
        return []
    with open(file, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - TAIL))
        text = handle.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _last_line(file: Path) -> str:
    """The last line, without its time."""
    return without_time((_tail(file) or [""])[-1])


def screen(states: Sequence[State], workers: int, columns: int | None, rows: int | None) -> str:
    """The state as text.

    Args:
        states: Of all runs.
        workers: Runs at a time.
        columns: Width of the screen; None: lines are not cut.
        rows: Its height; None: all runs are shown.

    >>> done = State("SEQ, seed 1", "finished", 1.0, 60.0, "", 0.5)
    >>> print(screen([done, State("SEQ, seed 2", "waiting")], 1, None, None))
    2 runs: 1 waiting, 1 finished; about 1 min 0 s left
      waiting   SEQ, seed 2
      finished  SEQ, seed 1: average 50.00 %, took 1 min 0 s
    best average so far: 50.00 %, SEQ, seed 1
    """
    counts = [f"{count} {status}" for status in ORDER if (count := sum(one.status == status for one in states))]
    left = _left(states, max(1, workers))
    head = f"{len(states)} {'run' if len(states) == 1 else 'runs'}: {', '.join(counts)}" + (
        f"; about {duration(left)} left" if left else ""
    )
    lines = [f"  {one.status:<8}  {_line(one)}" for one in sorted(states, key=lambda one: ORDER.index(one.status))]
    if rows is not None and len(lines) > rows - 4:
        hidden = len(lines) - (rows - 5)
        lines = [*lines[: rows - 5], f"  ... and {hidden} more"]
    text = [head, *lines, *_best(states)]
    return "\n".join(line[:columns] for line in text)


def _line(one: State) -> str:
    average = [] if one.average is None else [f"average {percent(one.average)} %"]
    if one.status == "finished":
        parts = [*average, *([f"took {duration(one.seconds)}"] if one.seconds is not None else [])]
    else:
        done = [f"{one.share:.0%} done"] if one.share else []
        ahead = [f"about {duration(one.left)} left"] if one.left is not None and one.status == "running" else []
        parts = [*done, *ahead, *average, *([one.news] if one.news else [])]
    return f"{one.title}: {', '.join(parts)}" if parts else one.title


def _left(states: Sequence[State], workers: int) -> float | None:
    """Seconds until all have ended: the mean of the finished ones for those that wait, so many at a time."""
    took = [one.seconds for one in states if one.status == "finished" and one.seconds]
    running = [one.left for one in states if one.status == "running"]
    waiting = sum(one.status == "waiting" for one in states)
    if None in running or (waiting and not took) or not (running or waiting):
        return None
    ahead = [left for left in running if left is not None]
    return max([*ahead, (sum(ahead) + waiting * (sum(took) / len(took) if took else 0)) / workers])


def _best(states: Sequence[State]) -> list[str]:
    known = [one for one in states if one.status == "finished" and one.average is not None]
    if not known:
        return []
    sign = 1 if known[0].is_higher_better else -1
    first = max(known, key=lambda one: sign * (one.average or 0))
    return [f"best average so far: {percent(first.average)} %, {first.title}"]


def _size() -> tuple[int | None, int | None]:
    """Columns and rows of the terminal; None where there is none."""
    size = shutil.get_terminal_size()
    return (size.columns, size.lines) if sys.stdout.isatty() else (None, None)


def _show(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    before = "\x1b[H\x1b[2J" if sys.stdout.isatty() else f"{datetime.now():%H:%M:%S}  "
    print(before + text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
