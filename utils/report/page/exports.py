"""The comparison for other programs: table.tex (booktabs) and table.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.report import general, published
from utils.report.compare import COSTS, UNITS, remarks, score_titles, shown, spread_text
from utils.report.differences import LEVEL, title_of
from utils.report.page.panels import Floats, Runs, matrix_of, spread
from utils.report.tables import MISSING, mark, percent

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "…": r"\ldots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
}
LOWER_IS_BETTER = (
    "forgetting",
    "forgetting_including_last",
    "training_forgetting",
    "order_sensitivity",
    "perplexity_change",
)
CHANGES = ("transfer_to_reference", *general.CHANGES, *published.CHANGES)


def last_scores(row: dict[str, Any], names: Sequence[str], runs: Runs) -> tuple[Floats, Floats]:
    """Score of each task after the last one: mean and standard deviation over the runs of a row, (K,); NaN: unknown."""
    found = []
    for path in row["runs"]:
        learned = runs[path]["task_names"]
        last = matrix_of(runs[path], row["version"])[-1]
        found.append([last[learned.index(name)] for name in names])
    scores = spread(np.array(found, float))
    return scores.mean, scores.std


def task_rows(section: dict[str, Any], runs: Runs) -> list[list[str]]:
    """The score of every task after the last one, titles first; in percent."""
    names = section["task_names"]
    rows = [["method", *(name + mark(section, j) for j, name in enumerate(names))]]
    for row in section["rows"]:
        mean, std = last_scores(row, names, runs)
        cells = [_cell(percent, m, s) for m, s in zip(mean, std, strict=True)]
        rows.append([title_of(row), *cells])
    return rows


def _cell(show: Any, mean: float, std: float) -> str:
    return MISSING if np.isnan(mean) else show(mean) + ("" if np.isnan(std) else f" ± {show(std)}")


def interval_text(row: dict[str, Any]) -> str:
    """The interval of a row's average, in percent."""
    found = row.get("interval")
    return f"{percent(found['low'])} to {percent(found['high'])}" if found else MISSING


def latex(sections: Sequence[dict[str, Any]], chosen: Sequence[str] = ()) -> str:
    """One booktabs table per stream: the best of each score is bold, with the interval of the average.

    >>> escape_latex("50 % of R_train")
    '50 \\\\% of R\\\\_train'
    """
    head = "% \\usepackage{booktabs}\n"
    return head + "\n".join(_latex(section, chosen) for section in sections)


def _latex(section: dict[str, Any], chosen: Sequence[str]) -> str:
    titles = {**score_titles(), **{name: title for name, (title, *_) in COSTS.items()}}
    names = shown(section, titles, chosen)
    rows = [["Method", "$n$", *(escape_latex(titles[name]) for name in names), f"{LEVEL}\\,\\% interval"]]
    best = {name: _best(section, name) for name in names}
    for row in section["rows"]:
        cells = [_latex_cell(name, row, best[name]) for name in names]
        interval = _latex_number(interval_text(row))
        rows.append([escape_latex(title_of(row)), str(len(row["seeds"])), *cells, interval])
    lines = [" & ".join(row) + " \\\\" for row in rows]
    about = escape_latex(f"{section['stream']}. " + " ".join(remarks(section)))
    interval = f"The interval of the average is a {LEVEL}\\,\\% bootstrap interval over questions and runs."
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{about} {interval}}}",
            f"\\begin{{tabular}}{{lr{'r' * len(names)}r}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def _latex_cell(name: str, row: dict[str, Any], best: str | None) -> str:
    cell = row["columns"][name]
    text = _latex_number(spread_text(name, cell, len(row["seeds"])))
    return f"\\textbf{{{text}}}" if best is not None and best == _mean_text(cell) else text


def _mean_text(cell: dict[str, Any]) -> str:
    return percent(cell["mean"])


def _best(section: dict[str, Any], name: str) -> str | None:
    """The best mean of a column, as printed; None: no value, costs, or nothing to choose between."""
    means = [mean for row in section["rows"] if (mean := row["columns"][name]["mean"]) is not None]
    higher = section["higher_is_better"]
    if name in UNITS or len(means) < 2 or (len(set(higher)) > 1 and name not in CHANGES):
        return None
    is_higher = name not in LOWER_IS_BETTER and (higher[0] or name in CHANGES or name == "R_locality")
    return percent(max(means) if is_higher else min(means))


def _latex_number(text: str) -> str:
    """Numbers with a minus sign instead of a hyphen.

    >>> _latex_number("-4.17 to 2.50")
    '$-$4.17 to 2.50'
    """
    return re.sub(r"-(?=\d)", "$-$", escape_latex(text))


def escape_latex(text: str) -> str:
    """A text without commands."""
    return "".join(SPECIAL.get(c, c) for c in text)


def table_csv(sections: Sequence[dict[str, Any]], runs: Runs, chosen: Sequence[str] = ()) -> str:
    """One line for each row, stream and column: mean, standard deviation and n; scores in [0, 1], not in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stream", "method", "seeds", "orders", "column", "mean", "std", "n", "low", "high"])
    for section in sections:
        for row in section["rows"]:
            start = [section["stream"], title_of(row), *(" ".join(map(str, row[key])) for key in ("seeds", "orders"))]
            for name in shown(section, {**score_titles(), **COSTS}, chosen):
                cell, limits = row["columns"][name], row.get("interval") if name == "average_accuracy" else None
                ends = [limits["low"], limits["high"]] if limits else ["", ""]
                writer.writerow([*start, name, *(_plain(cell[key]) for key in ("mean", "std", "n")), *ends])
            mean, std = last_scores(row, section["task_names"], runs)
            for name, *values in zip(section["task_names"], mean, std, strict=True):
                writer.writerow([*start, f"last score of {name}", *map(_plain, values), len(row["seeds"]), "", ""])
    return out.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else repr(float(value)) if isinstance(value, float) else str(value)
