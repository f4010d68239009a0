"""Orthogonal subspace fine-tuning."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from utils.config import Float, OptionGroup
from utils.distributed.collectives import of_main
from utils.model.targets import linear
from utils.model.weights import Weights


class OSFOptions(OptionGroup):
    """OSF."""

    OSF_preserve: Float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of each matrix's singular directions to keep; None: t / T in task t of T.",
    )


class OSF(Method):
    """Fine-tunes all weights, but not along the main singular directions of each matrix after the earlier tasks.

    Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning", 2025
    (arXiv 2504.07097). Before each task the weight of every linear layer is decomposed, W = U S V^T. U_h and V_h, the
    first r singular vectors, are kept: after each step of AdamW its change of W is made orthogonal to both,

        W := W + (I - U_h U_h^T) dW (I - V_h V_h^T),   so that   U_h^T dW = 0   and   dW V_h = 0

    The first task is free. In task t (from 0) of T, r is a share t / T of the rank, as peft's documentation of OSF has
    it; `OSF_preserve` is a fixed share for all tasks but the first.

    Deviations. The authors train the factors U_low, S_low, V_low and project their gradients. The weights that can be
    reached are the same, but AdamW's step is another one: here it is that of full fine-tuning, projected. Projecting
    only gradients does not suffice with AdamW, which scales each element: after 50 steps a quarter of dW was then in
    the preserved directions. The paper's rank per layer by input-output similarity is not implemented.

    Embeddings, norms, biases and the head of the vocabulary are trained as `freeze_parts` has it. In memory: U_h and
    V_h, at most two matrices of the size of W, and a copy of the weights during a step. Rounding of
    bfloat16 weights after the projection moves the kept directions a little; float32 weights hold them to 1e-5 of dW.
    """

    Options = OSFOptions
    options: OSFOptions
    excludes: ClassVar = {Setting("PEFT_type"): "it updates the matrices themselves"}
    state: ClassVar = ("kept",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}  # parameter -> U_h (m, r), V_h (n, r), float32

    @torch.no_grad()
    def before_task(self, task: Task) -> None:
        super().before_task(task)
        share = self.options.OSF_preserve
        if share is None:
            share = task.index / len(self.stream.tasks)
        self.kept, learning = {}, self.learning(task)
        for layer in linear(self.model):
            w = learning.get(f"{layer}.weight")
            if task.index == 0 or w is None:
                continue
            u, _, vt = map(of_main, torch.linalg.svd(w.float(), full_matrices=False))
            if r := math.floor(share * len(vt)):
                self.kept[f"{layer}.weight"] = u[:, :r].contiguous(), vt[:r].T.contiguous()
        ranks = [u.shape[1] for u, _ in self.kept.values()]
        self.session.log.info(
            f"task {task.index}: {share:.0%} of the singular directions of {len(ranks)} matrices stay"
        )
        self.session.log.event("preserved", task=task.index, matrices=len(ranks), directions=sum(ranks))

    def on_update(self, before: Weights, task: Task) -> None:
        named = self.named()
        for name, (u, v) in self.kept.items():
            change = named[name].float() - before[name].float()
            named[name].copy_(before[name].float() + free_part(change, u, v))


def free_part(change: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(I - U U^T) dW (I - V V^T).

    Args:
        change: dW (m, n) float32.
        u: (m, r) float32, orthonormal columns.
        v: (n, r) float32, orthonormal columns.
    """
    change = change - u @ (u.T @ change)
    return change - (change @ v) @ v.T
