"""MoELoRA: a mixture of LoRA experts, chosen for each token by a router."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import Method, Setting, Task
from models.common.measuring import measuring
from utils.config import Config, Count, OptionGroup, search
from utils.dataset import Stream
from utils.distributed.modes import WHOLE_WEIGHTS
from utils.errors import UserError
from utils.model import adapters
from utils.seed import seed_torch

MEASURED = 64  # training examples on which the routers are measured after a task


class MoELoRAOptions(OptionGroup):
    """MoELoRA."""

    MoELoRA_experts: Count = Field(
        4, description="E, experts in each layer; they share PEFT_lora_r.", json_schema_extra=search(2, 4)
    )


class MoELoRA(Method):
    """Fine-tunes a mixture of LoRA experts from task to task; a router weighs them for each token.

    Chen et al., "CoIN: A Benchmark of Continual Instruction Tuning for Multimodal Large Language Models", NeurIPS 2024
    (arXiv 2403.08350). In each layer with LoRA of rank r and scale alpha / r,

        y = W x + alpha / r sum_{i=1..E} p_i B_i A_i x,    p = softmax(R x)

    with experts of rank r / E. All experts are used by every token, without a loss that balances them. Experts and
    routers are carried from task to task, and all keep learning: nothing but the router protects earlier tasks. So it
    is a baseline of capacity, to compare with SEQ with LoRA of as many weights. The log has each expert's mean share
    and the entropy of p after each task: a router that has collapsed uses one expert, of rank r / E.

    Published: E 8, r 128, alpha 256, lr 2e-4, cosine, one epoch. As p averages, a rate that suits LoRA of rank r is
    lower here in effect. Deviation: A starts as peft's LoRA does, not from a normal distribution of width 0.01, so that
    one expert is exactly LoRA. MOELoRA of Liu et al. (arXiv 2310.18339) routes by task and is another method.
    """

    Options = MoELoRAOptions
    options: MoELoRAOptions
    parallel = WHOLE_WEIGHTS  # hooks bring the routers' weights into the layers
    needs: ClassVar = {Setting("PEFT_type"): "its factors are the experts"}
    excludes: ClassVar = {
        Setting("keep_frozen_states"): "routers are trained in every layer with LoRA",
        Setting("padding_free"): "routers read whole rows",
    }

    @classmethod
    def problems(cls, config: Config, options: MoELoRAOptions, stream: Stream) -> list[str]:
        found, r, count = adapters.need_lora(config), config.PEFT_lora_r, options.MoELoRA_experts
        if r % count:
            found.append(f"MoELoRA_experts: expected a divisor of PEFT_lora_r {r}, got {count}")
        return found

    def setup(self) -> None:
        adapters.refuse_experts(self.model, type(self).__name__)
        layers: list[Any] = [layer for layer in self.model.modules() if hasattr(layer, "lora_A")]
        if any(adapters.FIRST not in layer.lora_A for layer in layers):
            raise UserError("PEFT_lora_target_modules: MoELoRA needs linear layers; leave out embeddings")
        seed_torch(self.config.seed, "routers")
        widths = [layer.lora_A[adapters.FIRST].weight.shape[1] for layer in layers]
        self.routers = nn.ModuleList([nn.Linear(width, self.options.MoELoRA_experts, bias=False) for width in widths])
        self.extra["routers"] = self.routers.to(self.model.device)
        self.shares: list[Tensor] = [torch.empty(0)] * len(layers)  # p (..., E) of each layer, in the pass in progress
        for i, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda _layer, args, i=i: self._route(i, args[0]))
            layer.lora_A[adapters.FIRST].register_forward_hook(lambda _a, _args, h, i=i: self._weighed(i, h))

    def _route(self, i: int, x: Tensor) -> None:
        self.shares[i] = self.routers[i](x.to(self.routers[i].get_parameter("weight").dtype)).softmax(dim=-1)

    def _weighed(self, i: int, h: Tensor) -> Tensor:
        """The output (..., r) of A with each expert's rows times its share."""
        p = self.shares[i]
        return h * p.repeat_interleave(h.shape[-1] // p.shape[-1], dim=-1).to(h.dtype)

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        super().after_task(task)
        with measuring(self):
            self.scores(self.model, self.collated(task.train[:MEASURED], task), task.index)
        rows = torch.cat([p.reshape(-1, p.shape[-1]) for p in self.shares]).float()
        entropy = float(-(rows * rows.clamp(min=1e-30).log()).sum(dim=1).mean())
        shares = rows.mean(dim=0).tolist()
        listed = ", ".join(f"{share:.2f}" for share in shares)
        self.session.log.info(f"task {task.index}: mean shares of the experts {listed}; entropy {entropy:.3f}")
        self.session.log.event("routing", task=task.index, shares=shares, entropy=entropy)
