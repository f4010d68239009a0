"""O-LoRA: a low-rank subspace per task, orthogonal to the earlier ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Setting, Task
from models.PEFT import PEFT
from utils.config import Config, Float, OptionGroup, search
from utils.dataloader import Batch
from utils.dataset import Stream
from utils.model import adapters
from utils.model.architecture import Model


class OLoRAOptions(OptionGroup):
    """OLoRA."""

    OLoRA_lambda_1: Float = Field(
        0.5,
        ge=0,
        description="Weight of the overlap with earlier tasks' subspaces.",
        json_schema_extra=search(0.1, 0.5, 5),
    )
    OLoRA_lambda_2: Float = Field(0.0, ge=0, description="Weight of the norms of the new factors.")


class OLoRA(PEFT):
    """Learns each task with a new LoRA whose down-projection is penalised for overlap with all earlier ones.

    Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023. The
    rows of A_i span the subspace of task i; earlier factors are frozen, all are summed:

        y = W x + sum_{i <= t} B_i A_i x
        L = L_task + lambda_1 sum_{i < t} sum_jk |(A_i A_t^T)_jk| + lambda_2 (||A_t|| + ||B_t||)

    each sum over all layers with LoRA. So the size of lambda_1's term grows with the number of layers, ranks and tasks.
    As in the published code, entries of the overlap count by their absolute value, where the paper squares them, and
    the factors by their norm.
    """

    Options = OLoRAOptions
    options: OLoRAOptions  # type: ignore[assignment]  # per_task and inference, which read the options of PEFT, are set below
    per_task = True
    inference = "sum"
    excludes: ClassVar = {Setting("keep_optimizer_state"): "each task has separate parameters"}

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        return adapters.need_lora(config)

    def setup(self) -> None:
        adapters.refuse_experts(self.model, type(self).__name__)
        super().setup()
        self._activate()

    def _activate(self) -> None:
        super()._activate()
        *earlier, newest = adapters.names(self.model)
        self.new_a, self.new_b = (adapters.factors(self.model, side, newest) for side in "AB")
        old = [adapters.factors(self.model, "A", name) for name in earlier]
        # Earlier adapters are frozen, so their rows are joined once a task, not once a step.
        self.spanned = {layer: torch.cat([a[layer].detach() for a in old]) for layer in self.new_a if old}

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        terms = super().loss(model, batch, task)
        if self.spanned:
            overlaps = [overlap(old, self.new_a[layer]) for layer, old in self.spanned.items()]
            terms["orthogonal"] = self.options.OLoRA_lambda_1 * torch.stack(overlaps).sum()
        if self.options.OLoRA_lambda_2:
            norms = [w.norm() for w in (*self.new_a.values(), *self.new_b.values())]
            terms["norm"] = self.options.OLoRA_lambda_2 * torch.stack(norms).sum()
        return terms


def overlap(old: Tensor, new: Tensor) -> Tensor:
    """How far two subspaces are from orthogonal: the sum of |inner products| of their spanning rows.

    Args:
        old: (R, D) float, the rows of all earlier tasks.
        new: (r, D) float.

    Returns:
        () float, 0 if every new row is orthogonal to every old one.
    """
    return (old @ new.T).abs().sum()
