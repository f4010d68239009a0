"""The layers of a model that get LoRA or IA3, by default or as the options name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from utils.model.architecture import Model
from utils.model.freeze import matches, unread

if TYPE_CHECKING:  # seconds to import: not for --help
    from transformers import PreTrainedModel

ALL = ("all-linear",)


def lora(option: Sequence[str] | None, model: PreTrainedModel) -> str | list[str]:
    """`target_modules` for peft: names of layers, a pattern, or "all-linear", which includes fused experts.

    Args:
        option: `PEFT_lora_target_modules`; None: see `default`.
        model: Without adapters.

    Raises:
        ValueError: the option names something that the model does not have.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    if option is None:
        return default(model, TABLE)
    if tuple(option) == ALL:
        return "all-linear"
    parts = [*(name for name, _ in model.named_modules()), *(name for name, _ in model.named_parameters())]
    _check_named(option, parts, model)  # peft uses those that it finds, without a word about the others
    return list(option)


def ia3(option: Sequence[str] | None, model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Layers that are scaled, and those of them whose input is scaled instead of their output.

    IA3 scales keys, values and, in the feed-forward part, what its last layer reads: the last linear layer of a block.

    Args:
        option: `PEFT_ia3_target_modules`; None: see `default`.
        model: Without adapters.

    Raises:
        ValueError: the option names something that is no linear layer.
    """
    from peft.utils import constants

    type_ = model.config.model_type
    chosen = default(model, constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING) if option is None else option
    if chosen == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(type_):
        return list(chosen), list(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[type_])
    layers = linear(model)
    if tuple(chosen) != ALL:
        _check_named(chosen, layers, model)
        layers = [name for name in layers if any(_ends(name, part) for part in chosen)]
    return layers, [name for name in layers if name in _last_of_blocks(model)]


def _check_named(chosen: Sequence[str], names: Sequence[str], model: PreTrainedModel) -> None:
    missing = [part for part in chosen if not any(_ends(name, part) for name in names)]
    if missing or not chosen:
        raise ValueError(f"the model has no linear layer named {' or '.join(missing)}, but {', '.join(leaves(model))}")


def _ends(name: str, part: str) -> bool:
    return f".{name}".endswith(f".{part}")


def default(model: PreTrainedModel, table: Mapping[str, Sequence[str]]) -> str | list[str]:
    """Layers by peft's table; of a model that is not in it, all linear layers outside mixtures of experts.

    Args:
        model: Without adapters.
        table: Names of layers, or a pattern, by type of model. A row that names layers which this version of the model
            does not have (experts, say, that are now one tensor) does not count.
    """
    row, layers = table.get(model.config.model_type), linear(model)
    if isinstance(row, str) or (row and all(any(_ends(name, part) for name in layers) for part in row)):
        return row if isinstance(row, str) else list(row)
    inside = [name for name in layers if any(matches(name, part) for part in mixtures(model))]
    # By the last part of the name: peft takes the name of an expert's former layer for the expert.
    experts = {name.rpartition(".")[2] for name in inside}
    return [name for name in layers if name.rpartition(".")[2] not in experts]


def linear(model: Model) -> list[str]:
    """Names of the linear layers but the language-model head."""
    from utils.model.bottleneck import width

    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if width(module) and module is not head]


def unread_layers(model: PreTrainedModel) -> list[str] | None:
    """Linear layers that no text goes through, of a model that also reads images or sounds; None: there are none."""
    parts = {name.rpartition(".")[0] for name in unread(model)}
    return [name for name in linear(model) if name in parts] or None


def leaves(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the linear layers, for messages."""
    return sorted({name.rpartition(".")[2] for name in linear(model)})


def mixtures(model: nn.Module) -> set[str]:
    """Names of the modules that hold experts, whose weights are tensors (experts, D, D)."""
    return {
        name.rpartition(".")[0]
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        and any(w.dim() == 3 and min(w.shape) > 1 for w in module.parameters(recurse=False))
    }


def _last_of_blocks(model: PreTrainedModel) -> set[str]:
    from utils.model.bottleneck import places

    try:
        return set(places(model))
    except ValueError:
        return set()
