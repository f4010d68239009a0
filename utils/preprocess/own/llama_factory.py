"""dataset_info.json of LLaMA-Factory: names of data sets, their files or places on the hub, columns and tags.

Read as its README defines it (github.com/hiyouga/LLaMA-Factory, data/README.md): `formatting` alpaca (default),
sharegpt or openai; `columns` and `tags` replace the names of fields and roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.preprocess.own.chats import OPENAI, SHAREGPT, Tags
from utils.preprocess.own.fields import Fields, parse
from utils.preprocess.own.sources import Source
from utils.storage.files import read_json

NAME = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
COLUMNS = ("prompt", "query", "response", "history", "messages", "system")
UNSUPPORTED = (
    "images",
    "videos",
    "audios",
    "tools",
    "kto_tag",
    "chosen",
    "rejected",
    "ranking",
    "folder",
    "num_samples",
)
ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


class Entry(NamedTuple):
    """A data set."""

    name: str
    source: Source | Path
    fields: Fields


def read(path: Path, wanted: str | None) -> list[Entry]:
    """The data sets in a file, or the one that is wanted.

    Raises:
        UserError: there is none, or what it states is not supported here.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()) or not content:
        raise UserError(f"{path}: expected an object with an object for each data set, as LLaMA-Factory reads it")
    if wanted is not None and wanted not in content:
        raise UserError(f"{path}: expected one of {', '.join(content)} after the colon, got {wanted!r}")
    if wanted is not None:
        return [_entry(path, wanted, content[wanted])]
    return [_entry_of_all(path, name, content[name]) for name in content]


def _entry_of_all(path: Path, name: str, entry: dict[str, Any]) -> Entry:
    try:
        return _entry(path, name, entry)
    except UserError as error:
        raise UserError(f"{error}; without an entry all are read: name those to use, such as {path}:ENTRY") from None


def _entry(path: Path, name: str, entry: dict[str, Any]) -> Entry:
    where = f"{path}, {name}"
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not all(isinstance(part, dict) and _are_texts(part.values()) for part in (columns, tags)):
        raise UserError(f"{where}: expected names of fields in 'columns' and 'tags'")
    unknown = [name for name in columns if name not in (*COLUMNS, *UNSUPPORTED)]
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} in 'columns': expected one of {', '.join(COLUMNS)}")
    refused = [name for name in UNSUPPORTED if name in columns or entry.get(name)]
    if refused:
        raise UserError(f"{where}: {refused[0]!r} is not supported; questions, answers and chats of text are")
    return Entry(name, _source(path, where, entry), _fields(where, entry.get("formatting", "alpaca"), columns, tags))


def _source(path: Path, where: str, entry: dict[str, Any]) -> Source | Path:
    file, url = entry.get("file_name"), entry.get("hf_hub_url")
    if isinstance(url, str):  # it wins over file_name there too
        return Source(url, entry.get("subset"), entry.get("split", "train"))
    if isinstance(file, str):
        return path.parent / file
    found = next((key for key in ELSEWHERE if key in entry), "neither")
    raise UserError(f"{where}: expected file_name or hf_hub_url, got {found}")


def _fields(where: str, formatting: str, columns: dict[str, str], tags: dict[str, str]) -> Fields:
    system = [f"system={columns['system']}?"] if "system" in columns else []
    if formatting == "alpaca":
        names = ALPACA | columns
        query = f"+{names['query']}?" if "query" in columns or not columns else ""
        history = [f"history={columns['history']}?"] if "history" in columns else []
        text = ",".join([f"input={names['prompt']}{query}", f"target={names['response']}", *system, *history])
        return parse(text)
    if formatting not in ("sharegpt", "openai"):
        raise UserError(f"{where}: expected formatting alpaca, sharegpt or openai, got {formatting!r}")
    fields = parse(",".join([f"messages={columns.get('messages', 'conversations')}", *system]))
    return Fields(fields.text, fields.parts, tags=_tags(SHAREGPT if formatting == "sharegpt" else OPENAI, tags))


def _tags(usual: Tags, tags: dict[str, str]) -> Tags:
    names = {role: tag for tag, role in usual.roles.items()}
    own = {role: tags.get(f"{role}_tag", name) for role, name in names.items()}
    return Tags(
        tags.get("role_tag", usual.role),
        tags.get("content_tag", usual.content),
        {tag: role for role, tag in own.items()},
    )


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
