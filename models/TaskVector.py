"""Task vectors: the change of the weights by a task, scaled or merged afterwards."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from models.Base import GENERATING, WRITING, Method, Task
from utils.config import Config, Float, OptionGroup, search
from utils.dataset import Stream
from utils.distributed.modes import ALL
from utils.model.weights import Weights, assign, interpolate, snapshot

Share = Annotated[Float, Field(ge=0, le=1)]


class TaskVectorOptions(OptionGroup):
    """TaskVector."""

    TaskVector_merge: Literal["scale", "wise_ft", "magmax"] = Field("scale", description="How weights are edited.")
    TaskVector_alpha: Share = Field(
        0.5, description="alpha, share of the change that is kept.", json_schema_extra=search(0.25, 0.5, 0.75)
    )
    TaskVector_grid: tuple[Share, ...] = Field((), description="Other values of alpha, evaluated alongside it.")


class TaskVector(Method):
    """Trains as SEQ does and edits the weights by arithmetic after each task.

    With theta_0 the first weights, theta_old those before task t and theta_t those after it:

        scale     theta := theta_old + alpha (theta_t - theta_old)                for t > 0; training continues from
        there wise_ft   answers with theta_0 + alpha (theta_t - theta_0)                training continues from theta_t
        magmax    answers with theta_0 + alpha max_s (theta_s - theta_0), s <= t  training continues from theta_t

    where max takes, entry by entry, the vector of largest magnitude. scale: task arithmetic (Ilharco et al., ICLR 2023)
    on a stream, as Zheng et al. (ICLR 2025) use it; the first task is kept whole. wise_ft: WiSE-FT (Wortsman et al.,
    CVPR 2022). magmax: MagMax (Marczak et al., ECCV 2024) on sequentially trained weights; a running maximum keeps one
    vector instead of one per task. alpha = 1 is SEQ for scale and wise_ft. Zheng et al. count the share that is
    subtracted: their best 0.22 is alpha 0.78 here.

    The shares of `TaskVector_grid` are evaluated alongside alpha without further training, at one copy of the weights
    each. With scale they vary the last task alone: the tasks before it were scaled by alpha.

    Difference from the papers: these fine-tune from a model that is good at the tasks already. Where theta_0 knows
    nothing of a task, as with facts, scaling loses knowledge.
    """

    Options = TaskVectorOptions
    options: TaskVectorOptions
    heads = GENERATING
    backbones = WRITING
    parallel = ALL
    state: ClassVar = ("base", "learned", "vector")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.base: Weights = {}  # theta_old (scale) or theta_0, of the trainable parameters
        self.learned: Weights = {}  # theta_t where the model no longer has it: scale with a grid
        self.vector: Weights = {}  # magmax: the largest changes so far

    @classmethod
    def problems(cls, config: Config, options: TaskVectorOptions, stream: Stream) -> list[str]:
        problems = []
        if len({options.TaskVector_alpha, *options.TaskVector_grid}) <= len(options.TaskVector_grid):
            problems.append("TaskVector_grid: expected shares that differ from each other and from TaskVector_alpha")
        if options.TaskVector_merge == "scale" and len(stream.tasks) == 1:
            problems.append("TaskVector_merge: scale keeps the first task whole, and the stream has no other")
        return problems

    def before_task(self, task: Task) -> None:
        if task.index == 0 or self.options.TaskVector_merge == "scale":
            self.base = snapshot(self.learning(task))
        self.learned = {}

    def after_task(self, task: Task) -> None:
        theta, options = self._theta(), self.options
        if options.TaskVector_merge == "magmax":
            self.vector = larger(self.vector, change(self.base, theta))
        if options.TaskVector_merge == "scale":
            old = self.base if task.index > 0 else theta
            assign(self.named(), interpolate(old, theta, options.TaskVector_alpha))
            self.base, self.learned = (old, theta) if options.TaskVector_grid else ({}, {})
        super().after_task(task)

    def versions(self) -> dict[str, Weights | None]:
        grid = {f"alpha {share:g}": share for share in self.options.TaskVector_grid}
        if self.options.TaskVector_merge == "scale":  # nothing to vary while a task is being learned
            return {"": None} | {n: interpolate(self.base, self.learned, a) for n, a in grid.items() if self.learned}
        if not self.base:
            return {"": None}
        return {name: self._merged(a) for name, a in {"": self.options.TaskVector_alpha, **grid}.items()}

    def _merged(self, alpha: float) -> Weights:
        theta = self._theta()
        if self.options.TaskVector_merge == "magmax":
            vector = larger(self.vector, change(self.base, theta))
            theta = {name: value + vector[name] for name, value in self.base.items()}
        return interpolate(self.base, theta, alpha)

    def _theta(self) -> Weights:
        """The weights now, of the tensors in the base."""
        named = self.named()
        return snapshot({name: named[name] for name in self.base})


def change(old: Weights, new: Weights) -> Weights:
    """The task vector new - old."""
    return {name: value - old[name] for name, value in new.items()}


def larger(a: Weights, b: Weights) -> Weights:
    """Entry by entry the one of larger magnitude; a where they are equal. An empty a is all zeros."""
    return {name: torch.where(value.abs() > a[name].abs(), value, a[name]) for name, value in b.items()} if a else b
