"""FSDP2 of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from utils.distributed import deepspeed_internals, modes
from utils.distributed.replicated import OptimizerState, ShardedWeights, trainable
from utils.distributed.twin import Twin
from utils.model.adapters import innermost
from utils.model.architecture import Model
from utils.model.weights import borrowed, moved
from utils.optimizer import Group, make_optimizer
from utils.session import Session
from utils.wrapmodel import Objective, Step, Teacher

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # slow to import: not for --help


class Sharded(ShardedWeights):
    """FSDP2: a process keeps a part of everything; the weights of a layer are collected when it is computed."""

    twin: Twin

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        self.method, kind = method, modes.autocast_type(session.config)
        if method.has_teacher:
            method.sharded_teacher = _teacher(method, kind)
        self.twin = Twin(method)
        self.inner = step = Step(method, task, self.twin.model, kind)
        names = {id(w): name for name, w in step.named_parameters()}
        _divide(step, self.twin.model, kind)
        sharded = dict(step.named_parameters())
        self.twin.replace(lambda w: sharded[names[id(w)]])
        self.twin.empty()
        self.named = trainable(step)
        self.optimizer = make_optimizer(self.twin.own(groups), session.config)
        self.step, self.stepper = step, session.accelerator.prepare(self.optimizer)
        self.accelerator = session.accelerator

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """Its shard."""
        from torch.distributed.tensor import distribute_tensor

        sharded = cast("DTensor", w)
        return distribute_tensor(whole.to(w.device), sharded.device_mesh, sharded.placements, src_data_rank=None)

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """As above, and add the gradient of the penalty."""
        super().backward(loss)
        return self.add_penalty(lambda w: w.detach(), _add_to_shard)

    def moments(self, keep: bool = True) -> OptimizerState:
        """Collected on the CPU, one at a time."""
        found: OptimizerState = {}
        for name, tensors in super().moments().items():
            for key, value in tensors.items():
                whole = value if key == "step" else _whole(value)
                if keep:
                    found.setdefault(name, {})[key] = whole.cpu()
        return found

    def close(self) -> None:
        """Collect them from the shards."""
        for w, shard in self.twin.pairs:
            w.data = _whole(shard.detach())

    def release(self) -> None:
        """As above, and let go of the teacher."""
        super().release()
        self.method.sharded_teacher = None


def _teacher(method: Any, kind: torch.dtype | None) -> Teacher | None:
    """A model with the weights of the method's teacher, divided; the whole ones move to the memory of the host."""
    if not method.teacher:
        return None
    with borrowed(method.named(), method.teacher):
        model = Twin(method).model
    teacher = Teacher(method, model)
    _divide(teacher, model, kind)
    method.teacher = moved(method.teacher, torch.device("cpu"))
    return teacher


def _divide(root: nn.Module, model: Model, kind: torch.dtype | None) -> None:
    """Divide the weights of a module with a model inside.

    Layers are collected in bfloat16, if that is computed in: half of the traffic, and autocast need not keep a rounded
    copy of each.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32 if kind else None)
    for layer in _layers(model):
        fully_shard(layer, mp_policy=policy)
    fully_shard(root, mp_policy=policy)


def _whole(shard: Tensor) -> Tensor:
    return cast("DTensor", shard).full_tensor()


def _add_to_shard(w: nn.Parameter, gradient: Tensor) -> None:
    w.grad = torch.zeros_like(w) if w.grad is None else w.grad
    w.grad += gradient


def _layers(model: Model) -> list[nn.Module]:
    """The blocks of a transformer."""
    kinds = deepspeed_internals.block_classes(innermost(model))
    return [module for module in model.modules() if type(module).__name__ in kinds]
