"""Tasks as they were read from files, and what a user has to know about them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from utils.dataset import TaskData
from utils.preprocess.own.fields import Fields
from utils.preprocess.own.table import Table
from utils.preprocess.shared.records import remark


class Part(NamedTuple):
    """The examples of a split: some of a table."""

    table: Table
    places: Sequence[int]


class Task(NamedTuple):
    """A task as it was read."""

    name: str
    tables: list[Table]  # those of its splits that there are, or of its only file
    splits: dict[str, Part]
    fields: Fields
    preset: str | None  # that was found out; None: the user said it
    files: dict[str, str]  # name -> digest
    unread: tuple[str, ...]  # other files in the folder


def of(tasks: list[Task], made: list[TaskData]) -> list[str]:
    """Notes on the tasks.

    Args:
        tasks: As they were read.
        made: The same as parts of a stream.
    """
    return [*_found(tasks), *_same(tasks), *_untrained(tasks), *_remarks(tasks, made)]


def _found(tasks: list[Task]) -> list[str]:
    """What was found out, and what was not read."""
    found = [task for task in tasks if task.preset or (task.preset is not None and "references" in task.fields.parts)]
    lines = [f"{task.name}: fields of {task.preset or 'this program'}: {task.fields.text}" for task in found]
    lines += [f"{task.name}: {remark}" for task in tasks for remark in sorted(task.fields.noticed.remarks)]
    unread = sorted(set().union(*(task.fields.noticed.unread for task in tasks)))
    files = [file for task in tasks for file in task.unread]
    lines += [f"fields that are not read: {', '.join(unread)}"] if unread else []
    absent = set().union(*(t.fields.optional for t in tasks if t.fields.is_given))
    absent -= set().union(*(task.fields.noticed.met for task in tasks))
    lines += [f"fields of the option that no record has: {', '.join(sorted(absent))}"] if absent else []
    return lines + ([f"files that are not read: {', '.join(map(os.path.basename, files))}"] if files else [])


def _same(tasks: list[Task]) -> list[str]:
    """Tasks of the same files."""
    known: dict[tuple[str, ...], str] = {}
    pairs = [(known.setdefault(tuple(task.files.values()), task.name), task.name) for task in tasks]
    return [f"{one} and {other} have the same files" for one, other in pairs if one != other]


def _remarks(tasks: list[Task], made: list[TaskData]) -> list[str]:
    lines = []
    for task, data in zip(tasks, made, strict=True):
        train, dev, test = (part.table.counted(part.places) for part in task.splits.values())
        lines.append(remark(task.name, train, dev, test, data.dev == data.test))
    return [line for line in lines if line]


def _untrained(tasks: list[Task]) -> list[str]:
    """Classes that are asked for and not learned."""
    lines = []
    for task in tasks:
        if task.tables[0].labels is not None:
            found = {split: {(part.table.labels or ())[i] for i in part.places} for split, part in task.splits.items()}
            missing = sorted(set().union(*found.values()) - found["train"])
            lines += [f"{task.name}: classes without training examples: {', '.join(missing)}"] if missing else []
    return lines
