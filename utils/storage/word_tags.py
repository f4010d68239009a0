"""Word-level data: lists of words and of tags on disk, two texts joined by single spaces in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Protocol

from utils.errors import UserError

COLUMNS = ("input", "label_idx_cil")  # words, tags; the published name of the second: these are texts, not indices


class _Pair(Protocol):
    """An example: words and tags, each joined by spaces."""

    @property
    def input(self) -> str: ...
    @property
    def target(self) -> str: ...


def split_columns(examples: Iterable[_Pair]) -> dict[str, list[list[str]]]:
    """The columns of a stream on disk.

    Raises:
        UserError: an example does not have one tag per word.
    """
    rows = [(_split(example.input), _split(example.target)) for example in examples]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    join_columns(columns, "this stream")
    return columns


def join_columns(columns: dict[str, Any], where: str) -> dict[str, list[str]]:
    """Columns on disk as columns of texts, checked so that splitting these at spaces gives the lists back.

    Raises:
        UserError: the columns are not lists with one tag per word; names `where` and the row.
    """
    words, tags = (columns.get(name) for name in COLUMNS)
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        raise UserError(f"{where}: expected lists {COLUMNS[0]!r} and {COLUMNS[1]!r} of the same length")
    for row, (a, b) in enumerate(zip(words, tags, strict=True)):
        if not _is_words(a) or not _is_words(b) or len(a) != len(b):
            raise UserError(f"{where}, row {row}: expected a list of words and one tag per word, all without spaces")
    return {"input": [" ".join(row) for row in words], "target": [" ".join(row) for row in tags]}


def join_splits(task: Any, where: str) -> Any:
    """`join_columns` for each split of a task; anything else is returned as it is, for the caller to check."""
    if not isinstance(task, dict):
        return task
    return {s: join_columns(c, f"{where}, {s}") if isinstance(c, dict) else c for s, c in task.items()}


def is_in(task: Any) -> bool:
    """True if a task on disk has no targets and its first input is a list."""
    columns = task.get("train") if isinstance(task, dict) else None
    if not isinstance(columns, dict) or "target" in columns:
        return False
    cells = columns.get("input")
    return isinstance(cells, list) and bool(cells) and isinstance(cells[0], list)


def _split(text: str) -> list[str]:
    return [sys.intern(word) for word in text.split(" ")]  # one copy of each word in memory


def _is_words(cell: Any) -> bool:
    return (
        isinstance(cell, list) and bool(cell) and all(isinstance(w, str) and w.strip() and " " not in w for w in cell)
    )
