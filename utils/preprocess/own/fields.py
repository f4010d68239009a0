r"""From a record of any shape to an example: which of its fields are the question, the answer, the class or the chat.

A specification is a text such as `input=instruction+input?,target=output`: roles, and for each the fields that are
joined. A field with `?` may be absent or empty; `answers.text` is a field inside a field. Roles:

    input, target        the question and the answer; a target that is a list holds all accepted answers
    label                the class, a text or an integer
    messages             a chat, instead of input and target
    system, history      with input and target: a chat of these, earlier turns and the question
    choices              options of a question: they are listed under it, and the target becomes the letter of one
    endings              options that are not listed: each is a possible answer, and the target becomes the right one
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from utils.dataset import Example
from utils.errors import UserError
from utils.preprocess.own.names import NOTHING, advice, leaves_out
from utils.preprocess.shared.records import Row

ROLES = ("input", "target", "label", "messages", "system", "history", "choices", "endings")
LETTERS = string.ascii_uppercase


class Part(NamedTuple):
    """A field that is read."""

    name: str
    optional: bool

    def value(self, record: dict[str, Any]) -> Any:
        """What a record has there; None: nothing."""
        if self.name in record or "." not in self.name:
            return record.get(self.name)
        value: Any = record
        for key in self.name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


class Tags(NamedTuple):
    """How chats are written: the names of a turn's fields, and whose turn each role is."""

    role: str
    content: str
    roles: dict[str, str]


OPENAI = Tags("role", "content", {role: role for role in ("user", "assistant", "system")})
SHAREGPT = Tags("from", "value", {"human": "user", "gpt": "assistant", "system": "system"})


class Record(NamedTuple):
    """An example whose class is still a name."""

    example: Example
    label: str | None
    where: str


@dataclass(frozen=True)
class Fields:
    """A specification, read."""

    text: str
    parts: dict[str, tuple[Part, ...]]
    joint: str = "\n"  # between the texts of several fields
    is_given: bool = True  # field by field, by the user, who may leave some out; else a question must be read whole
    tags: Tags | None = None  # None: as the first turn is written
    unread: set[str] = field(default_factory=set, compare=False, repr=False)  # names that were seen and not read

    @cached_property
    def known(self) -> set[str]:
        """Names of fields that are read."""
        names = {part.name for parts in self.parts.values() for part in parts}
        return names | {name.partition(".")[0] for name in names}

    def read(self, row: Row) -> Record:
        """The example in a record.

        Raises:
            UserError: a field is absent or of another kind, or part of the question would not be read.
        """
        example, label = self._example(row), self._value(row, "label") if "label" in self.parts else None
        if label is not None and type(label) not in (str, int):
            raise row.error(self.parts["label"][0].name, "a text or an integer", label)
        self._check_unread(row, example)
        return Record(example, None if label is None else str(label), row.where)

    def _check_unread(self, row: Row, example: Example) -> None:
        unread = row.fields.keys() - self.known
        if not unread:
            return
        rest = {name: row.fields[name] for name in unread if row.fields[name] not in NOTHING}
        lost = [] if self.is_given else leaves_out(rest, self.parts, (example.input, *example.accepted))
        if lost:
            raise UserError(
                f"{row.where}: the field {lost[0]!r} may belong to the question, and {self.text} would not read it; "
                f"{advice(row.fields)}"
            )
        self.unread.update(map(str, unread))

    def _example(self, row: Row) -> Example:
        if "messages" in self.parts:
            return _from_turns(row, self._turns(row, self.parts["messages"][0], self.tags))
        if {"choices", "endings"} & self.parts.keys():
            return self._choice(row)
        question, answers = self._joined(row, "input"), self._answers(row)
        if {"system", "history"} & self.parts.keys():
            return _from_turns(row, [*self._before(row), ("user", question), ("assistant", answers[0])])
        return Example(question, answers[0], references=tuple(answers) if len(answers) > 1 else None)

    def _value(self, row: Row, role: str) -> Any:
        """The value of the first field of a role that has one; None: only optional fields, and none has."""
        for part in self.parts[role]:
            value = part.value(row.fields)
            if value is not None:
                return value
            if not part.optional:
                raise self._missing(row, part)
        return None

    def _joined(self, row: Row, role: str) -> str:
        """The texts of the fields of a role; where there are several, empty ones are left out."""
        texts = []
        for part in self.parts[role]:
            value = part.value(row.fields)
            if value is not None:
                texts.append(self._text(row, part, value))
            elif not part.optional:
                raise self._missing(row, part)
        if len(self.parts[role]) == 1 and texts:
            return texts[0]
        return self.joint.join(text for text in texts if text.strip())

    def _answers(self, row: Row) -> list[str]:
        parts = self.parts["target"]
        value = parts[0].value(row.fields) if len(parts) == 1 else None
        if isinstance(value, list) and value:
            return list(dict.fromkeys(self._text(row, parts[0], one) for one in value))
        return [self._joined(row, "target")]

    def _text(self, row: Row, part: Part, value: Any) -> str:
        if isinstance(value, str) and value.isascii():
            return value
        text = as_text(value)
        if text is None:
            raise UserError(f"{row.error(part.name, 'a text or a number', value)}; {advice(row.fields)}")
        return row._replace(fields={part.name: text}).text(part.name)  # refuses half characters

    def _missing(self, row: Row, part: Part) -> UserError:
        return UserError(f"{row.error(part.name, 'a text', None)}; {advice(row.fields, self.text)}")

    def _before(self, row: Row) -> Iterator[tuple[str, str]]:
        """The system turn, and the turns before the question."""
        if "system" in self.parts and (text := self._joined(row, "system")):
            yield "system", text
        turns = self._value(row, "history") if "history" in self.parts else None
        for turn in turns or ():
            if not (isinstance(turn, list) and [type(text) for text in turn] == [str, str]):
                raise row.error(self.parts["history"][0].name, "a list of [question, answer]", turns)
            yield from zip(("user", "assistant"), turn, strict=True)

    def _turns(self, row: Row, part: Part, tags: Tags | None) -> list[tuple[str, str]]:
        turns = part.value(row.fields)
        if turns is None:
            raise self._missing(row, part)
        if not isinstance(turns, list):
            raise row.error(part.name, "a list of {role, content}", turns)
        turns = [turn if isinstance(turn, dict) else {} for turn in turns]
        first = turns[0] if turns else {}
        tags = tags or (SHAREGPT if "from" in first and "role" not in first else OPENAI)
        rows = [Row(f"{row.where}, turn {i}", turn) for i, turn in enumerate(turns, start=1)]
        read = [(turn.text(tags.role), turn.text(tags.content)) for turn in rows]
        return [*self._before(row), *((tags.roles.get(role, role), content) for role, content in read)]

    def _choice(self, row: Row) -> Example:
        """The question with its options, one a line, and the letter of the right one; or the options are answers."""
        part = self.parts["choices" if "choices" in self.parts else "endings"][0]
        names, texts = _options(row, part, part.value(row.fields) if part.value(row.fields) is not None else [])
        place = _chosen(row, self.parts["target"][0].name, self._value(row, "target"), names, texts)
        if "endings" in self.parts:
            if not all(text.strip() for text in texts):
                raise row.error(part.name, "texts that are not empty", None)
            return Example(self._joined(row, "input"), texts[place], choices=tuple(texts))
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        return Example(
            "\n".join([self._joined(row, "input"), *lines]), LETTERS[place], choices=tuple(LETTERS[: len(texts)])
        )


def parse(text: str, joint: str = "\n", is_given: bool = True) -> Fields:
    """Read a specification.

    Raises:
        UserError: it is none.
    """
    parts: dict[str, tuple[Part, ...]] = {}
    for item in text.split(","):
        role, equals, names = (piece.strip() for piece in item.partition("="))
        read = tuple(Part(name.strip().removesuffix("?"), name.strip().endswith("?")) for name in names.split("+"))
        if role not in ROLES or not equals or role in parts or not all(part.name for part in read):
            raise UserError(
                f"fields: expected ROLE=FIELD+FIELD,... with each ROLE of {', '.join(ROLES)} at most once, "
                f"got {item!r} in {text!r}"
            )
        parts[role] = read
    if parts.keys() & {"input", "target", "messages"} not in ({"input", "target"}, {"messages"}):
        raise UserError(f"fields: expected input=... and target=..., or messages=..., got {text!r}")
    if {"choices", "endings"} <= parts.keys():
        raise UserError(f"fields: expected choices=... or endings=..., got both in {text!r}")
    return Fields(text, parts, joint, is_given)


def as_text(value: Any) -> str | None:
    """A text, or a number as JSON writes it; None: neither.

    >>> as_text("a"), as_text(2), as_text(0.5), as_text(True), as_text([1])
    ('a', '2', '0.5', 'true', None)
    """
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return json.dumps(value) if is_number else None


def _from_turns(row: Row, messages: Sequence[tuple[str, str]]) -> Example:
    roles = [role for role, _ in messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise UserError(
            f"{row.where}: expected user and assistant in turns, at most a system turn before them and an answer at "
            f"the end, got {', '.join(roles)[:80] or 'no turns'} in the field 'messages'"
        )
    return Example(messages[-2][1], messages[-1][1], messages=tuple(messages))


def _options(row: Row, part: Part, value: Any) -> tuple[list[str], list[str]]:
    """Names (the letters, if they have none) and texts of the options of a question."""
    given = value if isinstance(value, dict) else {"text": value}  # {"text": [...], "label": [...]} as in ARC
    texts = [as_text(one) for one in given["text"]] if isinstance(given.get("text"), list) else []
    names = [as_text(one) for one in given.get("label", LETTERS[: len(texts)])]
    if not texts or len(texts) > len(LETTERS) or len(names) != len(texts) or None in texts + names:
        raise row.error(part.name, f"a list of 1 to {len(LETTERS)} texts", value)
    return [str(name) for name in names], [str(text) for text in texts]


def _chosen(row: Row, field_name: str, value: Any, names: list[str], texts: list[str]) -> int:
    """The place of the right option: its place (from 0), its name or its text, whichever fits without doubt.

    An integer is the name of an option where options have numbers as names, otherwise a place.
    """
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = as_text(value) or ""
    found = {i for i, (name, option) in enumerate(zip(names, texts, strict=True)) if text in (name, option)}
    if type(value) is int:
        found = {names.index(text) if text in names else value}
    elif text.isdecimal() and names[0] == LETTERS[0]:
        found.add(int(text))
    found &= {*range(len(texts))}
    if len(found) != 1:
        got = "several" if found else "none"
        raise UserError(
            f"{row.where}: expected one of the {len(texts)} choices in the field {field_name!r}, by its place (from "
            f"0), letter or text, got {got}"
        )
    return found.pop()
