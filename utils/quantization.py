"""Frozen base models of adapters with 4 or 8 bits per weight, by bitsandbytes (`backbone_quantization`).

All linear layers but the language-model head are quantised when they are loaded; norms, embeddings, head and adapters
keep their type. QLoRA is `nf4`: Dettmers et al., NeurIPS 2023; `int8` is LLM.int8(): Dettmers et al., NeurIPS 2022.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.config import Config
from utils.model.adapters import innermost, owner
from utils.model.architecture import Model

if TYPE_CHECKING:  # seconds to import: not for --help
    from transformers import PreTrainedConfig, PreTrainedModel

# Blocks of 64 weights share a scale of 8 bits, and 256 of these one of 32 bits.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def loading(config: Config) -> dict[str, Any]:
    """Arguments of `from_pretrained`; none without `backbone_quantization`."""
    if config.backbone_quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    short = "bfloat16" in (config.mixed_precision, config.backbone_dtype)
    recipe = BitsAndBytesConfig(
        load_in_8bit=config.backbone_quantization == "int8",
        load_in_4bit=config.backbone_quantization == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if short else torch.float32,
    )
    return {"quantization_config": recipe}


def keep_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit weights as they are loaded.

    On CPUs with AVX-512 the first forward pass in eval mode would reorder them for a kernel without gradients: layers
    below would then learn from wrong gradients, and copies, checksums and saved weights would be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (mypy expects a Tensor)


def is_quantized(shape: PreTrainedConfig) -> bool:
    """True if a checkpoint was saved by bitsandbytes, from its `config`."""
    recipe = getattr(shape, "quantization_config", None)
    return isinstance(recipe, dict) and recipe.get("quant_method") == "bitsandbytes"


def saved_bytes(model: Model, kind: str | None) -> int:
    """How much less memory the base of a model takes when it is quantised.

    Args:
        model: Loaded without quantisation, or without weights.
        kind: `backbone_quantization`.
    """
    if kind is None:
        return 0
    return round(sum(w.numel() * (w.element_size() - _bytes_per_weight(w, kind)) for w in _matrices(innermost(model))))


def _bytes_per_weight(w: nn.Parameter, kind: str) -> float:
    return NF4_BYTES if kind == "nf4" else 1 + 4 / w.shape[1]  # int8: each row has a scale


def _matrices(net: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The weights that are quantised."""
    from transformers.pytorch_utils import Conv1D

    head = net.get_output_embeddings()
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and owner(name) is None:
            yield module.get_parameter("weight")


def hide() -> None:
    """Keep peft from importing bitsandbytes for every adapter: seconds, and a notice about a missing kernel.

    `is_installed` ends that.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # None makes the import fail


def is_installed() -> bool:
    """True if bitsandbytes can be imported. Its notices are off: it would report each cast of a layer's input."""
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    if "bitsandbytes" in sys.modules and sys.modules["bitsandbytes"] is None:
        from peft import import_utils

        del sys.modules["bitsandbytes"]
        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError):  # the latter: its own library is missing or of another CUDA
        return False
    return True
