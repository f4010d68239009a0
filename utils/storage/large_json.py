"""Read a large JSON file in pieces, with its lists of texts packed (`Texts`): the whole text is never in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # undocumented, so not in the stubs
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError
from utils.storage.files import NOT_JSON, read_json
from utils.storage.packed_columns import Texts

LARGE = 64_000_000  # bytes; smaller files are read whole
PIECE = 4_000_000  # characters per read
LONGEST_WORD = 16  # characters of a literal or an escape, at most
_NOT_BLANK = re.compile(r"[^ \t\n\r]")
_NEXT_TEXT = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"')
_DECODER = json.JSONDecoder()


def read_large_json(path: Path) -> Any:
    """Read JSON like `storage.files.read_json`; in a file of `LARGE` bytes or more a list of texts becomes `Texts`.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    if not path.is_file() or path.stat().st_size < LARGE:
        return read_json(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = _Text(file)
            value = _value(text)
            if text.peek() == "":
                return value
    except (json.JSONDecodeError, UnicodeDecodeError):
        pass
    return read_json(path)


class _Text:
    """The part of a file that is being parsed."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def more(self) -> bool:
        """Drop the parsed part and read at least as much as remains; False at the end of the file."""
        left = self.text[self.at :]
        piece = self.file.read(max(PIECE, len(left)))
        self.text, self.at = left + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not blank, which stays unread; "" at the end."""
        while True:
            if found := _NOT_BLANK.search(self.text, self.at):
                self.at = found.start()
                return found.group()
            self.at = len(self.text)
            if not self.more():
                return ""

    def take(self, allowed: str) -> str:
        """Read the next character that is not blank, which must be one of `allowed`."""
        found = self.peek()
        if found == "" or found not in allowed:
            raise json.JSONDecodeError(f"expected one of {allowed}", self.text, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """Read the next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - LONGEST_WORD or error.msg.startswith("Unterminated")
                if not (is_cut and self.more()):  # what is broken elsewhere is not read on to the end of the file
                    raise
                continue
            if end == len(self.text) and self.more():
                continue  # the next piece may hold more digits of this number
            self.at = end
            return value

    def texts(self, found: Texts) -> None:
        """Append the texts of a list that are complete in memory: the fast path."""
        while begin := _NEXT_TEXT.match(self.text, self.at):
            try:
                value, self.at = scanstring(self.text, begin.end())
            except json.JSONDecodeError:
                return
            found.append(value)


def _value(text: _Text) -> Any:
    """An object of values, a list, or a value."""
    begin = text.peek()
    if begin == "{":
        return _object(text)
    return _list(text) if begin == "[" else text.value()


def _object(text: _Text) -> dict[str, Any]:
    found: dict[str, Any] = {}
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return found
    while True:
        if text.peek() != '"':
            text.take('"')  # keys are texts
        key = text.value()
        text.take(":")
        found[key] = _value(text)
        if text.take(",}") == "}":
            return found


def _list(text: _Text) -> list[Any] | Texts:
    found: list[Any] | Texts = []
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return found
    if text.peek() == '"':
        found = Texts()
    while True:
        value = text.value()
        if isinstance(found, Texts) and not isinstance(value, str):
            found = list(found)
        found.append(value)
        if isinstance(found, Texts):
            text.texts(found)
        if text.take(",]") == "]":
            return found


def list_items(path: Path) -> Iterator[Any]:
    """The items of a JSON file that is a list, one after the other; the list is never in memory.

    Raises:
        UserError: the file is not a JSON list.
    """
    count = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = _Text(file)
            text.take("[")
            more = text.peek() != "]"
            while more:
                yield text.value()
                count += 1
                more = text.take(",]") == ","
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, record {count + 1}: expected UTF-8 text, got something else ({error})") from None
    except NOT_JSON as error:
        reason = getattr(error, "msg", error)  # without the place in the piece that was read
        raise UserError(f"{path}, record {count + 1} is not JSON (truncated while copying?): {reason}") from None
