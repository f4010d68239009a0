"""Each task alone: what a model of the same size reaches without forgetting or transfer."""

from __future__ import annotations

from typing import ClassVar

from models.Base import Method, Setting, Task
from utils.backbone import load_first_weights
from utils.distributed.modes import ALL


class Single(Method):
    """Trains on task t alone at task t, from the first weights.

    The diagonal of R is the result: R[t, t] is the reference for learning task t, as the last row of Joint is for
    knowing all of them. A continual learner above it has transferred, one below it has lost ability to learn. R[i, j]
    off the diagonal is the score of a model that never saw task j: the average of the last row and forgetting have no
    meaning.
    """

    parallel = ALL
    excludes: ClassVar = {
        Setting("is_replay"): "each task is learned alone",
        Setting("keep_optimizer_state"): "the weights are reset, and the moments with them",
    }

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            load_first_weights(self.model, self.config)
            self.answers.start_afresh()
