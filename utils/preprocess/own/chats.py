"""The turns of a chat: how they are written, which are refused, and the example they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from utils.dataset import Example
from utils.errors import UserError
from utils.preprocess.own.names import NOTHING
from utils.preprocess.shared.raw import shown
from utils.preprocess.shared.records import Row

NOT_TRAINED = ("weight", "train", "loss")  # of a turn: 0 or false where it is not to be learned
NOT_TEXT = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking", "images", "audio")
ROLES = ("user", "assistant", "system")


class Tags(NamedTuple):
    """How chats are written: the names of a turn's fields, and whose turn each role is."""

    role: str
    content: str
    roles: dict[str, str]


OPENAI = Tags("role", "content", {role: role for role in ROLES})
SHAREGPT = Tags("from", "value", {"human": "user", "gpt": "assistant", "system": "system"})


def read(row: Row, name: str, turns: Any, tags: Tags | None) -> tuple[list[tuple[str, str]], set[str]]:
    """The turns in a field as (role, content), and the names of their fields that are not read.

    Args:
        row: The record, for messages.
        name: Of the field.
        turns: Its value.
        tags: How they are written; None: as the first turn is.

    Raises:
        UserError: a turn is not written like that, or asks for what is not supported.
    """
    if not isinstance(turns, list):
        more = "; JSON inside of a text is not read" if isinstance(turns, str) and turns.lstrip()[:1] == "[" else ""
        raise UserError(f"{row.error(name, 'a list of {role, content}', turns)}{more}")
    cells = [turn if isinstance(turn, dict) else {} for turn in turns]
    first = cells[0] if cells else {}
    tags = tags or (SHAREGPT if "from" in first and "role" not in first else OPENAI)
    usual = {tags.role, tags.content}
    found: list[tuple[str, str]] = []
    unread: set[str] = set()
    for i, turn in enumerate(cells, start=1):
        one = Row(f"{row.where}, turn {i}", turn)
        if extra := turn.keys() - usual:
            _check_more(one, tags)
            unread |= {str(key) for key in extra.difference(NOT_TRAINED) if turn[key] not in NOTHING}
        found.append(_turn(one, name, tags))
    return found, unread


def example(row: Row, name: str, messages: Sequence[tuple[str, str]]) -> Example:
    """The example of a chat, whose last turn is the answer.

    Raises:
        UserError: user and assistant do not alternate, or the chat does not end with an answer.
    """
    roles = [role for role, _ in messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        more = "; leave this chat out" if talk[-1:] != ["assistant"] else ""
        raise UserError(
            f"{row.where}: expected user and assistant in turns, at most a system turn before them and an answer at "
            f"the end, got {', '.join(roles)[:80] or 'no turns'} in the field {name!r}{more}"
        )
    return Example(messages[-2][1], messages[-1][1], messages=tuple(messages))


def _turn(turn: Row, name: str, tags: Tags) -> tuple[str, str]:
    given = turn.text(tags.role)
    role = tags.roles.get(given, given)
    if role not in ROLES:
        known = dict.fromkeys([*tags.roles, *tags.roles.values()])
        raise UserError(
            f"{turn.where}: the role {shown(role)} in the field {name!r} is not known; expected one of "
            f"{', '.join(known)} (other words: tags in a dataset_info.json, see docs/own-data.md)"
        )
    content = turn.fields.get(tags.content)
    if isinstance(content, list):
        turn = turn._replace(fields={tags.content: _joined(content)})
    return role, turn.text(tags.content)


def _check_more(turn: Row, tags: Tags) -> None:
    """Refuse what another field of a turn says that would change what is learned."""
    lost = next((key for key in NOT_TEXT if turn.fields.get(key) not in NOTHING), None)
    if lost is not None:
        raise UserError(f"{turn.where}: {lost!r} is not supported; chats of text are")
    out = next((key for key in NOT_TRAINED if turn.fields.get(key) in (0, False)), None)
    given = turn.fields.get(tags.role)
    if out is not None and tags.roles.get(str(given), given) == "assistant":
        raise UserError(
            f"{turn.where}: {out} {turn.fields[out]} keeps an answer out of training, which is not supported: all "
            "answers of a chat are learned; leave the chat out, or its turns from this one on"
        )


def _joined(content: list[Any]) -> Any:
    """The text of a content in parts, [{"type": "text", "text": ..}]; other parts as they are."""
    if not content or not all(map(_is_text, content)):
        return content
    return "".join(part["text"] for part in content)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
