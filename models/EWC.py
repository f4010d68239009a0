"""Elastic weight consolidation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import Method, Task
from models.common.fisher import diagonal_fisher
from models.common.measuring import measuring
from utils.config import Config, Count, Float, OptionGroup, search
from utils.dataloader import count_tokens
from utils.dataset import Stream
from utils.distributed.modes import ALL, divides_weights
from utils.model.weights import moved
from utils.penalty import Part, Penalty
from utils.seed import random_for


class EWCOptions(OptionGroup):
    """EWC."""

    EWC_lambda: Float = Field(
        5000, ge=0, description="lambda, weight of the penalty.", json_schema_extra=search(1e2, 1e4, 1e6)
    )
    EWC_fisher: Literal["sample", "batch"] = Field(
        "sample", description="Squared gradients of single examples, or of batches as in the published code."
    )
    EWC_samples: Count | None = Field(
        None, description="Examples per task from which the Fisher is estimated; None: all."
    )
    EWC_merge: Literal["sum", "average", "online"] = Field(
        "sum",
        description="One penalty per task; or the latest anchor, with an average or a decayed sum of F.",
    )
    EWC_gamma: Float = Field(
        1, ge=0, le=1, description="gamma, share of the old F kept at each task, with EWC_merge online."
    )
    EWC_offload: bool = Field(False, description="Keep Fisher and anchors in CPU memory.")


class EWC(Method):
    """Penalises changes of each weight in proportion to its importance for the earlier tasks.

    Kirkpatrick et al., PNAS 2017. After task k the method keeps the weights theta_k and the diagonal Fisher F_k; in
    task t it minimises

        L(theta) = L_t(theta) + lambda/2 sum_(k<t) sum_i F_k,i (theta_i - theta_k,i)^2

    `EWC_merge: sum` is this formula. Its sum over tasks is one quadratic A (theta - m)^2 + c per weight, so memory does
    not grow with the tasks: two float32 copies of the trainable weights. `online` (Schwarz et al., ICML 2018) has one
    anchor, the latest weights, and F := gamma F + F_t. `average`, also with the latest anchor, is the published code of
    Zheng et al. (ACL 2024): F := (t F + F_t) / (t + 1).

    F is the empirical Fisher (the labels are the data's) in eval mode. `EWC_fisher: batch` is the estimate of that
    code: the mean over batches of the squared gradient of the mean loss per token. `sample` is the paper's, the mean
    over examples of the squared gradient of the log-likelihood of a whole answer, in the same unit: divided by
    batch_size and by the square of the mean answer length in tokens, which makes both equal where gradients of examples
    are independent. So lambda (5000, as published) means the same in both; on the biographies of the demo their traces
    are 0.59 (sample) and 0.54 (batch of 16). The unit of the paper needs lambda / (batch_size length^2).

    Only trainable parameters have a penalty. AdamW scales gradients: with a huge lambda weights oscillate around their
    anchors with the step size lr, and weights with F = 0 move freely.
    """

    Options = EWCOptions
    options: EWCOptions
    parallel = ALL
    state: ClassVar = ("past",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.past: dict[str, Part] = {}

    @classmethod
    def problems(cls, config: Config, options: EWCOptions, stream: Stream) -> list[str]:
        if options.EWC_gamma != 1 and options.EWC_merge != "online":
            return [f"EWC_gamma: has no effect with EWC_merge {options.EWC_merge}; set EWC_merge: online"]
        return []

    def penalty(self, task: Task) -> Penalty | None:
        return Penalty(self.options.EWC_lambda / 2, self.past) if self.past else None

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if task.index + 1 == len(self.stream.tasks):
            return  # no task follows
        learning = self.learning(task)
        for name, fisher in self._fisher(task, learning).items():
            w = learning[name]
            old = moved(self.past.get(name), w.device)
            self.past[name] = moved(merge(old, fisher, w.detach().float(), task.index, self.options), self.home)

    @property
    def home(self) -> torch.device:
        return torch.device("cpu") if self.options.EWC_offload or divides_weights() else super().home

    def _fisher(self, task: Task, learning: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """F_t: the diagonal Fisher of this task at the weights as they are now."""
        count = min(self.options.EWC_samples or len(task.train), len(task.train))
        rows = random_for(self.config.seed, "fisher", task.index).sample(task.train, count)
        in_batches, size = self.options.EWC_fisher == "batch", self.config.batch_size
        length = count_tokens(self.encoder(rows, task.max_length), rows, count)["all"]  # mean over the examples
        unit = None if in_batches else length * size**0.5
        size = size if in_batches else 1
        parts = [rows[i : i + size] for i in range(0, count, size)]
        with measuring(self):
            fisher = diagonal_fisher(
                lambda batch: self.scores(self.model, batch, task.index),
                learning,
                lambda i: self.collated(parts[i], task),
                len(parts),
                unit,
            )
        trace, largest = sum(f.sum().item() for f in fisher.values()), max(f.max().item() for f in fisher.values())
        self.session.log.info(
            f"Fisher of task {task.index}, {count} examples: trace {trace:.3g}, largest {largest:.3g}"
        )
        self.session.log.event("fisher", task=task.index, examples=count, trace=trace, largest=largest)
        return fisher


def merge(old: Part | None, fisher: Tensor, theta: Tensor, tasks: int, options: EWCOptions) -> Part:
    """The penalty on one tensor after one more task.

    Args:
        old: The penalty so far; None: this tensor had none.
        fisher: F of the new task.
        theta: The weights at its end, float32.
        tasks: Tasks before it.
        options: `EWC_merge`, `EWC_gamma`.
    """
    if old is None or options.EWC_merge != "sum":
        theta, nothing = theta.clone(), theta.new_zeros(())
        if old is not None and options.EWC_merge == "average":
            fisher = (tasks * old[0] + fisher) / (tasks + 1)
        if old is not None and options.EWC_merge == "online":
            fisher = options.EWC_gamma * old[0] + fisher
        return fisher, theta, nothing
    return add_quadratics(old, fisher, theta)


def add_quadratics(old: Part, fisher: Tensor, theta: Tensor) -> Part:
    """A (x - m)^2 + c for the sum A_old (x - m_old)^2 + c_old + F (x - theta)^2, for all x."""
    a_old, m_old, c_old = old
    a = a_old + fisher
    new = (fisher / a).nan_to_num(1.0)  # share of the new task; 0/0 where neither has a penalty
    m = m_old + new * (theta - m_old)
    return a, m, c_old + (a_old * new * (theta - m_old).square()).sum()
