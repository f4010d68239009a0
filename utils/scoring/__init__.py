"""Scores in [0, 1] of predicted texts against target texts.

Every example has a score and counts; an empty prediction gets the worst score (unless the target is empty too). A cell
of the results matrix is the mean of its scores, or the metric's corpus-level score (`Metric.corpus`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean

from utils.errors import UserError
from utils.scoring.answers import exact_match, first_letter, normalise, numeric, token_f1
from utils.scoring.overlap import bleu, corpus_bleu, edit_similarity, rouge_l, sari
from utils.scoring.refusals import jailbreak_rate
from utils.scoring.spans import corpus_span_f1, span_f1

__all__ = ["METRICS", "Metric", "aggregate", "exact_match", "find", "normalise", "score"]


@dataclass(frozen=True)
class Metric:
    """A score of one prediction in [0, 1], and whether higher is better."""

    name: str
    score: Callable[[str, str, str], float]  # of prediction, target and source (the text of the question)
    higher_is_better: bool = True
    corpus: Callable[[Sequence[str], Sequence[str]], float | None] | None = None  # of all predictions and targets


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match),
        Metric("first_letter", first_letter),
        Metric("numeric", numeric),
        Metric("token_f1", token_f1),
        Metric("rouge_l", rouge_l),
        Metric("edit_similarity", edit_similarity),
        Metric("sari", sari),
        Metric("bleu", bleu, corpus=corpus_bleu),
        Metric("span_f1", span_f1, corpus=corpus_span_f1),
        Metric("jailbreak_rate", jailbreak_rate, higher_is_better=False),
    )
}
# Names in the streams of the published code.
METRICS |= {
    "acc": METRICS["exact_match"],
    "rouge-l": METRICS["rouge_l"],
    "edit-similarity": METRICS["edit_similarity"],
    "jailbreak-rate": METRICS["jailbreak_rate"],
}


def find(metric: str) -> Metric:
    """The metric with this name.

    Raises:
        UserError: the name is unknown.
    """
    if metric not in METRICS:
        near = get_close_matches(metric, METRICS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"unknown metric '{metric}', expected one of {', '.join(METRICS)}{hint}")
    return METRICS[metric]


def score(
    metric: str, predictions: Sequence[str], targets: Sequence[str], sources: Sequence[str] | None = None
) -> list[float]:
    """The score of every example, in order; none is skipped.

    Args:
        metric: Name of the metric.
        predictions: Predicted answers.
        targets: Expected answers.
        sources: Texts of the questions, as in the stream; only SARI uses them.

    Raises:
        UserError: there is no metric with this name.
        ValueError: the numbers of predictions, targets and sources differ.

    >>> score("exact_match", ["Rome ", "Oslo"], ["rome", "Bern"])
    [1.0, 0.0]
    """
    found = find(metric)
    rows = zip(predictions, targets, [""] * len(predictions) if sources is None else sources, strict=True)
    return [_score_one(found, *row) for row in rows]


def _score_one(metric: Metric, prediction: str, target: str, source: str) -> float:
    if prediction.strip():
        return metric.score(prediction, target, source)
    return float(not target.strip()) if metric.higher_is_better else 1.0


def aggregate(metric: str, scores: Sequence[float], predictions: Sequence[str], targets: Sequence[str]) -> float:
    """The score of a cell of the results matrix.

    Args:
        metric: Name of the metric.
        scores: Score of each example, from `score`; at least one.
        predictions: Predicted answers of the same examples.
        targets: Their targets.

    >>> aggregate("exact_match", [1.0, 0.0], ["Rome ", "Oslo"], ["rome", "Bern"])
    0.5
    """
    corpus = find(metric).corpus
    value = corpus(predictions, targets) if corpus else None
    return fmean(scores) if value is None else value
