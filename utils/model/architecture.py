"""The types of models that this program runs, and their kinds: decoder, encoder, encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # seconds to import: not for --help
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

Model: TypeAlias = "PreTrainedModel | PeftModel"  # without and with adapters

KINDS = ("decoder", "encoder", "encoder-decoder")


def kind_of(shape: PreTrainedConfig) -> str:
    """One of KINDS: a decoder generates text, an encoder reads in both directions, an encoder-decoder has both parts.

    A model counts as an encoder if transformers has it as a masked language model and its configuration does not call
    it a decoder.

    Args:
        shape: The `config` of a model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if shape.is_encoder_decoder:
        return "encoder-decoder"
    fills_masks = type(shape) in MODEL_FOR_MASKED_LM_MAPPING
    return "encoder" if fills_masks and not getattr(shape, "is_decoder", False) else "decoder"


def positions(net: PreTrainedModel) -> int | None:
    """Number of positions of a model, from its configuration; None: not given there.

    Models like RoBERTa start positions after the id of their padding token, so they have a few fewer.
    """
    count = getattr(net.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    for name, module in net.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return count - module.padding_idx - 1
    return count


def has_fixed_positions(shape: PreTrainedConfig) -> bool:
    """True if a model has a table of positions and fails beyond it; rotary ones are computed for any position.

    Args:
        shape: The `config` of a model.
    """
    return not getattr(shape.get_text_config(), "rope_parameters", None)


def recompute(net: PreTrainedModel) -> None:
    """Let layers be computed again in the backward pass, in train mode."""
    renamed = hasattr(net, "activation_checkpointing_enable")  # since transformers 5.23
    enable = net.activation_checkpointing_enable if renamed else net.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def recomputes(net: PreTrainedModel) -> bool:
    """True after `recompute`."""
    renamed = hasattr(net, "is_activation_checkpointing")
    return bool(net.is_activation_checkpointing if renamed else net.is_gradient_checkpointing)


@dataclass
class Backbone:
    """A language model with its tokenizer."""

    model: Model
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]  # generation ends at any of these

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.model.config)

    @cached_property
    def positions(self) -> int | None:
        """See `positions`; adapters change nothing about it."""
        model: Any = self.model
        return positions(model.get_base_model() if hasattr(model, "get_base_model") else model)
