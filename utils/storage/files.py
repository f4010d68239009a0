"""Reading and writing files. A file is written under a temporary name, synced and renamed: it is whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError

NOT_JSON = (
    ValueError,
    RecursionError,
)  # RecursionError: deeply nested brackets; ValueError also: a number of 5000 digits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a binary file in one step, see `write_text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_file(path: Path) -> bool:
    """Like `Path.is_file`, but False for a name that is too long for a file (`Path.is_file` raises)."""
    try:
        return path.is_file()
    except OSError:
        return False


def remove_drafts(folder: Path) -> None:
    """Remove the temporary files and folders (`.*.tmp`) of programs that were killed while writing."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # the folder it was in may have been removed above


def drop_torn_line(path: Path) -> None:
    """Truncate an incomplete last line, left by a killed program or a full disk."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk: a rename is durable only after that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON.

    Raises:
        ValueError: the content holds NaN, which is not JSON (use None).
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line; errors as in `write_json`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    text = _read(path)
    try:
        content = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} holds half of a character (a lone surrogate); repair the file") from None
    except NOT_JSON as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; errors as in `read_json`."""
    rows = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line:
            try:
                row = json.loads(line)
            except NOT_JSON as error:
                raise UserError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected an object such as {{...}}, got {line[:80]}")
            rows.append(row)
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def lock(file: TextIO, refusal: str) -> None:
    """Keep other processes out as long as the file is open; the lock of a killed process is released.

    Raises:
        UserError: another process has it open; says `refusal`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(refusal) from None
    except OSError:
        return  # a file system without locks
