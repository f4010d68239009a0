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

from utils.config import Config
from utils.dataloader import Batch, Encoded, collate, rows_at_once
from utils.dataset import Example
from utils.errors import UserError, reason_of
from utils.model import adapters
from utils.model.architecture import Backbone
from utils.model.forward import answer_logits, features, has_plain_head, token_states
from utils.model.generation import continuations
from utils.model.shortcuts.padding_free import PaddingFree
from utils.model.weights import eval_mode

LENGTHS = (3, 24)  # tokens of the two rows
LEAK = 1e-5  # the same for a row whose neighbour in the sequence changes, which masked values must not
TOLERANCE = {torch.float32: 1e-2}  # largest difference, as a share of the largest value; of shorter types 0.1


def self_test(
    backbone: Backbone, config: Config, processes: int, has_virtual: bool = False, generates: bool = False
) -> dict[str, Any]:
    """Run the model on two rows; uses no random numbers and leaves the model as it is.

    Args:
        backbone: With its adapters.
        config: Of the run.
        processes: Of the run.
        has_virtual: The method puts virtual tokens before texts.
        generates: The model writes answers.

    Returns:
        The result, for env.json.

    Raises:
        UserError: the model cannot be run, or padding changes what it computes and rows would be padded.
    """
    if not config.backbone_self_test:
        return {"skipped": "backbone_self_test"}
    began, name = time.perf_counter(), type(adapters.innermost(backbone.model)).__name__
    name += f" with {config.PEFT_type}" if config.PEFT_type else ""
    try:
        difference = _difference(backbone, has_virtual, generates)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model that does not accept these inputs can raise any exception
        reason = reason_of(error, 200)
        raise UserError(
            f"backbone: {name} fails on a batch of two texts: {reason}; use another model or adapter"
        ) from None
    tolerance = TOLERANCE.get(backbone.model.dtype, 0.1)
    if config.padding_free:
        _test_packing(backbone, config, name, tolerance)
    if difference > tolerance and _rows_at_once(config, processes) > 1:
        parts = math.ceil(config.batch_size / processes)
        raise UserError(
            f"backbone: {name} gives other results for a text that is padded in a batch (by {difference:.1%}); "
            f"set evaluate_batch_size: 1 and gradient_accumulation_steps: {parts}, so that texts are read one by one"
        )
    return {
        "largest_difference_by_padding": difference,
        "vocabulary": {"tokenizer": len(backbone.tokenizer), "model": _embeddings(backbone).shape[0]},
        "positions": backbone.positions,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _test_packing(backbone: Backbone, config: Config, name: str, tolerance: float) -> None:
    """Refuse `padding_free` where it would change results, or nothing."""
    if config.classifier is None and not has_plain_head(adapters.innermost(backbone.model)):
        raise UserError(f"padding_free: has no effect with {name}, which computes logits in its own way; leave it out")
    leaked, moved = _differences_by_packing(backbone)
    if leaked > LEAK or moved > tolerance:
        raise UserError(
            f"padding_free: {name} gives other results for a text that shares a sequence with another one (by "
            f"{max(leaked, moved):.1%}); leave it out"
        )


def _rows_at_once(config: Config, processes: int) -> int:
    trained = rows_at_once(config.batch_size, processes, config.gradient_accumulation_steps)
    return max(config.evaluate_batch_size, trained)


def _embeddings(backbone: Backbone) -> Tensor:
    return adapters.innermost(backbone.model).get_input_embeddings().get_parameter("weight")


@torch.no_grad()
def _difference(backbone: Backbone, has_virtual: bool, generates: bool) -> float:
    """Largest difference between the short row alone and padded, as a share of the largest value."""
    rows = _rows(backbone)
    prompts = [None, _embeddings(backbone)[:4]] if has_virtual else [None]
    pairs = []
    with eval_mode(backbone.model):
        for prompt in prompts:
            pairs.append([_output(backbone, chosen, prompt) for chosen in (rows[:1], rows)])
            if generates:
                continuations(backbone, rows, 2, prompt)
    if not all(torch.isfinite(alone).all() for alone, _ in pairs):
        raise UserError("backbone: the model computes values that are not finite; its weights are damaged")
    return max(_share(alone, padded) for alone, padded in pairs)


@torch.no_grad()
def _differences_by_packing(backbone: Backbone) -> tuple[float, float]:
    """Between states of the short row in one sequence with each of two long rows; and alone or with one of them."""
    short, long = _rows(backbone)
    partners: list[list[Encoded]] = [[], [long], [long._replace(prompt=long.prompt[::-1])]]
    model, width = backbone.model, len(short.prompt) + len(short.answer)
    with eval_mode(model), PaddingFree(model, limit=None).used():
        alone, with_one, with_other = (
            token_states(model, _batch(backbone, [short, *rows]))[0, -width:].float() for rows in partners
        )
    return _share(with_one, with_other), _share(alone, with_one)


def _share(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-9))


def _rows(backbone: Backbone) -> list[Encoded]:
    """A short row and a long one."""
    count = len(_embeddings(backbone))
    first = 10 if count > 10 else 0
    ids = [first + i % (count - first) for i in range(max(LENGTHS))]
    return [Encoded(ids[-length:], ids[:2]) for length in LENGTHS]


def _batch(backbone: Backbone, rows: list[Encoded]) -> Batch:
    return collate(rows, [Example("", "")] * len(rows), backbone.pad_id).to(backbone.model.device)


def _output(backbone: Backbone, rows: list[Encoded], prompt: Tensor | None) -> Tensor:
    """What the model computes for the first row: logits (K, V) or, of an encoder, a state (D,)."""
    is_encoder = backbone.kind == "encoder"
    rows = [row._replace(answer=()) for row in rows] if is_encoder else rows
    batch = _batch(backbone, rows)
    if is_encoder:
        return features(backbone.model, batch)[0]
    return answer_logits(backbone.model, batch, prompt)[0][0].float()
