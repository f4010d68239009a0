"""Share work among the processes of a run; every process gets all results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState  # seconds to import: not for --help


def is_main() -> bool:
    """True on the process that writes."""
    return bool(_state().is_main_process)


def share(count: int) -> range:
    """Indices of the pieces of work, out of `count`, that this process does."""
    state = _state()
    return range(state.process_index, count, state.num_processes)


def gather(mine: Sequence[Any], count: int) -> list[Any]:
    """Results of all pieces of work, in order, on every process.

    Args:
        mine: Results of the pieces in `share(count)`.
        count: Pieces over all processes.
    """
    from accelerate.utils import gather_object

    pairs = gather_object(list(zip(share(count), mine, strict=True)))
    found = dict(pairs)
    return [found[i] for i in range(count)]


def sum_over_processes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes of tensors that each has computed from its part."""
    from accelerate.utils import reduce

    return {name: reduce(value, "sum") for name, value in tensors.items()}


def from_main(value: Any) -> Any:
    """The value of the main process, on every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def of_main(value: Tensor) -> Tensor:
    """This tensor of the main process, on every process: a decomposition may differ between devices in its last bits.

    Args:
        value: Has the same shape on all processes.
    """
    if _state().num_processes == 1:
        return value
    from accelerate.utils import broadcast

    found: Tensor = broadcast(value.contiguous())
    return found


def agree(wish: bool) -> bool:
    """True on every process if `wish` is true on any: clocks differ, but all processes must take the same branch."""
    if _state().num_processes == 1:
        return wish  # without waiting for the device
    wishes = {"wish": torch.tensor(int(wish), device=_state().device)}
    return bool(sum_over_processes(wishes)["wish"])


def first_difference(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that is not the same on all processes; None: all are.

    Only a checksum of each is compared, the sum of its bits as integers.
    """
    if _state().num_processes == 1 or not tensors:
        return None
    mine = torch.stack([_checksum(value) for value in tensors.values()]).tolist()
    for name, *sums in zip(tensors, *gather([mine], _state().num_processes), strict=True):
        if len(set(sums)) > 1:
            return name
    return None


def _checksum(values: Tensor) -> Tensor:
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.detach().contiguous().view(bits).sum(dtype=torch.int64)


def _state() -> PartialState:
    from accelerate import PartialState

    return PartialState()
