"""Published numbers next to measured ones.

A study states them (`published`, `source`; see utils/study.py) and keeps them, by name of the run, in
<dump_path>/<prefix>/published.json, where every report of these runs finds them. They are shown and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.metric import METRICS
from utils.report.differences import title_of
from utils.report.tables import MISSING, markdown, percent
from utils.storage.files import read_json, write_json

FILE = "published.json"
TITLES = {  # column of a row (utils/report/columns.py) -> how it is called here
    "task_0": "task 0",
    "last_task": "last task",
    "average_accuracy": "average",
    "average_incremental_accuracy": "average incremental accuracy",
    "backward_transfer": "backward transfer",
    "forgetting": "forgetting",
    "recovery": "task 0 after recovery",
    "training_incremental_accuracy": "average incremental accuracy, training questions",
    "training_forgetting": "forgetting, training questions",
}
CHANGES = {name for name, metric in METRICS.items() if metric.is_change} | {"training_forgetting"}
MARKS = {  # where a number was read
    "paper": "in the paper, or in results or code that its authors released",
    "figure": "off an image that its authors released",
    "later": "in a later paper or article that compares with it",
    "summary": "in a summary by others; not checked against the paper",
    "memory": "nowhere, it is remembered; not checked",
}
EXPECTED = f"{', '.join(TITLES)}, mark"


def problems_of(published: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """What is wrong with the entry `published` of a study, a sentence each.

    Args:
        published: Name of a row -> {metric: percent, "mark": one of MARKS}.
        rows: Names of the study's rows.
    """
    found = []
    for row, numbers in published.items():
        if rows.count(row) != 1:
            several = "several rows have this name" if row in rows else "there is no such row"
            found.append(f"published: {row!r}: {several}; expected one of {', '.join(dict.fromkeys(rows))}")
        if not isinstance(numbers, Mapping):
            found.append(f"published: {row}: expected entries {EXPECTED}; got {numbers!r}")
            continue
        found += [
            f"published: {row}: {name!r}: unknown metric; expected one of {EXPECTED}"
            for name in numbers
            if name not in TITLES and name != "mark"
        ]
        found += [
            f"published: {row}: {name}: expected a number in percent, got {value!r}"
            for name, value in numbers.items()
            if name in TITLES and not _is_percent(value)
        ]
        if numbers.get("mark") not in MARKS:
            found.append(f"published: {row}: mark: expected one of {', '.join(MARKS)}; got {numbers.get('mark')!r}")
    return found


def _is_percent(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and -100 <= float(value) <= 100  # NaN is not


def keep(folder: Path, by_run: Mapping[str, Mapping[str, Any]], source: str | None) -> None:
    """Write what was published of each run, by its name, to the folder of a comparison.

    Args:
        folder: <dump_path>/<prefix>.
        by_run: Name of a run -> its numbers, as in `problems_of`.
        source: Paper and table.
    """
    shares = {
        run: {name: value if name == "mark" else value / 100 for name, value in numbers.items()}
        for run, numbers in by_run.items()
    }
    write_json(folder / FILE, {"source": source, "runs": shares})


def add(sections: Sequence[dict[str, Any]]) -> None:
    """Give each row the numbers that were published of its runs, as `published`, if there are any.

    Raises:
        UserError: a file of published numbers is damaged.
    """
    roots = {Path(run).parent.parent for section in sections for row in section["rows"] for run in row["runs"]}
    known = {name: numbers for root in sorted(roots) for name, numbers in _kept(root)}
    for row in (row for section in sections for row in section["rows"] if not row["version"]):
        names = [Path(run).parent.name for run in row["runs"]]
        if found := next((known[name] for name in names if name in known), None):
            row["published"] = found


def _kept(root: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for file in sorted(root.glob(f"*/{FILE}")):
        content = read_json(file)
        if not isinstance(content, dict) or not {"source", "runs"} <= content.keys():
            raise UserError(f"{file}: expected source and runs; delete the file, the study writes it again")
        for name, numbers in content["runs"].items():
            yield name, numbers | {"source": content["source"]}


def text(section: dict[str, Any]) -> str:
    """The table of measured and published numbers, with where these were read; empty if nothing was published."""
    rows = [row for row in section["rows"] if row.get("published")]
    lines = [["method", "score", "n", "measured", "published", "difference", "read"]]
    for row in rows:
        lines += [_line(row, name) for name in TITLES if name in row["published"]]
    marks = [mark for mark in MARKS if any(row["published"]["mark"] == mark for row in rows)]
    sources = dict.fromkeys(row["published"]["source"] for row in rows if row["published"]["source"])
    notes = [*sources, "; ".join(f"{mark}: read {MARKS[mark]}" for mark in marks)]
    return "\n\n".join([markdown(lines, left=(0, 1)), "\n".join(f"{note}." for note in notes)]) if rows else ""


def _line(row: dict[str, Any], name: str) -> list[str]:
    measured, known, sign = row["columns"][name], row["published"][name], "+" if name in CHANGES else ""
    shown = percent(measured["mean"], sign)
    shown += f" ± {percent(measured['std'])}" if measured["std"] is not None else ""
    apart = MISSING if measured["mean"] is None else percent(measured["mean"] - known, "+")
    cells = [str(measured["n"]), shown, percent(known, sign), apart, row["published"]["mark"]]
    return [title_of(row), TITLES[name], *cells]
