"""Relation data sets as published for continual learning: for each split a list of records for each relation.

A record is `{"text": ..., "semantic_label": ...}`; the text marks its two entities: `[E11] head [E12]` and
`[E21] tail [E22]`. The published files are pickles; JSON with the same content is read as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from utils.dataset import SPLITS
from utils.errors import UserError
from utils.preprocess.shared.classes import Labelled
from utils.preprocess.shared.raw import Origin, need, raw_file, read_raw_json, shown
from utils.preprocess.shared.records import Row
from utils.preprocess.shared.safe_pickle import load_plain
from utils.prompt import MARKERS


class Relations(NamedTuple):
    """The relations in the order of the file, and the rows of each split."""

    labels: list[str]
    splits: dict[str, list[Labelled]]


def find(raw_dir: Path | None, stem: str, origin: Origin) -> Path:
    """The raw file `stem`.json or, if absent, `stem`.pkl, which must exist."""
    path = raw_file(raw_dir, f"{stem}.json")
    return path if path.is_file() else need(raw_file(raw_dir, f"{stem}.pkl"), origin)


def read_relations(path: Path, origin: Origin) -> Relations:
    """Read and check a file; the label of a relation is that of its first training record.

    Raises:
        UserError: the file cannot be read, or has a wrong record.
    """
    data = read_raw_json(path, origin) if path.suffix == ".json" else load_plain(path)
    if not isinstance(data, list | tuple) or len(data) != len(SPLITS):
        raise UserError(f"{path}: expected three lists (train, dev, test), got {shown(data)}")
    splits = dict(zip(SPLITS, data, strict=True))
    for split, relations in splits.items():
        _check_lists(relations, splits["train"], f"{path}, {split}", may_be_empty=split == "dev")
    rows = {split: _rows(relations, f"{path}, {split}") for split, relations in splits.items()}
    labels = [first.text("semantic_label").strip() for first, *_ in rows["train"]]
    return Relations(labels, {split: _label(rows[split], labels) for split in rows})


def _label(relations: list[list[Row]], labels: list[str]) -> list[Labelled]:
    return [_labelled(row, labels, i) for i, rows in enumerate(relations) for row in rows]


def _check_lists(relations: Any, train: Any, where: str, may_be_empty: bool) -> None:
    """Check one split against train, which comes first and so is a list when the others are checked."""
    if may_be_empty and not relations:
        return
    if not isinstance(relations, list | tuple) or not all(isinstance(one, list | tuple) for one in relations):
        raise UserError(f"{where}: expected a list of records for each relation, got {type(relations).__name__}")
    count = len(train)
    if len(relations) != count or not count:
        raise UserError(f"{where}: expected a list for each of the {count} relations of train, got {len(relations)}")
    empty = [i for i, records in enumerate(relations, start=1) if not records]
    if empty and not may_be_empty:
        raise UserError(f"{where}, relation {empty[0]}: expected at least one record, got none")


def _rows(relations: Any, where: str) -> list[list[Row]]:
    return [
        [_row(record, f"{where}, relation {i}, record {j}") for j, record in enumerate(records, start=1)]
        for i, records in enumerate(relations, start=1)
    ]


def _row(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with named fields, got {type(record).__name__}")
    return Row(where, record)


def _labelled(row: Row, labels: list[str], i: int) -> Labelled:
    label, text = row.text("semantic_label").strip(), row.text("text")
    if label != labels[i]:
        raise UserError(f"{row.where}: expected {labels[i]!r} in the field 'semantic_label', got {shown(label)}")
    places = [text.find(marker) for marker in MARKERS if text.count(marker) == 1]
    if len(places) < len(MARKERS) or places[0] > places[1] or places[2] > places[3]:
        marks = "[E11] .. [E12] and [E21] .. [E22]"
        raise UserError(f"{row.where}: expected the marks {marks} once each in the field 'text', got other ones")
    return Labelled(text, i)
