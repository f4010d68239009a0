"""Report of one run: its matrices, metrics and cost as text, Markdown and pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.metric import METRICS
from utils.report import general
from utils.report import probing as probed
from utils.report.compare import MIXED
from utils.report.plots import curves, heat_map, probing_curves, shorten
from utils.report.results import build
from utils.report.tables import MISSING, headline, mark, markdown, mean, percent, words
from utils.storage.files import read_json, write_json, write_text

MAIN_METRICS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
    "forgetting",
)
DRIFT = "Divergence from the model before the stream on the task's questions (see utils/drift.py), nats per answer:"
# What the matrices of a scenario measure.
TITLES = {
    ("IIL", "R"): "Generalisation. Other questions about the facts trained on:",
    ("IIL", "R_train"): "Memorisation. Training questions:",
    ("CKE", "R"): "Paraphrase. Rephrased questions about the edited facts:",
    ("CKE", "R_train"): "Efficacy. Training questions:",
    ("CKE", "R_locality"): "Locality. Unrelated questions, share answered as before any training (exact match):",
}


def write(run: Path, plots: bool = True) -> dict[str, Any]:
    """Recompute a run; write results.json, results.md and, with `plots`, R.png and accuracy.png.

    Pictures take a second each; they are drawn again only where the results have changed since.

    Raises:
        UserError: the folder is not a run folder, or one of its files is broken.
    """
    results, file = build(run), run / "results.json"
    if not _holds(file, results):
        write_json(file, results)
    write_text(run / "results.md", page(results, plots))
    pictures: dict[str, Callable[[Path], None]] = {
        "R.png": partial(heat_map, results),
        "accuracy.png": partial(curves, results),
    }
    if results.get("probing"):
        pictures["probing.png"] = partial(probing_curves, results, probed.matrices(results))
    for name, draw in pictures.items() if plots else ():
        picture = run / name
        if not picture.is_file() or picture.stat().st_mtime_ns < file.stat().st_mtime_ns:
            draw(picture)
    return results


def _holds(file: Path, results: dict[str, Any]) -> bool:
    try:
        return file.is_file() and bool(read_json(file) == results)
    except UserError:  # damaged
        return False


def table(results: dict[str, Any]) -> str:
    """The results matrix with its chance level, and the main metrics, as text (aligned Markdown)."""
    parts = [headline(results)]
    if len(set(results["metrics"])) > 1:
        parts.append(MIXED)
    parts += _coverage(results)
    for key in ("R", "R_train", "R_locality"):
        if key in results:
            title = TITLES.get((results["il_mode"], key))
            parts += [*([title] if title else []), _matrix(results, key)]
    if results["versions"]:
        parts += ["Other answers of the same run, after the last task:", _versions(results)]
    if results.get("routing"):
        parts.append(_routing_text(results))
    rows = [row[:2] for name in MAIN_METRICS if (row := _metric_row(name, results))[1] != MISSING]
    parts.append(markdown([["metric", "percent"], *rows]) if rows else "No metric is defined yet.")
    if results["recovery"]:
        parts.append(_recovery_text(results["recovery"]))
    if results.get("drift"):
        parts += [DRIFT, _drift(results)]
    parts += general.table(results)
    if results.get("probing"):
        parts += [probed.NOTE, probed.table(results, _titles(results), last_only=True)]
    return "\n\n".join(parts) + "\n"


def _coverage(results: dict[str, Any]) -> list[str]:
    """What was left out of the evaluation, by option."""
    parts, limit, schedule = [], results.get("evaluate_limit"), results.get("evaluate_schedule")
    if limit is not None:
        counts = ", ".join(MISSING if count is None else str(count) for count in results["examples"])
        parts.append(
            f"Scored: a sample of at most {limit} questions of each task, the same at all evaluations "
            f"(evaluate_limit); questions per task: {counts}."
        )
    if schedule not in (None, "every"):
        parts.append(
            f"Evaluated after {'the last task' if schedule == 'last' else schedule.replace('_', ' ') + ' tasks'} "
            "(evaluate_schedule); metrics that need other scores are undefined."
        )
    return parts


def page(results: dict[str, Any], plots: bool = True) -> str:
    """results.md: the table, every metric with its definition, cost and pictures."""
    rows = [_metric_row(name, results) for name in METRICS]
    parts = [
        f"# {results['name']}",
        f"Scenario {results['il_mode']}, backbone {results['backbone']}."
        + (" Batches held examples of similar length (group_by_length)." if results["group_by_length"] else ""),
        table(results).rstrip(),
        "## All metrics",
        markdown([["metric", "percent", "definition", "source"], *rows], left=(0, 2, 3)),
        "R[i,j]: score on task j after learning task i, counted from 0; K tasks. Transfer, forgetting and "
        "their variants are differences, signed so that positive transfer is a gain and positive forgetting "
        "a loss, also where a lower score is better.",
    ]
    if results.get("probing"):
        parts += ["## Probing", probed.table(results, _titles(results), last_only=False)]
    if results["cost"]:
        cost = [[words(name), _cost_text(value)] for name, value in results["cost"].items()]
        parts += ["## Cost", markdown([["", "value (a list: per task)"], *cost])]
    if plots:
        parts += ["![Results matrix](R.png)", "![Score of each task over time](accuracy.png)"]
        parts += ["![Observed and probing accuracy](probing.png)"] if results.get("probing") else []
    return "\n\n".join(parts) + "\n"


def _matrix(results: dict[str, Any], key: str) -> str:
    """Each row is an evaluation point, each column a task; the last column: mean over tasks so far (chance: all)."""
    names, higher, chance = (results[name] for name in ("task_names", "higher_is_better", "chance"))
    if key == "R_locality":  # always exact match, and nothing can be guessed
        higher, chance = [True] * len(names), None
    width = 16 if len(names) <= 6 else 9
    marks = ["" if key == "R_locality" else mark(results, j) for j in range(len(names))]
    rows = [["", *(shorten(name, width) + mark for name, mark in zip(names, marks, strict=True)), "mean so far"]]
    if key == "R" and any(value is not None for value in results["base"]):
        rows.append(["before training", *map(percent, results["base"]), ""])
    for i, scores in enumerate(results[key]):
        so_far = percent(mean(scores[: i + 1], higher))
        rows.append([f"after {shorten(names[i], 20)}", *map(percent, scores), so_far])
    if key == "R" and results["recovery"]:
        rows.append(["after recovery", percent(results["recovery"]["after"]), *[""] * len(names)])
    if chance is not None:
        rows.append(["chance", *map(percent, chance), percent(mean(chance, higher))])
    return markdown(rows)


def _titles(results: dict[str, Any]) -> list[str]:
    return [shorten(name, 16 if len(results["task_names"]) <= 6 else 9) for name in results["task_names"]]


def _versions(results: dict[str, Any]) -> str:
    """The last row of R of each version of the weights."""
    names, higher = results["task_names"], results["higher_is_better"]
    rows = [["", *(shorten(name, 16) for name in names), "mean"]]
    for name, R in {"the method's": results["R"], **results["versions"]}.items():
        rows.append([name, *map(percent, R[-1]), percent(mean(R[-1], higher))])
    return markdown(rows)


def _drift(results: dict[str, Any]) -> str:
    """Both divergences after each task."""
    names = [f"after {shorten(name, 20)}" for name in results["task_names"]]
    values = [[MISSING if value is None else f"{value:.4g}" for value in row] for row in results["drift"].values()]
    return markdown([["", *map(words, results["drift"])], *map(list, zip(names, *values, strict=True))])


def _metric_row(name: str, results: dict[str, Any]) -> list[str]:
    metric = METRICS[name]
    value = percent(results["summary"][name], "+" if metric.is_change else "")
    return [words(name), value, f"`{metric.formula}`", metric.source]


def _routing_text(results: dict[str, Any]) -> str:
    shares = results["routing"]
    each = ", ".join(map(percent, shares))
    return (
        f"Routed right, % of the questions of each task: {each} (mean {percent(sum(shares) / len(shares))}). "
        'The version "task given" is the upper bound: each question is answered by the adapter of that task.'
    )


def _recovery_text(recovery: dict[str, float | None]) -> str:
    before, after, peak = (percent(recovery[key]) for key in ("before", "after", "peak"))
    text = f"Recovery of task 0: {peak} when just learned, {before} before, {after} after"
    if recovery["returned"] is None:
        return f"{text}."
    return f"{text}; {percent(recovery['returned'])} % of the loss came back."


def _cost_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cost_text, value))
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else MISSING
