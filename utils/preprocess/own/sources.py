"""The records of a file or a data set, one after the other: JSON, JSON lines, CSV, Parquet, Arrow, a hub's data set.

A file is never in memory as a whole, but for a JSON object of Natural Instructions. Parquet, Arrow and the hub are read
by the library `datasets`, which is imported only for them.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from utils.dataset import SPLITS
from utils.errors import UserError
from utils.preprocess.shared.raw import file_sha256
from utils.preprocess.shared.records import LONGEST_CELL, Row
from utils.storage.files import NOT_JSON, is_file
from utils.storage.large_json import list_items

HUB = "hub:"
_SPLIT_NAMES = {
    "train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev",
    "eval": "dev", "test": "test",
}  # fmt: skip
_SHARD = re.compile(r"-\d+-of-\d+$")
SEPARATOR = "\\"  # of folders, on Windows
BLOCK = 1000  # records that are read at once


class Source(NamedTuple):
    """Where records are: a file, or a split of a data set of the hub."""

    place: Path | str
    config: str | None = None  # of a data set of the hub
    split: str | None = None

    def __str__(self) -> str:
        return str(self.place) if self.split is None else f"{HUB}{self.place}, {self.split}"

    @property
    def size(self) -> int:
        """Bytes of what is read, about."""
        if isinstance(self.place, str):
            return hub(self).data.nbytes
        packed = 4 if suffix(self.place) == ".parquet" else 1
        return self.place.stat().st_size * packed if is_file(self.place) else 0

    @property
    def digest(self) -> str:
        """Of the content."""
        return hub(self)._fingerprint if isinstance(self.place, str) else file_sha256(self.place)

    def rows(self) -> Iterator[Row]:
        """The records with their places.

        Raises:
            UserError: they cannot be read.
        """
        if isinstance(self.place, str):
            return _of_dataset(hub(self), str(self))
        return READERS[suffix(self.place)](self.place)


def suffix(path: Path) -> str:
    """The kind of a file, by the end of its name."""
    return path.suffix.lower()


PACKED = (".gz", ".zip", ".xz", ".bz2", ".zst", ".tar", ".tgz", ".7z")
SHEETS = (".xlsx", ".xls", ".ods")


def other_kind(path: Path) -> str:
    """What to do with a file that cannot be read as it is."""
    if suffix(path) in PACKED:
        return "; unpack it first"
    return "; save it as CSV in UTF-8" if suffix(path) in SHEETS else ""


def split_of(name: str) -> str | None:
    """The split that a name of a file or of a split begins with.

    >>> split_of("validation-00000-of-00002"), split_of("train"), split_of("trains")
    ('dev', 'train', None)
    """
    return _SPLIT_NAMES.get(re.split(r"[-_.\[]", name.lower(), maxsplit=1)[0])


def part_of(stem: str) -> tuple[str, str] | None:
    """Task and split of a file that is named after both; None: another name.

    >>> part_of("law_train"), part_of("law.dev"), part_of("train"), part_of("constrain")
    (('law', 'train'), ('law', 'dev'), None, None)
    """
    found = re.fullmatch(r"(.*[^-_.])[-_.]+([A-Za-z]+)", stem)
    split = _SPLIT_NAMES.get(found[2].lower()) if found else None
    return (found[1], split) if found and split else None


def is_shard(path: Path) -> bool:
    """True of one of several files of a split: train-00000-of-00002.parquet."""
    return bool(_SHARD.search(path.stem))


def in_order(found: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """With all splits, in their usual order."""
    return {split: found.get(split, []) for split in SPLITS}


@cache
def hub(source: Source) -> Any:
    """A data set of the hub, from the library's cache or the network; without a split all of them."""
    import datasets  # a second to import

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it prints each of its tries
    try:
        return datasets.load_dataset(str(source.place), source.config, split=source.split)
    except Exception as error:  # the library, and the hub's own loading, raise nearly anything
        name = ":".join(str(part) for part in source if part is not None)
        offline = isinstance(error, ConnectionError) or "offline" in str(error).lower()
        if offline:
            reason = "the hub cannot be reached and no copy is in the cache; copy its files here and name them instead"
        else:
            reason = f"{_one_line(error)}; expected {HUB}NAME, {HUB}NAME:CONFIG or {HUB}NAME:CONFIG:SPLIT"
        raise UserError(f"{HUB}{name} cannot be read: {reason}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        start = next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        for i, record in enumerate(list_items(path), start=1):
            yield _row(record, f"{path}, record {i}")
    elif start.startswith(b"{") and (whole := _whole(path, start)) is not None:
        if isinstance(whole.get("Instances"), list):
            yield from _instances(path, whole.get("Definition"), whole["Instances"])
        else:
            yield _row(whole, f"{path}, record 1")  # its fields are named in the error
    else:
        yield from _json_lines(path)


def _instances(path: Path, definition: Any, records: list[Any]) -> Iterator[Row]:
    """The records of a task of Natural Instructions, each with the definition of the task."""
    if isinstance(definition, list):
        definition = "\n".join(map(str, definition))
    for i, record in enumerate(records, start=1):
        row = _row(record, f"{path}, instance {i}")
        yield row._replace(fields={"Definition": definition} | row.fields)


def _whole(path: Path, start: bytes) -> dict[str, Any] | None:
    """A file that is one object, over several lines or with `Instances`; None: another file."""
    try:
        first = json.loads(start)
        if "Instances" not in first:
            return None
    except NOT_JSON:
        if start.strip() != b"{":  # an object over several lines begins with its bracket
            return None
    try:
        whole = json.loads(path.read_bytes())
    except NOT_JSON:
        return None
    return whole if isinstance(whole, dict) else None


def _json_lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield _row(json.loads(text), f"{path}, line {number}")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: expected UTF-8 text, got something else ({error}); convert it to UTF-8"
                ) from None
            except NOT_JSON as error:
                more = " (objects over several lines: make it with jq -c .)" if line.strip() == b"{" else ""
                raise UserError(
                    f"{path}, line {number} is not JSON: {error}; expected a list [..] or one object a line{more}"
                ) from None


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    _opened(path).close()
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True, delimiter=_mark(file, suffix(path)))
            # pandas writes its index without a name
            reader.fieldnames = [
                name.strip() or f"column {i}" for i, name in enumerate(reader.fieldnames or (), start=1)
            ]
            if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise UserError(f"{path}: the column {twice[0]!r} is there twice; name each column once")
            for i, record in enumerate(reader, start=1):
                if None in record:
                    raise UserError(
                        f"{path}, record {i}: expected {len(reader.fieldnames or ())} cells, got more; "
                        "a cell with commas needs quotes"
                    )
                yield Row(f"{path}, record {i}", record)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8 text, got something else ({error}); convert it to UTF-8") from None


def _mark(file: TextIO, kind: str) -> str:
    """What is between the cells: tabs in .tsv, otherwise commas, or what the line of names has in their place."""
    if kind == ".tsv":
        return "\t"
    names = file.readline()
    file.seek(0)
    return next((mark for mark in ",;\t|" if mark in names), ",")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import datasets  # a second to import

    _opened(path).close()
    datasets.disable_progress_bars()
    if _is_without_rows(path):  # the library stops at it
        return iter(())
    return _table(path, lambda: datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True))


def _is_without_rows(path: Path) -> bool:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows == 0
    except (OSError, pyarrow.ArrowException):
        return False  # the reader says what is wrong


def _arrow_rows(path: Path) -> Iterator[Row]:
    import datasets  # a second to import

    _opened(path).close()
    return _table(path, lambda: datasets.Dataset.from_file(str(path)))


def _table(path: Path, load: Callable[[], Any]) -> Iterator[Row]:
    try:
        yield from _of_dataset(load(), str(path))
    except UserError:
        raise
    except Exception as error:  # wrong bytes can raise nearly anything
        raise UserError(f"{path} cannot be read as {suffix(path)[1:]}: {_one_line(error)}") from None


def _of_dataset(data: Any, where: str) -> Iterator[Row]:
    """The records of a `Dataset` or an `IterableDataset`; classes have their names instead of their numbers."""
    features = data.features or {}
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "int2str")}
    dtypes = {column: getattr(feature, "dtype", "") for column, feature in features.items()}
    short = {column: np.dtype(kind).type for column, kind in dtypes.items() if kind in ("float16", "float32")}
    number = 0
    for block in data.with_format("arrow").iter(batch_size=BLOCK):
        for record in block.to_pylist():
            number += 1
            for column, classes in names.items():
                value = record[column]
                record[column] = classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None
            for column, kind in short.items():  # 0.1, not 0.10000000149011612
                if record[column] is not None:
                    record[column] = float(str(kind(record[column])))
            yield Row(f"{where}, record {number}", record)


def _row(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with named fields, got {type(record).__name__}")
    return Row(where, record)


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a file of records{hint(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def hint(path: Path) -> str:
    """What may be meant by a word that is no file: several files, a pattern, or a data set's name on the hub."""
    text = str(path)
    if re.match(r"\w+:/", text):
        return "; files are read from this machine only: download it"
    if text.startswith("~"):
        return "; ~ is not expanded here: write the whole path"
    if any(mark in text for mark in "*?["):
        return "; no file fits this pattern, or it is in quotes, in which the shell does not expand it"
    if "," in text or " " in text:
        return "; several files are separated by spaces, in YAML written [A, B]"
    if SEPARATOR in text:
        return f"; folders are separated by /, such as {Path(text.replace(SEPARATOR, '/'))}"
    near = get_close_matches(path.name, _beside(path), n=1, cutoff=0.8)
    if near:
        return f"; did you mean {path.parent / near[0]}?"
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not path.suffix and not os.path.exists(path.parts[0])
    return f"; a data set of the hub is written {HUB}{text}" if is_name else ""


def _beside(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)
    except (OSError, ValueError):
        return []


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
