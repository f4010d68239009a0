"""Tasks as the options want them learned."""

from __future__ import annotations

from dataclasses import replace

from models.Base import Method, Task
from utils.config import per_task


def task_of(method: Method, index: int) -> Task:
    """A task of the stream, with what the options say about it."""
    config, data = method.config, method.stream.tasks[index]
    first = index == 0 and config.training_epochs_first_task is not None
    epochs = config.training_epochs_first_task if first else config.training_epochs
    new = config.backbone_max_new_token if config.backbone_max_new_token > 0 else method.stream.max_new_tokens(index)
    return Task(
        index,
        data.name,
        data.train,
        per_task(config.training_epochs_list, epochs, index),
        method.max_length(index),
        per_task(config.backbone_max_new_token_list, new, index),
    )


def relearn(method: Method, epochs: int) -> None:
    """Train the model on a part of task 0's training examples again: plainly, whatever the method."""
    lr = per_task(method.config.lr_list, method.config.lr, 0)
    config = method.config.updated(freeze_parts=(), is_replay=False, lr=lr, lr_list=None)
    session = method.session.aside("recovery", config)
    plain = Method(session, None, method.backbone, method.stream)
    if method.classifier is not None:
        plain.extra["heads"] = method.classifier
    train = method.stream.tasks[0].train
    part = train[: max(1, round(config.recovery_ratio * len(train)))]
    number = len(method.stream.tasks)
    task = replace(task_of(method, 0), index=number, name="recovery", train=part, epochs=epochs)
    session.fit(plain, task)
