"""Where the weights and AdamW's tensors are while a task is trained; before and after it each process has all weights.

Methods, evaluation and checkpoints therefore work alike in every mode of utils/distributed/modes.py, and a run can be
resumed in another mode or with another number of processes.
"""

from __future__ import annotations

from typing import Any

from utils.distributed import modes
from utils.distributed.fsdp import Sharded
from utils.distributed.replicated import OptimizerState, Replicated
from utils.distributed.zero import Partitioned, Zero3
from utils.optimizer import Group
from utils.session import Session
from utils.wrapmodel import Objective


def place(method: Objective, task: Any, groups: list[Group], session: Session, moments: OptimizerState) -> Replicated:
    """Make the optimizer of a task and the module that computes its loss, for the launched mode.

    Args:
        method: The method whose loss and penalty are computed.
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
    placed.penalise(method.penalty(task))
    return placed
