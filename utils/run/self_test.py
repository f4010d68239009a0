"""A quick test of the backbone before a run: does it compute the same for a row alone and padded in a batch?

No list of architectures can answer that: some models ignore the attention mask (RWKV), some lose count of positions,
some take no prefix. The model is run as the run will run it, with adapters and virtual tokens.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from models.Base import Method
from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.model.forward import answer_logits, features
from utils.model.generation import continuations
from utils.model.weights import eval_mode

LENGTHS = (3, 24)  # tokens of the two rows
TOLERANCE = {torch.float32: 1e-2}  # largest difference, as a share of the largest value; of shorter types 0.1


def self_test(method: Method, processes: int) -> dict[str, Any]:
    """What was found, for env.json.

    Raises:
        UserError: the model cannot be run, or padding changes what it computes and rows would be padded.
    """
    if not method.config.backbone_self_test:
        return {"skipped": "backbone_self_test"}
    began, adapter = time.perf_counter(), method.config.PEFT_type
    name = type(method.model).__name__ if adapter is None else f"the model with {adapter}"
    try:
        difference = _difference(method)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model that cannot take these inputs can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"backbone: {name} fails on a batch of two texts: {reason}; use another model or adapter"
        ) from None
    if difference > TOLERANCE.get(method.model.dtype, 0.1) and _rows_at_once(method, processes) > 1:
        parts = math.ceil(method.config.batch_size / processes)
        raise UserError(
            f"backbone: {name} computes something else for a text when it is padded in a batch (by {difference:.1%}); "
            f"set evaluate_batch_size: 1 and gradient_accumulation_steps: {parts}, so that texts are read one by one"
        )
    return {
        "largest_difference_by_padding": difference,
        "vocabulary": {"tokenizer": len(method.backbone.tokenizer), "model": _rows(method)},
        "positions": method.backbone.positions,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _rows_at_once(method: Method, processes: int) -> int:
    config = method.config
    share = math.ceil(config.batch_size / processes)
    return max(config.evaluate_batch_size, math.ceil(share / min(config.gradient_accumulation_steps, share)))


def _rows(method: Method) -> int:
    return len(method.model.get_input_embeddings().weight)


@torch.no_grad()
def _difference(method: Method) -> float:
    """Largest difference between the short row alone and padded, as a share of the largest value."""
    first = 10 if _rows(method) > 10 else 0
    ids = [first + i % (_rows(method) - first) for i in range(max(LENGTHS))]
    rows = [Encoded(ids[-length:], ids[:2]) for length in LENGTHS]
    with eval_mode(method.model, method.extra):
        alone, padded = (_outputs(method, chosen) for chosen in (rows[:1], rows))
        if method.is_plain:
            continuations(method.backbone, rows, 2)
    if not all(torch.isfinite(values).all() for values in alone):
        raise UserError("backbone: the model computes values that are not finite; its weights are damaged")
    pairs = zip(alone, padded, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-9)) for a, b in pairs)


def _outputs(method: Method, rows: list[Encoded]) -> list[Tensor]:
    """What the model computes for the first row: with its adapters, and with virtual tokens if the method has some."""
    model, is_encoder = method.model, method.backbone.kind == "encoder"
    rows = [row._replace(answer=()) for row in rows] if is_encoder else rows
    batch = collate(rows, [Example("", "")] * len(rows), method.backbone.pad_id).to(model.device)
    if is_encoder:
        return [features(model, batch)[0]]
    has_virtual = type(method).soft_prompt is not Method.soft_prompt
    prompts = [None, model.get_input_embeddings().weight[:4]] if has_virtual else [None]
    return [answer_logits(model, batch, prompt)[0][0].float() for prompt in prompts]
