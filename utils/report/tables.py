"""Parts of text tables: percent, marks, Markdown that is also aligned as plain text."""

from __future__ import annotations

from typing import Any

MISSING = "-"


def headline(results: dict[str, Any]) -> str:
    """Heading of a table: method, stream, seed, metrics and whether higher is better."""
    seed = f", seed {results['seed']}" if "seed" in results else ""  # a comparison has no seed and no method
    method = f"{results['method']} on " if "method" in results else ""
    metrics = ", ".join(dict.fromkeys(results["metrics"]))
    direction = {(True,): "higher is better", (False,): "lower is better"}
    which = direction.get(tuple(set(results["higher_is_better"])), "lower is better for tasks marked ↓")
    return f"{method}{results['stream']}{seed}: {metrics} in percent, {which}"


def mark(results: dict[str, Any], task: int) -> str:
    """An arrow if lower is better in this task but not in all tasks."""
    return " ↓" if any(results["higher_is_better"]) and not results["higher_is_better"][task] else ""


def mean(values: list[float | None], higher_is_better: list[bool]) -> float | None:
    """Mean score; None if a score is missing or higher is better in some tasks only."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) or len(set(higher_is_better)) > 1 else sum(known) / len(known)


def percent(value: float | None, sign: str = "") -> str:
    """A share in percent, or a dash."""
    return MISSING if value is None else f"{round(100 * value, 2) + 0.0:{sign}.2f}"  # + 0.0: no "-0.00"


def words(name: str) -> str:
    """A name from the code as words."""
    return name.replace("_", " ")


def markdown(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """A Markdown table that is also aligned as plain text; the first row is the header."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        " | ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [rows[0], rule, *rows[1:]]
    ]
    return "\n".join(f"| {line} |" for line in lines)
