"""One task of the stream as the options want it: how it is learned, and how one set of its questions is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.Base import Method, Task
from utils.config import per_task
from utils.dataset import Example
from utils.evaluation import Cell, evaluate, metric_of
from utils.storage.moment import Moment


def task_of(method: Method, index: int) -> Task:
    """A task of the stream, with what the options say about it."""
    config, data = method.config, method.stream.tasks[index]
    epochs = config.training_epochs
    if index == 0 and config.training_epochs_first_task is not None:
        epochs = config.training_epochs_first_task
    return Task(
        index,
        data.name,
        data.train,
        per_task(config.training_epochs_list, epochs, index),
        method.max_length(index),
        method.max_new_tokens(index),
    )


def cell_of(method: Method, index: int, file: Path, examples: Sequence[Example], metric: str | None = None) -> Cell:
    """A set of questions of a task; `metric` None: the task's own."""
    task, metric = task_of(method, index), metric or metric_of(method.config, method.stream, index)
    return Cell(file, index, examples, metric, task.max_length, task.max_new_tokens)


def score_cell(
    method: Method,
    folder: Path,
    moment: Moment,
    name: str,
    index: int,
    examples: Sequence[Example],
    metric: str | None = None,
) -> float:
    """Score in [0, 1] of one set of questions at one moment of a run; logged.

    Args:
        method: Its model answers as it is.
        folder: The run's.
        moment: When.
        name: Of the set, such as "task_0" or "dev_task_0"; its predictions are in the file of this name.
        index: The task that the questions belong to.
        examples: The questions.
        metric: Name of the score; None: the task's own.
    """
    cell = cell_of(method, index, moment.predictions(folder, name), examples, metric)
    result, chance = evaluate(method, method.session, cell), method.stream.chance(index)
    against = "" if chance is None else f" (chance {100 * chance:.1f})"
    title = f"{moment.folder}: {name} ({method.stream.tasks[index].name})"
    method.session.log.info(f"{title} {cell.metric} {100 * result:.1f}{against}")
    fields = {"moment": moment.folder, "cell": name, "metric": cell.metric, f"score/{name}": result}
    method.session.log.event("evaluate", **fields)
    return result
