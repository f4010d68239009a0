"""The charts of a comparison, from its rows and the results of their runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.report.compare import COSTS
from utils.report.differences import title_of
from utils.report.page.charts import Chart, Look, Series, needs_log, number
from utils.report.page.panels import Panel, Runs, Spread, first_run, known, matrix_of, spread
from utils.report.tables import mean
from utils.storage.files import read_jsonl

MOST_MARKERS = 25  # points of a line that has markers
MOST_LOSSES = 100  # points of a loss curve
BAND = "Line: mean over runs; band: ± sample standard deviation, where there are several runs."
BARS = "Bars: ± sample standard deviation over runs."
GAPS = "No line is drawn where nothing was evaluated."
SCORE = "score, percent"


def charts(section: dict[str, Any], rows: Sequence[int], panels: Sequence[Panel], runs: Runs) -> list[Chart]:
    """All charts that these rows have numbers for."""
    found = [
        _average(section, rows, runs),
        _cost(section, rows, "train_seconds", "Training time"),
        _cost(section, rows, "train_passes", "Passes"),
        _drift(section, rows),
        _losses(section, rows),
        _probing(section, rows, runs),
        *task_charts(section, panels),
    ]
    return [chart for chart in found if any(one.pieces() for one in chart.series)]


def task_charts(section: dict[str, Any], panels: Sequence[Panel]) -> Iterator[Chart]:
    """One chart for each task: its score over the run."""
    for j, name in enumerate(section["task_names"]):
        series = []
        for place, panel in enumerate(panels):
            scores = panel.scores.column(panel.names.index(name))
            stroke = sum(other.row == panel.row for other in panels[:place])  # one for each order
            look = Look.of(panel.row, stroke, len(panel.names) <= MOST_MARKERS)
            moments = ["before training", *(f"after {task}" for task in panel.names)]
            series.append(_series(panel.title, look, range(len(moments)), scores, moments))
        yield Chart(
            key=f"task-{j}",
            title=name,
            x_label="tasks learned",
            y_label=_unit(section, j),
            series=series,
            note=GAPS,
            whole_x=True,
            percent_y=True,
        )


def _series(title: str, look: Look, x: Sequence[float], scores: Spread, moments: Sequence[str]) -> Series:
    y, std = known(scores.mean), known(scores.std)
    hints = [
        f"{title}, {moment}: {'not evaluated' if value is None else number(value)}"
        + (f" ± {number(half)} ({count} runs)" if half is not None else "")
        for moment, value, half, count in zip(moments, y, std, scores.n, strict=True)
    ]
    return Series(title, look, list(x), y, std, hints)


def _unit(section: dict[str, Any], task: int) -> str:
    arrow = "" if section["higher_is_better"][task] else "; lower is better"
    return f"{section['metrics'][task]}, percent{arrow}"


def _mean_unit(section: dict[str, Any]) -> str:
    same = len(set(section["metrics"])) == 1
    return _unit(section, 0) if same else SCORE


def _average(section: dict[str, Any], rows: Sequence[int], runs: Runs) -> Chart:
    """Mean score over the tasks learned so far."""
    count, higher = len(section["task_names"]), section["higher_is_better"]
    series = []
    for i in rows:
        row = section["rows"][i]
        matrices = [matrix_of(runs[path], row["version"]) for path in row["runs"]]
        means = [[mean(R[k][: k + 1], higher[: k + 1]) for k in range(count)] for R in matrices]
        moments = [f"after {k} of {count} tasks" for k in range(1, count + 1)]
        scores = spread(100 * np.array(means, float))
        look = Look.of(i, has_marker=count <= MOST_MARKERS)
        series.append(_series(title_of(row), look, range(1, count + 1), scores, moments))
    return Chart(
        key="average_accuracy",
        title="Average over the tasks learned so far",
        x_label="tasks learned",
        y_label=_mean_unit(section),
        series=series,
        note=f"{BAND} {GAPS}",
        whole_x=True,
        percent_y=True,
    )


def _cost(section: dict[str, Any], rows: Sequence[int], name: str, title: str) -> Chart:
    """Average after the last task over a cost, a point for each row."""
    label, divisor, _ = COSTS[name]
    return _pairs(
        section,
        rows,
        (name, "average_accuracy"),
        divisor,
        key=f"cost-{name}",
        title=f"{title} and average after the last task",
        x_label=f"{label}, mean over runs",
        y_label=_mean_unit(section),
        note=f"{BARS} Times compare only where all runs had the same device."
        if name == "train_seconds"
        else f"{BARS} Passes: sequences through the model per training example and epoch.",
    )


def _drift(section: dict[str, Any], rows: Sequence[int]) -> Chart:
    """Forgetting over the divergence from the first model, a point for each row."""
    return _pairs(
        section,
        rows,
        ("drift_forward", "forgetting"),
        key="drift",
        title="Drift from the first model and forgetting",
        x_label="KL(first || last) per answer of the last task, nats",
        y_label="forgetting, percent",
        note=f"{BARS} Drift: utils/drift.py.",
    )


def _pairs(
    section: dict[str, Any], rows: Sequence[int], columns: tuple[str, str], divisor: float = 1, **texts: Any
) -> Chart:
    """One column over another; the second is a share, shown in percent."""
    series = []
    for i in rows:
        row = section["rows"][i]
        first, second = (row["columns"][name] for name in columns)
        x = None if first["mean"] is None else first["mean"] / divisor
        y, std = ([None if value is None else 100 * value] for value in (second["mean"], second["std"]))
        series.append(Series(title_of(row), Look.of(i), [x], y, std))
    is_log = needs_log([one.x[0] for one in series])
    texts["x_label"] += " (log scale)" if is_log else ""
    return Chart(series=series, is_joined=False, log_x=is_log, **texts)


def _losses(section: dict[str, Any], rows: Sequence[int]) -> Chart:
    """Training loss of the first run of each row."""
    series = []
    for i in rows:
        row = section["rows"][i]
        if not row["version"]:
            steps, losses = _loss(Path(first_run(row)))
            series.append(Series(title_of(row), Look.of(i, has_marker=False), steps, losses))
    values = [y for one in series for y in one.y]
    return Chart(
        key="loss",
        title="Training loss",
        x_label="optimizer step",
        y_label="loss, nats per token" + (" (log scale)" if needs_log(values) else ""),
        series=series,
        note=f"The first run of each row; a long run is shown as means of at most {MOST_LOSSES} parts. Terms that a "
        "method adds are included.",
        log_y=needs_log(values),
    )


def _loss(run: Path) -> tuple[list[float], list[float]]:
    """Optimizer steps and loss, as logged, at most `MOST_LOSSES` of them."""
    log = run / "log.jsonl"
    rows = read_jsonl(log) if log.is_file() else []
    pairs = [(row["step"], row["loss"]) for row in rows if row.get("event") == "train" and row.get("loss") is not None]
    if not pairs:
        return [], []
    parts = np.array_split(np.array(pairs, float), min(MOST_LOSSES, len(pairs)))
    return [float(part[-1, 0]) for part in parts], [float(part[:, 1].mean()) for part in parts]


def _probing(section: dict[str, Any], rows: Sequence[int], runs: Runs) -> Chart:
    """Mean over the tasks learned so far: what was answered, and what a new linear head could answer."""
    count, series = len(section["task_names"]), []
    for i in rows:
        row = section["rows"][i]
        probed = [path for path in row["runs"] if not row["version"] and runs[path].get("probing")]
        for kind, stroke in (("observed", 0), ("linear probe", 1)):
            matrices = [runs[path]["R"] if not stroke else runs[path]["probing"]["LinearProb"]["R"] for path in probed]
            means = [[mean(R[k][: k + 1], [True]) for k in range(count)] for R in matrices]
            scores = spread(100 * np.array(means, float).reshape(len(means), count))
            moments = [f"after {k} of {count} tasks" for k in range(1, count + 1)]
            look = Look.of(i, stroke)
            series.append(_series(f"{title_of(row)}, {kind}", look, range(1, count + 1), scores, moments))
    return Chart(
        key="probing",
        title="Observed accuracy and linear probe",
        x_label="tasks learned",
        y_label="accuracy over the tasks learned so far, percent",
        series=[one for one in series if one.pieces()],
        note=f"Dashed: a new linear head on the same features. {BAND}",
        whole_x=True,
        percent_y=True,
    )
