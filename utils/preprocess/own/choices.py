"""The options of a question: their names and texts, the right one, and how a question lists them."""

from __future__ import annotations

import re
import string
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.preprocess.shared.records import Row, as_text

LETTERS = string.ascii_uppercase


class Choices(NamedTuple):
    """The options of a question."""

    names: list[str]  # the letters, if they have none
    texts: list[str]

    def listed(self, question: str) -> str:
        """The question with the options below it, one a line; the question alone if it lists them by letters.

        >>> Choices(["A", "B"], ["cat", "dog"]).listed("Which?")
        'Which?\\nA. cat\\nB. dog'
        >>> Choices(["A", "B"], ["(A)cat", "(B)dog"]).listed("Which? (A) cat (B) dog")
        'Which? (A) cat (B) dog'
        """
        texts = self._bare()
        if all(_lists(question, letter, text) for letter, text in zip(LETTERS, texts, strict=False)):
            return question
        return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))])

    def are_in(self, question: str) -> bool:
        """True if the question holds all texts."""
        return all(text.strip() in question for text in self._bare())

    def _bare(self) -> list[str]:
        """The texts without their letters, if all have them: `(A) cat`, `A. cat`."""
        marks = [re.match(f"{_mark(letter)}(?=.)", text) for letter, text in zip(LETTERS, self.texts, strict=False)]
        ends = [mark.end() for mark in marks if mark]
        return [text[end:] for text, end in zip(self.texts, ends, strict=True)] if all(marks) else self.texts

    def chosen(self, row: Row, name: str, value: Any) -> int:
        """The place of the right option: its place (from 0), its name or its text, whichever fits without doubt.

        An integer is the name of an option where options have numbers as names, otherwise a place.
        """
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text = as_text(value) or ""
        pairs = enumerate(zip(self.names, self.texts, strict=True))
        found = {i for i, (label, option) in pairs if text in (label, option)}
        if type(value) is int:
            found = {self.names.index(text) if text in self.names else value}
        elif text.isdecimal() and self.names[0] == LETTERS[0]:
            found.add(int(text))
        found &= {*range(len(self.texts))}
        if len(found) != 1:
            got = "several" if found else "nothing" if value is None else "none"
            raise UserError(
                f"{row.where}: expected one of the {len(self.texts)} choices in the field {name!r}, by its place (from "
                f"0), letter or text, got {got}"
            )
        return found.pop()

    def is_place(self, value: Any, place: int) -> bool:
        """True if a value is the number of a place, and neither the name nor (in a text) the text of an option."""
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text = as_text(value)
        return text == str(place) and text not in self.names and (type(value) is int or text not in self.texts)

    def counted(self, row: Row, name: str, value: Any, first: int) -> int:
        """The place of the right option from a number that counts from `first`."""
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text, last = as_text(value) or "", first + len(self.texts) - 1
        if not text.isdecimal() or not first <= int(text) <= last:
            got = f"; got {text}" if text.isdecimal() else ""
            raise UserError(f"{row.where}: expected a number from {first} to {last} in the field {name!r}{got}")
        return int(text) - first


def read(row: Row, name: str, value: Any) -> Choices:
    """The options in a field.

    Args:
        row: The record, for messages.
        name: Of the field.
        value: A list of texts, {"text": [..], "label": [..]} as in ARC, {"A": text, ..}, or a list of
            {"key": "A", "text": text}.

    Raises:
        UserError: it is none of these.
    """
    given = _columns(value)
    texts = [as_text(one) for one in given["text"]] if isinstance(given.get("text"), list) else []
    names = [as_text(one) for one in given.get("label", LETTERS[: len(texts)])]
    if not texts or len(texts) > len(LETTERS) or len(names) != len(texts) or None in texts + names:
        expected = f"a list of 1 to {len(LETTERS)} texts"
        if isinstance(value, list):
            raise UserError(f"{row.where}: expected {expected} in the field {name!r}, got {_shown(value)}")
        raise row.error(name, expected, value)
    return Choices([str(one) for one in names], [str(one) for one in texts])


def of_columns(row: Row, names: list[str], values: list[Any]) -> Choices:
    """The options in several fields; at the end of them some may be empty.

    Raises:
        UserError: one is no text, or an empty one has others behind it.
    """
    texts = [as_text(value) for value in values]
    while texts and not (texts[-1] or "").strip() and values[len(texts) - 1] in (None, texts[-1]):
        texts.pop()
    wrong = next((i for i, text in enumerate(texts) if not (text or "").strip()), None)
    if wrong is not None or not texts:
        place = wrong or 0
        raise row.error(names[place], "the text of an option", values[place] or None)
    return Choices(list(LETTERS[: len(texts)]), [str(text) for text in texts])


def _columns(value: Any) -> dict[str, Any]:
    """Options as lists: text, and label where they have names."""
    if isinstance(value, dict):
        is_named = "text" not in value and not any(isinstance(one, list | dict) for one in value.values())
        there = {key: text for key, text in value.items() if text is not None}  # Parquet has all keys in all records
        return {"text": list(there.values()), "label": list(there)} if is_named else value
    if isinstance(value, list) and value and all(isinstance(one, dict) and "text" in one for one in value):
        key = next((key for key in ("key", "label") if all(key in one for one in value)), None)
        return {"text": [one["text"] for one in value]} | ({"label": [one[key] for one in value]} if key else {})
    return {"text": value}


def _shown(value: list[Any]) -> str:
    other = next((type(one).__name__ for one in value if as_text(one) is None), None)
    return f"a list of {len(value)}" if other is None else f"a list with {other}"


def _lists(question: str, letter: str, text: str) -> bool:
    return re.search(rf"{_mark(letter)}{re.escape(text.strip())}(?!\w)", question) is not None


def _mark(letter: str) -> str:
    return rf"(\({letter}\)|(?<!\w){letter}[.):])\s*"
