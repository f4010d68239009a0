"""What to write for a record that is not read: the option `fields` that reads all of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from utils.preprocess.own import names
from utils.preprocess.own.names import NOTHING

MOST_NAMES = 30  # of fields in a message
_WRAPPERS = (names.LOGGED, "example", "item", "sample", "data")  # objects that may hold the whole record
_SYSTEM = ("system", "system_prompt")
Roles = dict[str, list[str]]  # names of fields, with ? where they may be absent


class Used(NamedTuple):
    """A specification that failed on a record."""

    roles: Roles
    failed: str  # the field; "" if all were read and others were left
    is_given: bool  # by the user
    is_late: bool  # earlier records were read


def advice(record: dict[str, Any], used: Used | None = None) -> str:
    """The fields of a record, and the option that reads them.

    Args:
        record: Its fields.
        used: What failed on it, which is not advised again, nor anything that reads fewer fields.
    """
    shown = f"the record has the fields {', '.join(_shown(record)) or 'none'}; "
    roles = _suggested(record)
    if used is None:
        if roles is None and (inner := _records_inside(record)):
            return f"{shown}{inner}"
        return f"{shown}to read them: {option(roles)}" if roles else f"{shown}name those to read: {_form(record)}"
    if not used.is_late and _are_columns(record):
        return f"{shown}{_records_inside(record)}"
    if used.failed and used.is_late and (near := _misspelt(record, used)):
        return f"{shown}if {near!r} is {used.failed!r} misspelt, correct this record or leave it out"
    if used.is_given and (mended := _mended(record, used)):
        return f"{shown}to read them: {option(mended)}"
    if roles and _bare(roles) != _bare(used.roles) and _reads_enough(roles, record, used):
        return f"{shown}to read them: {option(_optional_where_new(roles, used))}"
    is_here = bool(used.failed) and all(name in dict(names.flat(record)) for name in _required(used.roles))
    what = "correct this record or leave it out, or " if is_here or used.is_late else ""
    return f"{shown}{what}name those to read: {_form(record)}"


def option(roles: Mapping[str, Sequence[str]]) -> str:
    """The option of the command line.

    >>> option({"input": ["a", "b?"], "target": ["c"]})
    "--fields 'input=a+b?,target=c'"
    """
    return f"--fields {shlex.quote(_text(roles))}"


def suggestion(record: dict[str, Any]) -> str | None:
    """A specification that reads all of a record that looks like a question; None: there is none."""
    roles = _suggested(record)
    return None if roles is None else _text(roles)


def _suggested(record: dict[str, Any]) -> Roles | None:
    for name in _WRAPPERS:
        if isinstance(record.get(name), dict) and (inner := _suggested(record[name])):
            return {role: [f"{name}.{field}" for field in fields] for role, fields in inner.items()}
    known = _known(record)
    cells = dict(names.flat(record))
    system = [known[key] for key in _SYSTEM if key in known and _is_text(cells[known[key]])][:1]
    for key in names.CHATS:
        if isinstance(record.get(known.get(key, "")), list):
            return _whole(record, {"messages": [known[key]]} | ({"system": system} if system else {}))
    return _question(record, known, cells, system)


def _question(record: dict[str, Any], known: dict[str, str], cells: dict[str, Any], system: list[str]) -> Roles | None:
    """The roles of a question with an answer, and with options and earlier turns where there are any."""
    answers = (known.get(key, "") for key in (*names.ANSWERS, *names.INNER_ANSWERS))
    answer = next((name for name in answers if _is_text(cells.get(name))), None)
    parts = [known[key] for key in names.QUESTIONS if known.get(key, answer) != answer]
    parts = [name for name in parts if cells[name] is None or _is_text(cells[name])]
    has_history = isinstance(record.get(known.get("history", "")), list)
    if has_history:
        parts = [name for name in parts if name not in system]
    if answer is None or all(cells[name] is None for name in parts):
        return None
    options = next(
        ([known[key]] for key in names.OPTIONS if isinstance(cells.get(known.get(key, "")), list | dict)), None
    )
    options = options or list(names.option_columns(record))
    count = len(cells[options[0]]) if len(options) == 1 else sum(cells[name] not in NOTHING for name in options)
    is_from_1 = bool(options) and str(cells[answer]) == str(count) and not _is_an_option(answer, options, cells)
    roles = {"input": [_mark(name, cells) for name in parts], "number" if is_from_1 else "target": [answer]}
    roles |= {"history": [known["history"]]} if has_history else {}
    roles |= {"system": system} if has_history and system else {}
    roles |= {"choices": [f"{name}?" if cells[name] in NOTHING else name for name in options]} if options else {}
    return _whole(record, roles)


def _is_an_option(answer: str, options: list[str], cells: dict[str, Any]) -> bool:
    """True if the answer is the text or the name of an option."""
    given = [cells[options[0]]] if len(options) == 1 else [[cells[name] for name in options]]
    texts: list[str] = []
    while given:
        cell = given.pop()
        if isinstance(cell, dict):
            given += [*cell, *cell.values()]
        elif isinstance(cell, list):
            given += cell
        else:
            texts.append(str(cell))
    return str(cells[answer]) in texts


def _mark(name: str, cells: dict[str, Any]) -> str:
    return f"{name}?" if cells[name] is None else name


def _known(record: dict[str, Any]) -> dict[str, str]:
    """Names of fields by their names in small letters; of an object `question` also those inside."""
    inner = {str(name).lower(): name for name, cell in names.flat(record) if name not in record and cell is not None}
    short = {key.removeprefix("question."): name for key, name in inner.items() if key.startswith("question.")}
    return inner | short | {str(name).lower(): name for name in record}


def _whole(record: dict[str, Any], roles: Roles) -> Roles | None:
    """Some roles; None: they would leave out what may be a part of the question."""
    fields = _fields(roles)
    read = {name.partition(".")[0] for name in fields} | set(fields)
    rest = {name: value for name, value in record.items() if name not in read}
    cells = dict(names.flat(record))
    question = "\n".join(str(cells[name.removesuffix("?")]) for name in roles.get("input", ()))
    return None if names.leaves_out(rest, roles, [question]) else roles


def _mended(record: dict[str, Any], used: Used) -> Roles | None:
    """The user's own specification, with ? at what the record lacks or with the name that is there instead."""
    cells = dict(names.flat(record))
    there = {name for name in _fields(used.roles) if cells.get(name) is not None}
    there -= {name for name in _fields({"": used.roles.get("choices", [])}) if cells.get(name) in NOTHING}
    if used.failed in there:  # it is there, but is no text
        return None
    near = _misspelt(record, used)
    if near and not used.is_late:
        change = {used.failed: near}
        return {
            role: [change.get(name.removesuffix("?"), name) for name in fields] for role, fields in used.roles.items()
        }
    needed = [role for role in ("input", "target", "messages", "index", "number", "choices") if role in used.roles]
    if not all(there & set(_bare({role: used.roles[role]})[role]) for role in needed):
        return None
    mended = {
        role: [name if name.removesuffix("?") in there else f"{name.removesuffix('?')}?" for name in fields]
        for role, fields in used.roles.items()
    }
    return mended if mended != used.roles else None


def _misspelt(record: dict[str, Any], used: Used) -> str | None:
    """The field that is read nowhere and named nearly like the one that is missing."""
    others = [str(name) for name in record if name not in _fields(used.roles)]
    return next(iter(get_close_matches(used.failed, others, n=1, cutoff=0.8)), None)


def _optional_where_new(roles: Roles, used: Used) -> Roles:
    """With ? at fields that earlier records were read without, and at the one that this record is without."""
    if not used.is_late:
        return roles
    old = {name.removesuffix("?"): name for mine in used.roles.values() for name in mine}
    lost = {role: [f"{used.failed}?"] for role, mine in used.roles.items() if used.failed in mine}
    return {
        role: [
            *(name for name in lost.get(role, []) if name.removesuffix("?") not in mine),
            *(old.get(name.removesuffix("?"), f"{name.removesuffix('?')}?") for name in mine),
        ]
        for role, mine in roles.items()
    }


def _reads_enough(roles: Roles, record: dict[str, Any], used: Used) -> bool:
    """True if no field that the user named and no text that was read is given up."""
    cells, mine, old = dict(names.flat(record)), _fields(roles), _fields(used.roles)
    kept = {name for name in old if name != used.failed and cells.get(name) not in NOTHING}
    return kept <= set(mine) and (not used.is_given or len(mine) >= len(old))


def _fields(roles: Mapping[str, Sequence[str]]) -> list[str]:
    return [name.removesuffix("?") for mine in roles.values() for name in mine]


def _bare(roles: Roles) -> Roles:
    return {role: [name.removesuffix("?") for name in mine] for role, mine in roles.items()}


def _required(roles: Roles) -> list[str]:
    return [name for mine in roles.values() for name in mine if not name.endswith("?")]


def _text(roles: Mapping[str, Sequence[str]]) -> str:
    return ",".join(f"{role}={'+'.join(map(str, mine))}" for role, mine in roles.items())


def _form(record: dict[str, Any]) -> str:
    """The option with places to fill in, and with the options of a question where columns hold them."""
    chat = next((name for name in record if str(name).lower() in names.CHATS and isinstance(record[name], list)), None)
    if chat is not None:  # its tools and the like cannot be read
        return f"--fields messages={chat} reads the chat alone"
    columns = names.option_columns(record)
    return "--fields input=FIELD+FIELD,target=FIELD" + (f",choices={'+'.join(columns)}" if columns else "")


def _shown(record: dict[str, Any]) -> Iterable[str]:
    """The names of the fields, of a small object those inside it; of many the first."""
    for name, value in list(record.items())[:MOST_NAMES]:
        is_small = isinstance(value, dict) and 0 < len(value) < names.WORDS
        inner = [f"{name}.{key}" for key in value] if is_small else []
        yield from inner or [str(name)]
    if len(record) > MOST_NAMES:
        yield f"... ({len(record)} in all)"


def _records_inside(record: dict[str, Any]) -> str:
    """What to do with an object that holds the records, in one of its fields or one in each; "" for a record."""
    chats = names.CHATS
    name = next(
        (name for name, cells in record.items() if _are_objects(cells) and str(name).lower() not in chats), None
    )
    if name is not None:
        return f"if {name!r} holds the records, write that list alone into the file"
    if len(record) > 1 and _are_objects(list(record.values())):
        return "if each of them is a record, write a list of them into the file"
    if _are_columns(record):
        return "if each field holds the values of all records, write one object for each record"
    return ""


def _are_columns(record: dict[str, Any]) -> bool:
    return len(record) > 1 and all(isinstance(cells, list) for cells in record.values())


def _are_objects(cells: Any) -> bool:
    return isinstance(cells, list) and bool(cells) and all(isinstance(cell, dict) for cell in cells)


def _is_text(value: Any) -> bool:
    """True of a text, a number or a list of texts."""
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
