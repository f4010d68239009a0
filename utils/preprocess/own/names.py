"""What fields are called: presets, which of them fits a record, and what to write for a record that none fits."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
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
    "question", "problem", "prompt", "query", "src", "goal", "ctx",
)  # fmt: skip
ANSWERS = (
    "target", "targets", "output", "outputs", "answer", "answers", "response", "completion", "summary", "solution",
    "best_answer", "correct_answer", "target_new", "alt", "gold", "label_text", "label", "answerkey",
)  # fmt: skip
INNER_ANSWERS = ("answers.text", "answer.value", "answer.text")
EDITS = ("target_new", "alt")
OPTIONS = ("choices", "options", "endings")
REFERENCES = ("answers", "answers.text", "outputs", "targets", "answer_aliases", "possible_answers")  # beside an answer
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue")
MORE_OF_QUESTION = (
    "history", "tools", "story", "body", "table", "fact", "facts", "evidence", "hint", "contexts", "background",
    "image", "images", "audio", "video", "task_description", "option1", "option2", "sol1", "sol2",
)  # fmt: skip
# Not "text" and "goal": where there are other questions, they repeat them (Alpaca's `text` is the whole prompt).
PART_OF_QUESTION = {*QUESTIONS, *CHATS, *OPTIONS, *MORE_OF_QUESTION} - {"text", "goal", "src"}
# Texts next to a question that are none of it, and the least words of another text that may be a part of it.
NOT_QUESTION = {
    "id", "uid", "guid", "source", "dataset", "category", "type", "topic", "domain", "language", "difficulty",
    "subject", "url", "license", "meta", "metadata", "tags", "explanation", "rationale", "reasoning", "cot", "comment",
    "notes", "feedback", "positive examples", "negative examples", "incorrect_answers", "distractors",
    "rephrase", "rephrase_prompt", "loc", "loc_ans", "cond",
}  # fmt: skip
WORDS = 4
MOST_NAMES = 30  # of fields in a message
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
    text = next((text for text in PRESETS[preset] if _needed(text) <= record.keys()), None)
    return None if text is None else _with_references(text, record)


def _with_references(text: str, record: dict[str, Any]) -> str:
    """With a list that holds the answer and others; of an edit (knowedit) the list holds the answers before it."""
    roles, flat = _roles(text, record), dict(_flat(record))
    target = roles.get("target", [])
    if roles.keys() & {"choices", "endings"} or len(target) != 1 or target[0] in EDITS:
        return text
    lists = ((name, flat.get(name)) for name in REFERENCES if name not in target)
    more = next((name for name, cells in lists if isinstance(cells, list) and _hold(cells, flat[target[0]])), None)
    return text if more is None else f"{text},references={more}?"


def _hold(cells: list[Any], answer: Any) -> bool:
    return all(isinstance(cell, str | int | float) for cell in cells) and (not cells or answer in cells)


def leaves_out(unread: dict[str, Any], roles: Iterable[str], texts: Iterable[str] = ()) -> list[str]:
    """Those of the fields that are not read which may be a part of the question.

    That is said by the name or, where neither name nor place says what a field is for, by a text of several words that
    does not repeat what is read (Alpaca's `text` is the whole prompt).

    Args:
        unread: Fields and their values.
        roles: What is read.
        texts: The question that is read, then its answers.
    """
    parts = PART_OF_CHAT if "messages" in roles else PART_OF_QUESTION
    read = [text for text in texts if text.strip()]
    lines = [line for line in (read[0] if read else "").splitlines() if line.strip()]

    def is_lost(name: str, value: Any) -> bool:
        if name in parts or name in NOT_QUESTION or name in ANSWERS:
            return name in parts
        if "messages" in roles or not isinstance(value, str) or len(value.split()) < WORDS:
            return False
        repeats = bool(lines) and all(line in value for line in lines)
        return not repeats and not any(value in text for text in read)

    return sorted(name for name, value in unread.items() if is_lost(str(name).lower(), value))


def advice(record: dict[str, Any], used: str = "") -> str:
    """The fields of a record, and the option that reads them.

    Args:
        record: Its fields.
        used: What failed on it, which is not advised again.
    """
    names = ", ".join(_shown(record)) or "none"
    text = suggestion(record)
    if text is None and not used and (inside := _records_inside(record)):
        return f"the record has the fields {names}; {inside}"
    if text is None or (used and _roles(text, record) == _roles(used, record)):
        is_read = bool(used) and _needed(used) <= record.keys()
        what = "leave it out, or name those to read" if is_read else "name those to read"
        return f"the record has the fields {names}; {what}: --fields input=FIELD+FIELD,target=FIELD"
    return f"the record has the fields {names}; to read them: --fields {shlex.quote(text)}"


def _shown(record: dict[str, Any]) -> Iterable[str]:
    """The names of the fields, of a small object those inside it; of many the first."""
    for name, value in list(record.items())[:MOST_NAMES]:
        inner = [f"{name}.{key}" for key in value] if isinstance(value, dict) and 0 < len(value) < WORDS else []
        yield from inner or [str(name)]
    if len(record) > MOST_NAMES:
        yield f"... ({len(record)} in all)"


def _records_inside(record: dict[str, Any]) -> str:
    """What to do with an object that holds the records, in one of its fields or one in each; "" for a record."""
    name = next(
        (name for name, cells in record.items() if _are_objects(cells) and str(name).lower() not in CHATS), None
    )
    if name is not None:
        return f"if {name!r} holds the records, write that list alone into the file"
    if len(record) > 1 and _are_objects(list(record.values())):
        return "if each of them is a record, write a list of them into the file"
    return ""


def _are_objects(cells: Any) -> bool:
    return isinstance(cells, list) and bool(cells) and all(isinstance(cell, dict) for cell in cells)


def suggestion(record: dict[str, Any]) -> str | None:
    """A specification that reads all of a record that looks like a question; None: there is none."""
    known = {str(name).lower(): name for name, value in _flat(record) if value is not None}
    system = next((known[name] for name in ("system", "system_prompt") if _is_text(record, known.get(name))), None)
    for name in CHATS:
        if isinstance(record.get(known.get(name, "")), list):
            return _whole(record, {"messages": [known[name]]} | ({"system": [system]} if system else {}))
    answer = next((known[name] for name in (*ANSWERS, *INNER_ANSWERS) if _is_text(record, known.get(name))), None)
    parts = [known[name] for name in QUESTIONS if known.get(name) != answer and _is_text(record, known.get(name))]
    roles: dict[str, list[Any]] = {"input": parts, "target": [answer]}
    if isinstance(record.get(known.get("history", "")), list):
        roles |= {"history": [known["history"]]} | ({"system": [system]} if system else {})
        roles["input"] = [name for name in parts if name != system]
    for name in OPTIONS:
        if isinstance(record.get(known.get(name, "")), list | dict):
            roles["choices"] = [known[name]]
            break
    return _whole(record, roles) if roles["input"] and answer else None


def _whole(record: dict[str, Any], roles: dict[str, list[Any]]) -> str | None:
    """The specification of some roles; None: it would leave out what may be a part of the question."""
    read = {str(name).partition(".")[0] for names in roles.values() for name in names}
    rest = {name: value for name, value in record.items() if name not in read and value not in NOTHING}
    if leaves_out(rest, roles, ["\n".join(str(record.get(name)) for name in roles.get("input", ()))]):
        return None
    return ",".join(f"{role}={'+'.join(map(str, names))}" for role, names in roles.items())


def _flat(record: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in record.items():
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", cell) for inner, cell in value.items())


def _is_text(record: dict[str, Any], name: str | None) -> bool:
    """True if a field is there whose value is a text, a number or a list of texts."""
    if name is None:
        return False
    value = dict(_flat(record))[name]
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _names(text: str) -> Iterable[str]:
    return (name for item in text.split(",") for name in item.partition("=")[2].split("+"))


def _roles(text: str, record: dict[str, Any]) -> dict[str, list[str]]:
    """The fields of each role that a record has."""
    pairs = (item.partition("=") for item in text.split(","))
    names = {role: [name.removesuffix("?") for name in names.split("+")] for role, _, names in pairs}
    return {role: [name for name in mine if name in record] for role, mine in names.items()}


def _needed(text: str) -> set[str]:
    return {name for name in _names(text) if not name.endswith("?")}


def _read(text: str, record: dict[str, Any]) -> set[str]:
    return {name.removesuffix("?") for name in _names(text)} & record.keys()
