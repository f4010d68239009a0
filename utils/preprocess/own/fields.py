r"""From a record of any shape to an example: which of its fields are the question, the answer, the class or the chat.

A specification is a text such as `input=instruction+input?,target=output`: roles, and for each the fields that are
joined. A field with `?` may be absent or empty; `answers.text` is a field inside a field. Roles:

    input, target        the question and the answer; a target that is a list holds all accepted answers
    references           with them: more accepted answers, a text or a list
    label                the class, a text or an integer
    messages             a chat, instead of input and target
    system, history      with input and target: a chat of these, earlier turns and the question
    choices              options of a question: they are listed under it, unless it lists them by letters itself, and
                         the target becomes the letter of one
    endings              options that are not listed: each is a possible answer, and the target becomes the right one
    index, number        with these, in place of target: the place of the right option, from 0 (index) or 1 (number)

Options may be in several fields, one in each: `choices=A+B+C+D`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from utils.dataset import Example
from utils.errors import UserError
from utils.preprocess.own import chats, choices
from utils.preprocess.own.advice import Used, advice, option
from utils.preprocess.own.chats import Tags
from utils.preprocess.own.names import LOGGED, NOTHING, leaves_out
from utils.preprocess.shared.records import Row, as_text

PLACES = ("index", "number")
ROLES = ("input", "target", "references", "label", "messages", "system", "history", "choices", "endings", *PLACES)

OPTIONS_ONCE = "options that the question lists by letters are not listed again"
SEVERAL = "a list of answers holds accepted answers: the first one is learned, each is right"
OPTIONS_TWICE = "questions that name all their options have them listed once more below, as A., B., ..."


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


class Record(NamedTuple):
    """An example whose class is still a name."""

    example: Example
    label: str | None
    where: str


class Noticed(NamedTuple):
    """What was seen while records were read."""

    unread: set[str]  # names of fields that are not read
    remarks: set[str]
    met: set[str]  # names of optional fields that some record has
    first: set[str]  # place of the first record that was read
    places: set[str]  # numbers that were read as the place of an option


@dataclass(frozen=True)
class Fields:
    """A specification, read."""

    text: str
    parts: dict[str, tuple[Part, ...]]
    joint: str = "\n"  # between the texts of several fields
    is_given: bool = True  # field by field, by the user, who may leave some out; else a question must be read whole
    tags: Tags | None = None  # None: as the first turn is written
    noticed: Noticed = field(
        default_factory=lambda: Noticed(set(), set(), set(), set(), set()), compare=False, repr=False
    )

    @cached_property
    def known(self) -> set[str]:
        """Names of fields that are read."""
        names = {part.name for parts in self.parts.values() for part in parts}
        return names | {name.partition(".")[0] for name in names}

    @cached_property
    def optional(self) -> set[str]:
        """Names of fields that may be absent."""
        return {part.name for parts in self.parts.values() for part in parts if part.optional}

    def read(self, row: Row) -> Record:
        """The example in a record.

        Raises:
            UserError: a field is absent or of another kind, or part of the question would not be read.
        """
        example, label = self._example(row), self._value(row, "label") if "label" in self.parts else None
        if label is not None and type(label) not in (str, int):
            raise row.error(self.parts["label"][0].name, "a text or an integer", label)
        self._check_unread(row, example)
        if self.is_given and not self.optional <= self.noticed.met:
            self._note_optional(row)
        if not self.noticed.first:
            self.noticed.first.add(row.where)
        return Record(example, None if label is None else str(label), row.where)

    def _note_optional(self, row: Row) -> None:
        for part in (part for parts in self.parts.values() for part in parts if part.optional):
            if part.value(row.fields) is not None:
                self.noticed.met.add(part.name)
            elif f"{part.name}?" in row.fields:
                raise UserError(
                    f"fields: '{part.name}?' is the name of a field, and ? means optional; rename the field"
                )

    def _check_unread(self, row: Row, example: Example) -> None:
        rest = {name: cell for name, cell in row.fields.items() if name not in self.known}
        unread, logged = set(rest), row.fields.get(LOGGED)
        if LOGGED in self.known and isinstance(logged, dict):
            rest |= {name: cell for name, cell in logged.items() if f"{LOGGED}.{name}" not in self.known}
        if not rest:
            return
        lost = [] if self.is_given else leaves_out(rest, self.parts, (example.input, *example.accepted))
        if lost:
            raise UserError(
                f"{row.where}: the field {lost[0]!r} may belong to the question, and {self.text} would not read it; "
                f"{self._advice(row)}"
            )
        self.noticed.unread.update(map(str, unread))

    def _example(self, row: Row) -> Example:
        if "messages" in self.parts:
            return chats.example(row, self.parts["messages"][0].name, self._turns(row))
        if {"choices", "endings"} & self.parts.keys():
            return self._choice(row)
        question, answers = self._joined(row, "input"), self._answers(row)
        if {"system", "history"} & self.parts.keys():
            turns = [*self._before(row), ("user", question), ("assistant", answers[0])]
            return chats.example(row, "history", turns)
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
            found = [self._text(row, parts[0], one) for one in value]
            if len(found) > 1:
                self.noticed.remarks.add(SEVERAL)
        else:
            found = [self._joined(row, "target")]
        for part in self.parts.get("references", ()):
            more = part.value(row.fields)
            if more is None and not part.optional:
                raise self._missing(row, part)
            given = more if isinstance(more, list) else [] if more is None else [more]
            found += [self._text(row, part, one) for one in given]
        return list(dict.fromkeys(found))

    def _text(self, row: Row, part: Part, value: Any) -> str:
        if isinstance(value, str) and value.isascii():
            return value
        text = as_text(value)
        if value == []:
            raise UserError(f"{row.where}: expected a text in the field {part.name!r}, got an empty list; leave it out")
        if text is None:
            got = f", which is {value}" if isinstance(value, float) else ""  # nan
            error = row.error(part.name, "a text or a number", value)
            raise UserError(f"{error}{got}; {self._advice(row, part.name)}")
        return row._replace(fields={part.name: text}).text(part.name)  # refuses half characters

    def _missing(self, row: Row, part: Part) -> UserError:
        return UserError(f"{row.error(part.name, 'a text', None)}; {self._advice(row, part.name)}")

    def _advice(self, row: Row, failed: str = "") -> str:
        return advice(row.fields, Used(self._roles(), failed, self.is_given, bool(self.noticed.first)))

    def _roles(self, **renamed: str) -> dict[str, list[str]]:
        """The specification, with other names for some roles."""
        return {
            renamed.get(role, role): [part.name + "?" * part.optional for part in parts]
            for role, parts in self.parts.items()
        }

    def check_places(self, where: str) -> None:
        """Refuse places of options that may be counted from 1.

        Raises:
            UserError: right options are given as numbers, and none is 0.
        """
        if self.noticed.places and "0" not in self.noticed.places:
            raise UserError(
                f"{where}: the right options in the field {self.parts['target'][0].name!r} are numbers and none is 0; "
                f"counted from 1: {option(self._roles(target='number'))}; "
                f"counted from 0: {option(self._roles(target='index'))}"
            )

    def _before(self, row: Row) -> Iterator[tuple[str, str]]:
        """The system turn, and the turns before the question."""
        if "system" in self.parts and (text := self._joined(row, "system")):
            yield "system", text
        turns = self._value(row, "history") if "history" in self.parts else None
        for turn in turns or ():
            if not (isinstance(turn, list) and [type(text) for text in turn] == [str, str]):
                raise row.error(self.parts["history"][0].name, "a list of [question, answer]", turns)
            yield from zip(("user", "assistant"), turn, strict=True)

    def _turns(self, row: Row) -> list[tuple[str, str]]:
        part = self.parts["messages"][0]
        turns = part.value(row.fields)
        if turns is None:
            raise self._missing(row, part)
        read, unread = chats.read(row, part.name, turns, self.tags)
        self.noticed.unread.update(f"{part.name}: {name}" for name in unread)
        return [*self._before(row), *read]

    def _choice(self, row: Row) -> Example:
        """The question with its options, one a line, and the letter of the right one; or the options are answers."""
        options, part = self._options(row)
        place = self._place(row, options)
        question = self._joined(row, "input")
        if "endings" in self.parts:
            if not all(text.strip() for text in options.texts):
                raise row.error(part.name, "texts that are not empty", None)
            return Example(question, options.texts[place], choices=tuple(options.texts))
        listed = options.listed(question)
        if options.are_in(question):
            self.noticed.remarks.add(OPTIONS_TWICE if listed != question else OPTIONS_ONCE)
        letters = choices.LETTERS[: len(options.texts)]
        return Example(listed, letters[place], choices=tuple(letters))

    def _options(self, row: Row) -> tuple[choices.Choices, Part]:
        """The options, and their (first) field."""
        parts = self.parts["choices" if "choices" in self.parts else "endings"]
        values = [part.value(row.fields) for part in parts]
        if len(parts) == 1:
            return choices.read(row, parts[0].name, values[0]), parts[0]
        empty = next((p for p, v in zip(parts, values, strict=True) if v in NOTHING and not p.optional), None)
        if empty is not None:
            raise self._missing(row, empty)
        return choices.of_columns(row, [part.name for part in parts], values), parts[0]

    def _place(self, row: Row, options: choices.Choices) -> int:
        """The place of the right option."""
        role = next(role for role in ("target", *PLACES) if role in self.parts)
        name, value = self.parts[role][0].name, self._value(row, role)
        if role in PLACES:
            return options.counted(row, name, value, PLACES.index(role))
        try:
            place = options.chosen(row, name, value)
        except UserError as error:
            if not options.is_place(value, len(options.texts)):
                raise
            raise UserError(f"{error}; counted from 1: {option(self._roles(target='number'))}") from None
        if options.is_place(value, place):
            self.noticed.places.add(str(place))
        return place


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
    answers = parts.keys() & {"target", *PLACES}
    if len(answers) > 1 or (answers - {"target"} and not parts.keys() & {"choices", "endings"}):
        raise UserError(f"fields: expected target=..., or with choices index=... or number=..., got {text!r}")
    if bool(answers) != ("input" in parts) or ("input" in parts) == ("messages" in parts):
        raise UserError(f"fields: expected input=... and target=..., or messages=..., got {text!r}")
    if "references" in parts and parts.keys() & {"messages", "choices", "endings", "system", "history"}:
        raise UserError(f"fields: references are for input and target without chats or options, got {text!r}")
    if {"choices", "endings"} <= parts.keys():
        raise UserError(f"fields: expected choices=... or endings=..., got both in {text!r}")
    return Fields(text, parts, joint, is_given)
