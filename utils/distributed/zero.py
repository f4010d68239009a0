"""ZeRO-1, ZeRO-2 and ZeRO-3 of DeepSpeed."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import deepspeed_internals, modes
from utils.distributed.replicated import OptimizerState, Replicated, ShardedWeights, trainable
from utils.distributed.twin import Twin
from utils.errors import UserError
from utils.model.architecture import Model
from utils.optimizer import Group, make_optimizer
from utils.session import Session
from utils.wrapmodel import Objective, Step

MOMENTS = ("exp_avg", "exp_avg_sq")  # those of AdamW's tensors that have the shape of the parameter


class Partitioned(Replicated):
    """ZeRO-1 and ZeRO-2: weights are whole; AdamW of each process steps a part of them and has only its tensors."""

    zero: Any  # DeepSpeed's optimizer, around `adamw`

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        if any(w.dtype != torch.float32 for w in method.model.parameters()):
            raise UserError("backbone_dtype: float32 with DeepSpeed; use mixed_precision: bfloat16 to save memory")
        self.inner = Step(method, task, self.model_of(method), modes.autocast_type(session.config))
        self.named = trainable(self.inner)
        optimizer = make_optimizer(self.own(groups), session.config)
        self.step, self.stepper = session.accelerator.prepare(self.inner, optimizer)
        self.zero, self.adamw, self.rank = self.step.optimizer, optimizer, session.accelerator.process_index
        self.accelerator = session.accelerator

    def model_of(self, method: Objective) -> Model:
        """The model to train."""
        return method.model

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, with the parameters of the model to train."""
        return groups

    def begin_step(self, micro_batches: int) -> float:
        """DeepSpeed divides each loss by the number of micro-batches that it was given at the start."""
        super().begin_step(micro_batches)
        return cast("Any", self.step).gradient_accumulation_steps() / micro_batches

    def pieces(self) -> list[Tensor]:
        """The tensors that AdamW steps here: parts of many parameters end to end."""
        return deepspeed_internals.pieces(self.zero)

    def load(self, moments: OptimizerState) -> None:
        """Set the initial tensors; a piece has one count of steps for all its parameters."""
        counts = {float(tensors["step"]) for tensors in moments.values()}
        if not moments:
            return
        if len(counts) > 1 or len(moments) < len(self.named):
            raise UserError(
                "keep_optimizer_state: with DeepSpeed the same parameters must be trainable in every task, as their "
                "moments share one count of steps; leave it out, or freeze_parts"
            )
        count = counts.pop()
        for piece in self.pieces():
            self.adamw.state[piece] = {"step": torch.tensor(count, device=piece.device)}
            self.adamw.state[piece] |= {key: torch.zeros_like(piece) for key in MOMENTS}
        self.link()
        for name, tensors in moments.items():
            for key in MOMENTS:
                self.put(self.named[name], key, tensors[key])

    def link(self) -> None:
        """Let DeepSpeed find a parameter's moments in the pieces, as it does after the first step."""
        deepspeed_internals.link_moments(self.zero)

    def put(self, w: nn.Parameter, key: str, value: Tensor) -> None:
        """Store the part of a whole moment that belongs to this process."""
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(w, value.to(w.device), key)

    def edited(self) -> None:
        """Copy them to the pieces that AdamW steps, from which DeepSpeed writes the weights after each step."""
        from deepspeed.utils import safe_set_full_fp32_param

        for w in self.named.values():
            safe_set_full_fp32_param(w, w.detach())

    def moments(self, keep: bool = True) -> OptimizerState:
        """Collected on the CPU, one at a time."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self.before_reading()
        steps = [self.adamw.state[piece]["step"] for piece in self.pieces() if piece in self.adamw.state]
        found: OptimizerState = {}
        for name, w in self.named.items() if steps else ():
            for key in MOMENTS:
                whole = safe_get_full_optimizer_state(w, key)
                if keep:
                    found.setdefault(name, {"step": steps[0].clone()})[key] = whole.cpu()
        return found


class Zero3(ShardedWeights, Partitioned):
    """ZeRO-3: a process also has only a part of the weights."""

    twin: Twin

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        super().__init__(method, task, groups, session)
        self.twin.empty()

    def model_of(self, method: Objective) -> Model:
        """A twin, which DeepSpeed partitions."""
        self.twin = Twin(method)
        return self.twin.model

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, with the parameters of the twin."""
        return self.twin.own(groups)

    def link(self) -> None:
        """Nothing to do: in ZeRO-3 DeepSpeed searches for them at each call."""

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """Of its elements in one row, padded at the end of the last process's."""
        from deepspeed.utils import safe_get_local_fp32_param

        own = safe_get_local_fp32_param(w)
        mine = whole.flatten()[own.numel() * self.rank :][: own.numel()]
        return F.pad(mine, (0, own.numel() - len(mine))).to(own.device)

    def put(self, w: nn.Parameter, key: str, value: Tensor) -> None:
        """As above; DeepSpeed's function for whole moments fails if the last process's part is padded."""
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(w, self.part(value, w), key)

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """As accelerate does it, with the gradient of the penalty before DeepSpeed's step."""
        from deepspeed.utils import safe_get_local_fp32_param

        engine: Any = self.step
        engine.set_gradient_accumulation_boundary(is_boundary=self.accelerator.sync_gradients)
        engine.backward(loss)
        terms = self.add_penalty(safe_get_local_fp32_param, _add_to_part)
        if self.accelerator.sync_gradients:
            engine.step()
        return terms

    def close(self) -> None:
        """Collect them from the parts."""
        from deepspeed.runtime.zero import GatheredParameters

        for w, part in self.twin.pairs:
            with GatheredParameters([part]):
                w.data = part.detach().clone()


def _add_to_part(w: nn.Parameter, gradient: Tensor) -> None:
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    safe_set_local_grad(w, safe_get_local_grad(w) + gradient)
