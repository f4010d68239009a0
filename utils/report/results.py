"""Results of one run and of several, recomputed from the saved predictions in their folders.

Scores come from the texts in predictions/, one file per cell of the results matrix; what predictions do not
hold (names, metrics, chance levels, cost) comes from facts.json and cost.json. Numbers are in [0, 1]; None
means "not evaluated" or "undefined".
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils.config import MEASUREMENTS, RunOptions, TrackerOptions
from utils.errors import UserError
from utils.metric import Matrix, Row, summary
from utils.report import general
from utils.report import probing as probed
from utils.report.columns import EXTRA, columns_of, order_sensitivity, spread
from utils.scoring import aggregate, find, score
from utils.storage import drift
from utils.storage.files import read_json, read_jsonl
from utils.storage.moment import BASE, RECOVERY, Moment, parse

FACTS = ("name", "stream", "method", "seed", "il_mode", "backbone", "task_names", "metrics", "chance")
COLUMNS = {"index": int, "prediction": str, "target": str}
PER_TASK = {"metrics": str, "chance": int | float | None}
# Options that name, place or log a run; they do not change what it computes. `seed` is among them.
Run = tuple[Path, dict[str, Any], dict[str, Any]]  # folder, results, options
NOT_COMPARED = {*RunOptions.model_fields, *TrackerOptions.model_fields}
SCORED = ("evaluate_limit", "score_split")  # which questions of the stream are scored
# Options of training that a fair comparison shares; learning rates are chosen for each method.
SHARED = (
    "training_epochs",
    "training_epochs_first_task",
    "batch_size",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler",
)


def build(run: Path) -> dict[str, Any]:
    """All results of a run, finished or not, as in results.json.

    Raises:
        UserError: the folder is not a run folder, or one of its files is broken.
    """
    facts = read_facts(run)
    cells = _Cells(run, facts["metrics"])
    tasks = range(len(facts["task_names"]))
    base = np.array([cells.score(BASE, j) for j in tasks])
    R = np.array([[cells.score(Moment(i), j) for j in tasks] for i in tasks])
    extra = {
        name: np.array([[cells.score(Moment(i), j, *where) for j in tasks] for i in tasks])
        for name, where in EXTRA.items()
    }
    versions = {
        name: [[_number(cells.score(Moment(i).of(name), j)) for j in tasks] for i in tasks] for name in cells.versions()
    }
    higher = [find(metric).higher_is_better for metric in facts["metrics"]]
    recovered, probing = cells.score(RECOVERY, 0), probed.read(run, len(tasks))
    return {
        **{key: facts[key] for key in FACTS},
        "identity": facts.get("identity", {}),
        "tuning": facts.get("tuning"),
        "higher_is_better": higher,
        "group_by_length": bool(_options(run).get("group_by_length")),
        **{name: _options(run).get(name) for name in ("evaluate_schedule", "evaluate_limit")},
        "examples": [cells.examples.get(f"task_{j}") for j in tasks],
        "base": _nullable(base),
        "R": _nullable(R),
        **{name: _nullable(matrix) for name, matrix in extra.items() if not np.isnan(matrix).all()},
        "versions": versions,
        **({"probing": probing} if probing else {}),
        **({"drift": found} if (found := drift.by_task(run, len(tasks))) else {}),
        **({"general": asked} if (asked := general.read(run, facts, len(tasks), cells.score)) else {}),
        **({"routing": routing} if (routing := _routing(run, len(tasks))) else {}),
        "summary": summary(R, base, higher),
        "recovery": None if np.isnan(recovered) else _recovery(R, recovered, higher[0]),
        "cost": _cost(run / "cost.json"),
    }


def _cost(file: Path) -> dict[str, Any] | None:
    content = read_json(file) if file.exists() else {}
    if not isinstance(content, dict) or any(word in json.dumps(content) for word in ("NaN", "Infinity")):
        raise UserError(f"{file}: expected an object of finite numbers; delete the file to report without costs")
    return content or None


def group(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Group runs by stream and then by everything but seed and task order; a folder that is given twice counts once.

    Returns:
        One dict per stream; each row has the seeds, the orders and, per column, {"mean", "std", "n"}: mean and sample
        standard deviation over the n runs that have the number (std is None for n = 1).
    """
    streams: dict[str, dict[str, list[Run]]] = {}
    once = {run.resolve(): (run, results) for run, results in runs}.values()
    for run, results in [(run, version) for run, whole in once for version in _with_versions(whole)]:
        tasks = zip(results["task_names"], results["metrics"], results["chance"], strict=True)
        facts: list[Any] = [results["stream"], results["il_mode"], sorted(map(list, tasks), key=str)]  # in any order
        own = dict(results["identity"])  # digests of what the run was made with
        facts.append(own.pop("stream", None))
        facts += [_options(run).get(name) for name in SCORED]
        options = _options(run) | {f"{name} (digest)": digest for name, digest in own.items()}
        options.pop("task_order", None)
        setting = json.dumps([results["method"], results["backbone"], options], sort_keys=True, default=str)
        groups = streams.setdefault(json.dumps(facts), {})
        groups.setdefault(setting, []).append((run, results, options))
    return _with_digests([_section(list(groups.values())) for groups in streams.values()])


def _with_digests(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names that say which questions were scored; with digest or il_mode where streams share a name but not these."""
    found = []
    for section in sections:
        same = [other for other in sections if other["name"] == section["name"]]
        digest = f" ({section['digest']})" if section["digest"] and _differ(same, "digest") else ""
        mode = f", {section['il_mode']}" if _differ(same, "il_mode") else ""
        found.append(section | {"stream": f"{section['name']}{digest}{mode}{section['scored']}"})
    return found


def _differ(sections: list[dict[str, Any]], key: str) -> bool:
    return len({section[key] for section in sections}) > 1


def _scored_part(options: dict[str, Any]) -> str:
    """Which questions were scored, if not all of test."""
    limit, split = (options.get(name) for name in SCORED)
    return f", {limit} questions of each task" * bool(limit) + f", scored on {split}" * (split not in (None, "test"))


def _unequal(groups: list[list[Run]]) -> dict[str, list[Any]]:
    """Values of the shared options that differ between rows, one for each row."""
    values = {name: [same[0][2].get(name) for same in groups] for name in SHARED}
    return {name: found for name, found in values.items() if len(set(map(str, found))) > 1}


def _with_versions(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The results, and those of each other version of the weights as if of another method."""
    base, higher = np.array(results["base"], dtype=float), results["higher_is_better"]
    nothing: dict[str, Any] = {
        "versions": {},
        "recovery": None,
        "probing": {},
        "routing": [],
        "drift": {},
        "general": [],
        "cost": None,
    }
    return [results] + [
        results
        | nothing
        | {
            "method": f"{results['method']}: {name}",
            "version": name,
            "R": R,
            "summary": summary(np.array(R, dtype=float), base, higher),
        }
        for name, R in results["versions"].items()
    ]


def read_facts(run: Path) -> dict[str, Any]:
    """facts.json of a run, checked.

    Raises:
        UserError: the folder is not a run folder, or the file is broken.
    """
    path = run / "facts.json"
    if not path.is_file():
        raise UserError(
            f"{run} is not a run folder: expected facts.json in it; "
            "give folders like experiments/<name>/<date-time>-seed<k>, which for a sweep are experiments/<prefix>-*/*"
        )
    facts = read_json(path)
    missing = [key for key in FACTS if not isinstance(facts, dict) or key not in facts]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; the run folder is broken")
    if not isinstance(facts["task_names"], list) or not facts["task_names"]:
        raise UserError(f"{path} names no tasks; the run folder is broken")
    for key in PER_TASK:
        if not isinstance(facts[key], list) or len(facts[key]) != len(facts["task_names"]):
            raise UserError(
                f"{path}: expected one entry of {key} for each of {len(facts['task_names'])} tasks, "
                f"got {str(facts[key])[:80]}; the run folder is broken"
            )
        if not all(isinstance(value, PER_TASK[key]) for value in facts[key]):
            raise UserError(f"{path}: {key}: an entry is of the wrong kind: {str(facts[key])[:80]}")
    return facts


class _Cells:
    """The saved predictions of a run; keeps the number of examples of each task."""

    def __init__(self, run: Path, metrics: list[str]) -> None:
        self.run = run
        self.metrics = metrics
        self.examples: dict[str, int] = {}  # name of the file -> number of rows

    def versions(self) -> list[str]:
        """Names of the weights that were evaluated alongside the method's."""
        found = [parse(path.name) for path in (self.run / "predictions").glob("after_*")]
        return sorted({moment.version for moment in found if moment is not None} - {""})

    def score(self, moment: Moment, task: int, prefix: str = "task", metric: str | None = None) -> float:
        """Score of one cell, by the task's metric or another; NaN if it was not evaluated."""
        name = f"{prefix}_{task}"
        path = moment.predictions(self.run, name)
        if not path.exists():
            return np.nan
        stamp = path.stat()
        result, count = _scored(path, metric or self.metrics[task], (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
        if self.examples.setdefault(name, count) != count:
            raise UserError(
                f"{path}: expected {self.examples[name]} rows as at the evaluation point before, got {count}; "
                "scores of different examples cannot be compared, evaluate this task again"
            )
        return result


@cache
def _scored(path: Path, metric: str, _stamp: tuple[int, ...]) -> tuple[float, int]:
    """Score and number of rows of a file; cached until the file changes, because a report follows every task."""
    rows = read_jsonl(path)
    _check(path, rows)
    if not rows:
        return np.nan, 0
    predictions, targets = _texts(rows)
    return aggregate(metric, _each(metric, rows), predictions, targets), len(rows)


def _texts(rows: list[dict[str, Any]]) -> tuple[list[str], list[Any]]:
    return [row["prediction"] for row in rows], [row.get("references", row["target"]) for row in rows]


def _each(metric: str, rows: list[dict[str, Any]]) -> list[float]:
    return score(metric, *_texts(rows), [row.get("input", "") for row in rows])


def scores_of(run: Path, learned: int, version: str, task: int, metric: str) -> list[float]:
    """The score of each question of a task, in the order of the stream.

    Args:
        run: Its folder.
        learned: The last task learned, from 0.
        version: Of the weights; "": those of the method.
        task: The task asked about, from 0.
        metric: Of the task.
    """
    path = Moment(learned).of(version).predictions(run, f"task_{task}")
    rows = read_jsonl(path)
    _check(path, rows)
    return _each(metric, sorted(rows, key=lambda row: row["index"]))


def order_of_run(run: Path) -> str:
    """The order in which a run learned the tasks, as the option `task_order` says."""
    return str(_options(run).get("task_order", "stored"))


def _check(path: Path, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows, start=1):
        cells = [row.get(key) for key in COLUMNS] if isinstance(row, dict) else []
        if list(map(type, cells)) != list(COLUMNS.values()):
            raise UserError(f"{path}, line {number}: expected index, prediction and target, got {str(row)[:80]}")
        if not isinstance(row.get("input", ""), str):
            raise UserError(f"{path}, line {number}: input: expected a text, got {str(row['input'])[:80]}")
        references = row.get("references", [""])
        if not isinstance(references, list) or not references or set(map(type, references)) != {str}:
            raise UserError(f"{path}, line {number}: references: expected texts, got {str(references)[:80]}")
    if len({row["index"] for row in rows}) != len(rows):
        raise UserError(f"{path}: expected each example once, but some index is there twice")


def _routing(run: Path, tasks: int) -> list[float]:
    """Share of each task's questions that its own adapter answered after the last task; empty if none is chosen."""
    log = run / "log.jsonl"
    rows = read_jsonl(log) if log.exists() else []
    last = {row["task"]: row["accuracy"] for row in rows if row.get("event") == "route" and row.get("learned") == tasks}
    return [last[j] for j in range(tasks)] if len(last) == tasks else []


def _recovery(R: Matrix, after: float, higher_is_better: bool) -> dict[str, float | None]:
    """Task 0 before and after the recovery training; `returned` is the share of the loss that came back.

    returned = (after - before) / (peak - before), with peak = R[0, 0] and before = R[K-1, 0]; None if there
    was no loss to regain. The quotient also holds if lower scores are better.
    """
    peak, before = float(R[0, 0]), float(R[-1, 0])
    loss = peak - before if higher_is_better else before - peak
    return {
        "before": _number(before),
        "after": after,
        "peak": _number(peak),
        "returned": (after - before) / (peak - before) if loss > 0 else None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _nullable(array: Matrix | Row) -> list[Any]:
    """Nested lists with None for NaN, which is not JSON."""
    return [_nullable(row) if isinstance(row, np.ndarray) else _number(row) for row in array]


def _options(run: Path) -> dict[str, Any]:
    """The options of a run that can change its numbers, from config.yaml; empty if there is no such file."""
    facts, path = read_json(run / "facts.json"), run / "config.yaml"
    if "options" in facts:  # as they were when the run started
        return {name: value for name, value in facts["options"].items() if name not in NOT_COMPARED}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: value for name, value in content.items() if name not in NOT_COMPARED}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise UserError(f"{path} is not a list of options; the run folder is broken") from None


def _section(groups: list[list[Run]]) -> dict[str, Any]:
    facts = groups[0][0][1]
    keys = ("stream", "il_mode", "task_names", "metrics", "higher_is_better")
    chance = facts["chance"]
    no_mean = None in chance or len(set(facts["higher_is_better"])) > 1
    return {
        **{key: facts[key] for key in keys},
        "name": facts["stream"],
        "scored": _scored_part(groups[0][0][2]),
        "unequal": _unequal(groups),
        "digest": facts["identity"].get("stream"),
        "chance": {
            "task_0": _common([other["chance"][0] for other in _results(groups)]),
            "last_task": _common([other["chance"][-1] for other in _results(groups)]),
            "average_accuracy": None if no_mean else statistics.fmean(chance),
        },
        "rows": [_row(same, groups) for same in groups],
    }


def _results(groups: list[list[Run]]) -> list[dict[str, Any]]:
    return [results for same in groups for _, results, _ in same]


def _common(values: list[float | None]) -> float | None:
    """The value that all share; None: they differ."""
    return values[0] if len(set(values)) == 1 else None


def _told_apart(run: Run, groups: list[Run]) -> dict[str, Any]:
    """The options in which runs of the same method differ; what is measured alongside, where nothing else does."""
    _, results, own = run
    rivals = [other for other in groups if other[1]["method"] == results["method"]]
    differing = {name: value for name, value in own.items() if any(other.get(name) != value for *_, other in rivals)}
    if own.get("lr_list") is not None:
        differing.pop("lr", None)  # has no effect there
    if len({other["backbone"] for _, other, _ in rivals}) > 1:
        differing["backbone"] = results["backbone"]
    short = {name: value for name, value in differing.items() if name not in MEASUREMENTS}
    same = [
        (o, r) for _, r, o in rivals if all((o | {"backbone": r["backbone"]}).get(n) == v for n, v in short.items())
    ]
    return short if len(same) == 1 else differing


def _row(same: list[Run], groups: list[list[Run]]) -> dict[str, Any]:
    _, results, _ = same[0]
    columns = [columns_of(results) for _, results, _ in same]
    lasts = [(order_of_run(run), dict(zip(r["task_names"], r["R"][-1], strict=True))) for run, r, _ in same]
    sensitivity = spread(order_sensitivity(lasts))  # one number of all these runs
    return {
        "method": results["method"],
        "options": _told_apart(same[0], [other[0] for other in groups]),
        "runs": [str(run) for run, _, _ in same],
        "version": results.get("version", ""),
        "tuning": results.get("tuning"),
        "seeds": [results["seed"] for _, results, _ in same],
        "orders": [order_of_run(run) for run, _, _ in same],
        "columns": {name: spread([values[name] for values in columns]) for name in columns[0]}
        | {
            "order_sensitivity": sensitivity | {"n": sensitivity["n"] and len(same)},
            "transfer_to_reference": spread([]),
        },
    }
