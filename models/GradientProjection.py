"""Projection of gradients away from the direction of plain fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Task
from utils.config import Config, Count, Int, OptionGroup, per_task
from utils.dataset import Stream
from utils.model.weights import Weights, assign, snapshot
from utils.seed import seed_for
from utils.session import Progress


class GradientProjectionOptions(OptionGroup):
    """GradientProjection."""

    GradientProjection_begin_step: Int = Field(
        100, ge=0, description="Optimizer step of the preliminary runs at which the direction starts."
    )
    GradientProjection_end_step: Count = Field(150, description="Optimizer step at which direction and runs end.")
    GradientProjection_runs: Count = Field(10, description="n, preliminary runs before each task.")


class GradientProjection(Method):
    """Estimates the direction plain fine-tuning would take and projects it out of the gradient.

    An experiment of Zheng et al. (ICLR 2025, the code of their Biography experiments): is spurious forgetting caused by
    one direction in weight space? Before task t > 0 the model is fine-tuned n times from the same weights, with n
    orders of the data, without memory and with a fresh optimizer. With theta_r(s) after s steps of run r,

        d = 1/n sum_r (theta_r(end_step) - theta_r(begin_step)),

    and the weights are restored. In the task itself the component along d is removed from every gradient, row by row of
    a weight matrix, and as a whole for vectors:

        g := g - d <g, d> / <d, d>

    In the published code it is g - d cos(g, d) for matrices and g - d <g, d> / |d| for vectors, which is a projection
    only if d has length 1. AdamW scales the projected gradient per weight; projecting its update instead makes hardly
    a difference: 51.9 / 95.0 against 51.4 / 95.4 (tasks 0 and 1 of biography_demo_task2).
    The n runs cost n end_step optimizer steps per task, and two more copies of the weights during them.
    """

    Options = GradientProjectionOptions
    options: GradientProjectionOptions
    heads = GENERATING
    backbones = WRITING
    state: ClassVar = ("direction",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.direction: Weights = {}  # rows of d with length 1, (R, C), by parameter name

    @classmethod
    def problems(cls, config: Config, options: GradientProjectionOptions, stream: Stream) -> list[str]:
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

    def _average_way(self, task: Task) -> Weights:
        """d, by parameter name, float32; the model is restored afterwards."""
        runs, learning = self.options.GradientProjection_runs, self.learning(task)
        start = snapshot(learning)
        d = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in learning.items()}
        self.session.log.info(f"estimating the direction: {runs} runs")
        for run in range(runs):
            begin = self._train_plainly(task, run)
            for name, w in learning.items():
                d[name] += (w.detach().float() - begin[name].float()) / runs
            assign(learning, start)
        length = torch.stack([x.square().sum() for x in d.values()]).sum().sqrt().item()
        self.session.log.event("direction", task=task.index, runs=runs, length=length)
        return d

    def _train_plainly(self, task: Task, run: int) -> Weights:
        """One preliminary run; returns the weights at its begin_step and leaves the model at its end_step."""
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
    """(R, C): each row of a matrix, or a whole vector, normalised to length 1; rows below 1e-12 stay near 0."""
    rows = d.flatten(1) if d.dim() > 1 else d.reshape(1, -1)
    return F.normalize(rows, dim=1)


def without(g: Tensor, unit: Tensor) -> Tensor:
    """g minus its component along the rows of `unit` (R, C)."""
    rows = g.reshape(unit.shape)
    return (rows - unit * (rows * unit).sum(dim=1, keepdim=True)).reshape(g.shape)
