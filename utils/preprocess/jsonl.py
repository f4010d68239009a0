"""jsonl: your own data as a stream, one task per file or folder.

    DIR/<task>.jsonl                           one file per task, split by --dev-ratio and --test-ratio
    DIR/<task>/{train,dev,test}.jsonl          one folder per task with given splits; dev is optional

`.json` works as well as `.jsonl`: a list of records, or one record per line. A record has the texts `input` and
`target`, and for classes a `label`; or it is a chat: `messages`, a list of {role, content} that ends with the
assistant's answer.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import NEEDED_SPLITS, SPLITS, Example, Stream, TaskData
from utils.errors import UserError, printable
from utils.preprocess.shared.classes import class_facts
from utils.preprocess.shared.option_types import Counts, Names, per_task
from utils.preprocess.shared.raw import file_sha256
from utils.preprocess.shared.records import JSON_SUFFIXES, Row, question, read_rows, remarks
from utils.prompt import PROMPT_TYPES
from utils.scoring import find

FIELDS = ("input", "target", "label", "messages")


class Options(config.OptionGroup):
    """Assignment of files to tasks."""

    task_order: Names | None = Field(
        None, description="Names of tasks, separated by commas; none: all, sorted by name."
    )
    dev_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the questions of a task's only file, for dev.")
    test_ratio: float = Field(0.2, gt=0, lt=1, description="The same for test.")
    metric: Names = Field(
        ("exact_match",), description="Metric; one for all tasks, or one per task separated by commas."
    )
    max_new_tokens: Counts = Field((32,), description="Longest answer in tokens; one number, or one per task.")
    prompt_type: str = Field("none", description=f"Template around a question: {', '.join(PROMPT_TYPES)}.")
    il_mode: Literal["CIL", "TIL", "IIL", "CIT", "CKE"] = Field(
        "CIT", description="Scenario that the stream is made for."
    )


class Record(NamedTuple):
    """An example whose class is still a name."""

    example: Example
    label: str | None
    where: str
    unread: frozenset[str]  # fields that are not read


Splits = dict[str, list[Record]]


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Make a stream of the files in a folder.

    Args:
        raw_dir: The folder.
        options: See Options.
        seed: Determines which questions of a file are for dev and test; the order of a file is kept.

    Raises:
        UserError: no folder, no tasks in it, or an error in a file.
    """
    if raw_dir is None or not raw_dir.is_dir():
        got = "nothing" if raw_dir is None else f"{raw_dir}, which is no folder"
        raise UserError(f"--raw-dir: expected the folder with your files, got {got}")
    paths = {path.stem if path.is_file() else path.name: path for path in find_tasks(raw_dir)}
    order = options.task_order or tuple(paths)
    wrong = [name for name in order if name not in paths or order.count(name) > 1]
    if wrong:
        raise UserError(f"--task-order: expected different names of {', '.join(paths)}, got {wrong[0]!r}")
    stream = read_tasks([paths[name] for name in order], options, seed)
    return replace(stream, name=f"{_clean(raw_dir.resolve().name)}_task{len(order)}")


def read_tasks(paths: Sequence[Path], options: Options, seed: int) -> Stream:
    """Make a stream of these files or folders, one task each, in this order.

    Args:
        paths: Files (.json, .jsonl), or folders with train, test and optionally dev.
        options: See Options; task_order is not used.
        seed: Determines which questions of a file are for dev and test.

    Raises:
        UserError: a path is missing, two have one name, or there is an error in a file.
    """
    if options.dev_ratio + options.test_ratio >= 1:
        raise UserError("--dev-ratio, --test-ratio: expected a sum below 1, so that training questions remain")
    names = [printable(path.stem if path.suffix in JSON_SUFFIXES else path.name) for path in paths]
    if len(set(names)) != len(names) or not names:
        raise UserError(
            f"expected files or folders with different names, one per task, got {', '.join(names) or 'none'}"
        )
    files: dict[str, str] = {}
    tasks = [_read_task(path, name, options, seed, files) for path, name in zip(paths, names, strict=True)]
    records = [record for task in tasks for split in SPLITS for record in task[split]]
    _check_alike(records)
    classes = _classes(tasks, names)
    made = [_task(task, names[k], k, classes) for k, task in enumerate(tasks)]
    source = {
        "files": files,
        "options": options.model_dump(mode="json", exclude={"task_order"}) | {"seed": seed},
        "notes": _notes(records, made),
    }
    return Stream(f"jsonl_task{len(made)}", tuple(made), _facts(made, options, classes) | {"SOURCE": source})


def find_tasks(folder: Path) -> list[Path]:
    """The tasks in a folder, sorted by name; the folder itself if it holds the splits of a single task.

    Raises:
        UserError: there are none.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    entries = [path for path in entries if path.is_dir() or path.suffix in JSON_SUFFIXES]
    if not entries:
        raise UserError(f"--raw-dir: expected .json or .jsonl files, or folders with them, in {folder}, got none")
    if any(path.is_file() and path.stem in SPLITS for path in entries):
        return [folder]
    stems = [path.stem if path.is_file() else path.name for path in entries]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise UserError(f"{folder}: expected one file or folder for each task, got two named {twice[0]!r}")
    return entries


def _read_task(path: Path, name: str, options: Options, seed: int, files: dict[str, str]) -> Splits:
    """The records of a task by split; its files and their checksums are added to `files`."""
    if not os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        records = [_record(row) for row in read_rows(path)]
        files[path.name] = file_sha256(path)
        return _divide(records, options, random.Random(f"{seed}:{name}"), path)
    files_of = {split: [path / f"{split}{suffix}" for suffix in JSON_SUFFIXES] for split in SPLITS}
    found = {split: [file for file in candidates if file.exists()] for split, candidates in files_of.items()}
    for split, candidates in found.items():
        if len(candidates) > 1 or (split in NEEDED_SPLITS and not candidates):
            got = "both" if candidates else "none"
            raise UserError(f"{path}: expected {split}.json or {split}.jsonl, got {got}")
    files |= {f"{name}/{p.name}": file_sha256(p) for candidates in found.values() for p in candidates}
    return {split: [_record(row) for p in candidates for row in read_rows(p)] for split, candidates in found.items()}


def _divide(records: list[Record], options: Options, rng: random.Random, path: Path) -> Splits:
    """Assign the questions of a file to splits; repetitions of a question stay in one split."""
    questions = sorted({question(record.example) for record in records})
    rng.shuffle(questions)
    num_test = max(round(options.test_ratio * len(questions)), 1)
    num_dev = round(options.dev_ratio * len(questions))
    if num_test + num_dev >= len(questions):
        raise UserError(f"{path}: {len(questions)} different questions are too few for train, dev and test")
    split_of = dict.fromkeys(questions, "train") | dict.fromkeys(questions[:num_test], "test")
    split_of |= dict.fromkeys(questions[num_test : num_test + num_dev], "dev")
    return {split: [r for r in records if split_of[question(r.example)] == split] for split in SPLITS}


def _record(row: Row) -> Record:
    label = row.fields.get("label")
    if label is not None and type(label) not in (str, int):
        raise row.error("label", "a text or an integer", label)
    example = _chat(row) if "messages" in row.fields else Example(row.text("input"), row.text("target"))
    unread = frozenset(row.fields.keys() - set(FIELDS))
    return Record(example, None if label is None else str(label), row.where, unread)


def _chat(row: Row) -> Example:
    turns = row.fields["messages"]
    if not isinstance(turns, list):
        raise row.error("messages", "a list of {role, content}", turns)
    rows = [Row(f"{row.where}, turn {i}", t if isinstance(t, dict) else {}) for i, t in enumerate(turns, start=1)]
    messages = tuple((turn.text("role"), turn.text("content")) for turn in rows)
    roles = [role for role, _ in messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise UserError(
            f"{row.where}: expected user and assistant in turns, at most a system turn before them and an answer at "
            f"the end, got {', '.join(roles)[:80] or 'no turns'} in the field 'messages'"
        )
    return Example(messages[-2][1], messages[-1][1], messages=messages)


def _check_alike(records: list[Record]) -> None:
    """Check that all records are chats or none, and all have a label or none."""
    for what, has in (("messages", lambda r: r.example.messages is not None), ("label", lambda r: r.label is not None)):
        other = next((record for record in records if has(record) != has(records[0])), None)
        if other is not None:
            raise UserError(
                f"{other.where}: expected the field {what!r} in all records of a stream or in none, but it is "
                f"{'there' if has(other) else 'absent'} here and not so in {records[0].where}"
            )


def _classes(tasks: list[Splits], names: list[str]) -> list[list[str]]:
    """Sorted class names of each task; empty lists if there are no labels."""
    classes = [sorted({r.label for split in SPLITS for r in task[split] if r.label is not None}) for task in tasks]
    owner: dict[str, str] = {}
    for name, mine in zip(names, classes, strict=True):
        for label in mine:
            if label in owner:
                raise UserError(
                    f"label {label!r} is in the tasks {owner[label]!r} and {name!r}, but a class belongs to one task; "
                    "leave the field out, answers are compared as text then"
                )
            owner[label] = name
    return classes


def _task(splits: Splits, name: str, k: int, classes: list[list[str]]) -> TaskData:
    before = sum(map(len, classes[:k]))

    def number(record: Record) -> Example:
        if record.label is None:
            return replace(record.example, task=k)
        label = classes[k].index(record.label)
        return replace(record.example, task=k, label=before + label, label_in_task=label)

    return TaskData(name, **{split: tuple(map(number, splits[split])) for split in SPLITS})


def _notes(records: list[Record], tasks: list[TaskData]) -> list[str]:
    unread = sorted(frozenset().union(*(record.unread for record in records)))
    return ([f"fields that are not read: {', '.join(unread)}"] if unread else []) + remarks(tasks)


def _facts(tasks: list[TaskData], options: Options, classes: list[list[str]]) -> dict[str, Any]:
    if options.prompt_type not in PROMPT_TYPES:
        raise UserError(f"--prompt-type: expected one of {', '.join(PROMPT_TYPES)}, got {options.prompt_type!r}")
    count = len(tasks)
    metrics = per_task(options.metric, count, "metric")
    return {
        "NUM_TASK": count,
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": [find(metric).name for metric in metrics],
        "PROMPT_TYPE": options.prompt_type,
        "MAX_NEW_TOKENS": per_task(options.max_new_tokens, count, "max-new-tokens"),
        "IL_MODE": options.il_mode,
        "DEV_IS_TEST": all(task.dev == task.test for task in tasks),
        **_class_facts(classes),
    }


def _class_facts(classes: list[list[str]]) -> dict[str, Any]:
    if not any(classes):
        return {}
    names = [name for mine in classes for name in mine]
    return class_facts(names, [len(mine) for mine in classes]) | {"CLASSIFICATION_TYPE": "sentence-level"}


def _clean(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".+-") or "stream"
