"""Greedy answers, generated or verified in one forward pass; and how likely given answers are.

Shapes: B rows, K answer columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.dataloader import IGNORE, Encoded, collate
from utils.dataset import Example
from utils.model import adapters
from utils.model.architecture import Backbone
from utils.model.forward import answer_logits, text_inputs
from utils.model.head import Scores, log_likelihoods
from utils.scoring import normalise


class Answer(NamedTuple):
    """The model's answer, and how it was determined."""

    text: str
    decided: str  # "verified" | "refuted" | "generated" | "likelihood"
    likelihoods: tuple[float, ...] = ()  # log p of each possible answer, in nats, where one of these was chosen


def generate(
    backbone: Backbone, rows: Sequence[Encoded], max_new_tokens: int, prompt: Tensor | None = None
) -> list[str]:
    """Greedy answers to one batch of prompts, cut at the first stop token and stripped.

    Args:
        backbone: Model and tokenizer; the model must be in eval mode.
        rows: Encoded examples, of which only the prompts are used.
        max_new_tokens: Most tokens of an answer.
        prompt: Virtual tokens before each text, see `answer_logits`.
    """
    return [decode(backbone, ids) for ids in continuations(backbone, rows, max_new_tokens, prompt)]


@torch.no_grad()
def continuations(
    backbone: Backbone, rows: Sequence[Encoded], max_new_tokens: int, prompt: Tensor | None = None, **options: Any
) -> list[list[int]]:
    """What the model writes after each prompt, as token ids; arguments as in `generate`, more for transformers."""
    prompts = [Encoded(row.prompt, ()) for row in rows]
    batch = collate(prompts, [Example("", "")] * len(rows), backbone.pad_id).to(backbone.model.device)
    inputs = text_inputs(backbone.model, batch, prompt)
    return adapters.generate(backbone.model, inputs, max_new_tokens=max_new_tokens, use_cache=True, **options).tolist()


@torch.no_grad()
def likelihoods(scores: Scores, labels: Tensor) -> list[float]:
    """log p(answer | prompt) of each row, in nats: the sum over the tokens of its answer.

    Args:
        scores: (B, K, V).
        labels: (B, K) int64, IGNORE where a row has no token.
    """
    is_label = labels != IGNORE
    values = torch.zeros(labels.shape, device=labels.device)
    values[is_label] = log_likelihoods(scores[is_label], labels[is_label])
    found: list[float] = values.sum(dim=1).tolist()
    return found


@torch.no_grad()
def verify(
    backbone: Backbone,
    rows: Sequence[Encoded],
    accepted: Sequence[Sequence[str]],
    max_new_tokens: int,
    prompt: Tensor | None = None,
    compared: Callable[[str], str] = normalise,
) -> list[Answer | None]:
    """The answer of greedy decoding, as far as one pass over prompt and target determines it.

    At each answer position the model's best token is compared with the target's. If all are equal, greedy decoding
    would have produced exactly the target. At the first difference the text so far is what greedy decoding would
    have produced so far: if it ends there (stop token), it is the answer; if no continuation of it can equal the
    target or another accepted answer, it is wrong. The rest is undecided.

    Args:
        backbone: Model and tokenizer; the model must be in eval mode.
        rows: Encoded examples, prompt and answer.
        accepted: The accepted answers to each.
        max_new_tokens: Most tokens that generation would have produced.
        prompt: Virtual tokens before each text, see `answer_logits`.
        compared: What exact match compares of a text, see `scoring.Metric.compared`.

    Returns:
        For each row an answer that scores in exact match as the generated one does, or None if undecided. The text
        of a refuted row is only the beginning of what the model would say.
    """
    rows = [Encoded(row.prompt, row.answer[:max_new_tokens]) for row in rows]
    batch = collate(rows, [Example("", "")] * len(rows), backbone.pad_id).to(backbone.model.device)
    logits, labels = answer_logits(backbone.model, batch, prompt)
    pairs = zip(logits.argmax(dim=-1).tolist(), labels.tolist(), strict=True)
    decided = []
    for (predicted, wanted), texts in zip(pairs, accepted, strict=True):
        first = next(i for i, label in enumerate(wanted) if label != IGNORE)
        wanted = [label for label in wanted if label != IGNORE]
        is_wrong = partial(cannot_be, texts, compared)
        decided.append(decide(backbone, predicted[first:], wanted, is_wrong, max_new_tokens)[0])
    return decided


def decide(
    backbone: Backbone,
    predicted: Sequence[int],
    wanted: list[int],
    is_wrong: Callable[[str], bool],
    max_new_tokens: int,
    at: int = 0,
) -> tuple[Answer | None, int]:
    """Whether the tokens that a model predicts along a target decide its answer.

    Args:
        backbone: Its tokenizer and stop tokens.
        predicted: Best tokens after the first `at` tokens of the target, after one more, and so on.
        wanted: Tokens of the target, at most `max_new_tokens`.
        is_wrong: True of a beginning that no accepted answer has.
        max_new_tokens: Most tokens of an answer.
        at: How many tokens of the target are already known to be said.

    Returns:
        The answer if it is decided, and the number of the target's tokens that are said before it ends or differs, or
        as far as the predictions go.
    """
    for k in range(at, min(len(wanted), at + len(predicted))):
        token = predicted[k - at]
        if token in backbone.stop_ids:
            return Answer(decode(backbone, wanted[:k]), "verified"), k
        if token != wanted[k]:
            beginning = decode(backbone, [*wanted[:k], token], strip=False)
            if k + 1 == max_new_tokens:
                return Answer(beginning.strip(), "verified"), k
            return (Answer(beginning.strip(), "refuted") if is_wrong(beginning) else None), k
    if at + len(predicted) < len(wanted):
        return None, at + len(predicted)
    return Answer(decode(backbone, wanted), "verified"), len(wanted)


def cannot_be(accepted: Sequence[str], compared: Callable[[str], str], beginning: str) -> bool:
    """True if no text that begins like this can be an exact match of any accepted answer."""
    return all(is_hopeless(beginning, text, compared) for text in accepted)


def is_hopeless(beginning: str, target: str, compared: Callable[[str], str] = normalise) -> bool:
    """True if no text that begins like this can be an exact match of the target.

    Where characters are made of bytes, a character in the beginning can still become U+FFFD when further bytes follow.

    >>> is_hopeless(" Paris, Te", "paris"), is_hopeless(" PAR", "Paris"), is_hopeless(" Paris ", "Paris")
    (True, False, False)
    """
    if "\ufffd" in beginning + target or "Σ" in beginning:
        return False  # half a character; or one whose lower case depends on what follows
    return not compared(target).startswith(compared(beginning))


def decode(backbone: Backbone, ids: Sequence[int], strip: bool = True) -> str:
    """Text of the ids before the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in backbone.stop_ids), len(ids))
    text = backbone.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
    return text.strip() if strip else text
