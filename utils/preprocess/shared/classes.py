"""Streams of classes: how classes are assigned to tasks, and the facts of such a stream."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.records import remarks

LONGEST_NAME = 30  # characters of a class in the name of a task


class ClassOptions(config.OptionGroup):
    """Assignment of classes to tasks."""

    num_task: int | None = Field(None, ge=1, description="Number of tasks; none: as many as the classes fill.")
    classes_per_task: int = Field(10, ge=1, description="Classes of each task; the last task gets the remainder.")
    class_order: Literal["file", "shuffled"] = Field(
        "file", description="Order of the classes: that of the raw data, or shuffled with the seed."
    )
    num_sample_train_per_class: int = Field(
        -1, ge=-1, description="Training examples to sample per class with the seed; -1: all."
    )
    num_sample_test_per_class: int = Field(-1, ge=-1, description="The same for dev and for test.")


class HeldOutOptions(ClassOptions):
    """Assignment of classes to tasks."""

    dev_share: float = Field(
        0, ge=0, lt=1, description="Share of each class's training examples to move to dev; 0: dev is test."
    )


class Labelled(NamedTuple):
    """A text and its class, as a position in the list of classes."""

    text: str
    label: int


class RawClasses(NamedTuple):
    """A raw data set of classes, read and checked."""

    name: str  # start of the stream's name
    place: str  # its file or folder, for error messages
    classes: list[str]
    train: list[Labelled]
    dev: list[Labelled] | None  # None: dev is test
    test: list[Labelled]
    files: dict[str, str]  # name -> sha256
    facts: dict[str, Any]  # PROMPT_TYPE, and MAX_SEQ_LENGTH as one number
    groups: Sequence[str] = ()  # of each class, what it has in common with others: a data set, a kind
    notes: Sequence[str] = ()  # on the files


class Naming(NamedTuple):
    """The classes of a stream by class id."""

    order: list[int]  # position in RawClasses.classes
    targets: list[str]  # the answer


def to_stream(raw: RawClasses, options: ClassOptions, seed: int, naming: Naming | None = None) -> Stream:
    """Sample examples and assign classes to tasks; the examples of a task keep the order of the file.

    Args:
        raw: The data set.
        options: See ClassOptions.
        seed: Determines the sample, and the order of the classes if it is shuffled.
        naming: Classes by id; None: as in `raw`, in the order given by the options.

    Raises:
        UserError: fewer classes than the tasks need, or a class without training or test examples.
    """
    _check_classes(raw)
    naming = naming or name_classes(raw.classes, options, seed)
    sizes = task_sizes(len(raw.classes), options.classes_per_task, options.num_task, raw.place)
    splits = _draw_splits(raw, options, seed)
    facts = {"NUM_TASK": len(sizes)} | class_facts(naming.targets[: sum(sizes)], sizes)
    ids = {position: i for i, position in enumerate(naming.order[: sum(sizes)])}
    groups = [raw.groups[position] if raw.groups else "" for position in ids]
    titles = [raw.classes[position] for position in ids]  # targets may be numbers
    tasks = _tasks(splits, ids, facts, titles, groups)
    longest = max(len(name.encode()) for name in facts["idx2label"])
    source = {
        "files": raw.files,
        "options": options.model_dump() | {"seed": seed},
        "notes": [*raw.notes, *remarks(tasks)],
    }
    per_task = {
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": ["exact_match"] * len(tasks),
        "MAX_NEW_TOKENS": [longest + 2] * len(tasks),  # one token per byte, the leading space and EOS
        "MAX_SEQ_LENGTH": [raw.facts["MAX_SEQ_LENGTH"]] * len(tasks),
        # Chance level when a task is learned; with the classes of later tasks chance is lower, so this is a bound.
        "CHANCE": [1 / count for count in facts["ACCUM_NUM_CLASS"]],
    }
    whole = {"IL_MODE": "CIL", "DEV_IS_TEST": raw.dev is None, "CLASSIFICATION_TYPE": "sentence-level"}
    settings = facts | raw.facts | per_task | whole | {"SOURCE": source}
    return Stream(f"{raw.name}_task{len(tasks)}", tasks, settings)


def name_classes(classes: Sequence[str], options: ClassOptions, seed: int) -> Naming:
    """Classes in the order given by the options, under their own names."""
    order = list(range(len(classes)))
    if options.class_order == "shuffled":
        random.Random(seed).shuffle(order)
    return Naming(order, [classes[position] for position in order])


def task_sizes(num_class: int, each: int, num_task: int | None, place: str) -> list[int]:
    """Number of classes of each task.

    >>> task_sizes(7, 3, None, ""), task_sizes(7, 3, 2, "")
    ([3, 3, 1], [3, 3])

    Raises:
        UserError: the classes do not fill that many tasks.
    """
    sizes = [min(each, num_class - start) for start in range(0, num_class, each)]
    if num_task is not None and num_task > len(sizes):
        raise UserError(
            f"--num-task: expected at most {len(sizes)} ({num_class} classes in {place}, {each} a task), got {num_task}"
        )
    return sizes[:num_task]


def class_facts(names: list[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Facts of a stream of classes that are numbered in the order of the tasks.

    Args:
        names: Names of the classes, by id.
        sizes: Number of classes of each task.
    """
    totals = list(accumulate(sizes))
    return {
        "NUM_CLASS": len(names),
        "LABEL_LIST": list(range(len(names))),
        "CLASSNAME_LIST": names,
        "CUR_NUM_CLASS": list(sizes),
        "CUR_CLASS": [list(range(end - size, end)) for size, end in zip(sizes, totals, strict=True)],
        "ACCUM_NUM_CLASS": totals,
        "PRE_ACCUM_NUM_CLASS": [0, *totals[:-1]],
        "label2idx": {name: i for i, name in enumerate(names)},
        "idx2label": names,
    }


def hold_out(rows: list[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled] | None]:
    """Move a share of each class's examples, at least one, to a new split; None if it is 0."""
    if share == 0:
        return rows, None
    drawn: set[int] = set()
    for label, places in _by_class(rows).items():
        count = max(1, round(share * len(places)))
        drawn |= set(random.Random(f"{seed}:dev:{label}").sample(places, count))
    return [row for i, row in enumerate(rows) if i not in drawn], [rows[i] for i in sorted(drawn)]


def _check_classes(raw: RawClasses) -> None:
    check_once(raw.classes, raw.place)
    for split in ("train", "test"):
        present = {row.label for row in getattr(raw, split)}
        missing = [name for i, name in enumerate(raw.classes) if i not in present]
        if missing:
            raise UserError(f"{raw.place}: expected examples of every class, but {split} has none of {missing[0]!r}")


def check_once(names: Sequence[str], place: object) -> None:
    """Raise a UserError if a class is named twice."""
    again = [name for i, name in enumerate(names) if name in names[:i]]
    if again:
        raise UserError(f"{place}: expected every class once, got {again[0]!r} twice")


def _task_name(names: Sequence[str], groups: Sequence[str]) -> str:
    """The classes of a task, of many the first and the last, behind what they have in common: at most two groups.

    >>> _task_name(["World", "Sports"], ["agnews", "agnews"]), _task_name(["refund", "age limit", "top up"], [""] * 3)
    ('agnews: World, Sports', 'refund .. top up (3 classes)')
    """
    common = [group for group in dict.fromkeys(groups) if group]
    names = [name.rpartition(": ")[2] for name in names] if common else names  # tacred's begin with their group
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]}.." for name in names]
    listed = ", ".join(short) if len(short) < 3 else f"{short[0]} .. {short[-1]} ({len(short)} classes)"
    return f"{' and '.join(common)}: {listed}" if 0 < len(common) < 3 else listed


def _draw_splits(raw: RawClasses, options: ClassOptions, seed: int) -> dict[str, list[Labelled]]:
    train, test = options.num_sample_train_per_class, options.num_sample_test_per_class
    splits = {"train": _draw(raw.train, train, f"{seed}:train"), "test": _draw(raw.test, test, f"{seed}:test")}
    return splits | {"dev": splits["test"] if raw.dev is None else _draw(raw.dev, test, f"{seed}:dev")}


def _draw(rows: list[Labelled], count: int, seed: str) -> list[Labelled]:
    """At most `count` rows of each class (-1: all), in their order."""
    if count < 0:
        return rows
    kept: list[int] = []
    for label, places in _by_class(rows).items():
        kept += random.Random(f"{seed}:{label}").sample(places, min(count, len(places)))
    return [rows[i] for i in sorted(kept)]


def _by_class(rows: list[Labelled]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        places[row.label].append(i)
    return places


def _tasks(
    splits: dict[str, list[Labelled]],
    ids: dict[int, int],
    facts: dict[str, Any],
    titles: Sequence[str],
    groups: Sequence[str],
) -> tuple[TaskData, ...]:
    """Examples of each task and split; rows of classes without an id are left out."""
    starts, names = facts["PRE_ACCUM_NUM_CLASS"], facts["idx2label"]
    task_of = [k for k, classes in enumerate(facts["CUR_CLASS"]) for _ in classes]
    assigned: dict[str, list[list[Example]]] = {split: [[] for _ in starts] for split in splits}
    for split, rows in splits.items():
        for text, position in rows:
            if position in ids:
                label = ids[position]
                k = task_of[label]
                assigned[split][k].append(Example(text, names[label], label, label - starts[k], task=k))
    return tuple(
        TaskData(
            _task_name([titles[i] for i in c], [groups[i] for i in c]),
            **{split: tuple(assigned[split][k]) for split in splits},
        )
        for k, c in enumerate(facts["CUR_CLASS"])
    )
