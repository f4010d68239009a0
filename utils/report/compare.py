"""Runs side by side, as text: for each stream a table of scores and one of cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from utils.metric import METRICS
from utils.report import differences, general, published
from utils.report.tables import MISSING, headline, mark, markdown, percent

SCORES = {
    "task_0": "task 0",
    "last_task": "last task",
    "average_accuracy": "average",
    "backward_transfer": "backward transfer",
    "forgetting": "forgetting",
    "recovery": "task 0 after recovery",
    "order_sensitivity": "order sensitivity",
    "transfer_to_reference": "transfer to reference",
    "R_train": "training questions",
    "R_locality": "locality",
    "probing": "linear probe",
    "routing": "routed right",
    **general.CHANGES,
}
DRIFT = {  # title, divisor, digits
    "drift_forward": ("KL from the first model", 1, 3),
    "drift_reverse": ("KL to the first model", 1, 3),
}
DRIFT_NOTE = (
    "KL from, to the first model: of the last task's answers in nats, KL(first || last) and KL(last || first), see "
    "utils/drift.py."
)
MIXED = "The tasks have different metrics; averages are means of different scores."
COSTS = {  # title, divisor, digits
    "train_seconds": ("train seconds", 1, 1),
    "train_passes": ("passes per example", 1, 2),
    "evaluate_passes": ("passes per question", 1, 2),
    "trainable_parameters": ("trained parameters, M", 1e6, 3),
    "stored_parameters": ("stored parameters, M", 1e6, 3),
    "kept_bytes": ("kept MB", 1e6, 2),
    "peak_memory_bytes": ("peak MB", 1e6, 0),
}
UNITS = DRIFT | COSTS
OPTIONAL = (
    "recovery",
    "order_sensitivity",
    "transfer_to_reference",
    "R_train",
    "R_locality",
    "probing",
    "routing",
    *DRIFT,
    *general.CHANGES,
    *COSTS,
)  # columns shown where a run has them
NOTE = (
    "Scores after the last task, mean ± sample standard deviation over n runs that differ only by seed or task order. "
    "Positive backward transfer: got better since learned; positive forgetting: got worse since its best."
)
ORDERS = (
    "Task 0 and last task are the first and the last one learned, whichever those are. Order sensitivity: how much the "
    "last score of a task differs at most between two orders, mean over tasks (AOPD, Yoon et al. 2020)."
)
COST_NOTE = (
    "Passes: sequences through the model, for everything a method does, per training example and epoch of a task, and "
    "per question (steps of generation not counted). Trained, stored: parameters in and after the last task. Kept: "
    "everything else that goes from task to task, such as memory, teachers, Fisher. Peak: of the process."
)


def compare_text(sections: list[dict[str, Any]]) -> str:
    """The tables of `utils.report.results.group` in percent: mean ± sample standard deviation over seeds."""
    return "\n".join(_section_text(section) for section in sections)


def _section_text(section: dict[str, Any]) -> str:
    chance, remarks = section["chance"], [NOTE, *(remark for row in section["rows"] for remark in _remarks(row))]
    remarks += [ORDERS] if any(len(set(row["orders"])) > 1 for row in section["rows"]) else []
    remarks += [general.NOTE] if _shown(section, general.CHANGES) else []
    remarks += [MIXED] if len(set(section["metrics"])) > 1 else []
    marks = {"task_0": mark(section, 0), "last_task": mark(section, -1), "recovery": mark(section, 0)}
    titles = SCORES | {name: title for name, (title, *_) in DRIFT.items()}
    scores = _rows(section, {name: title + marks.get(name, "") for name, title in titles.items()})
    guess = [percent(chance[name]) if name in chance else "" for name in _shown(section, titles)]
    parts = [headline(section), markdown([*scores, ["chance", "", *guess]]), "\n".join(remarks)]
    parts += [DRIFT_NOTE] if _shown(section, DRIFT) else []
    if _shown(section, COSTS):
        parts += [markdown(_rows(section, {name: title for name, (title, *_) in COSTS.items()})), COST_NOTE]
    if section.get("differences"):
        parts.append(differences.text(section))
    parts += [known] if (known := published.text(section)) else []
    return "\n\n".join(parts) + "\n"


def _shown(section: dict[str, Any], columns: Iterable[str]) -> list[str]:
    rows = section["rows"]
    return [name for name in columns if name not in OPTIONAL or any(row["columns"][name]["n"] for row in rows)]


def _rows(section: dict[str, Any], titles: dict[str, str]) -> list[list[str]]:
    names = _shown(section, titles)
    lines = [["method", "n", *(titles[name] for name in names)]]
    for row in section["rows"]:
        cells = [_spread_text(name, row["columns"][name], len(row["seeds"])) for name in names]
        lines.append([_row_title(row), str(len(row["seeds"])), *cells])
    return lines


def _row_title(row: dict[str, Any]) -> str:
    return differences.title_of(row)


def _spread_text(name: str, cell: dict[str, Any], runs: int) -> str:
    if cell["mean"] is None:
        return MISSING
    show = partial(_quantity, name) if name in UNITS else percent
    is_change = name in general.CHANGES or (name in METRICS and METRICS[name].is_change)
    text = show(cell["mean"], "+" if is_change else "")
    text += f" ± {show(cell['std'])}" if cell["std"] is not None else ""
    return text if cell["n"] == runs else f"{text} (n={cell['n']})"


def _quantity(name: str, value: float, _sign: str = "") -> str:
    _, divisor, digits = UNITS[name]
    return f"{value / divisor:,.{digits}f}"


def _remarks(row: dict[str, Any]) -> list[str]:
    """Caveats about the rows."""
    title, remarks = _row_title(row), []
    runs = Counter(zip(row["seeds"], row["orders"], strict=True))
    twice = [str(seed) for (seed, _), count in runs.items() if count > 1]
    if twice:
        remarks.append(f"{title}: more than one run with seed {', '.join(twice)}; these are not independent.")
    finished = row["columns"]["last_task"]["n"]
    if row.get("tuning"):
        remarks.append(f"{title}: chosen by tuning {row['tuning']}.")
    if finished < len(row["seeds"]):
        without = f"{len(row['seeds']) - finished} of {len(row['seeds'])} runs have"
        remarks.append(f"{title}: {without} no score after the last task (unfinished, or evaluation only).")
    return remarks
