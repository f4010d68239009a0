"""Continual-learning metrics: pure functions of the results matrix.

R is a (K, K) float array for K tasks: R[i, j] is the score on task j after learning task i, in [0, 1].
Each row is an evaluation point, each column a task, both counted from 0; NaN means "not evaluated". `base` is the
(K,) row of scores before any training. A metric that needs a missing score raises ValueError: it is undefined, not
zero. Only forward transfer uses scores above the diagonal.

Several numbers in the literature share a name. The plain names here are the definitions of the papers that
introduced them; definitions of other papers or codes have other names, so that tables can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Row = NDArray[np.float64]
PERPLEXITY = "perplexity"  # the metric of a text; lower is better, and it has no upper limit


def average_accuracy(R: Matrix) -> float:
    """Mean final score: 1/K sum_j R[K-1, j] (ACC of Lopez-Paz and Ranzato, 2017).

    >>> round(average_accuracy(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    0.8
    """
    return _mean(_matrix(R)[-1])


def average_incremental_accuracy(R: Matrix) -> float:
    """Mean over evaluation points of the mean score on the tasks learned so far (Rebuffi et al., 2017).

    1/K sum_i ( 1/(i+1) sum_{j<=i} R[i, j] ).

    >>> round(average_incremental_accuracy(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    0.8
    """
    return float(np.mean([_mean(row[: i + 1]) for i, row in enumerate(_matrix(R))]))


def learning_accuracy(R: Matrix) -> float:
    """Mean score on each task right after it was learned: 1/K sum_j R[j, j] (Riemer et al., 2019).

    >>> round(learning_accuracy(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    0.9
    """
    return _mean(np.diag(_matrix(R)))


def forgetting(R: Matrix) -> float:
    """Mean drop from the best earlier score (Chaudhry et al., 2018; F.Ra of SAPT). Negative means improvement.

    1/(K-1) sum_{j<K-1} ( max_{j<=i<K-1} R[i, j] - R[K-1, j] ). The maximum starts when task j is learned, so
    the value does not depend on whether tasks were also evaluated before that.

    >>> round(forgetting(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    0.2
    >>> round(forgetting(np.array([[0.8, np.nan], [0.85, 0.9]])), 9)
    -0.05
    """
    _needs_two_tasks(R)
    return _mean([R[j:-1, j].max() - R[-1, j] for j in range(len(R) - 1)])


def forgetting_including_last(R: Matrix) -> float:
    """Forgetting with the last row inside the maximum (PyCIL; Zheng et al., 2024): never negative.

    1/(K-1) sum_{j<K-1} ( max_{j<=i<=K-1} R[i, j] - R[K-1, j] ). A task that improved counts as 0.

    >>> forgetting_including_last(np.array([[0.8, np.nan], [0.85, 0.9]]))
    0.0
    """
    _needs_two_tasks(R)
    return _mean([R[j:, j].max() - R[-1, j] for j in range(len(R) - 1)])


def backward_transfer(R: Matrix) -> float:
    """Mean change since a task was learned (BWT of Lopez-Paz and Ranzato, 2017). Negative means forgetting.

    1/(K-1) sum_{j<K-1} ( R[K-1, j] - R[j, j] ).

    >>> round(backward_transfer(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    -0.2
    """
    _needs_two_tasks(R)
    return _mean(_changes(R)[:-1])


def backward_transfer_over_all_tasks(R: Matrix) -> float:
    """Backward transfer divided by K instead of K-1 (code of SAPT, tables of CoIN).

    1/K sum_{j<K} ( R[K-1, j] - R[j, j] ): the last task counts with its change of zero.

    >>> round(backward_transfer_over_all_tasks(np.array([[0.8, np.nan], [0.6, 1.0]])), 9)
    -0.1
    """
    _needs_two_tasks(R)
    return _mean(_changes(R))


def backward_transfer_negative_part(R: Matrix) -> float:
    """Backward transfer of the tasks that got worse, divided by K (code of TreeLoRA): never positive.

    1/K sum_{j<K} min( R[K-1, j] - R[j, j], 0 ).

    >>> R = np.array([[0.8, np.nan, np.nan], [0.8, 0.5, np.nan], [0.5, 0.9, 1.0]])
    >>> round(backward_transfer_negative_part(R), 9)
    -0.1
    """
    _needs_two_tasks(R)
    return _mean(np.minimum(_changes(R), 0))


def backward_transfer_all_pairs(R: Matrix) -> float:
    """Mean change since a task was learned, over all later evaluation points (BWT of Díaz-Rodríguez et al., 2018).

    2/(K(K-1)) sum_{1<=i<K} sum_{j<i} ( R[i, j] - R[j, j] ).

    >>> R = np.array([[0.9, np.nan, np.nan], [0.6, 0.5, np.nan], [0.3, 0.8, 1.0]])
    >>> round(backward_transfer_all_pairs(R), 9)  # (-0.3 - 0.6 + 0.3) / 3
    -0.2
    """
    _needs_two_tasks(R)
    return _mean([R[i, j] - R[j, j] for i in range(len(R)) for j in range(i)])


def forward_transfer(R: Matrix, base: Row) -> float:
    """Mean gain on a task before it is learned (FWT of Lopez-Paz and Ranzato, 2017).

    1/(K-1) sum_{1<=j<K} ( R[j-1, j] - base[j] ). In the paper `base` is a randomly initialised network; here
    it is the backbone before any training, which for a pre-trained backbone is not the same thing.

    >>> forward_transfer(np.array([[0.8, 0.5], [0.6, 1.0]]), np.array([0.1, 0.25]))
    0.25
    """
    _needs_two_tasks(R)
    return _mean(np.diag(R, k=1) - base[1:])


def perplexity(log_likelihood: float, count: int) -> float:
    """exp(-log p / n): of a text with log-likelihood log p in nats and n tokens, or words; inf beyond 1e300.

    >>> round(perplexity(3 * math.log(0.5), 3), 9)
    2.0
    """
    exponent = -log_likelihood / count
    return math.exp(exponent) if exponent < 690 else math.inf


def ability_change(before: Sequence[float], last: Sequence[float], higher_is_better: Sequence[bool]) -> float:
    """Mean change of scores outside the stream, from before any training to after the last task (TRACE, 2023).

    1/M sum_m s_m ( last[m] - before[m] ) over M sets of questions that are never trained, with s_m = 1 where higher is
    better and -1 where lower is, so that a loss is negative: the general ability delta, instruction following delta
    and safety delta of TRACE (Wang et al., 2023), each over the sets of its kind.

    >>> round(ability_change([0.5, 0.1], [0.3, 0.3], [True, False]), 9)
    -0.2
    """
    triples = zip(before, last, higher_is_better, strict=True)
    return _mean([(after - first) * (1 if higher else -1) for first, after, higher in triples])


def perplexity_change(before: Sequence[float], last: Sequence[float]) -> float:
    """Mean relative change of the perplexity of texts that are never trained: positive means got worse.

    1/M sum_m ( last[m] / before[m] - 1 ).

    >>> perplexity_change([10.0, 20.0], [15.0, 20.0])
    0.25
    """
    return _mean([after / first - 1 for first, after in zip(before, last, strict=True)])


@dataclass(frozen=True)
class Definition:
    """A metric as a row of a table: how it is computed and who defined it.

    `is_change`: True for a difference of scores, whose sign depends on whether higher is better; False for a mean.
    """

    function: Callable[..., float]
    formula: str
    source: str
    needs_base: bool = False
    is_change: bool = False


METRICS: dict[str, Definition] = {
    "average_accuracy": Definition(average_accuracy, "mean_j R[K-1,j]", "Lopez-Paz and Ranzato 2017"),
    "average_incremental_accuracy": Definition(
        average_incremental_accuracy, "mean_i mean_{j<=i} R[i,j]", "Rebuffi et al. 2017"
    ),
    "learning_accuracy": Definition(learning_accuracy, "mean_j R[j,j]", "Riemer et al. 2019"),
    "forgetting": Definition(
        forgetting, "mean_{j<K-1} max_{j<=i<K-1} R[i,j] - R[K-1,j]", "Chaudhry et al. 2018", is_change=True
    ),
    "forgetting_including_last": Definition(
        forgetting_including_last,
        "mean_{j<K-1} max_{j<=i<=K-1} R[i,j] - R[K-1,j]",
        "PyCIL; Zheng et al. 2024",
        is_change=True,
    ),
    "backward_transfer": Definition(
        backward_transfer, "mean_{j<K-1} R[K-1,j] - R[j,j]", "Lopez-Paz and Ranzato 2017", is_change=True
    ),
    "backward_transfer_over_all_tasks": Definition(
        backward_transfer_over_all_tasks, "1/K sum_j R[K-1,j] - R[j,j]", "SAPT, CoIN (code)", is_change=True
    ),
    "backward_transfer_negative_part": Definition(
        backward_transfer_negative_part,
        "1/K sum_j min(R[K-1,j] - R[j,j], 0)",
        "TreeLoRA (code)",
        is_change=True,
    ),
    "backward_transfer_all_pairs": Definition(
        backward_transfer_all_pairs,
        "mean_{j<i} R[i,j] - R[j,j]",
        "Díaz-Rodríguez et al. 2018",
        is_change=True,
    ),
    "forward_transfer": Definition(
        forward_transfer,
        "mean_{j>=1} R[j-1,j] - base[j]",
        "Lopez-Paz and Ranzato 2017",
        needs_base=True,
        is_change=True,
    ),
}


def summary(
    R: Matrix, base: Row | None = None, higher_is_better: Sequence[bool] | None = None
) -> dict[str, float | None]:
    """Every metric of the table; None for those that are undefined (one task, missing scores).

    Differences are counted in the direction of improvement, task by task: positive forgetting is a loss and positive
    transfer a gain, also where a lower score is better. Mean scores keep the units of the scores; they are None where
    higher is better in some tasks and lower in others, because such a mean has no direction.

    Args:
        R: (K, K) scores.
        base: (K,) scores before any training; None: they were not evaluated.
        higher_is_better: One per task; None: true for all.

    >>> summary(np.array([[0.2, np.nan], [0.5, 0.1]]), higher_is_better=[False, False])["forgetting"]
    0.3
    """
    higher = np.ones(len(R), bool) if higher_is_better is None else np.asarray(higher_is_better, bool)
    sign = np.where(higher, 1.0, -1.0)
    base = np.full(len(R), np.nan) if base is None else np.asarray(base, float)
    values: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if not metric.is_change and higher.any() and not higher.all():
            values[name] = None
            continue
        unit = sign if metric.is_change else np.ones(len(R))
        arguments = (R * unit, base * unit) if metric.needs_base else (R * unit,)
        values[name] = _value_or_none(metric.function, arguments)
    return values


def _value_or_none(function: Callable[..., float], arguments: tuple[Matrix, ...]) -> float | None:
    try:
        return function(*arguments)
    except ValueError:
        return None


def _matrix(R: Matrix) -> Matrix:
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not len(R):
        raise ValueError(f"the results matrix must be square with at least one task, got shape {R.shape}")
    return R


def _needs_two_tasks(R: Matrix) -> None:
    if len(_matrix(R)) < 2:
        raise ValueError("forgetting and transfer need at least 2 tasks")


def _changes(R: Matrix) -> Row:
    """(K,) change of each task's score since it was learned; zero for the last task."""
    return R[-1] - np.diag(R)


def _mean(values: Row | list[float]) -> float:
    """Mean; raises ValueError on NaN or nothing, because a missing score must not shrink the sample."""
    if np.isnan(values).any() or not len(values):
        raise ValueError(f"needs scores that were not evaluated: {np.asarray(values)}")
    return float(np.mean(values))
