"""Four probes: simple classifiers fitted on the frozen features of a model, to measure what it still separates.

All of them use standardised features: z = (x - mean) / std, dimension by dimension, because a few dimensions of a
language model's hidden states are a hundred times as large as the others and would decide every distance. Mean, std
and the mean losses (CE: cross-entropy) below weight all classes equally, however many rows they have. m_c is the mean
of class c, s = 16.

    LinearProb           argmax_c w_c z + b_c     minimises mean CE of w z + b, + |W|^2 / 2N
    CosineLinearProb     argmax_c cos(w_c, z)     minimises mean CE of s cos(w, z)
    PrototypeProb        argmin_c |z - m_c|
    CosinePrototypeProb  argmax_c cos(m_c, z)

Zheng et al. (ACL 2024) probe raw features, with 20 epochs of Adam at 1e-3 for the first two.

Nothing is random: L-BFGS starts from a fixed point, so the same features give the same probe.
Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

SCALE = 16.0  # s: scale of the cosines in the loss
MOST_STEPS = 200  # of L-BFGS

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """A fitted probe: argmax_c of weight_c z + bias_c; for cosine probes the length of z does not matter."""

    classes: NDArray[np.int64]  # (C,) ids
    mean: NDArray[np.float64]  # (D,)
    std: NDArray[np.float64]  # (D,)
    weight: NDArray[np.float64]  # (C, D)
    bias: NDArray[np.float64]  # (C,)

    def predict(self, features: Rows) -> list[int]:
        """The class of each of N rows; the first of several with the same score."""
        z = (features.astype(np.float64) - self.mean) / self.std
        return self.classes[(z @ self.weight.T + self.bias).argmax(axis=1)].tolist()


def fit_probes(features: Rows, labels: Sequence[int], device: torch.device | None = None) -> dict[str, Probe]:
    """All four, by name.

    Args:
        features: (N, D).
        labels: N ids of classes; a class may have a single row.
        device: Where the minima are computed; None: the CPU.
    """
    x, (classes, y) = features.astype(np.float64), np.unique(labels, return_inverse=True)
    weights = equal_weights(y)
    mean = np.average(x, axis=0, weights=weights)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    std[std <= 1e-6 * abs(mean)] = np.inf  # a dimension that is constant up to rounding carries no information
    z = (x - mean) / std
    means = class_means(z, y)
    device = device or torch.device("cpu")
    rows, targets, shares, starts = (torch.from_numpy(array).to(device) for array in (z, y, weights, means))
    found = {
        "LinearProb": linear(rows, targets, shares, len(classes)),
        "CosineLinearProb": (cosine_linear(rows, targets, shares, starts), None),
        "PrototypeProb": (means, -(means**2).sum(axis=1) / 2),  # |z - m|^2 / 2 = |z|^2 / 2 - (m z - |m|^2 / 2)
        "CosinePrototypeProb": (unit(means), None),
    }
    nothing = np.zeros(len(classes))
    return {
        name: Probe(classes, mean, std, weight, nothing if bias is None else bias)
        for name, (weight, bias) in found.items()
    }


def class_means(z: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, D): mean of the rows of each class.

    >>> class_means(np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), np.array([0, 0, 1])).tolist()
    [[2.0, 0.0], [0.0, 5.0]]
    """
    return np.stack([z[y == c].mean(axis=0) for c in range(y.max() + 1)])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length == 0, 1, length)


def linear(z: Tensor, y: Tensor, weights: Tensor, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multinomial logistic regression on weighted rows: W (C, D) and b (C,)."""

    def loss(parameters: Tensor) -> Tensor:
        W, b = parameters[:, :-1], parameters[:, -1]
        return weighted_loss(z @ W.T + b, y, weights) + (W**2).sum() / (2 * len(z))

    found = minimum(loss, torch.zeros(classes, z.shape[1] + 1, dtype=z.dtype, device=z.device))
    return found[:, :-1], found[:, -1]


def cosine_linear(z: Tensor, y: Tensor, weights: Tensor, means: Tensor) -> NDArray[np.float64]:
    """Unit vectors (C, D) whose cosines separate the classes; the search starts at the class means."""
    directions = F.normalize(z, dim=1)

    def loss(W: Tensor) -> Tensor:
        return weighted_loss(SCALE * directions @ F.normalize(W, dim=1).T, y, weights)

    return unit(minimum(loss, F.normalize(means, dim=1)))


def equal_weights(y: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,): weight of each row, such that all classes have the same weight and the mean weight is 1.

    >>> equal_weights(np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    counts = np.bincount(y)
    return len(y) / (len(counts) * counts[y])


def weighted_loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropies of N rows, () float."""
    return (weights * F.cross_entropy(logits, y, reduction="none")).mean()


def minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> NDArray[np.float64]:
    """The minimum of a function of one tensor, by L-BFGS from `start`."""

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        point = torch.from_numpy(flat).to(start.device).view_as(start).requires_grad_()
        with torch.enable_grad():
            value = loss(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.flatten().cpu().numpy()

    begin = start.flatten().cpu().numpy()
    found = minimize(value_and_gradient, begin, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS})
    return found.x.reshape(start.shape)


def stratified(labels: Sequence[int], most: int | None, rng: random.Random) -> list[int]:
    """Indices of at most `most` rows of each class, in order; None: all.

    >>> stratified([7, 7, 7, 8], 2, random.Random(0))
    [1, 2, 3]
    """
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    if most is None:
        return list(range(len(labels)))
    return sorted(place for _, own in sorted(places.items()) for place in rng.sample(own, min(most, len(own))))
