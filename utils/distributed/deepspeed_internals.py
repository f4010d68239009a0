"""Private and undocumented names of libraries, each in one function: the file to check after an upgrade.

Read in deepspeed 0.19.8, accelerate 1.15.0, transformers 5.23.0 and torch 2.13.0.
tests/unit/distributed/test_deepspeed_internals.py checks that each exists and behaves as described. Two others are in
the files that use them: the methods of peft's tuners, which are meant to be overridden, in utils/model/bottleneck.py,
and the string scanner of json in utils/storage/large_json.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:  # seconds to import: not for --help
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def skip_shared_memory() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication for CPUs, which takes minutes and saves nothing.

    deepspeed.ops.__compatible_ops__: dict of operations that DeepSpeed may compile, filled on first access.
    """
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def pieces(zero: Any) -> list[Tensor]:
    """The flat float32 tensors that the inner optimizer of this process steps; each holds parts of many parameters.

    DeepSpeedZeroOptimizer (ZeRO-1, ZeRO-2) calls them single_partition_of_fp32_groups, DeepSpeedZeroOptimizer_Stage3
    fp32_partitioned_groups_flat.

    Args:
        zero: The `optimizer` of a DeepSpeed engine.
    """
    found: list[Tensor]
    if hasattr(zero, "single_partition_of_fp32_groups"):
        found = zero.single_partition_of_fp32_groups
    else:
        found = zero.fp32_partitioned_groups_flat
    return found


def link_moments(zero: Any) -> None:
    """Let deepspeed.utils find the moments of a parameter in the pieces of ZeRO-1 and ZeRO-2 before the first step.

    DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state, which DeepSpeed calls after the first step.
    """
    zero._lazy_init_hp_params_optimizer_state()


def forget_prepared(accelerator: Accelerator) -> None:
    """Drop what an Accelerator has prepared, as its free_memory does, but without a search for garbage.

    Accelerator._models, _optimizers, _schedulers, _dataloaders: lists that `prepare` appends to.
    """
    for kept in (accelerator._models, accelerator._optimizers, accelerator._schedulers, accelerator._dataloaders):
        kept.clear()
    accelerator.step = 0


def block_classes(model: PreTrainedModel) -> set[str]:
    """Names of the classes of a model's transformer blocks: PreTrainedModel._no_split_modules."""
    return set(model._no_split_modules or ())


def hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries in which torch keeps the hooks of a module: attributes of nn.Module such as _forward_hooks."""
    return [table for name, table in vars(module).items() if "_hooks" in name and isinstance(table, dict)]
