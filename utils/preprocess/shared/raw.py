"""Raw files: sources, reading, checks, and writing files too large to hold in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.storage.files import NOT_JSON

DATASET_DIR = Path("dataset")  # of raw data sets and of streams, relative to the working directory


class Origin(NamedTuple):
    """Where a raw data set is published; dataset/README.md says more."""

    place: str
    licence: str
    size: str


def raw_file(raw_dir: Path | None, name: str) -> Path:
    """Path of a raw file, which need not exist.

    Args:
        raw_dir: Folder of raw data sets, or of this one under any name; None: dataset/.
        name: Of the file, from the folder of raw data sets on, such as "TRACE/FOMC/train.json".
    """
    usual = (raw_dir or DATASET_DIR) / name
    alone = usual if raw_dir is None else raw_dir / name.partition("/")[2]
    return alone if alone.exists() and not usual.exists() else usual


def need(path: Path, origin: Origin) -> Path:
    """The path of a raw file, if it is there.

    Raises:
        UserError: it is missing; the message names its source and what to do.
    """
    if not path.is_file():
        raise UserError(missing_text(path, origin))
    return path


def missing_text(path: Path, origin: Origin) -> str:
    """The error about a raw file that is not there: its source and what to do."""
    return (
        f"{path} is missing; it comes from {origin.place} (licence: {origin.licence}; {origin.size}): "
        "put it there, or name the folder of the raw data sets with --raw-dir (see dataset/README.md)"
    )


def read_raw(path: Path, origin: Origin) -> str:
    r"""The text of a raw file, without a byte order mark and with `\n` as line end.

    Raises:
        UserError: the file is missing, or is not UTF-8.
    """
    try:
        return need(path, origin).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got other bytes ({error})") from None


def read_raw_json(path: Path, origin: Origin) -> Any:
    """The content of a raw JSON file; errors as in `read_raw`."""
    try:
        return json.loads(read_raw(path, origin))
    except NOT_JSON as error:
        raise UserError(f"{path} is not JSON (truncated while copying?): {error}") from None


def shown(cell: Any) -> str:
    """A value as error messages show it.

    >>> shown("a text of more than the forty characters that are shown"), shown(None)
    ("'a text of more than the forty characters'", 'None')
    """
    return repr(cell[:40]) if isinstance(cell, str) else repr(cell)[:40]


class Draft:
    """A file written under a temporary name, to be renamed when complete or deleted."""

    def __init__(self, path: Path):
        self.path, self.sha256 = path, ""
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Draft:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.temporary.unlink(missing_ok=True)

    def write(self, lines: Iterable[str]) -> Draft:
        """Write and sync lines, and compute their sha256."""
        with open(self.temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        self.sha256 = file_sha256(self.temporary)
        return self

    def is_different(self) -> bool:
        """True if a file with other content exists at the destination."""
        return self.path.exists() and file_sha256(self.path) != self.sha256

    def keep(self) -> str:
        """Move the file to its destination; returns whether anything changed."""
        word = "unchanged" if self.path.exists() and not self.is_different() else "written"
        os.replace(self.temporary, self.path)
        return word


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_rows(items: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """The lines of one JSON object, one entry a line."""
    line = "{"
    for i, (key, value) in enumerate(items):
        yield line if i == 0 else f"{line},"
        line = f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
    yield line
    yield "}"
