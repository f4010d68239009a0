"""Which files are a task: a file, a folder with splits, an entry of dataset_info.json, a data set of the hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.dataset import NEEDED_SPLITS, SPLITS
from utils.errors import UserError, printable
from utils.preprocess.own import llama_factory
from utils.preprocess.own.fields import Fields
from utils.preprocess.own.sources import (
    HUB,
    READERS,
    Source,
    hint,
    hub,
    is_shard,
    other_kind,
    part_of,
    split_of,
    suffix,
)

ALONE = ""  # in the place of a split: the examples are still to be split
SAVED = "state.json"  # in a folder written by the library's save_to_disk; not a file of records


class Files(NamedTuple):
    """The files of one task."""

    name: str
    place: str  # for messages
    splits: dict[str, list[Source]]  # of each split, or ALONE
    fields: Fields | None = None  # how they are read; None: to be found out
    unread: tuple[str, ...] = ()  # other files in the folder, without records


def find(word: str) -> list[Files]:
    """The tasks that a word of the user names.

    Args:
        word: A file, a folder, `hub:NAME[:CONFIG[:SPLIT]]`, or `FOLDER/dataset_info.json[:ENTRY]`.

    Raises:
        UserError: there are none, or they have no train or test split.
    """
    if not word.strip():
        raise UserError("dataset_files: expected files or folders, got an empty word")
    if word.startswith(HUB):
        return [_of_hub(word)]
    file, _, entry = word.rpartition(":")
    for path, wanted in ((Path(file), entry), (Path(word), None)):
        if path.name == llama_factory.NAME and not (path.parent / SAVED).exists():
            return [_of_entry(found) for found in llama_factory.read(path, wanted)]
    if not os.path.isdir(word):  # unlike Path.is_dir, False for a name that is too long
        return [_of_file(Path(word))]
    return in_folder(Path(word))


def in_folder(folder: Path) -> list[Files]:
    """The tasks in a folder, by name: the folder itself if it holds splits, or else each file and folder in it.

    Raises:
        UserError: there are none, or two have one name.
    """
    entries = _entries(folder)
    if (folder / llama_factory.NAME) in entries and not (folder / SAVED).exists():
        return [_of_entry(found) for found in llama_factory.read(folder / llama_factory.NAME, None)]
    if (folder / SAVED).exists():
        return [Files(folder.name, str(folder), {ALONE: [Source(path) for path in _readable(entries)]})]
    if [path.name for path in entries if path.is_dir()] == ["data"] and not _readable(entries):
        entries = _entries(folder / "data")  # as data sets are laid out on the hub
    if any(split_of(path.stem) for path in entries):
        return [_of_splits(folder, entries)]
    folders = [path for path in entries if path.is_dir()]
    pairs = _pairs(_readable(entries))
    entries = [path for path in entries if not any(path in files for files in pairs.values())]
    stems = Counter([path.name for path in folders] + [*pairs] + [path.stem for path in _readable(entries)])
    if twice := [name for name, count in stems.items() if count > 1]:
        raise UserError(f"{folder}: expected one file or folder for each task, got two named {twice[0]!r}")
    found = [one for path in folders for one in _of_inner(path)]
    found += [_of_pair(folder, task, files) for task, files in pairs.items()]
    found += [_of_file(path) for path in _readable(entries)]
    unread = tuple(str(path) for path in entries if path.is_file() and suffix(path) not in READERS)
    if not found:
        kinds = ", ".join(READERS)
        raise UserError(f"{folder}: expected files of records ({kinds}), or folders with them, got none")
    found.sort(key=lambda one: one.name)
    return [found[0]._replace(unread=found[0].unread + unread), *found[1:]]


def _pairs(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each task that has several which are named after it and a split: law_train.jsonl, law_test.jsonl."""
    named: dict[str, list[Path]] = {}
    for path in paths:
        if part := part_of(path.stem):
            named.setdefault(part[0], []).append(path)
    return {task: files for task, files in named.items() if len(files) > 1}


def _of_pair(folder: Path, task: str, paths: Iterable[Path]) -> Files:
    splits: dict[str, list[Source]] = {split: [] for split in SPLITS}
    for path in paths:
        _, split = part_of(path.stem) or ("", "")
        if splits[split]:
            raise UserError(
                f"{folder}: expected one file for {split} of {task}, got {splits[split][0].place} and {path}"
            )
        splits[split].append(Source(path))
    return _complete(Files(printable(task), f"{folder}/{task}", splits), f"{task}_")


def check_apart(found: Iterable[Files]) -> None:
    """Check that no two tasks are files of one task by their names.

    Raises:
        UserError: two are, such as law_train and law_test.
    """
    seen: dict[str, str] = {}
    for files in found:
        if ALONE in files.splits and (part := part_of(files.name)):
            task = part[0]
            if task in seen:
                raise UserError(
                    f"{seen[task]} and {files.name} look like splits of one task, {task!r}, but each would be a task: "
                    f"put them into a folder, {task}/train.jsonl and {task}/test.jsonl, and name the folder; if they "
                    "are two tasks, name all tasks with task_names"
                )
            seen[task] = files.name


def _of_inner(folder: Path) -> list[Files]:
    """A folder in a folder of tasks is one task, or is no task if it holds no records."""
    found = in_folder(folder) if any(suffix(path) in READERS for path in folder.rglob("*")) else []
    if len(found) > 1:
        raise UserError(
            f"{folder}: expected a folder with train and test, one task, got {', '.join(one.name for one in found[:3])}"
        )
    return [one._replace(name=folder.name) for one in found]


def _of_file(path: Path) -> Files:
    if suffix(path) not in READERS:
        if not path.suffix and not os.path.exists(path):
            next(READERS[".json"](path))  # says that it is missing
        more = other_kind(path) if os.path.exists(path) else hint(path)
        raise UserError(f"{path}: expected a folder or a file that ends with {', '.join(READERS)}{more}")
    return Files(printable(path.stem), str(path), {ALONE: [Source(path)]})


def _of_splits(folder: Path, entries: Iterable[Path]) -> Files:
    splits: dict[str, list[Source]] = {split: [] for split in SPLITS}
    unread = []
    for path in entries:
        split = split_of(path.stem)
        inside = _readable(_entries(path)) if path.is_dir() else _readable([path])
        if split is None or not inside:
            unread.append(str(path))
        elif splits[split] and not (is_shard(path) and all(is_shard(Path(s.place)) for s in splits[split])):
            raise UserError(
                f"{folder}: expected one file for {split}, got {splits[split][0].place} and {path.name}; files of "
                f"several tasks are named after task and split, such as law_{split}.jsonl"
            )
        else:
            _check_parts(path, inside)
            splits[split] += [Source(file) for file in inside]
    return _complete(Files(printable(folder.name), str(folder), splits, unread=tuple(unread)))


def _check_parts(folder: Path, inside: list[Path]) -> None:
    """Several files in the folder of a split are parts of one task only if they are numbered."""
    names = [path.stem for path in inside if not path.stem[-1].isdecimal()]
    if len(inside) > 1 and names:
        raise UserError(
            f"{folder}: expected one file, or parts of it that end with a number, got {', '.join(names[:3])}; files of "
            f"several tasks are named after task and split, such as {folder.parent / names[0]}_{folder.name}.jsonl"
        )


def _complete(files: Files, start: str = "") -> Files:
    for split in NEEDED_SPLITS:
        if not files.splits.get(split):
            raise UserError(
                f"{files.place}: expected files for train and test, such as {start}{split}.jsonl, got no {split}"
            )
    return files


def _of_hub(word: str) -> Files:
    """All splits of a data set, if it has train and test; otherwise the only one, or the one that is named."""
    name, config, split = (*word.removeprefix(HUB).split(":", 2), None, None)[:3]
    if not name:
        raise UserError(f"{word}: expected {HUB}NAME, {HUB}NAME:CONFIG or {HUB}NAME:CONFIG:SPLIT")
    task = printable(name.rpartition("/")[2])
    if split:
        return Files(task, word, {ALONE: [Source(name, config or None, split)]})
    found = list(hub(Source(name, config or None)))
    if len(found) == 1:
        return Files(task, word, {ALONE: [Source(name, config or None, found[0])]})
    splits: dict[str, list[Source]] = {one: [] for one in SPLITS}
    for one in found:
        if (role := split_of(one)) and not splits[role]:
            splits[role].append(Source(name, config or None, one))
    if not splits["train"] or not splits["test"]:
        raise UserError(f"{word}: it has the splits {', '.join(found)}; name the one to use, {HUB}NAME:CONFIG:SPLIT")
    return Files(task, word, splits)


def _of_entry(entry: llama_factory.Entry) -> Files:
    place = f"{llama_factory.NAME}, {entry.name}"
    if isinstance(entry.source, Source):
        return Files(printable(entry.name), place, {ALONE: [entry.source]}, entry.fields)
    (found,) = find(str(entry.source))[:1]
    return found._replace(name=printable(entry.name), fields=entry.fields)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))


def _readable(paths: Iterable[Path]) -> list[Path]:
    named = (SAVED, "dataset_dict.json", llama_factory.NAME)
    return [path for path in paths if path.is_file() and suffix(path) in READERS and path.name not in named]
