"""Where the weights and AdamW's tensors are while a task is trained; before and after it each process has all weights.

So methods, evaluation and checkpoints work in the same way in every mode of utils/distributed/modes.py, and a run can
be resumed in another mode, or in another number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import modes
from utils.errors import UserError
from utils.model.adapters import innermost
from utils.optimizer import Group, make_optimizer
from utils.session import Session
from utils.wrapmodel import Step

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> AdamW's tensors
MOMENTS = ("exp_avg", "exp_avg_sq")  # of these, those of a parameter's size


def place(method, task, groups: list[Group], session: Session, moments: OptimizerState) -> Replicated:
    """Make a task's optimizer, and what is called for its loss, as the launch wants them.

    Args:
        method: Whose loss.
        task: What is learned.
        groups: Parameters that learn.
        session: Options and processes.
        moments: AdamW's tensors to begin with, by parameter name, whole; empty: fresh ones.
    """
    kinds = {"ZeRO-1": Partitioned, "ZeRO-2": Partitioned, "ZeRO-3": Zero3, "FSDP2": Sharded}
    placed = kinds.get(modes.mode(), Replicated)(method, task, groups, session)
    placed.load({name: tensors for name, tensors in moments.items() if name in placed.named})
    return placed


class Replicated:
    """One process, or several that each hold everything (DDP)."""

    twin: Twin | None = None  # what is trained in place of the method's model, which is empty meanwhile

    def __init__(self, method, task, groups: list[Group], session: Session):
        step = Step(method, task, method.model)
        self.named = _learning(step)
        self.optimizer = make_optimizer(groups, session.config)
        self.step, self.stepper = session.accelerator.prepare(step, self.optimizer)

    def load(self, moments: OptimizerState) -> None:
        """Begin with these tensors."""
        for name, tensors in moments.items():
            w = self.named[name]
            self.optimizer.state[w] = {k: v if k == "step" else self.part(v, w) for k, v in tensors.items()}

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """What this process needs of a tensor of a parameter's size."""
        return whole.to(w.device)

    def moments(self) -> OptimizerState:
        """AdamW's tensors now, by parameter name, whole; all processes must come here."""
        state = self.optimizer.state
        return {name: dict(state[w]) for name, w in self.named.items() if w in state}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let each process have all weights in the method's model inside the `with`; all processes must come here."""
        self.close()
        yield
        if self.twin is not None:
            self.twin.empty()

    def close(self) -> None:
        """Bring the weights together in the method's model, if they are not."""


class Sharded(Replicated):
    """FSDP2: a process keeps a part of everything; a layer's weights are brought together when it is its turn."""

    def __init__(self, method, task, groups: list[Group], session: Session):
        from torch.distributed.fsdp import fully_shard

        self.twin = Twin(method)
        step = Step(method, task, self.twin.model, modes.autocast_type(session.config))
        names = {id(w): name for name, w in step.named_parameters()}
        for layer in _layers(self.twin.model):
            fully_shard(layer)
        fully_shard(step)
        sharded = dict(step.named_parameters())
        self.twin.replace(lambda w: sharded[names[id(w)]])
        self.twin.empty()
        self.named = _learning(step)
        self.optimizer = make_optimizer(self.twin.own(groups), session.config)
        self.step, self.stepper = step, session.accelerator.prepare(self.optimizer)

    def part(self, whole: Tensor, w: nn.Parameter) -> Tensor:
        """Its shard."""
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(w.device), w.device_mesh, w.placements, src_data_rank=None)

    def moments(self) -> OptimizerState:
        """Put together on the CPU."""
        return {
            name: {key: value if key == "step" else value.full_tensor().cpu() for key, value in tensors.items()}
            for name, tensors in super().moments().items()
        }

    def close(self) -> None:
        """From the shards."""
        for w, shard in self.twin.pairs:
            w.data = shard.detach().full_tensor()


class Partitioned(Replicated):
    """ZeRO-1 and ZeRO-2: weights are whole; AdamW steps in each process a part of them, for which it has tensors."""

    def __init__(self, method, task, groups: list[Group], session: Session):
        if any(w.dtype != torch.float32 for w in method.model.parameters()):
            raise UserError("backbone_dtype: float32 with DeepSpeed; use mixed_precision: bfloat16 to save memory")
        step = Step(method, task, self.model_of(method), modes.autocast_type(session.config))
        self.named = _learning(step)
        optimizer = make_optimizer(self.own(groups), session.config)
        self.step, self.stepper = session.accelerator.prepare(step, optimizer)
        self.zero, self.adamw, self.rank = self.step.optimizer, optimizer, session.accelerator.process_index

    def model_of(self, method) -> nn.Module:
        """What is trained."""
        return method.model

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, of the parameters of what is trained."""
        return groups

    def pieces(self) -> list[Tensor]:
        """What AdamW steps here: parts of many parameters end to end."""
        return self.zero.single_partition_of_fp32_groups

    def load(self, moments: OptimizerState) -> None:
        """A piece has one count of steps for all parameters in it."""
        counts = {float(tensors["step"]) for tensors in moments.values()}
        if not moments:
            return
        if len(counts) > 1 or len(moments) < len(self.named):
            raise UserError(
                "keep_optimizer_state: with DeepSpeed the same parameters must learn in every task, as their moments "
                "share one count of steps; leave it out, or freeze_parts"
            )
        for piece in self.pieces():
            self.adamw.state[piece] = {"step": torch.tensor(*counts)}
            self.adamw.state[piece] |= {key: torch.zeros_like(piece) for key in MOMENTS}
        self.link()
        for name, tensors in moments.items():
            for key in MOMENTS:
                self.put(self.named[name], key, tensors[key])

    def link(self) -> None:
        """Let DeepSpeed find a parameter's moments in the pieces, which it does by itself after a first step only."""
        self.zero._lazy_init_hp_params_optimizer_state()

    def put(self, w: nn.Parameter, key: str, value: Tensor) -> None:
        """Keep what belongs to this process of a whole moment."""
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(w, value.to(w.device), key)

    def moments(self) -> OptimizerState:
        """Put together on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [self.adamw.state[piece]["step"] for piece in self.pieces() if piece in self.adamw.state]
        if not steps:
            return {}
        return {
            name: {"step": steps[0].clone()} | {key: safe_get_full_optimizer_state(w, key).cpu() for key in MOMENTS}
            for name, w in self.named.items()
        }


class Zero3(Partitioned):
    """ZeRO-3: a process has a part of the weights, too."""

    def __init__(self, *args):
        super().__init__(*args)
        self.twin.empty()

    def model_of(self, method) -> nn.Module:
        """A twin, which DeepSpeed takes to pieces."""
        self.twin = Twin(method)
        return self.twin.model

    def own(self, groups: list[Group]) -> list[Group]:
        """Of the twin."""
        return self.twin.own(groups)

    def pieces(self) -> list[Tensor]:
        """As above."""
        return self.zero.fp32_partitioned_groups_flat

    def link(self) -> None:
        """Nothing: here it looks for them each time."""

    def put(self, w: nn.Parameter, key: str, value: Tensor) -> None:
        """Its own function for this fails if the last process's part is longer than what is left for it."""
        from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

        size = safe_get_local_optimizer_state(w, key).numel()
        part = value.flatten()[size * self.rank :][:size]
        safe_set_local_optimizer_state(w, F.pad(part, (0, size - len(part))), key)

    def close(self) -> None:
        """From the parts."""
        from deepspeed.runtime.zero import GatheredParameters

        for w, part in self.twin.pairs:
            with GatheredParameters([part]):
                w.data = part.detach().clone()


class Twin:
    """A second model with the same weights, to be taken to pieces; the method's own model has none meanwhile.

    A method that trains so must ask nothing but the model its loss is given, as `Method.parallel` says of it.
    """

    def __init__(self, method):
        assert not list(method.extra.parameters()), "modules of a method's own are not shared out"
        method.model.train()
        self.pairs = [(w, nn.Parameter(w.detach(), w.requires_grad)) for w in method.model.parameters()]
        known: dict[int, Any] = {id(w): twin for w, twin in self.pairs}
        for module in method.model.modules():  # its hooks are the same functions: they belong to others
            known |= {id(hooks): copy.copy(hooks) for name, hooks in vars(module).items() if "_hooks" in name}
        self.model = copy.deepcopy(method.model, known)

    def replace(self, new) -> None:
        """Note that the twin's parameters became others."""
        self.pairs = [(w, new(twin)) for w, twin in self.pairs]

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, of the twin's parameters."""
        twins = {id(w): twin for w, twin in self.pairs}
        return [replace(group, parameters=[twins[id(w)] for w in group.parameters]) for group in groups]

    def empty(self) -> None:
        """Drop the weights of the method's model."""
        for w, _ in self.pairs:
            w.data = w.data.new_empty(0)


def _learning(step: Step) -> dict[str, nn.Parameter]:
    return {name: w for name, w in step.named_parameters() if w.requires_grad}


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that a transformer repeats."""
    kinds = set(innermost(model)._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]
