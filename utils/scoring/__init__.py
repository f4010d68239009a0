"""Scores in [0, 1] of predicted texts against target texts.

Every example has a score and counts; an empty prediction gets the worst score (unless the target is empty too). Where
several answers are accepted, the best score over them counts; SARI and BLEU are defined for several references and
count all of them. A cell of the results matrix is the mean of its scores, or the metric's corpus-level score
(`Metric.corpus`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean

from utils.errors import UserError
from utils.scoring.answers import (
    bare,
    choice_likelihood,
    exact_match,
    exact_match_bare,
    first_letter,
    normalise,
    numeric,
    token_f1,
)
from utils.scoring.overlap import (
    bleu,
    bleu_of,
    corpus_bleu,
    edit_similarity,
    rouge_l,
    rouge_l_stemmed,
    sari,
    sari_of,
)
from utils.scoring.refusals import jailbreak_rate
from utils.scoring.spans import corpus_span_f1, span_f1

__all__ = ["METRICS", "Metric", "aggregate", "exact_match", "find", "normalise", "score"]


@dataclass(frozen=True)
class Metric:
    """A score of one prediction in [0, 1], and whether higher is better."""

    name: str
    score: Callable[[str, str, str], float]  # of prediction, target and source (the text of the question)
    higher_is_better: bool = True
    # Of all predictions and the accepted answers to each question; None: no such score.
    corpus: Callable[[Sequence[str], Sequence[Sequence[str]]], float | None] | None = None
    # Of prediction, accepted answers and source, where the metric is defined for several; None: the best over them.
    several: Callable[[str, Sequence[str], str], float] | None = None
    # The text that is compared, where a score is 1 for equal texts and else 0: no continuation of a prediction changes
    # the beginning of this text.
    compared: Callable[[str], str] | None = None
    # What the log-likelihood of a possible answer is divided by to choose the largest; None: answers are written.
    length: Callable[[str], int] | None = None

    def __call__(self, prediction: str, accepted: Sequence[str], source: str) -> float:
        """The score of one prediction."""
        if not prediction.strip():
            is_right = any(not target.strip() for target in accepted)
            return float(is_right) if self.higher_is_better else 1.0
        if self.several is not None and len(accepted) > 1:
            return self.several(prediction, accepted, source)
        best = max if self.higher_is_better else min
        return best(self.score(prediction, target, source) for target in accepted)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, compared=normalise),
        Metric("exact_match_bare", exact_match_bare, compared=bare),
        Metric("first_letter", first_letter),
        Metric("numeric", numeric),
        Metric("choice_likelihood", choice_likelihood, length=lambda text: 1),
        Metric("choice_likelihood_normalised", choice_likelihood, length=len),  # of characters, as acc_norm of lm-eval
        Metric("token_f1", token_f1),
        Metric("rouge_l", rouge_l),
        Metric("rouge_l_stemmed", rouge_l_stemmed),
        Metric("edit_similarity", edit_similarity),
        Metric("sari", sari, several=sari_of),
        Metric("bleu", bleu, corpus=corpus_bleu, several=bleu_of),
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


def find(metric: str, option: str = "") -> Metric:
    """The metric with this name.

    Args:
        metric: The name.
        option: That gives it, for the message.

    Raises:
        UserError: the name is unknown.
    """
    if metric not in METRICS:
        near = get_close_matches(metric, METRICS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        where = f"{option}: " if option else ""
        raise UserError(f"{where}unknown metric '{metric}', expected one of {', '.join(METRICS)}{hint}")
    return METRICS[metric]


def score(
    metric: str,
    predictions: Sequence[str],
    targets: Sequence[str | Sequence[str]],
    sources: Sequence[str] | None = None,
) -> list[float]:
    """The score of every example, in order; none is skipped.

    Args:
        metric: Name of the metric.
        predictions: Predicted answers.
        targets: Expected answers: a text, or all texts that are accepted.
        sources: Texts of the questions, as in the stream; only SARI uses them.

    Raises:
        UserError: there is no metric with this name.
        ValueError: the numbers of predictions, targets and sources differ.

    >>> score("exact_match", ["Rome ", "Oslo"], ["rome", "Bern"])
    [1.0, 0.0]
    >>> score("exact_match", ["Roma"], [["Rome", "Roma"]])
    [1.0]
    """
    found = find(metric)
    rows = zip(predictions, targets, [""] * len(predictions) if sources is None else sources, strict=True)
    return [found(prediction, _listed(target), source) for prediction, target, source in rows]


def _listed(target: str | Sequence[str]) -> Sequence[str]:
    return [target] if isinstance(target, str) else target


def aggregate(
    metric: str, scores: Sequence[float], predictions: Sequence[str], targets: Sequence[str | Sequence[str]]
) -> float:
    """The score of a cell of the results matrix.

    Args:
        metric: Name of the metric.
        scores: Score of each example, from `score`; at least one.
        predictions: Predicted answers of the same examples.
        targets: Their targets, as in `score`.

    >>> aggregate("exact_match", [1.0, 0.0], ["Rome ", "Oslo"], ["rome", "Bern"])
    0.5
    """
    corpus = find(metric).corpus
    value = corpus(predictions, list(map(_listed, targets))) if corpus else None
    return fmean(scores) if value is None else value
