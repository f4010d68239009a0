"""Diagnosis of forgetting in finished runs: `python -m utils.diagnose WHAT RUN`.

RUN is a run folder whose checkpoints were kept (save_llm_ckpt, save_llm_ckpt_step_interval). WHAT is one of: recovery
(task 0 practised again from each checkpoint), shift (of task 0's residual stream, layer by layer), angles (between
early and late weight updates of task 1), surface (loss of tasks 0 and 1 on the plane through three checkpoints), as in
Zheng et al. (ICLR 2025); or drift (forgetting against divergence, over several runs). Each writes WHAT.csv and WHAT.png
to OUT (default: diagnosis/ in the first run) and prints its table. The same run gives the same numbers.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.diagnose import figures
from utils.errors import UserError, exit_code, exit_with, termination_interrupts
from utils.factory import describe
from utils.progress import Bar, say_with_time, working
from utils.report.tables import MISSING, markdown, words
from utils.storage.files import write_text

if TYPE_CHECKING:
    from utils.diagnose.finished_run import Opened  # slow to import: not for --help

Rows = list[dict[str, Any]]
Row = TypeVar("Row")


def recovery(given: argparse.Namespace, run: Opened) -> tuple[Rows, str]:
    """See utils/diagnose/recovery.py."""
    from utils.diagnose import recovery as analysis

    places = run.find(given.checkpoints) if given.checkpoints else analysis.choose(run.places, given.every)
    epochs = given.epochs or run.method.config.recovery_epochs
    rows = _watched(analysis.measure(run, places, epochs, given.out / "recovery"), len(places), "checkpoints")
    return rows, f"task 0 after recovery training from each checkpoint (epochs on its first part: {epochs})"


def shift(given: argparse.Namespace, run: Opened) -> tuple[Rows, str]:
    """See utils/diagnose/shift.py."""
    from utils.diagnose import shift as analysis

    places = run.find(given.checkpoints) if given.checkpoints else run.ends()
    with working("shift"):
        rows = analysis.measure(run, places, given.examples)
    return rows, f"residual stream of task 0, {places[0].name} to {places[1].name}"


def angles(given: argparse.Namespace, run: Opened) -> tuple[Rows, str]:
    """See utils/diagnose/angles.py."""
    from utils.diagnose import angles as analysis

    a, b, c = run.find(given.checkpoints) if given.checkpoints else run.triple()
    with working("angles"):
        rows = analysis.measure(run.weights(a), run.weights(b), run.weights(c), given.energy)
    return rows, f"angle between the updates {a.name} to {b.name} and {b.name} to {c.name}"


def surface(given: argparse.Namespace, run: Opened) -> tuple[Rows, str]:
    """See utils/diagnose/surface.py."""
    from utils.diagnose import surface as analysis

    places = run.find(given.checkpoints) if given.checkpoints else run.triple()
    corners = [run.weights(place) for place in places]
    rows = _watched(analysis.measure(run, corners, given.points, given.examples), given.points**2, "points")
    return rows, ", ".join(f"{name}: {place.name}" for name, place in zip("ABC", places, strict=True))


def drift(given: argparse.Namespace) -> tuple[Rows, str]:
    """See utils/diagnose/drift.py."""
    from utils.diagnose import drift as analysis

    found = (list(analysis.points(run, given.since, given.questions)) for run in given.runs)
    rows = [row for run in _watched(found, len(given.runs), "runs") for row in run]
    if not rows:
        raise UserError("drift: needs runs of at least two tasks, evaluated after each; got none")
    return rows, analysis.summary(rows, given.since)


Analysis = Callable[[argparse.Namespace, "Opened"], tuple[Rows, str]]
ANALYSES: dict[str, Analysis] = {
    "recovery": recovery,
    "shift": shift,
    "angles": angles,
    "surface": surface,
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    first = given.runs[0] if given.what == "drift" else given.run
    given.out = given.out or first / "diagnosis"
    try:
        with termination_interrupts():
            rows, title = drift(given) if given.what == "drift" else _of_one_run(given)
        write_text(given.out / f"{given.what}.csv", as_csv(rows))
        getattr(figures, given.what)(rows, title, given.out / f"{given.what}.png")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted; the same command starts again and reuses the saved predictions", file=sys.stderr)
        return exit_code(error)
    print(f"{title}\n\n{_table(_corners(rows) if given.what == 'surface' else rows)}\n\n{given.out}/{given.what}.png")
    return 0


def _of_one_run(given: argparse.Namespace) -> tuple[Rows, str]:
    from utils.diagnose.finished_run import open_run  # slow to import: not for --help

    run = open_run(given.run, recovery=True)
    rows, what = ANALYSES[given.what](given, run)
    return rows, f"{describe(run.method.config)} on {run.method.stream.name}, seed {run.method.config.seed}\n{what}"


def as_csv(rows: Rows) -> str:
    """A table with a header; an empty cell means "undefined"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.diagnose", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    command = commands.add_parser("drift", help=drift.__doc__)
    command.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder")
    command.add_argument("--since", choices=("stream", "task"), default="stream", help="divergence from the model then")
    command.add_argument("--questions", type=_count, default=64, help="most questions of a task (default: 64)")
    command.add_argument("--out", type=Path, help="folder for the table and the picture")
    for name, names in (("recovery", "*"), ("shift", 2), ("angles", 3), ("surface", 3)):
        command = commands.add_parser(name, help=ANALYSES[name].__doc__)
        command.add_argument("run", metavar="RUN", type=Path, help="run folder")
        command.add_argument("--checkpoints", nargs=names, metavar="NAME", help="folders in RUN/checkpoints, in order")
        command.add_argument("--out", type=Path, help="folder for the table and the picture; default: RUN/diagnosis")
        for option, (kind, default, text) in OPTIONS[name].items():
            command.add_argument(f"--{option}", type=kind, default=default, help=f"{text} (default: {default})")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _points(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, got {number}")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 1, got {number}")
    return number


OPTIONS: dict[str, dict[str, tuple[Callable[[str], float], float | None, str]]] = {
    "recovery": {
        "epochs": (_count, None, "passes over that part of task 0; None: recovery_epochs of the run"),
        "every": (_count, 1, "use every n-th of the checkpoints inside tasks"),
    },
    "shift": {"examples": (_count, 1000, "maximum number of questions of task 0")},
    "angles": {"energy": (_share, 0.99, "share of an update's squared norm that its subspace contains")},
    "surface": {
        "points": (_points, 13, "grid points on each axis"),
        "examples": (_count, 240, "maximum number of test examples per task"),
    },
}


def _watched(rows: Iterable[Row], total: int, unit: str) -> list[Row]:
    """All rows, one per `unit`, with progress: these analyses take minutes."""
    bar, done = Bar("diagnosis", total, unit, say_with_time), []
    for row in rows:
        done.append(row)
        bar.update()
    bar.close()
    return done


def _corners(rows: Rows) -> Rows:
    """The rows of a surface at the three checkpoints, and the one with the lowest mean."""
    named = {(0, 0): "A", (1, 0): "B", (1, 1): "C"}
    best = min(rows, key=lambda row: row["task_0"] + row["task_1"])
    found = [{"point": named[row["x"], row["y"]]} | row for row in rows if (row["x"], row["y"]) in named]
    return [*found, {"point": "best mean"} | best]


def _table(rows: Rows) -> str:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return markdown([[words(name) for name in rows[0]], *cells])


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    exit_with(main)
