"""One process, or several that each hold everything; and what the other modes share with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import deepspeed_internals, modes
from utils.distributed.twin import Twin
from utils.optimizer import Group, make_optimizer
from utils.penalty import Add, Own, Penalty, ShardedPenalty
from utils.session import Session
from utils.wrapmodel import Objective, Step

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> AdamW's tensors


class Replicated:
    """One process, or several that each hold everything (DDP)."""

    twin: Twin | None = None  # trained in place of the method's model, which is empty meanwhile
    inner: Step  # computes the loss
    step: nn.Module  # the same, as prepared by accelerate
    stepper: torch.optim.Optimizer  # as prepared by accelerate
    before_reading: Callable[[], None] = staticmethod(lambda: None)  # called before weights or moments are read

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        self.inner = Step(method, task, method.model)
        self.named = trainable(self.inner)
        self.optimizer = make_optimizer(groups, session.config)
        self.step, self.stepper = session.accelerator.prepare(self.inner, self.optimizer)
        self.accelerator = session.accelerator

    def load(self, moments: OptimizerState) -> None:
        """Set the initial tensors of AdamW."""
        for name, tensors in moments.items():
            w = self.named[name]
            self.optimizer.state[w] = {key: self._own(value, w) for key, value in tensors.items()}

    def _own(self, value: Any, w: nn.Parameter) -> Any:
        """What AdamW needs here of one of its values: a moment, or a count of steps or scales of 8-bit moments."""
        if not isinstance(value, Tensor):
            return value
        return self.part(value, w) if value.shape == w.shape and value.dim() else value.to(w.device, copy=True)

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """The part that this process needs of a tensor with the shape of a parameter.

        Laid out in memory as the parameter: the fused AdamW reads both in the order of memory.
        """
        return torch.empty_like(w, dtype=whole.dtype).copy_(whole)

    def moments(self, keep: bool = True) -> OptimizerState:
        """AdamW's current tensors by parameter name, whole; all processes must call this.

        Args:
            keep: False on a process that has no use for them: where they have to be collected it keeps none of them.
        """
        self.before_reading()
        state = self.optimizer.state
        return {name: dict(state[w]) for name, w in self.named.items() if w in state}

    def begin_step(self, micro_batches: int) -> float:
        """Expect this many micro-batches until the next update; returns a factor for the loss of each."""
        self.accelerator.step = 0  # it counts micro-batches, and a step may have fewer than the one before
        self.accelerator.gradient_accumulation_steps = micro_batches
        return 1.0

    def penalise(self, penalty: Penalty | None) -> None:
        """Add this penalty to each step, by its last micro-batch."""
        self.inner.penalty = penalty

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """Add the gradient of a micro-batch; returns loss terms that are not in `loss`, of the last one."""
        self.accelerator.backward(loss)  # which divides by the number of micro-batches
        return {}

    def edited(self) -> None:
        """Note that the weights were edited after a step."""

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights in the method's model on each process inside the `with`; all processes must call this."""
        self.before_reading()
        self.close()
        yield
        if self.twin is not None:
            self.twin.empty()

    def close(self) -> None:
        """Collect the weights in the method's model, if they are not there."""

    def release(self) -> None:
        """Collect the weights, and let go of step and optimizer, after a task.

        In one process they are in no cycle of references; searching all objects of the program for cycles takes longer
        than a short task.
        """
        self.close()
        if modes.mode() is None:
            deepspeed_internals.forget_prepared(self.accelerator)
        else:
            self.accelerator.free_memory()


class ShardedWeights(Replicated):
    """Base of the modes that shard every parameter: a process adds the gradient of a penalty to its own shards."""

    penalty: ShardedPenalty | None = None

    def penalise(self, penalty: Penalty | None) -> None:
        """Keep the shards of this process."""
        sharded = penalty and ShardedPenalty(penalty, self.inner.learning(), self.part)
        self.penalty = sharded if sharded and sharded.parts else None

    def add_penalty(self, own: Own, add: Add) -> dict[str, Tensor]:
        """Add the gradient of the penalty after the last micro-batch of a step; returns the penalty as a loss term."""
        if self.penalty is None or not self.accelerator.sync_gradients:
            return {}
        value = self.penalty.add_gradient(own, add, self.accelerator.num_processes)
        return {"penalty": self.accelerator.gradient_accumulation_steps * value}  # the loop averages micro-batches


def trainable(step: Step) -> dict[str, nn.Parameter]:
    """The trainable parameters of a step, by their names in it, under which checkpoints have AdamW's tensors."""
    return {name: w for name, w in step.named_parameters() if w.requires_grad}
