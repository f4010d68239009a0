"""Work shared by the processes of a run: each does its part, all hold the same result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def share(count: int) -> range:
    """Which of `count` pieces of work this process does."""
    state = _state()
    return range(state.process_index, count, state.num_processes)


def gather(mine: Sequence[Any], count: int) -> list[Any]:
    """Results of all pieces of work in their order, on every process.

    Args:
        mine: Results of the pieces in `share(count)`.
        count: Pieces over all processes.
    """
    from accelerate.utils import gather_object

    pairs = gather_object(list(zip(share(count), mine, strict=True)))
    found = dict(pairs)
    return [found[i] for i in range(count)]


def sum_over_processes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of tensors that every process has computed from its part."""
    from accelerate.utils import reduce

    return {name: reduce(value, "sum") for name, value in tensors.items()}


def agree(wish: bool) -> bool:
    """True on every process if any wishes it: clocks differ, and what follows must be done by all or by none."""
    wishes = {"wish": torch.tensor(int(wish), device=_state().device)}
    return bool(sum_over_processes(wishes)["wish"])


def _state():
    from accelerate import PartialState  # seconds to import: not for --help

    return PartialState()
