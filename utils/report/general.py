"""What was asked outside the stream: scores before training and after each task, and how they changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.metric import PERPLEXITY, ability_change, perplexity, perplexity_change
from utils.report.tables import MISSING, markdown, percent
from utils.scoring import find
from utils.storage.files import read_json, read_jsonl
from utils.storage.moment import BASE, Moment

Number = float | None
# Column of a table of runs -> title. All but the last are TRACE's deltas.
CHANGES = {
    "general_change": "general ability change",
    "instruction_change": "instruction following change",
    "safety_change": "safety change",
    "perplexity_change": "perplexity change",
}
# Metrics of lm-eval that are shares of right answers; others are shown and are no part of a change.
SHARES = {
    "acc", "acc_norm", "acc_mutual_info", "em", "exact_match", "f1", "mc1", "mc2", "pass@1", "pass_at_1",
    "prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc",
}  # fmt: skip
PAIR = ("value", "stderr")  # of a metric of lm-eval
NOTE = (
    "Changes outside the stream: score after the last task minus score before training, mean over the files and tasks "
    "of questions that are never trained, counted so that a loss is negative; perplexity: relative, a loss is positive."
)


def read(run: Path, facts: dict[str, Any], tasks: int, score: Callable[[Moment, int, str, str], float]) -> list[Any]:
    """The sets of questions of a run, each with `before` and `after` every task; empty if there are none.

    Args:
        run: Its folder.
        facts: Of the run.
        tasks: How many it has.
        score: Of a moment, the number of a set, the name of its files and its metric; NaN: not asked.

    Raises:
        UserError: a file is broken.
    """
    _check(run / "facts.json", facts)
    moments = [BASE, *map(Moment, range(tasks))]
    sets = []
    for number, one in enumerate(facts.get("general", [])):
        if one["metric"] == PERPLEXITY:
            found = [_text(moment.predictions(run, f"general_{number}"), one["words"]) for moment in moments]
            per_word, values = [pair[1] for pair in found], [pair[0] for pair in found]
            more: dict[str, Any] = {"per_word": {"before": per_word[0], "after": per_word[1:]}}
            higher = False
        else:
            values = [_number(score(moment, number, "general", one["metric"])) for moment in moments]
            more, higher = {}, find(one["metric"]).higher_is_better
        sets.append(one | {"higher_is_better": higher, "before": values[0], "after": values[1:]} | more)
    asked = [_harness(run / "harness" / f"{moment.folder}.json") for moment in moments]
    return sets + [_of_harness(one, [at.get(one["name"]) for at in asked]) for one in facts.get("harness", [])]


def _check(file: Path, facts: dict[str, Any]) -> None:
    """Refuse facts of a run whose entries about questions outside the stream are damaged."""
    for name, keys in (("general", ("name", "kind", "metric")), ("harness", ("name", "kind"))):
        entries = facts.get(name, [])
        if not isinstance(entries, list) or not all(_has_texts(one, keys) for one in entries):
            raise UserError(f"{file}: {name}: expected entries with {', '.join(keys)}; the run folder is broken")
    if any(one["metric"] == PERPLEXITY and not isinstance(one.get("words"), int) for one in facts.get("general", [])):
        raise UserError(f"{file}: general: expected the number of words of each text; the run folder is broken")


def _has_texts(entry: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)


def _harness(file: Path) -> dict[str, Any]:
    """What lm-eval measured at one moment, by task."""
    content = read_json(file) if file.exists() else {"tasks": {}}
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not all(map(_is_result, tasks.values())):
        raise UserError(f"{file}: expected results of lm-eval; delete it and resume the run")
    return tasks


def _is_result(one: Any) -> bool:
    """True for a main metric among metrics that are finite or None."""
    metrics = one.get("metrics") if _has_texts(one, ("main",)) else None
    return isinstance(metrics, dict) and one["main"] in metrics and all(map(_is_metric, metrics.values()))


def _is_metric(one: Any) -> bool:
    if not isinstance(one, dict) or not {"value", "stderr", "higher_is_better"} <= one.keys():
        return False
    return all(value is None or (isinstance(value, float) and math.isfinite(value)) for value in map(one.get, PAIR))


def _of_harness(one: dict[str, Any], found: list[dict[str, Any] | None]) -> dict[str, Any]:
    """The main metric of a task of lm-eval at each moment, with its standard errors; all metrics in `metrics`."""
    known = next((at for at in found if at is not None), None)
    main = known["main"] if known else "not measured"
    values, errors = ([_at(at, main, key) for at in found] for key in PAIR)
    higher = known["metrics"][main]["higher_is_better"] if known else None
    shares = all(value is None or 0 <= value <= 1 for value in values) and main.partition(",")[0] in SHARES
    return one | {
        "metric": main,
        "source": "lm-eval",
        "is_share": shares and higher is not None,
        "higher_is_better": higher is not False,
        "before": values[0],
        "after": values[1:],
        "stderr": {"before": errors[0], "after": errors[1:]},
        "metrics": [at and at["metrics"] for at in found],
    }


def _at(found: dict[str, Any] | None, metric: str, key: str) -> Number:
    """A number of one moment; None where there is none."""
    return found["metrics"].get(metric, {}).get(key) if found else None


def _text(path: Path, words: int) -> tuple[Number, Number]:
    """Perplexity of a text per token and per word."""
    if not path.exists():
        return None, None
    rows = read_jsonl(path)
    try:
        total, tokens = math.fsum(row["log_likelihood"] for row in rows), sum(row["tokens"] for row in rows)
        return _number(perplexity(total, tokens)), _number(perplexity(total, words))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise UserError(f"{path}: expected rows with tokens and log_likelihood; delete it and resume the run") from None


def columns(results: dict[str, Any]) -> dict[str, Number]:
    """How the answers changed from before training to after the last task; None: not asked."""
    found: dict[str, Number] = {}
    for name in CHANGES:
        kind = name.removesuffix("_change")
        sets = [one for one in results.get("general", []) if _column(one) == kind]
        known = [one for one in sets if None not in (one["before"], one["after"][-1])]
        before, last = ([one["before"] for one in known], [one["after"][-1] for one in known])
        if not sets or len(known) < len(sets):
            found[name] = None
        elif kind == PERPLEXITY:
            found[name] = perplexity_change(before, last)
        else:
            found[name] = ability_change(before, last, [one["higher_is_better"] for one in known])
    return found


def _column(one: dict[str, Any]) -> str:
    """The change that a set is a part of; of a metric of lm-eval with another scale, none."""
    if not one.get("is_share", True):
        return "not in the changes"
    return PERPLEXITY if one["metric"] == PERPLEXITY else str(one["kind"])


def table(results: dict[str, Any]) -> list[str]:
    """Scores of each set at each moment, and the changes, as parts of a page; empty if nothing was asked."""
    sets = results.get("general", [])
    if not sets:
        return []
    moments = ["before training", *(f"after {name[:20]}" for name in results["task_names"])]
    rows = [["never trained", *(f"{one['name']} ({_column(one)})" for one in sets)]]
    rows.append(["", *(one["metric"] + ("" if one["higher_is_better"] else " ↓") for one in sets)])
    for k, moment in enumerate(moments):
        cells = [([one["before"], *one["after"]])[k] for one in sets]
        if any(cell is not None for cell in cells):
            rows.append([moment, *(_show(one, cell, k) for one, cell in zip(sets, cells, strict=True))])
    changes = [[title, percent(columns(results)[name], "+")] for name, title in CHANGES.items()]
    changes = [row for row in changes if row[1] != MISSING]
    parts = [
        "Outside the stream, in percent (lm-eval: ± standard error); perplexity per token and per word:",
        markdown(rows),
    ]
    return [*parts, markdown([["change", "percent"], *changes]), NOTE] if changes else parts


def _show(one: dict[str, Any], value: Number, k: int) -> str:
    """The value at moment k."""
    if "stderr" in one:
        error, show = [one["stderr"]["before"], *one["stderr"]["after"]][k], percent if one["is_share"] else _plain
        return show(value) + (f" ± {show(error)}" if error is not None and value is not None else "")
    if _column(one) != PERPLEXITY:
        return percent(value)
    both = value, [one["per_word"]["before"], *one["per_word"]["after"]][k]
    return " / ".join(MISSING if one is None else f"{one:.4g}" for one in both)


def _plain(value: Number) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _number(value: float) -> Number:
    return value if math.isfinite(value) else None
