"""Multitask training on all tasks seen so far: the upper bound that every method is compared with."""

from __future__ import annotations

from typing import ClassVar

from models.Base import Method, Setting, Task
from utils.backbone import load_first_weights
from utils.dataset import Example
from utils.distributed.modes import ALL


class Joint(Method):
    """Trains on the tasks 0..t together at task t, from the first weights.

    So row t of R is what an ordinary multitask run on those tasks reaches, and the last row is the usual upper bound.
    It is not a continual-learning method: it needs all data at once, and the cost of a stream grows with the square of
    its length. An epoch of task t is one pass over the union.
    """

    parallel = ALL
    excludes: ClassVar = {
        Setting("is_replay"): "all earlier tasks are in the training set already",
        Setting("keep_optimizer_state"): "the weights are reset, and the moments with them",
    }

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            load_first_weights(self.model, self.config)
            self.answers.start_afresh()

    def train_examples(self, task: Task) -> list[Example]:
        return [example for data in self.stream.tasks[: task.index + 1] for example in data.train]
