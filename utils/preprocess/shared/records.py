"""Raw files of records (JSON, JSON lines, CSV): read once and checked; errors name file, record and field.

A byte-order mark and CRLF line ends are accepted. Messages never quote a record: some data sets are adversarial.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.dataset import Example, TaskData
from utils.errors import UserError
from utils.preprocess.shared.raw import Origin, need
from utils.storage.files import NOT_JSON

JSON_SUFFIXES = (".json", ".jsonl")
LONGEST_CELL = 2**31 - 1  # of a CSV file, in characters; the csv module would stop at 131,072


class Row(NamedTuple):
    """One record and its place, for messages."""

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """The text in a field, unchanged; it may be empty.

        Raises:
            UserError: the field is absent, is no text, or could not be written to a UTF-8 file.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self.error(name, "a text", value)
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{self.where}: {name!r} holds half of a character (a lone surrogate); repair the file")
        return value

    def error(self, name: str, expected: str, value: Any) -> UserError:
        """An error about one field."""
        got = "nothing" if value is None else type(value).__name__
        return UserError(f"{self.where}: expected {expected} in the field {name!r}, got {got}")


def read_rows(path: Path, origin: Origin | None = None) -> list[Row]:
    """The records of a file: a JSON list, one JSON object a line, or CSV with a header line (by its suffix).

    Args:
        path: The file.
        origin: Where it is published, named in the error if it is missing; None: the user's own file.

    Raises:
        UserError: the file is missing, not readable, or holds no records.
    """
    text = _read(path if origin is None else need(path, origin))
    if path.suffix == ".csv":
        rows = _csv_rows(path, text)
    else:
        rows = _json_list(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)
    if not rows:
        raise UserError(f"{path} holds no records, at least one is needed")
    return rows


def remarks(tasks: Sequence[TaskData]) -> list[str]:
    """Properties of the data that affect scores: repeated questions, test questions seen in training, empty texts."""
    lines = []
    for task in tasks:
        train, dev, test = ([question(e) for e in examples] for examples in (task.train, task.dev, task.test))
        counts = {
            f"of {len(train)} train questions are repeats": len(train) - len(set(train)),
            f"of {len(test)} test questions are in train": _shared(test, train),
            f"of {len(dev)} dev questions are in test": 0 if task.dev == task.test else _shared(dev, test),
            "questions are empty": sum(not e.input.strip() for e in (*task.train, *task.test)),
            "answers are empty": sum(not e.target.strip() for e in (*task.train, *task.test)),
        }
        found = [f"{count} {what}" for what, count in counts.items() if count]
        if found:
            lines.append(f"{task.name}: {', '.join(found)}")
    return lines


def question(example: Example) -> tuple[Any, ...]:
    """The question: the text, or in a chat everything before the last turn."""
    return (example.input, *(example.messages or ())[:-1])


def _shared(questions: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> int:
    known = set(others)
    return sum(question in known for question in questions)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a file of records") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: expected UTF-8 text, got something else ({error})") from None


def _json_list(path: Path, text: str) -> list[Row]:
    try:
        records = json.loads(text)
    except NOT_JSON as error:
        raise UserError(f"{path} is not JSON (truncated while copying?): {error}") from None
    return [_row(record, f"{path}, record {i}") for i, record in enumerate(records, start=1)]


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a text may contain U+2028
        if line.strip():
            try:
                record = json.loads(line)
            except NOT_JSON as error:
                raise UserError(
                    f"{path}, line {number} is not JSON: {error}; expected a list [..] or one object a line"
                ) from None
            rows.append(_row(record, f"{path}, line {number}"))
    return rows


def _row(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with named fields, got {type(record).__name__}")
    return Row(where, record)


def _csv_rows(path: Path, text: str) -> list[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        return [Row(f"{path}, record {i}", record) for i, record in enumerate(reader, start=1)]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
