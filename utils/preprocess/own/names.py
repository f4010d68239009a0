"""What fields are called: presets, which of them fits a record, and which fields belong to a question."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

NOTHING: tuple[Any, ...] = (None, "", [], {})  # what a field holds that says nothing
NATIVE = ("input=input,target=target,label=label?", "messages=messages,label=label?")
_CONTEXT = "context?+passage?+support?"
_MULTIPLE_CHOICE = f"input={_CONTEXT}+{{}},{{role}}={{}},target={{}}"
_MULTIPLE_CHOICE_NAMES = tuple(
    product(
        ("question", "query", "ctx", "goal"),
        ("choices", "options", "endings"),
        ("answer", "gold", "answerKey", "label"),
    )
)
UNLISTED = "unlisted"  # as lm_eval, but the options are possible answers: only where it is named
PRESETS: dict[str, tuple[str, ...]] = {  # alternatives; the first whose fields are all there applies
    "alpaca": ("input=instruction+input?,target=output",),
    "sharegpt": ("messages=conversations",),
    "openai": ("messages=messages,label=label?",),
    "natural_instructions": ("input=Definition?+input,target=output",),
    "trace": ("input=prompt,target=answer",),
    "lm_eval": tuple(_MULTIPLE_CHOICE.format(*names, role="choices") for names in _MULTIPLE_CHOICE_NAMES),
    UNLISTED: tuple(_MULTIPLE_CHOICE.format(*names, role="endings") for names in _MULTIPLE_CHOICE_NAMES),
    "knowedit": ("input=prompt,target=target_new", "input=src,target=alt"),
    "prompt_answer": (
        *(
            f"input={_CONTEXT}+{question},target={answer}"
            for question in ("prompt", "question", "query", "instruction", "input")
            for answer in ("answer", "completion", "response", "output")
        ),
    ),
}
# Names under which parts of a question are known, in the order in which they are joined, and names of answers.
QUESTIONS = (
    "system", "system_prompt", "definition", "instruction", "instructions", "context", "passage", "paragraph",
    "document", "article", "premise", "hypothesis", "sentence", "sentence1", "sentence2", "text", "input", "inputs",
    "question", "stem", "problem", "prompt", "query", "src", "goal", "ctx",
)  # fmt: skip
ANSWERS = (
    "target", "targets", "output", "outputs", "answer", "answers", "response", "completion", "summary", "solution",
    "best_answer", "correct_answer", "target_new", "alt", "gold", "label_text", "label", "answerkey",
    "answer_key", "correct_option", "cop", "answer_idx", "answer_index", "correct",
)  # fmt: skip
INNER_ANSWERS = ("answers.text", "answer.value", "answer.text")
EDITS = ("target_new", "alt")
OPTIONS = ("choices", "options", "endings")
_OPTION = re.compile(  # a column that holds one option: A, option_a, opa, answerA, option1, sol1, ending0
    r"((?:options?|opt|op|choice|answer|ans|sol|solution|ending|alternative|candidate)[ _-]?|)([a-z]|[0-9])", re.I
)
LOGGED = "doc"  # in the samples that lm-eval logs: the record of the data set
# Lists alongside an answer.
REFERENCES = ("answers", "answers.text", "outputs", "targets", "answer_aliases", "possible_answers")
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue")
MORE_OF_QUESTION = (
    "history", "tools", "story", "body", "table", "fact", "facts", "evidence", "hint", "contexts", "background",
    "image", "images", "audio", "video", "task_description",
)  # fmt: skip
# Not "text" and "goal": where there are other questions, they repeat them (Alpaca's `text` is the whole prompt).
PART_OF_QUESTION = {*QUESTIONS, *CHATS, *OPTIONS, *MORE_OF_QUESTION} - {"text", "goal", "src"}
# Texts next to a question that are none of it, and the least words of another text that may be a part of it.
NOT_QUESTION = {
    "id", "uid", "guid", "source", "dataset", "category", "type", "topic", "domain", "language", "difficulty",
    "subject", "url", "license", "meta", "metadata", "tags", "explanation", "rationale", "reasoning", "cot", "comment",
    "notes", "feedback", "positive examples", "negative examples", "incorrect_answers", "distractors",
    "rephrase", "rephrase_prompt", "loc", "loc_ans", "cond", "exp", "subject_name", "topic_name",
}  # fmt: skip
WORDS = 4
PART_OF_CHAT = {"system", "system_prompt", "tools", "functions"}


class Found(NamedTuple):
    """A preset that fits a record."""

    preset: str  # "" for records that have the names of this program
    text: str


def detect(record: dict[str, Any]) -> Found | None:
    """The specification that fits a record; None: there is none, or none of several reads all that the others do."""
    found = [Found("", _with_references(text, record)) for text in NATIVE if _needed(text) <= record.keys()]
    found += [Found(name, text) for name in PRESETS if name != UNLISTED and (text := fitting(name, record))]
    read = [_read(one.text, record) for one in found]
    whole = [one for one, names in zip(found, read, strict=True) if all(names >= other for other in read)]
    return whole[0] if whole else None


def fitting(preset: str, record: dict[str, Any]) -> str | None:
    """The first alternative of a preset whose fields are all in a record, with a list of more accepted answers."""
    if preset in ("lm_eval", UNLISTED) and isinstance(record.get(LOGGED), dict):
        inner = fitting(preset, record[LOGGED])
        return None if inner is None else inside(LOGGED, inner)
    text = next((text for text in PRESETS[preset] if _needed(text) <= record.keys()), None)
    return None if text is None else _with_references(text, record)


def inside(outer: str, text: str) -> str:
    """The specification of fields that are inside another field.

    >>> inside("doc", "input=a?+b,target=c")
    'input=doc.a?+doc.b,target=doc.c'
    """
    pairs = (item.split("=") for item in text.split(","))
    return ",".join(f"{role}={'+'.join(f'{outer}.{name}' for name in names.split('+'))}" for role, names in pairs)


def _with_references(text: str, record: dict[str, Any]) -> str:
    """With a list that holds the answer and others; of an edit (knowedit) the list holds the answers before it."""
    roles, cells_of = _roles(text, record), dict(flat(record))
    target = roles.get("target", [])
    if roles.keys() & {"choices", "endings"} or len(target) != 1 or target[0] in EDITS:
        return text
    lists = ((name, cells_of.get(name)) for name in REFERENCES if name not in target)
    more = next((name for name, cells in lists if isinstance(cells, list) and _hold(cells, cells_of[target[0]])), None)
    return text if more is None else f"{text},references={more}?"


def _hold(cells: list[Any], answer: Any) -> bool:
    return all(isinstance(cell, str | int | float) for cell in cells) and (not cells or answer in cells)


def option_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names under which a table has the options of a question, one in each column; at least two.

    >>> option_columns(["question", "option_b", "option_a", "answer"]), option_columns(["sentence1", "sentence2", "A"])
    (('option_a', 'option_b'), ())
    """
    return _option_columns(tuple(map(str, names)))


@lru_cache(maxsize=1024)  # the same for most records of a file
def _option_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _OPTION.fullmatch(name):
            found.setdefault(match[1].lower(), {})[match[2].lower()] = name
    for prefix, columns in found.items():
        marks = "".join(sorted(columns))
        rows = ("abcdefghijklmnopqrstuvwxyz", *(("0123456789", "123456789") if prefix else ()))
        if len(marks) > 1 and any(row.startswith(marks) for row in rows):
            return tuple(columns[mark] for mark in marks)
    return ()


def leaves_out(unread: dict[str, Any], roles: Iterable[str], texts: Iterable[str] = ()) -> list[str]:
    """Those of the fields that are not read which may be a part of the question.

    The name decides, alone or with others (columns that hold one option each). Where it says nothing, a text of several
    words counts that does not repeat what is read (Alpaca's `text` is the whole prompt).

    Args:
        unread: Fields and their values.
        roles: What is read.
        texts: The question that is read, then its answers.
    """
    parts = PART_OF_CHAT if "messages" in roles else PART_OF_QUESTION
    read = [text for text in texts if text.strip()]
    columns = () if "messages" in roles else option_columns(unread)
    lines = [line for line in (read[0] if read else "").splitlines() if line.strip()]

    def is_lost(given: str, value: Any) -> bool:
        name = given.lower()
        if value in NOTHING or given in columns:
            return value not in NOTHING
        if name in parts or name in NOT_QUESTION or name in ANSWERS:
            return name in parts
        if "messages" in roles or not isinstance(value, str) or len(value.split()) < WORDS:
            return False
        repeats = bool(lines) and all(line in value for line in lines)
        return not repeats and not any(value in text for text in read)

    return sorted(name for name, value in unread.items() if is_lost(str(name), value))


def flat(record: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """The fields and those inside of objects, as `answers.text`."""
    for name, value in record.items():
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", cell) for inner, cell in value.items())


def _names(text: str) -> Iterable[str]:
    return (name for item in text.split(",") for name in item.partition("=")[2].split("+"))


def _roles(text: str, record: dict[str, Any]) -> dict[str, list[str]]:
    """The fields of each role that a record has."""
    pairs, there = (item.partition("=") for item in text.split(",")), dict(flat(record))
    names = {role: [name.removesuffix("?") for name in names.split("+")] for role, _, names in pairs}
    return {role: [name for name in mine if name in there] for role, mine in names.items()}


def _needed(text: str) -> set[str]:
    return {name for name in _names(text) if not name.endswith("?")}


def _read(text: str, record: dict[str, Any]) -> set[str]:
    return {name.removesuffix("?") for name in _names(text)} & dict(flat(record)).keys()
