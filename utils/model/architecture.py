"""What kind a model is, told by its own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KINDS = ("decoder", "encoder", "encoder-decoder")


def kind_of(shape: PretrainedConfig) -> str:
    """One of KINDS: a decoder writes, an encoder reads in both directions, an encoder-decoder has one of each.

    An encoder is what transformers can train to fill masks, unless its configuration says that it is a decoder.

    Args:
        shape: The `config` of a model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if shape.is_encoder_decoder:
        return "encoder-decoder"
    fills_masks = type(shape) in MODEL_FOR_MASKED_LM_MAPPING
    return "encoder" if fills_masks and not getattr(shape, "is_decoder", False) else "decoder"


@dataclass
class Backbone:
    """A language model with its tokenizer."""

    model: nn.Module
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]  # generation ends at any of these

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.model.config)
