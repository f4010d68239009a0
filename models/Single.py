"""Each task on its own: what a model of the same size reaches where nothing can be forgotten or transferred."""

from __future__ import annotations

from typing import ClassVar

from models.Base import Method, Setting, Task
from utils.distributed.modes import ALL


class Single(Method):
    """At task t start again from the first weights and train on task t alone.

    Of R the diagonal is what this method is for: R[t, t] is the reference for learning task t, as the last row of Joint
    is for knowing all of them. A continual learner above it has transferred, one below it has lost ability to learn.
    R[i, j] off the diagonal says what a model that never saw task j answers there: neither the average of the last row
    nor forgetting means anything here.
    """

    parallel = ALL
    excludes: ClassVar = {
        Setting("is_replay"): "each task is learned alone",
        Setting("keep_optimizer_state"): "the weights that the moments belong to are gone",
    }

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            self.start_afresh()
