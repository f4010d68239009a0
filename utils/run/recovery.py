"""Is the knowledge of task 0 still there? The model practises again on a part of it (Zheng et al., ICLR 2025)."""

from __future__ import annotations

from dataclasses import replace

from models.Base import Method
from utils.config import per_task
from utils.run.tasks import task_of


def relearn(method: Method, epochs: int) -> None:
    """Train the model on a part of task 0's training examples again: plainly, whatever the method."""
    lr = per_task(method.config.lr_list, method.config.lr, 0)
    config = method.config.updated(freeze_parts=(), is_replay=False, lr=lr, lr_list=None)
    session = method.session.aside("recovery", config)
    plain = Method(session, None, method.backbone, method.stream)
    if method.classifier is not None:
        plain.answers, plain.extra["heads"] = method.answers, method.classifier
    train = method.stream.tasks[0].train
    part = train[: max(1, round(config.recovery_ratio * len(train)))]
    index = 0 if method.separates else len(method.stream.tasks)
    task = replace(task_of(method, 0), index=index, name="recovery", train=part, epochs=epochs)
    newest = method.answers.newest
    with method.reading_as(0):  # else the newest weights learn what others answer
        session.fit(plain, task)
    method.answers.newest = newest
