"""Differences between a baseline and the other rows of a table, with intervals from a paired bootstrap.

Runs are paired by seed and task order, answers by question. The bootstrap (Efron, 1979) draws questions inside each
task, the same ones for both rows and all runs, and pairs of runs. n runs drawn from n vary too little by
sqrt((n - 1) / n), which matters for three seeds; their part is scaled by the inverse. P-values over all rows of a table
are adjusted by Holm (1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.report.columns import spread
from utils.report.results import order_of_run, scores_of
from utils.report.tables import MISSING, markdown, percent
from utils.scoring import find
from utils.seed import seed_for

DRAWS = 2000
LEVEL = 95  # percent
CELLS = 4_000_000  # drawn numbers in memory at a time
Pair = tuple[int, str]  # seed, task order
Floats = NDArray[np.float64]


class Answers(NamedTuple):
    """The scores of a run after its last task."""

    by_task: dict[str, Floats]  # name of the task -> (N,) scores of its questions


def add(sections: Sequence[dict[str, Any]], runs: Mapping[str, dict[str, Any]], baseline: str) -> None:
    """Give each section with the baseline its `differences`: a dict per row but the baseline.

    Rows with a different il_mode form a separate section: in TIL the task identity is given at test time.

    Args:
        sections: Of `utils.report.results.group`.
        runs: Path of a run -> its results.
        baseline: Title of a row, or its beginning if only one row begins so.

    Raises:
        UserError: the sections are not one stream with the same metrics, or there is no such row.
    """
    if len(set(map(_content, sections))) > 1:
        names = "; ".join(
            f"{section['stream']} with {', '.join(dict.fromkeys(section['metrics']))}" for section in sections
        )
        raise UserError(f"baseline: runs of different streams or metrics cannot be compared: {names}")
    has_baseline = [bool(_near(section, baseline)) for section in sections]
    for section, has in zip(sections, has_baseline, strict=True):
        if any(has_baseline) and not has:
            section["not_compared"] = baseline
            continue
        base = _find(section, baseline)
        others = [row for row in section["rows"] if row is not base]
        found = [_difference(section, base, row, runs) for row in others]
        section["baseline"] = title_of(base)
        section["differences"] = _bootstrap([one for one in found if one.pairs], section)
        section["unpaired"] = _unpaired(title_of(base), found)


def _unpaired(baseline: str, found: Sequence[_Difference]) -> list[str]:
    """Rows without a difference, and those whose difference is over other runs than the means of the table."""
    lines: dict[str, list[str]] = {}
    for one in found:
        if not one.pairs:
            text = f"No difference to {baseline}, as no finished run of it has the same seed and task order"
        elif len(one.pairs) < max(one.runs):
            text = (
                f"{len(one.pairs)} of {one.runs[1]} runs have a partner of the same seed and task order among the "
                f"{one.runs[0]} of {baseline}, and differences are over these alone"
            )
        else:
            continue
        lines.setdefault(text, []).append(one.title)
    return [f"{text}: {', '.join(titles)}." for text, titles in lines.items()]


def add_intervals(sections: Sequence[dict[str, Any]], runs: Mapping[str, dict[str, Any]]) -> None:
    """Give each row the `interval` of its average: {"low", "high"}; None where no run is finished.

    Args:
        sections: Of `utils.report.results.group`.
        runs: Path of a run -> its results.
    """
    for section in sections:
        names = section["task_names"]
        by_size: dict[tuple[int, ...], list[tuple[dict[str, Any], _Difference]]] = {}
        for row in section["rows"]:
            row["interval"] = None
            answers = _answers(row, runs) if row["columns"]["average_accuracy"]["n"] else {}
            if pairs := sorted(answers):
                by_task = {name: np.stack([answers[pair].by_task[name] for pair in pairs]) for name in names}
                sizes = tuple(scores.shape[1] for scores in by_task.values())
                by_size.setdefault(sizes, []).append((row, _Difference(title_of(row), pairs, by_task)))
        for same in by_size.values():
            for (row, _), found in zip(same, _bootstrap([one for _, one in same], section), strict=True):
                row["interval"] = {"low": found["low"], "high": found["high"]}


def add_transfer(sections: Sequence[dict[str, Any]], runs: Mapping[str, dict[str, Any]], reference: str) -> None:
    """Give each row the column `transfer_to_reference`: mean over j >= 1 of R[j, j] - S[j, j].

    S is the matrix of the reference with the same seed and order. With Single it is the forward transfer of SAPT and
    others: what the tasks before j add to learning j. A section without this row is left out, if another one has it.

    Args:
        sections: Of `utils.report.results.group`.
        runs: Path of a run -> its results.
        reference: As `baseline` in `add`.

    Raises:
        UserError: no section has such a row.
    """
    has_reference = [bool(_near(section, reference)) for section in sections]
    for section, has in zip(sections, has_reference, strict=True):
        if any(has_reference) and not has:
            section["without_reference"] = reference
            continue
        alone = _find(section, reference, "reference")
        section["reference"], known = title_of(alone), _diagonals(alone, runs)
        for row in section["rows"]:
            own = _diagonals(row, runs)
            values = [float(np.mean(own[pair] - known[pair])) for pair in own.keys() & known.keys() if len(own[pair])]
            row["columns"]["transfer_to_reference"] = spread(sorted(values))


def _diagonals(row: dict[str, Any], runs: Mapping[str, dict[str, Any]]) -> dict[Pair, Floats]:
    """Improvements when just learned, of all tasks but the first, by seed and order."""
    found: dict[Pair, Floats] = {}
    for path in row["runs"]:
        results = runs[path]
        R = results["versions"][row["version"]] if row["version"] else results["R"]
        diagonal = [R[j][j] for j in range(1, len(R))]
        sign = [1 if better else -1 for better in results["higher_is_better"][1:]]
        if None not in diagonal:
            found.setdefault((results["seed"], order_of_run(Path(path))), np.array(sign) * np.array(diagonal))
    return found


def title_of(row: dict[str, Any]) -> str:
    """Method and the options that distinguish its row."""
    return " ".join([row["method"], *(f"{name}={value}" for name, value in row["options"].items())])


def _content(section: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be equal in sections whose rows are compared: questions and scores."""
    tasks = sorted(zip(section["task_names"], section["metrics"], strict=True))
    return (section["name"], section["digest"], section["scored"], *tasks)


def _near(section: dict[str, Any], wanted: str) -> list[str]:
    """The titles that a word may mean: the same one, or those that begin so."""
    titles = [title_of(row) for row in section["rows"]]
    return [title for title in titles if title == wanted] or [title for title in titles if title.startswith(wanted)]


def _find(section: dict[str, Any], wanted: str, option: str = "baseline") -> dict[str, Any]:
    titles, near = {title_of(row): row for row in section["rows"]}, _near(section, wanted)
    if len(near) > 1 and all(title.startswith(min(near, key=len)) for title in near):
        near = [min(near, key=len)]  # the row itself, before those that add something to it
    if len(near) != 1:
        problem = "several rows begin so" if near else "there is no such row"
        raise UserError(f"{option}: {wanted!r}: {problem}; expected one of {'; '.join(titles)}")
    return titles[near[0]]


class _Difference(NamedTuple):
    """One row against the baseline."""

    title: str
    pairs: list[Pair]
    by_task: dict[str, Floats]  # (n, N) improvements: pairs of runs, questions
    runs: tuple[int, int] = (0, 0)  # finished ones of the baseline and of the row


def _difference(
    section: dict[str, Any], base: dict[str, Any], row: dict[str, Any], runs: Mapping[str, dict[str, Any]]
) -> _Difference:
    """Improvements over the baseline, per question, of finished runs with the same seed and order."""
    left, right = _answers(base, runs), _answers(row, runs)
    pairs, count = sorted(left.keys() & right.keys()), (len(left), len(right))
    if not pairs:
        return _Difference(title_of(row), [], {}, count)
    sign = {
        name: 1 if better else -1
        for name, better in zip(section["task_names"], section["higher_is_better"], strict=True)
    }
    by_task = {
        name: np.stack([sign[name] * (right[pair].by_task[name] - left[pair].by_task[name]) for pair in pairs])
        for name in section["task_names"]
    }
    return _Difference(title_of(row), pairs, by_task, count)


def _answers(row: dict[str, Any], runs: Mapping[str, dict[str, Any]]) -> dict[Pair, Answers]:
    found: dict[Pair, Answers] = {}
    for path in row["runs"]:
        results = runs[path]
        last = (results["versions"][row["version"]] if row["version"] else results["R"])[-1]
        if None not in last:
            pair = (results["seed"], order_of_run(Path(path)))
            found.setdefault(pair, _scores(Path(path), row["version"], results, last))
    return found


def _scores(run: Path, version: str, results: dict[str, Any], last: list[float]) -> Answers:
    """Scores of all questions; of a metric of all answers together (BLEU) there is one per task."""
    by_task = {}
    for j, (name, metric) in enumerate(zip(results["task_names"], results["metrics"], strict=True)):
        each = [last[j]] if find(metric).corpus else scores_of(run, len(last) - 1, version, j, metric)
        by_task[name] = np.asarray(each, dtype=float)
    return Answers(by_task)


def _bootstrap(rows: Sequence[_Difference], section: dict[str, Any]) -> list[dict[str, Any]]:
    """The differences of the average over tasks, with intervals."""
    names = section["task_names"]
    drawn = [np.zeros((DRAWS, len(row.pairs))) for row in rows]  # mean over drawn questions, per pair of runs
    for name in names:
        for begin, counts in _draw_questions(name, rows[0].by_task[name].shape[1] if rows else 0):
            for total, row in zip(drawn, rows, strict=True):
                total[begin : begin + len(counts)] += counts @ row.by_task[name].T / counts.shape[1] / len(names)
    found = [_summary(row, total, names) for row, total in zip(rows, drawn, strict=True)]
    for one, adjusted in zip(found, holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = adjusted
    return found


def _draw_questions(name: str, size: int) -> Any:
    """How often each question is drawn, (draws, size) in pieces; the same for all rows."""
    rng = np.random.default_rng(seed_for("bootstrap", name))
    step = max(1, CELLS // max(1, size))
    for begin in range(0, DRAWS if size else 0, step):
        draws = min(step, DRAWS - begin)
        places = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        yield begin, np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size).astype(float)


def _summary(row: _Difference, drawn: Floats, names: Sequence[str]) -> dict[str, Any]:
    count = len(row.pairs)
    weights = np.ones((DRAWS, count))
    if count > 1:
        rng = np.random.default_rng(seed_for("bootstrap runs", count))
        times = rng.multinomial(count, [1 / count] * count, size=DRAWS)
        weights += (times - 1) * np.sqrt(count / (count - 1))
    values = (weights * drawn).mean(axis=1)
    means = [float(row.by_task[name].mean()) for name in names]
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return {
        "method": row.title,
        "pairs": [list(pair) for pair in row.pairs],
        "mean": float(np.mean(means)),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (1 + int(tail)) / (1 + DRAWS)),
        "won": sum(mean > 0 for mean in means),
        "tasks": dict(zip(names, means, strict=True)),
    }


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def text(section: dict[str, Any]) -> str:
    """The table of differences, with what its numbers are."""
    return f"{head(section)}\n\n{markdown(table(section))}\n\n{note(section)}"


def head(section: dict[str, Any]) -> str:
    """Title of the table of differences."""
    return f"Differences of the average to {section['baseline']}, positive: better."


def table(section: dict[str, Any]) -> list[list[str]]:
    """The table of differences as rows of texts, titles first."""
    rows = [["method", "runs", "difference", f"{LEVEL} % interval", "tasks won", "p (Holm)"]]
    for one in section["differences"]:
        interval = f"{percent(one['low'], '+')} to {percent(one['high'], '+')}"
        won = f"{one['won']} of {len(one['tasks'])}"
        rows.append(
            [one["method"], str(len(one["pairs"])), percent(one["mean"], "+"), interval, won, f"{one['p_holm']:.3f}"]
        )
    without = [title_of(row) for row in section["rows"]]
    known = {one["method"] for one in section["differences"]} | {section["baseline"]}
    return rows + [[title, "0", *[MISSING] * 4] for title in without if title not in known]


def note(section: dict[str, Any]) -> str:
    """What the numbers of the table of differences are."""
    counts = {len(one["pairs"]) for one in section["differences"]}
    over = "questions and runs (seeds, task orders)" if counts - {1} else "questions"
    words = [
        f"Paired bootstrap over {over}, {DRAWS:,} draws; p adjusted by Holm ({len(section['differences'])} tests)."
    ]
    if 1 in counts:
        words.append("With one run, an interval shows the choice of questions alone: another seed may lie outside it.")
    if any(find(metric).corpus for metric in section["metrics"]):
        words.append("Tasks whose metric scores all answers together vary over runs only.")
    if len(set(section["higher_is_better"])) > 1 or len(set(section["metrics"])) > 1:
        words.append("The tasks have different metrics; the average is a mean of different scores.")
    return " ".join(words)
