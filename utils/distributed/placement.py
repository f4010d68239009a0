"""Where the weights and AdamW's tensors are while a task is trained; before and after it each process has all weights.

Methods, evaluation and checkpoints therefore work alike in every mode of utils/distributed/modes.py, and a run can be
resumed in another mode or with another number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import deepspeed_internals, modes
from utils.errors import UserError
from utils.model.adapters import innermost
from utils.model.architecture import Model
from utils.model.forward import has_plain_head
from utils.optimizer import Group, make_optimizer
from utils.session import Session
from utils.wrapmodel import Objective, Step

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # slow to import: not for --help

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> AdamW's tensors
MOMENTS = ("exp_avg", "exp_avg_sq")  # those of the tensors that have the shape of the parameter


def place(method: Objective, task: Any, groups: list[Group], session: Session, moments: OptimizerState) -> Replicated:
    """Make the optimizer of a task and the module that computes its loss, for the launched mode.

    Args:
        method: The method whose loss is computed.
        task: The task to train on.
        groups: Trainable parameters.
        session: Options and processes.
        moments: AdamW's initial tensors by parameter name, whole; empty: fresh ones.
    """
    kinds: dict[str | None, type[Replicated]] = {
        "ZeRO-1": Partitioned,
        "ZeRO-2": Partitioned,
        "ZeRO-3": Zero3,
        "FSDP2": Sharded,
    }
    placed = kinds.get(modes.mode(), Replicated)(method, task, groups, session)
    placed.load({name: tensors for name, tensors in moments.items() if name in placed.named})
    return placed


class Replicated:
    """One process, or several that each hold everything (DDP)."""

    twin: Twin | None = None  # trained in place of the method's model, which is empty meanwhile
    step: nn.Module  # computes the loss
    stepper: torch.optim.Optimizer  # as prepared by accelerate
    before_reading: Callable[[], None] = staticmethod(lambda: None)  # called before weights or moments are read

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        step = Step(method, task, method.model)
        self.named = _learning(step)
        self.optimizer = make_optimizer(groups, session.config)
        self.step, self.stepper = session.accelerator.prepare(step, self.optimizer)
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


class Sharded(Replicated):
    """FSDP2: a process keeps a part of everything; the weights of a layer are collected when it is computed."""

    twin: Twin

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.twin, kind = Twin(method), modes.autocast_type(session.config)
        step = Step(method, task, self.twin.model, kind)
        names = {id(w): name for name, w in step.named_parameters()}
        # Layers are collected in bfloat16: half of the traffic, and autocast need not keep a rounded copy of each.
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32 if kind else None)
        for layer in _layers(self.twin.model):
            fully_shard(layer, mp_policy=policy)
        fully_shard(step, mp_policy=policy)
        sharded = dict(step.named_parameters())
        self.twin.replace(lambda w: sharded[names[id(w)]])
        self.twin.empty()
        self.named = _learning(step)
        self.optimizer = make_optimizer(self.twin.own(groups), session.config)
        self.step, self.stepper = step, session.accelerator.prepare(self.optimizer)
        self.accelerator = session.accelerator

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """Its shard."""
        from torch.distributed.tensor import distribute_tensor

        sharded = cast("DTensor", w)
        return distribute_tensor(whole.to(w.device), sharded.device_mesh, sharded.placements, src_data_rank=None)

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


class Partitioned(Replicated):
    """ZeRO-1 and ZeRO-2: weights are whole; AdamW of each process steps a part of them and has only its tensors."""

    zero: Any  # DeepSpeed's optimizer, around `adamw`

    def __init__(self, method: Objective, task: Any, groups: list[Group], session: Session):
        if any(w.dtype != torch.float32 for w in method.model.parameters()):
            raise UserError("backbone_dtype: float32 with DeepSpeed; use mixed_precision: bfloat16 to save memory")
        step = Step(method, task, self.model_of(method), modes.autocast_type(session.config))
        self.named = _learning(step)
        optimizer = make_optimizer(self.own(groups), session.config)
        self.step, self.stepper = session.accelerator.prepare(step, optimizer)
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


class Zero3(Partitioned):
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

    def put(self, w: nn.Parameter, key: str, value: Tensor) -> None:
        """As above; DeepSpeed's function for whole moments fails if the last process's part is padded."""
        from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

        size = safe_get_local_optimizer_state(w, key).numel()
        part = value.flatten()[size * self.rank :][:size]
        safe_set_local_optimizer_state(w, F.pad(part, (0, size - len(part))), key)

    def close(self) -> None:
        """Collect them from the parts."""
        from deepspeed.runtime.zero import GatheredParameters

        for w, part in self.twin.pairs:
            with GatheredParameters([part]):
                w.data = part.detach().clone()


class Twin:
    """A second model with the same weights, which is partitioned; the method's model has no weights meanwhile.

    The loss of a method that is trained in this way must use only the model that it is given, see `Method.parallel`.
    """

    def __init__(self, method: Objective):
        assert not list(method.extra.parameters()), "the method's own modules are not divided among processes"
        method.model.train()
        has_plain_head(innermost(method.model))  # remembered by the twin
        self.pairs = [(w, nn.Parameter(w.detach(), w.requires_grad)) for w in method.model.parameters()]
        known: dict[int, Any] = {id(w): twin for w, twin in self.pairs}
        for module in method.model.modules():  # the hooks of the twin are the same functions, not copies
            known |= {id(hooks): copy.copy(hooks) for hooks in deepspeed_internals.hook_tables(module)}
        self.model = copy.deepcopy(method.model, known)

    def replace(self, new: Callable[[nn.Parameter], nn.Parameter]) -> None:
        """Replace the twin's parameters in `pairs`."""
        self.pairs = [(w, new(twin)) for w, twin in self.pairs]

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, with the twin's parameters."""
        twins = {id(w): twin for w, twin in self.pairs}
        return [replace(group, parameters=[twins[id(w)] for w in group.parameters]) for group in groups]

    def empty(self) -> None:
        """Drop the weights of the method's model."""
        for w, _ in self.pairs:
            w.data = w.data.new_empty(0)


def _whole(shard: Tensor) -> Tensor:
    return cast("DTensor", shard).full_tensor()


def _learning(step: Step) -> dict[str, nn.Parameter]:
    return {name: w for name, w in step.named_parameters() if w.requires_grad}


def _layers(model: Model) -> list[nn.Module]:
    """The blocks of a transformer."""
    kinds = deepspeed_internals.block_classes(innermost(model))
    return [module for module in model.modules() if type(module).__name__ in kinds]
