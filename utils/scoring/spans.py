"""F1 over spans of words, for tagging: a text holds one BIO tag per word, separated by spaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

TAG = re.compile(r"[BIES]-.+")


def span_f1(prediction: str, target: str, source: str = "") -> float:
    """F1 over the spans of one sentence (seqeval's reading of the tags); 1.0 if there are none on either side.

    >>> span_f1("B-PER I-PER O B-LOC", "B-PER I-PER O O")
    0.6666666666666666
    """
    from seqeval.metrics.sequence_labeling import get_entities

    wanted_tags, tags = _aligned(prediction, target)
    got, wanted = set(get_entities(tags)), set(get_entities(wanted_tags))
    return 2 * len(got & wanted) / (len(got) + len(wanted)) if got or wanted else 1.0


def corpus_span_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """Macro F1 of seqeval: mean over the types of spans of their F1 in all sentences; None if there are no spans.

    Of several references of a sentence the one with the best `span_f1` counts.
    """
    from seqeval.metrics import f1_score

    rows = list(zip(predictions, references, strict=True))
    nearest = [max(accepted, key=partial(span_f1, prediction)) for prediction, accepted in rows]
    pairs = [_aligned(prediction, target) for prediction, target in zip(predictions, nearest, strict=True)]
    if not any(tag != "O" for pair in pairs for tags in pair for tag in tags):
        return None
    wanted, got = ([pair[side] for pair in pairs] for side in (0, 1))
    return float(f1_score(wanted, got, average="macro", zero_division=0))


def _aligned(prediction: str, target: str) -> tuple[list[str], list[str]]:
    """Tags of target and prediction, as many as the target has; a missing or unknown tag counts as outside (O)."""
    wanted, got = ([tag if TAG.fullmatch(tag) else "O" for tag in text.split()] for text in (target, prediction))
    return wanted, [*got, *["O"] * len(wanted)][: len(wanted)]
