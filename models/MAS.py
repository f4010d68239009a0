"""Memory aware synapses."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Task
from models.common.fisher import mean_magnitude
from models.common.gradients import Gradient
from models.common.measuring import measuring
from utils.classifier import MASKED
from utils.config import Count, Float, OptionGroup, search
from utils.dataloader import IGNORE, Batch
from utils.distributed.modes import ALL, divides_weights
from utils.model.head import sum_over_pieces
from utils.model.weights import Weights
from utils.penalty import Penalty
from utils.seed import random_for


class MASOptions(OptionGroup):
    """MAS."""

    MAS_lambda: Float = Field(
        1, ge=0, description="lambda, weight of the penalty.", json_schema_extra=search(0.1, 1, 10)
    )
    MAS_samples: Count | None = Field(
        None, description="Examples per task from which the importance is estimated; None: all."
    )
    MAS_output: Literal["logits", "centred"] = Field(
        "logits", description="What is kept: the logits, or the logits minus their mean over the vocabulary."
    )
    MAS_blend: Float | None = Field(
        None, ge=0, le=1, description="Share of the old importance in a moving average over tasks; None: their sum."
    )


class MAS(Method):
    """Penalises changes of each weight in proportion to how sensitive the model's output is to it; needs no labels.

    Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018. After task t of N examples,

        Omega_k := Omega_k + 1/N sum_n | d ||f(x_n; theta)||_2^2 / d theta_k |,   theta* := theta
        L(theta) = L_t(theta) + lambda sum_k Omega_k (theta_k - theta*_k)^2

    The absolute value is taken of each example, so that opposite gradients do not cancel; the authors' code takes it of
    a batch. f is the model's output before the softmax, in eval mode. For a language model, which the paper does not
    treat, f is the logits at the answer positions (the model reads the given answer); ||f||^2 is summed over the
    vocabulary and averaged over the positions, so that long answers do not count more. Logits are defined up to a
    constant at each position, which their norm is not: `MAS_output: centred` removes it.

    Cost: a backward pass for each example of `MAS_samples` after a task. In memory: Omega and theta*, float32, of the
    trainable weights. lambda 1 is published for images; the scale of Omega is that of the squared logits, so the log
    has its mean.
    """

    Options = MASOptions
    options: MASOptions
    parallel = ALL
    state: ClassVar = ("importance", "anchor")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.importance: Weights = {}  # Omega
        self.anchor: Weights = {}  # theta*

    def penalty(self, task: Task) -> Penalty | None:
        return Penalty.around(self.options.MAS_lambda, self.importance, self.anchor)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if task.index + 1 == len(self.stream.tasks):
            return  # no task follows
        learning, blend = self.learning(task), self.options.MAS_blend
        for name, new in self.sensitivity(task).items():
            old = self.importance.get(name)
            kept = (1.0, 1.0) if blend is None else (blend, 1 - blend)
            total = new if old is None else kept[0] * old.to(new.device) + kept[1] * new
            self.importance[name] = total.to(self.home)
            self.anchor[name] = learning[name].detach().float().clone().to(self.home)

    @property
    def home(self) -> torch.device:
        return torch.device("cpu") if divides_weights() else super().home

    def sensitivity(self, task: Task) -> Gradient:
        """Omega of this task alone, at the weights as they are now."""
        count = min(self.options.MAS_samples or len(task.train), len(task.train))
        rows, learning = random_for(self.config.seed, "mas", task.index).sample(task.train, count), self.learning(task)

        def gradient(batch: Batch) -> Gradient:
            scores, labels = self.scores(self.model, batch, task.index)
            f = scores[labels != IGNORE]
            norm = sum_over_pieces(partial(squared_norm, output=self.options.MAS_output), f) / len(f.states)
            found = torch.autograd.grad(norm, list(learning.values()), allow_unused=True, materialize_grads=True)
            return {name: g.float() for name, g in zip(learning, found, strict=True)}

        with measuring(self):
            omega = mean_magnitude(gradient, learning, lambda i: self.collated([rows[i]], task), count, power=1)
        mean = sum(o.sum().item() for o in omega.values()) / sum(o.numel() for o in omega.values())
        self.session.log.info(f"sensitivity of task {task.index}, {count} examples: mean {mean:.3g} per weight")
        self.session.log.event("sensitivity", task=task.index, examples=count, mean=mean)
        return omega


def squared_norm(logits: Tensor, output: str) -> Tensor:
    """Squared lengths of the outputs at N positions, their sum, () float32.

    Args:
        logits: (N, V) float; masked classes do not count.
        output: `MAS_output`.
    """
    f, known = logits.float(), logits > MASKED
    if output == "centred":
        f = f - (f * known).sum(dim=-1, keepdim=True) / known.sum(dim=-1, keepdim=True)
    return (f * known).square().sum()
