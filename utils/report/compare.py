"""Runs side by side: for each stream a table of scores and one of cost, as text or as rows of texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from utils.errors import UserError
from utils.metric import METRICS
from utils.report import differences, general, published
from utils.report.columns import TRAINING
from utils.report.tables import MISSING, headline, mark, markdown, percent, words

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
CHOSEN = {name: words(name) for name in (*METRICS, *TRAINING) if name not in SCORES}  # shown only where chosen
MIXED = "The tasks have different metrics; averages are means of different scores."
COSTS = {  # title, divisor, digits
    "train_seconds": ("train seconds", 1, 1),
    "train_passes": ("passes per example", 1, 2),
    "train_generated": ("generated tokens per example", 1, 2),
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
    "per question (steps of generation not counted). Generated: tokens that the model sampled in training, "
    "each a pass of one token. Trained, stored: parameters in and after the last task. Kept: "
    "everything else that goes from task to task, such as memory, teachers, Fisher. Peak: of the process."
)


def compare_text(sections: list[dict[str, Any]], chosen: Sequence[str] = ()) -> str:
    """The tables of `utils.report.results.group` in percent: mean ± sample standard deviation over seeds.

    Args:
        sections: One per stream.
        chosen: Columns to show, of both tables; empty: those that the runs have numbers for.
    """
    return "\n".join(_section_text(section, chosen) for section in sections)


def check_columns(chosen: Sequence[str]) -> None:
    """Refuse columns that do not exist.

    Raises:
        UserError: names them and those that exist.
    """
    columns = [*score_titles(), *COSTS]
    unknown = [name for name in chosen if name not in columns]
    if unknown:
        raise UserError(f"metrics: there is no column {', '.join(unknown)}; expected some of {', '.join(columns)}")


def _section_text(section: dict[str, Any], chosen: Sequence[str]) -> str:
    scores, costs = score_rows(section, chosen), cost_rows(section, chosen)
    parts = [headline(section), *([markdown(scores)] if scores else []), "\n".join(remarks(section))]
    parts += [markdown(costs), COST_NOTE] if costs else []
    if section.get("differences"):
        parts.append(differences.text(section))
    parts += [known] if (known := published.text(section)) else []
    return "\n\n".join(parts) + "\n"


def remarks(section: dict[str, Any]) -> list[str]:
    """What a reader of the table of scores must know."""
    found = [NOTE, *_runs(section), *_unequal(section), *_tuned(section)]
    found += [text for row in section["rows"] for text in _remarks(row)]
    found += [ORDERS] if len({order for row in section["rows"] for order in row["orders"]}) > 1 else []
    if section.get("without_reference"):
        found.append(f"No transfer to reference: there is no row {section['without_reference']} here.")
    if section.get("reference"):
        found.append(
            f"Transfer to reference: all tasks but the first, just learned, relative to {section['reference']}."
        )
    if section.get("not_compared"):
        found.append(f"Not compared with {section['not_compared']}, which has a different il_mode.")
    found += section.get("unpaired", [])
    found += [general.NOTE] if shown(section, general.CHANGES) else []
    found += [MIXED] if len(set(section["metrics"])) > 1 else []
    return found + ([DRIFT_NOTE] if shown(section, DRIFT) else [])


def _runs(section: dict[str, Any]) -> list[str]:
    """Which runs the means are over, where that differs between rows."""
    same = _rows_by(section, [_runs_of(row) for row in section["rows"]])
    shown_runs = "; ".join(f"{runs} ({rows})" for runs, rows in same.items())
    return [f"Runs differ between rows: {shown_runs}."] if len(same) > 1 else []


def _runs_of(row: dict[str, Any]) -> str:
    """Seeds of a row, by task order."""
    seeds: dict[str, list[int]] = {}
    for seed, order in zip(row["seeds"], row["orders"], strict=True):
        seeds.setdefault(order, []).append(seed)
    return ", ".join(f"seeds {' '.join(map(str, sorted(own)))} {order}" for order, own in sorted(seeds.items()))


def _unequal(section: dict[str, Any]) -> list[str]:
    """Options of training that the rows do not share."""
    found = []
    for name, values in section["unequal"].items():
        shown_values = "; ".join(f"{value} ({rows})" for value, rows in _rows_by(section, values).items())
        found.append(f"{name} differs between rows: {shown_values}.")
    return found


def _tuned(section: dict[str, Any]) -> list[str]:
    """What was searched on which data, and for which rows."""
    tunings = _rows_by(section, [row.get("tuning") or "" for row in section["rows"]])
    found = [f"Chosen by tuning {tuning}: {rows}." for tuning, rows in tunings.items() if tuning]
    if found and "" in tunings:
        found.append(f"Not tuned: {tunings['']}.")
    budgets = _rows_by(section, [_budget(row.get("tuning") or "") for row in section["rows"]])
    known = {budget: rows for budget, rows in budgets.items() if budget}
    if len(known) > 1:
        found.append(f"Unequal budgets of tuning: {'; '.join(f'{text} ({rows})' for text, rows in known.items())}.")
    return found


def _budget(tuning: str) -> str:
    """What a search could spend, from the words of utils.tune.trials.describe.

    >>> _budget("lr: 4 tries on dev of all 2 tasks"), _budget("lr: 2 tries, 1,200 of 1,300 passes, on dev of ..")
    ('4 tries', '1,300 passes')
    """
    found = re.search(r": (\S+ tr(?:y|ies)) on dev| of (\S+ passes), on dev", tuning)
    return (found[1] or found[2]) if found else ""


def _rows_by(section: dict[str, Any], values: Sequence[Any]) -> dict[str, str]:
    """Titles of the rows with the same value, by value."""
    found: dict[str, list[str]] = {}
    for row, value in zip(section["rows"], values, strict=True):
        found.setdefault(str(value), []).append(differences.title_of(row))
    return {value: ", ".join(titles) for value, titles in found.items()}


def score_titles() -> dict[str, str]:
    """Titles of the columns of the table of scores."""
    return {**SCORES, **{name: title for name, (title, *_) in DRIFT.items()}, **CHOSEN}


def score_rows(section: dict[str, Any], chosen: Sequence[str] = ()) -> list[list[str]]:
    """The table of scores, titles first and chance last; empty if no column is shown."""
    marks = {"task_0": mark(section, 0), "last_task": mark(section, -1), "recovery": mark(section, 0)}
    titles = {name: title + marks.get(name, "") for name, title in score_titles().items()}
    names = shown(section, titles, chosen)
    chance = section["chance"]
    guess = [percent(chance[name]) if name in chance else "" for name in names]
    return [*_rows(section, {name: titles[name] for name in names}), ["chance", "", *guess]] if names else []


def cost_rows(section: dict[str, Any], chosen: Sequence[str] = ()) -> list[list[str]]:
    """The table of costs, titles first, without rows that have none; empty if no column is shown."""
    names = shown(section, COSTS, chosen)
    head, *rows = _rows(section, {name: COSTS[name][0] for name in names})
    return [head, *(row for row in rows if set(row[2:]) != {MISSING})] if names else []


def shown(section: dict[str, Any], columns: Collection[str], chosen: Sequence[str] = ()) -> list[str]:
    """The chosen ones of these columns, or those that a reader expects and a run has."""
    if chosen:
        return [name for name in dict.fromkeys(chosen) if name in columns]
    rows = section["rows"]
    found = [name for name in columns if name not in CHOSEN]
    return [name for name in found if name not in OPTIONAL or any(row["columns"][name]["n"] for row in rows)]


def _rows(section: dict[str, Any], titles: dict[str, str]) -> list[list[str]]:
    lines = [["method", "n", *titles.values()]]
    for row in section["rows"]:
        cells = [spread_text(name, row["columns"][name], len(row["seeds"])) for name in titles]
        lines.append([differences.title_of(row), str(len(row["seeds"])), *cells])
    return lines


def spread_text(name: str, cell: dict[str, Any], runs: int) -> str:
    """Mean ± standard deviation of a column in the unit of its table, with n where runs are missing."""
    if cell["mean"] is None:
        return MISSING
    show = partial(_quantity, name) if name in UNITS else percent
    is_change = name in general.CHANGES or name in published.CHANGES
    text = show(cell["mean"], "+" if is_change else "")
    text += f" ± {show(cell['std'])}" if cell["std"] is not None else ""
    return text if cell["n"] == runs else f"{text} (n={cell['n']})"


def _quantity(name: str, value: float, _sign: str = "") -> str:
    _, divisor, digits = UNITS[name]
    return f"{value / divisor:,.{digits}f}"


def _remarks(row: dict[str, Any]) -> list[str]:
    """Caveats about the rows."""
    title, remarks = differences.title_of(row), []
    runs = Counter(zip(row["seeds"], row["orders"], strict=True))
    twice = [str(seed) for (seed, _), count in runs.items() if count > 1]
    if twice:
        remarks.append(f"{title}: more than one run with seed {', '.join(twice)}; these are not independent.")
    finished = row["columns"]["last_task"]["n"]
    if finished < len(row["seeds"]):
        without = f"{len(row['seeds']) - finished} of {len(row['seeds'])} runs have"
        remarks.append(f"{title}: {without} no score after the last task (unfinished, or evaluation only).")
    return remarks
