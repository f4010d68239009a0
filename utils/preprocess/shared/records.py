"""Raw files of records (JSON, JSON lines, CSV): read once and checked; errors name file, record and field.

A byte-order mark and CRLF line ends are accepted. Messages never quote a record: some data sets are adversarial.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def as_text(value: Any) -> str | None:
    """A text, or a number as JSON writes it; None: neither.

    >>> as_text("a"), as_text(2), as_text(0.5), as_text(True), as_text([1])
    ('a', '2', '0.5', 'true', None)
    """
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return json.dumps(value) if is_number else None


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


class Counted(NamedTuple):
    """What `remark` needs of a split; the questions of a large one do not fit in memory."""

    questions: NDArray[np.uint64]  # digests
    blank_questions: int
    blank_answers: int


def counted(examples: Sequence[Example]) -> Counted:
    """Count a split."""
    questions = np.fromiter(map(question, examples), np.uint64, len(examples))
    return Counted(questions, sum(not e.input.strip() for e in examples), sum(not e.target.strip() for e in examples))


def remarks(tasks: Sequence[TaskData]) -> list[str]:
    """Properties of the data that affect scores: repeated questions, test questions seen in training, empty texts."""
    lines = [remark(t.name, counted(t.train), counted(t.dev), counted(t.test), t.dev == t.test) for t in tasks]
    return [line for line in lines if line]


def remark(name: str, train: Counted, dev: Counted, test: Counted, dev_is_test: bool) -> str:
    """The same of one task, in one line; "" if there are none."""
    asked = distinct(train.questions)
    new = 0 if dev_is_test else are_in(dev.questions, distinct(test.questions)).sum()
    counts = {
        f"of {len(train.questions)} train questions are repeats": len(train.questions) - len(asked),
        f"of {len(test.questions)} test questions are in train": are_in(test.questions, asked).sum(),
        f"of {len(dev.questions)} dev questions are in test": new,
        "questions are empty": train.blank_questions + test.blank_questions,
        "answers are empty": train.blank_answers + test.blank_answers,
    }
    found = [f"{count} {what}" for what, count in counts.items() if count]
    return f"{name}: {', '.join(found)}" if found else ""


def distinct(digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The different digests, sorted; by one sort, as a hash table of millions takes several times as long."""
    found = np.sort(digests)
    return found[np.append(True, found[1:] != found[:-1])[: len(found)]]


def are_in(digests: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each digest, whether it is known.

    Args:
        digests: (N,), any.
        known: (K,) from `distinct`.
    """
    if not len(known):
        return np.zeros(len(digests), bool)
    return known[np.minimum(np.searchsorted(known, digests), len(known) - 1)] == digests


def question(example: Example) -> int:
    """Digest, of 64 bits, of the question: of its text, or in a chat of everything before the last turn."""
    asked = example.input if example.messages is None else json.dumps([example.input, *example.messages[:-1]])
    return int.from_bytes(hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


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
        raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from None
