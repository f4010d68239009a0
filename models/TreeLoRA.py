"""TreeLoRA: one LoRA whose gradients are turned towards those of the most similar earlier tasks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from models.common.gradients import dot
from utils.config import Config, Float, OptionGroup, search
from utils.dataset import Stream
from utils.model import adapters

TINY = 1e-20  # least length that is divided by
Vectors = dict[str, Tensor]  # layer -> its gradients, or its parameters, as one vector


class TreeLoRAOptions(OptionGroup):
    """TreeLoRA."""

    TreeLoRA_lambda: Float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the earlier tasks' direction at the end of an epoch, relative to the gradient.",
        json_schema_extra=search(0.1, 0.5, 1),
    )
    TreeLoRA_direction: Literal["gradient", "parameter"] = Field(
        "gradient",
        description="What is compared and followed: gradients, as in the paper, or down-projections, as in its code.",
    )


class TreeLoRA(Method):
    """Fine-tunes one LoRA from task to task, with gradients turned towards those of the most similar earlier tasks.

    Qian et al., "TreeLoRA: Efficient Continual Learning via Layer-Wise LoRAs Guided by a Hierarchical
    Gradient-Similarity Tree", ICML 2025. With g_l the gradient of a step in the factors of layer l, and G_(j,l) its
    mean over the steps of an earlier task j,

        g  :=  g + lambda k/K |g| G / |G|,    G_l = G_(j(l),l)
        j(l) = argmin_j  mean |g_l - G_(j,l)|_1 / (|g_l|_1 + |G_(j,l)|_1) - sqrt(log(n_l) / (2 n_(j,l)))

    where |g|, |G| are over all layers and k/K rises in each epoch of K steps from 0. Each step measures the distance of
    every layer to its chosen task; n counts such measurements (lower confidence bound).

    Deviations. The paper subtracts <g, G> from the loss. Its derivative moves the weights to where the gradient is
    longer along G: it raises the loss of the earlier task, and of the same task learned again. Here the step follows
    the earlier tasks' own descent instead; for lambda <= 1 it never raises the loss of the current task to first order,
    as <g, g + lambda |g| G / |G|> >= (1 - lambda) |g|^2. All earlier tasks are compared, without the tree, which saves
    comparisons among many; distances are shares, so that they are of the size of the bound; a mean is over all steps
    of a task. The released code prefers the most distant task, and multiplies parameters A in the place of gradients:
    `TreeLoRA_direction: parameter` compares the A of a step with their means, and pulls them towards these.

    Published: lambda 0.5, r 8, alpha 32, lr 1e-4, cosine.
    """

    Options = TreeLoRAOptions
    options: TreeLoRAOptions
    needs: ClassVar = {Setting("PEFT_type"): "the factors of LoRA are what is compared"}
    state: ClassVar = ("means", "sums", "steps", "distances", "counts")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.means: list[Vectors] = []  # G of each earlier task
        self.sums: Vectors = {}  # of the task so far
        self.steps = 0  # of the task so far
        self.distances, self.counts = torch.zeros(0, 0), torch.zeros(0, 0)  # (layers, earlier tasks): sums, numbers

    @classmethod
    def problems(cls, config: Config, options: TreeLoRAOptions, stream: Stream) -> list[str]:
        return adapters.need_lora(config)

    def setup(self) -> None:
        adapters.refuse_experts(self.model, type(self).__name__)

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        self.sums, self.steps = {}, 0
        shape = (len(self.factors()), len(self.means))
        self.distances, self.counts = (torch.zeros(shape, device=self.home) for _ in range(2))

    def factors(self) -> dict[str, list[Tensor]]:
        """What is compared and turned, by layer."""
        sides = "AB" if self.options.TreeLoRA_direction == "gradient" else "A"
        found = [adapters.factors(self.model, side, adapters.FIRST) for side in sides]
        return {layer: [side[layer] for side in found] for layer in found[0]}

    @torch.no_grad()
    def on_gradients(self, task: Task) -> None:
        if not self.options.TreeLoRA_lambda:
            return
        learned = {layer: [w for w in ws if w.grad is not None] for layer, ws in self.factors().items()}
        g = joined({layer: [w.grad for w in ws] for layer, ws in learned.items()})  # type: ignore[misc]
        seen = g if self.options.TreeLoRA_direction == "gradient" else joined(learned)
        if self.means:
            chosen = self._nearest(seen)
            change = turn(g, chosen, self.options.TreeLoRA_lambda * self._ramp(task))
            sign = 1 if self.options.TreeLoRA_direction == "gradient" else -1  # a step moves against the gradient
            for layer, ws in learned.items():
                pieces = change[layer].split([w.numel() for w in ws]) if ws else ()
                for w, piece in zip(ws, pieces, strict=True):
                    w.grad += sign * piece.view_as(w)
        self.sums = {layer: self.sums.get(layer, 0) + v for layer, v in seen.items()}
        self.steps += 1

    def _ramp(self, task: Task) -> float:
        """k/K: the share of the epoch that is over."""
        steps = math.ceil(len(self.train_examples(task)) / (self.config.batch_size - self.memory_rows()))
        return self.steps % steps / steps

    def _nearest(self, seen: Vectors) -> Vectors:
        """The mean of the earlier task with the lowest bound, layer by layer; its distance is measured."""
        near, chosen = lowest(self.distances, self.counts).tolist(), Vectors()
        for row, layer in enumerate(self.factors()):
            if (v := seen.get(layer)) is not None:  # None: frozen
                mean = chosen[layer] = self.means[near[row]].get(layer, torch.zeros_like(v))  # 0: frozen then
                apart = (v - mean).abs().sum() / (v.abs().sum() + mean.abs().sum()).clamp(min=TINY)
                self.distances[row, near[row]] += apart
                self.counts[row, near[row]] += 1
        return chosen

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if self.means:
            self.session.log.event("similar", task=task.index, measurements=self.counts.sum(dim=0).tolist())
        if self.steps:
            self.means = [*self.means, {layer: v / self.steps for layer, v in self.sums.items()}]


def joined(parts: dict[str, list[Tensor]]) -> Vectors:
    """The tensors of each layer as one new vector; layers without any are left out."""
    return {layer: torch.cat([w.flatten() for w in tensors]) for layer, tensors in parts.items() if tensors}


def turn(g: Vectors, mean: Vectors, share: float) -> Vectors:
    """share |g| G / |G|: what is added to g.

    >>> turn({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"a": torch.zeros(1), "b": torch.tensor([2.0])}, 0.5)
    {'a': tensor([0.]), 'b': tensor([2.5000])}
    """
    scale = share * math.sqrt(dot(g, g)) / max(math.sqrt(dot(mean, mean)), TINY)
    return {layer: scale * v for layer, v in mean.items()}


def lowest(distances: Tensor, counts: Tensor) -> Tensor:
    """For each row the column with the lowest lower confidence bound of the mean distance; unmeasured ones first.

    Args:
        distances: (layers, tasks), sums of the measured distances.
        counts: (layers, tasks), how many were measured.

    >>> lowest(torch.tensor([[0.2, 0.6], [0.2, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 0.0]]))
    tensor([0, 1])
    """
    bound = distances / counts - (counts.sum(dim=1, keepdim=True).clamp(min=1).log() / (2 * counts)).sqrt()
    return torch.where(counts > 0, bound, -torch.inf).argmin(dim=1)
