"""Gradients without their part along the way that plain fine-tuning would go."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Task
from utils.config import Config, Count, Int, OptionGroup, per_task
from utils.dataset import Stream
from utils.distributed.modes import WHOLE_GRADIENTS
from utils.model.weights import Weights, assign, snapshot
from utils.seed import seed_for
from utils.session import Progress


class GradientProjection(Method):
    """Before each new task find out where plain fine-tuning goes; then do not go there.

    An experiment of Zheng et al. (ICLR 2025, the code of their Biography experiments): is spurious forgetting the work
    of one direction in weight space? Before task t > 0 the model is fine-tuned n times from the same weights, with n
    orders of the data, plainly: no memory, a fresh optimizer. With theta_r(s) after s steps of run r,

        d = 1/n sum_r (theta_r(end_step) - theta_r(begin_step)),

    and the weights are put back. In the task itself every gradient loses its part along d, row by row of a weight
    matrix, and as a whole for vectors:

        g := g - d <g, d> / <d, d>

    There it is g - d cos(g, d) for matrices and g - d <g, d> / |d| for vectors, which is a projection only if d has
    length 1. AdamW scales the projected gradient per weight, so its steps are near to orthogonal to d, not exactly so.
    The n runs cost n end_step optimizer steps per task, and two more copies of the weights while they last.
    """

    class Options(OptionGroup):
        """GradientProjection."""

        GradientProjection_begin_step: Int = Field(
            100, ge=0, description="Optimizer step of the preliminary trainings at which the direction begins."
        )
        GradientProjection_end_step: Count = Field(150, description="Optimizer step at which it ends, and they too.")
        GradientProjection_runs: Count = Field(10, description="Preliminary trainings before each task.")

    heads = GENERATING
    backbones = WRITING
    parallel = WHOLE_GRADIENTS
    state: ClassVar = ("direction",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.direction: Weights = {}  # rows of d with length 1, (R, C), by parameter name

    @classmethod
    def problems(cls, config: Config, options: OptionGroup, stream: Stream) -> list[str]:
        begin, end = options.GradientProjection_begin_step, options.GradientProjection_end_step
        if begin >= end:
            return [f"GradientProjection_begin_step: expected less than the end_step {end}, got {begin}"]
        for index, data in enumerate(stream.tasks[1:], start=1):
            epochs = per_task(config.training_epochs_list, config.training_epochs, index)
            steps = -(-len(data.train) // config.batch_size) * epochs
            if steps < end:
                return [f"GradientProjection_end_step: expected at most the {steps} steps of task {index}, got {end}"]
        return []

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            self.direction = {name: unit_rows(d) for name, d in self._average_way(task).items()}

    def on_gradients(self, task: Task) -> None:
        with torch.no_grad():
            for name, w in self.named().items():
                if w.grad is not None and name in self.direction:
                    w.grad.copy_(without(w.grad.float(), self.direction[name]))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.direction = {name: d.to(self.model.device) for name, d in self.direction.items()}

    def _average_way(self, task: Task) -> Weights:
        """d, by parameter name, float32; the model ends as it began."""
        runs, learning = self.options.GradientProjection_runs, self.learning(task)
        start = snapshot(learning)
        d = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in learning.items()}
        self.session.log.info(f"looking for a direction: {runs} trainings")
        for run in range(runs):
            begin = self._train_plainly(task, run)
            for name, w in learning.items():
                d[name] += (w.detach().float() - begin[name].float()) / runs
            assign(learning, start)
        length = sum(x.square().sum() for x in d.values()).sqrt().item()
        self.session.log.event("direction", task=task.index, runs=runs, length=length)
        return d

    def _train_plainly(self, task: Task, run: int) -> Weights:
        """One preliminary training; returns the weights at its begin_step and leaves the model at its end_step."""
        learning = self.learning(task)
        begin = snapshot(learning)

        def keep(at: Progress, _: Any) -> None:
            if at.done == self.options.GradientProjection_begin_step:
                assign(begin, learning)

        seed = seed_for(self.config.seed, "direction", task.index, run)
        session = self.session.aside("direction", self.config.updated(seed=seed, is_replay=False))
        plain = Method(session, None, self.backbone, self.stream)
        session.fit(plain, task, on_step=keep, limit=self.options.GradientProjection_end_step)
        return begin


def unit_rows(d: Tensor) -> Tensor:
    """(R, C): each row of a matrix, or the whole of a vector, with length 1; zeros stay zeros (below 1e-12, nearly)."""
    rows = d.flatten(1) if d.dim() > 1 else d.reshape(1, -1)
    return F.normalize(rows, dim=1)


def without(g: Tensor, unit: Tensor) -> Tensor:
    """g minus its part along the rows of `unit` (R, C)."""
    rows = g.reshape(unit.shape)
    return (rows - unit * (rows * unit).sum(dim=1, keepdim=True)).reshape(g.shape)
