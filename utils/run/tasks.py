"""One task of the stream as the options want it: how it is learned, and how one set of its questions is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.Base import Method, Task
from utils.dataset import Example, metric_of
from utils.evaluation import Cell, evaluate, sampled
from utils.options.stream_view import epochs_of
from utils.storage.moment import Moment


def task_of(method: Method, index: int) -> Task:
    """A task of the stream, with what the options say about it."""
    config, data = method.config, method.stream.tasks[index]
    return Task(
        index,
        data.name,
        data.train,
        epochs_of(config, index),
        method.max_length(index),
        method.max_new_tokens(index),
    )


class Questions(NamedTuple):
    """Questions of a task that are scored together."""

    examples: Sequence[Example]
    places: Sequence[int] | None = None  # in their split, where they are a sample of it; None: all of it


def questions_of(method: Method, index: int, split: str) -> Questions:
    """The questions of a split that are scored: all, or the sample of `evaluate_limit`."""
    data = method.stream.tasks[index]
    return Questions(*sampled(getattr(data, split), method.config.evaluate_limit, data.name, split))


def cell_of(method: Method, index: int, file: Path, questions: Questions, metric: str | None = None) -> Cell:
    """A set of questions of a task; `metric` None: the task's own."""
    task, metric = task_of(method, index), metric or metric_of(method.config, method.stream, index)
    cell = Cell(file, index, questions.examples, metric, task.max_length, task.max_new_tokens)
    return cell._replace(places=questions.places)


def score_cell(
    method: Method,
    folder: Path,
    moment: Moment,
    name: str,
    index: int,
    questions: Questions,
    metric: str | None = None,
) -> float:
    """Score in [0, 1] of one set of questions at one moment of a run; logged.

    Args:
        method: Its model answers as it is.
        folder: The run's.
        moment: When.
        name: Of the set, such as "task_0" or "dev_task_0"; its predictions are in the file of this name.
        index: The task that the questions belong to.
        questions: What is answered.
        metric: Name of the score; None: the task's own.
    """
    cell = cell_of(method, index, moment.predictions(folder, name), questions, metric)
    result, chance = evaluate(method, method.session, cell), method.stream.chance(index)
    against = "" if chance is None else f" (chance {100 * chance:.1f})"
    title = f"{moment.folder}: {name} ({method.stream.tasks[index].name})"
    method.session.log.info(f"{title} {cell.metric} {100 * result:.1f}{against}")
    fields = {"moment": moment.folder, "cell": name, "metric": cell.metric, f"score/{name}": result}
    method.session.log.event("evaluate", **fields)
    return result


def is_scheduled(schedule: str, index: int, tasks: int) -> bool:
    """True if a run of so many tasks is evaluated after this one, see `evaluate_schedule` and `general_schedule`.

    >>> [is_scheduled("every_2", index, 5) for index in range(5)], is_scheduled("last", 0, 5)
    ([False, True, False, True, True], False)
    """
    if index == tasks - 1 or schedule == "every":
        return True
    return schedule != "last" and (index + 1) % int(schedule.removeprefix("every_")) == 0
