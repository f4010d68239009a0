"""SLAO: one LoRA for all tasks, into which each task's is merged."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Setting, Task
from utils.config import Config, NoOptions
from utils.dataset import Stream
from utils.distributed.collectives import of_main
from utils.distributed.modes import ALL
from utils.model import adapters
from utils.model.weights import Weights, snapshot


class SLAO(Method):
    """Fine-tunes one LoRA from task to task and answers with a running merge of it, in constant memory.

    Qiao and Mahdavi, "Merge before Forget: A Single LoRA Continual Learning via Continual Merging", ICLR 2026. Task
    t = 1, 2, ... starts from the factors that were tuned on task t - 1, the down-projection made orthonormal,

        A_t <- Q^T,  A_{t-1}^T = Q R;    B_t <- B_{t-1}

    and is merged afterwards; the two factors differently, as A is much the same in all tasks and B is not:

        A <- A_t,    B <- B + (B_t - B) / sqrt(t)

    W + B A answers; training continues from B_t and A_t.
    """

    heads = GENERATING
    backbones = WRITING
    parallel = ALL
    needs: ClassVar = {Setting("PEFT_type"): "LoRA is what is merged"}
    excludes: ClassVar = {
        Setting("keep_optimizer_state"): "each task starts from factors that the moments do not belong to"
    }
    state = ("merged",)

    @classmethod
    def problems(cls, config: Config, options: NoOptions, stream: Stream) -> list[str]:
        return adapters.need_lora(config)

    def setup(self) -> None:
        adapters.refuse_experts(self.model, type(self).__name__)
        self.merged: Weights = {}

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            for a in adapters.factors(self.model, "A", adapters.FIRST).values():
                a.data.copy_(of_main(orthonormal(a.data)))

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        tuned = snapshot({name: w for name, w in self.named().items() if adapters.owner(name)})
        self.merged = merge(self.merged, tuned, task.index + 1)

    def versions(self) -> dict[str, Weights | None]:
        return {"": self.merged or None}


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows (r, D) that span what these (r, D) do, of which the first keeps its direction."""
    q, r = torch.linalg.qr(rows.float().T)
    return (q * r.diagonal().sign()).T.to(rows.dtype)


def is_down(name: str) -> bool:
    """True for the A of a layer or of an embedding."""
    return ".lora_A." in name or ".lora_embedding_A." in name


def merge(merged: Weights, tuned: Weights, t: int) -> Weights:
    """A from the tuned factors, B between merged and tuned ones; t counts tasks from 1."""
    return {
        name: w if is_down(name) or t == 1 else torch.lerp(merged[name], w, 1 / math.sqrt(t))
        for name, w in tuned.items()
    }
