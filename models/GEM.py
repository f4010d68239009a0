"""Gradient episodic memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from models.common.gradients import cone_multipliers, dot, shared_gradient
from models.common.measuring import measuring
from utils.config import Config, Count, Float, OptionGroup, search
from utils.dataloader import Batch
from utils.dataset import Example, Stream
from utils.model.head import Scores


class GEMOptions(OptionGroup):
    """GEM."""

    GEM_margin: Float = Field(
        0.5,
        ge=0,
        description="gamma, smallest share of each old gradient in a projected one.",
        json_schema_extra=search(0, 0.5, 1),
    )
    GEM_batch_size: Count | None = Field(
        None, description="Examples of each old task drawn for its gradient at each step; None: all."
    )


class GEM(Method):
    """Projects each gradient so that the step raises the loss of no earlier task.

    Lopez-Paz and Ranzato, NeurIPS 2017. With g the gradient of the new task's batch, and g_k that of the examples of
    task k in memory, every step uses

        argmin_x 1/2 |x - g|^2   with   <x, g_k> >= 0 for all k < t,

    which is g + sum_k v_k g_k with v from the dual program of one unknown per task; g itself if it opposes no g_k.
    `GEM_margin` is the paper's gamma: v_k >= gamma wherever g violates a constraint.

    Memory is not trained on. Its gradients are computed at every step, in eval mode (the batch's gradient has dropout;
    these must not depend on how rows are distributed), over the examples of all tasks before this one: a pass over the
    memory per step, less with `GEM_batch_size`, and one float32 gradient per earlier task at a time. Of models above
    1B parameters train a small part. The paper uses SGD; AdamW scales the projected gradient per weight, so its
    step may oppose a g_k slightly.
    """

    Options: ClassVar[type[OptionGroup]] = GEMOptions
    options: GEMOptions
    needs: ClassVar = {Setting("is_replay"): "the gradients of earlier tasks are those of examples in memory"}
    state: ClassVar = ("steps", "turned")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.drawn: list[list[Example]] = []  # examples of the constraints on the step in progress
        self.steps = self.turned = 0  # of this task; and how many of them were projected

    @classmethod
    def problems(cls, config: Config, options: GEMOptions, stream: Stream) -> list[str]:
        why = f"has no effect with {cls.__name__}, which computes gradients of its memory and does not train on it"
        problems = [] if config.Replay_batch_level else [f"Replay_batch_level: {why}; leave it out"]
        if config.Replay_update == "step":
            problems.append(f"Replay_update: {cls.__name__} has constraints for earlier tasks only; leave it at task")
        return problems

    def memory_rows(self) -> int:
        return 0

    def train_examples(self, task: Task) -> Sequence[Example]:
        return task.train

    def before_task(self, task: Task) -> None:
        self.steps = self.turned = 0

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        self.drawn = self.draw(rng)
        return examples

    def draw(self, rng: random.Random) -> list[list[Example]]:
        """The examples in memory of each earlier task, or some of them."""
        groups: dict[int, list[Example]] = {}
        for row in self.needed_memory.rows():
            groups.setdefault(row.task, []).append(row)
        size = self.options.GEM_batch_size
        return [rows if size is None else rng.sample(rows, min(size, len(rows))) for rows in groups.values()]

    def on_gradients(self, task: Task) -> None:
        if not self.drawn:
            return
        grads = {name: w.grad for name, w in self.named().items() if w.grad is not None}
        learning = {name: w for name, w in self.named().items() if name in grads}
        g = {name: grad.float() for name, grad in grads.items()}
        world, parts = self.session.accelerator.num_processes, self.config.gradient_accumulation_steps
        size = -(-self.config.batch_size // (world * parts))  # as many as training puts through the model

        def outputs(batch: Batch) -> tuple[Scores, Tensor]:
            return self.scores(self.model, batch, task.index)

        with measuring(self):
            old = [
                shared_gradient(outputs, learning, rows, size, lambda rows: self.collated(rows, task))
                for rows in self.drawn
            ]
        gram = np.array([[dot(a, b) for b in old] for a in old])
        v = self.multipliers(gram, np.array([dot(g, a) for a in old]))
        self.steps, self.turned = self.steps + 1, self.turned + bool(v.any())
        with torch.no_grad():
            for share, a in zip(v.tolist(), old, strict=True):
                for name, grad in grads.items():
                    grad.add_(a[name], alpha=share)

    def multipliers(self, gram: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
        """v (K,) from <g_i, g_k> (K, K) and <g, g_k> (K,); g becomes g + sum_k v_k g_k."""
        return cone_multipliers(gram, products, self.options.GEM_margin)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if self.steps:
            self.session.log.info(f"{type(self).__name__}: {self.turned} of {self.steps} gradients were projected")
            self.session.log.event("turned", task=task.index, turned=self.turned, steps=self.steps)
