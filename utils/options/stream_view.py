"""What a run uses of a stream: its split for scores, the order of its tasks, the number of tasks.

A view is made from the stored stream each time a run starts; it has the same examples. Options with one value per task
(`lr_list`) are given in the stored order and follow their tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from utils.config import Config, per_task
from utils.dataset import TASK_FACTS, Example, Stream, TaskData
from utils.errors import UserError
from utils.seed import random_for
from utils.storage.packed_columns import Mapped

TAUGHT = ("IIL", "CKE")  # a question about a fact that was not trained on has no answer
HELD_OUT = 0.1  # share of train that is scored where a stream has no dev split


def view(stream: Stream, config: Config) -> Stream:
    """The stream as these options use it.

    Raises:
        UserError: an option does not fit the stream.
    """
    if config.score_split == "dev":
        stream = for_tuning(stream)
    order = order_of(config.task_order, len(stream.tasks))
    if order != tuple(range(len(order))):
        stream = reordered(stream, order)
    return stream if config.first_tasks is None else _first(stream, config.first_tasks)


def is_per_task(name: str) -> bool:
    """True of options with one value per task."""
    return name.endswith("_list") or name == "metric_for_each_task"


def of_config(config: Config) -> Config:
    """The options with one value per task in the order in which the tasks are learned, for the tasks that are used.

    Lists of a wrong length stay as they are; a check reports them.
    """
    lists = {
        name: values for name in type(config).model_fields if is_per_task(name) if (values := getattr(config, name))
    }
    if not lists or (config.task_order == "stored" and config.first_tasks is None):
        return config
    changed = {}
    for name, values in lists.items():
        with suppress(UserError):
            order = order_of(config.task_order, len(values))
            changed[name] = tuple(values[k] for k in order[: config.first_tasks])
    return config.updated(**changed)


def order_of(text: str, count: int) -> tuple[int, ...]:
    """The stored numbers of the tasks, in the order in which they are learned.

    Raises:
        UserError: no order of this many tasks.

    >>> order_of("reversed", 3), order_of("2,0,1", 3), sorted(order_of("random:1", 3))
    ((2, 1, 0), (2, 0, 1), [0, 1, 2])
    """
    numbers = list(range(count))
    kind, _, rest = text.partition(":")
    if text == "reversed":
        return tuple(reversed(numbers))
    if kind == "random" and rest.isdecimal():
        random_for("task order", int(rest)).shuffle(numbers)
    elif text != "stored":
        given = [int(word) for word in text.split(",") if word.strip().isdecimal()]
        if sorted(given) != numbers or len(given) != len(text.split(",")):
            raise UserError(
                f"task_order: expected stored, reversed, random:<seed>, or each of 0 to {count - 1} once, separated "
                f"by commas; got {text!r}"
            )
        numbers = given
    return tuple(numbers)


def has_dev(stream: Stream, k: int) -> bool:
    """True if task k has dev examples that are neither its test examples nor other questions (LOCALITY_SPLIT)."""
    task = stream.tasks[k]
    return bool(task.dev) and stream.config.get("LOCALITY_SPLIT") != "dev" and task.dev != task.test


def dev_measures_training(stream: Stream) -> bool:
    """True if training as the stream states it is what the dev questions ask about, see DEV_IS_TRAINED."""
    known = stream.config.get("DEV_IS_TRAINED")
    return known is None or all(
        (set(task.dev) <= set(task.train)) if is_trained else not set(task.dev) & set(task.train)
        for task, is_trained in zip(stream.tasks, known, strict=True)
    )


def for_tuning(stream: Stream) -> Stream:
    """The stream with dev in the place of test.

    Where questions are learned by heart (DEV_IS_TRAINED), dev takes the place of test in train, too; elsewhere train
    gives up what it shares with dev. A task without dev examples is scored on a tenth of train, drawn by a fixed seed:
    held out from training, except where only questions that were trained on can be answered (IIL, CKE, or test
    questions that are all in train).

    Raises:
        UserError: a task has too few examples to hold some out.
    """
    tasks = tuple(_tuning_task(stream, k) for k in range(len(stream.tasks)))
    return Stream(f"{stream.name} (dev)", tasks, stream.config | {"DEV_IS_TEST": False})


def _tuning_task(stream: Stream, k: int) -> TaskData:
    task = stream.tasks[k]
    locality = task.dev if stream.config.get("LOCALITY_SPLIT") == "dev" else ()
    if not has_dev(stream, k):
        dev = _part(task.train, k)
        is_trained = stream.il_mode in TAUGHT or set(task.test) <= set(task.train)
        train = task.train if is_trained else _without(task.train, dev)
    else:
        dev = tuple(task.dev)
        by_heart = stream.config.get("DEV_IS_TRAINED", [False] * len(stream.tasks))[k]
        train = (*_without(task.train, [*task.test, *dev]), *dev) if by_heart else _without(task.train, dev)
    if not train or not dev:
        raise UserError(
            f"score_split: task {k} of {stream.name} has too few training examples ({len(task.train)}) to hold some out"
        )
    return TaskData(task.name, train, locality, dev)


def _without(examples: Sequence[Example], others: Sequence[Example]) -> tuple[Example, ...]:
    left_out = set(others)
    return tuple(example for example in examples if example not in left_out)


def _part(examples: Sequence[Example], k: int) -> tuple[Example, ...]:
    """A tenth of the examples, at least one; each class keeps one."""
    wanted, left = max(1, round(HELD_OUT * len(examples))), Counter(example.label for example in examples)
    places = list(range(len(examples)))
    random_for("tuning", k).shuffle(places)
    chosen: list[int] = []
    for place in places:
        label = examples[place].label
        if len(chosen) < wanted and left[label] > 1:
            left[label] -= 1
            chosen.append(place)
    return tuple(examples[place] for place in sorted(chosen))


def reordered(stream: Stream, order: Sequence[int]) -> Stream:
    """The tasks in another order, with their facts; classes are numbered in that order.

    Args:
        stream: As it is stored.
        order: Stored numbers of the tasks.

    Raises:
        UserError: its tasks have one possible order.
    """
    if stream.is_word_level:
        raise UserError(f"task_order: {stream.name} is word-level; its texts are annotated in the stored order only")
    sizes = stream.config.get("CUR_NUM_CLASS") or [0] * len(order)
    old = [sum(sizes[:k]) for k in range(len(sizes))]
    new = [sum(sizes[k] for k in order[:i]) for i in range(len(order))]
    tasks = tuple(_moved(stream.tasks[k], i, new[i] - old[k]) for i, k in enumerate(order))
    facts = {name: [stream.config[name][k] for k in order] for name in TASK_FACTS if name in stream.config}
    return Stream(stream.name, tasks, stream.config | facts)


def _moved(task: TaskData, place: int, shift: int) -> TaskData:
    change = partial(_at, place=place, shift=shift)
    return TaskData(task.name, *(Mapped(change, rows) for rows in (task.train, task.dev, task.test)))


def _at(example: Example, place: int, shift: int) -> Example:
    label = None if example.label is None else example.label + shift
    return replace(example, task=place, label=label)


def _first(stream: Stream, count: int) -> Stream:
    if count > len(stream.tasks):
        raise UserError(f"first_tasks: expected at most the {len(stream.tasks)} tasks of {stream.name}, got {count}")
    facts: dict[str, Any] = {name: stream.config[name][:count] for name in TASK_FACTS if name in stream.config}
    if "CUR_NUM_CLASS" in facts:
        facts["NUM_CLASS"] = sum(facts["CUR_NUM_CLASS"])
    if "idx2label" in stream.config:
        facts["idx2label"] = stream.config["idx2label"][: facts["NUM_CLASS"]]
    name = f"{stream.name}, first {count} tasks"
    return Stream(name, stream.tasks[:count], stream.config | facts | {"NUM_TASK": count})


def epochs_of(config: Config, index: int) -> int:
    """Epochs of the task that is learned at this place, from 0."""
    first = config.training_epochs_first_task
    epochs = config.training_epochs if index > 0 or first is None else first
    return per_task(config.training_epochs_list, epochs, index)
