"""The angle between two updates of the same weights: first steps of task 1, and all later ones (Zheng et al., 2025).

With checkpoints A, B, C and a weight matrix W, the updates are W_B - W_A and W_C - W_B. Of each, U holds the left
singular vectors (column space; where W is (out, in), as in most models, directions of the output) that carry a share
`energy` of the squared norm.

    angle      mean over the vectors u of the later U of arccos |U_early^T u|: distance from the earlier space
    principal  mean of the principal angles arccos s, with singular values s of U_early^T U_late
    random     `angle` as it would be for an independent space: arccos sqrt(r_early / out), r the rank of U

The published figures show `angle`, computed after subtracting the mean of all entries from each update, which makes no
difference for an update of mean 0. In small matrices any two subspaces of high rank are close: compare `angle`
with `random`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


def column_space(update: Tensor, energy: float) -> Tensor:
    """(m, r) orthonormal: the fewest left singular vectors with this share of the squared norm; r = 0 for zeros."""
    U, S, _ = torch.linalg.svd(update.double(), full_matrices=False)
    carried = (S**2).cumsum(0)
    if not carried[-1]:
        return U[:, :0]
    return U[:, : int((carried < energy * carried[-1]).sum()) + 1]


def vector_angles(early: Tensor, late: Tensor) -> list[float]:
    """Degrees between each column of `late` (m, r) and the space spanned by the columns of `early` (m, q)."""
    return _degrees((early.T @ late).norm(dim=0))


def principal_angles(a: Tensor, b: Tensor) -> list[float]:
    """Degrees between two spaces given by orthonormal columns, smallest first.

    >>> [round(angle) for angle in principal_angles(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])]
    [0, 90]
    """
    return _degrees(torch.linalg.svdvals(a.T @ b))


def _degrees(cosines: Tensor) -> list[float]:
    return cosines.clamp(0, 1).arccos().rad2deg().tolist()


def describe_angle(early: Tensor, late: Tensor, energy: float) -> dict[str, float | int] | None:
    """The numbers above for two updates (m, n) of one matrix; None if one of them is zero."""
    spaces = [column_space(update, energy) for update in (early, late)]
    if not all(space.shape[1] for space in spaces):
        return None
    share = spaces[0].shape[1] / len(early)
    return {
        "angle": float(np.mean(vector_angles(*spaces))),
        "principal": float(np.mean(principal_angles(*spaces))),
        "random": math.degrees(math.acos(math.sqrt(share))),
        "rank_early": spaces[0].shape[1],
        "rank_late": spaces[1].shape[1],
        "out": len(early),
    }


def measure(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], c: Mapping[str, Tensor], energy: float
) -> list[dict[str, Any]]:
    """One row for each weight matrix that both updates changed, in the order of the model.

    Raises:
        UserError: no matrix has changed in both.
    """
    rows: list[dict[str, Any]] = []
    for name in (name for name, w in a.items() if w.ndim == 2 and name in b and name in c):
        early, late = b[name].double() - a[name].double(), c[name].double() - b[name].double()
        found = describe_angle(early, late, energy)
        if found is not None:
            rows.append({"weight": short(name)} | found)
    if not rows:
        raise UserError("no weight matrix has changed both before and after the second checkpoint")
    return rows


def short(name: str) -> str:
    """A parameter's name without the prefix and suffix that all names share.

    >>> short("gpt_neox.layers.3.attention.dense.weight"), short("base_model.model.model.layers.0.mlp.lora_A.x.weight")
    ('layers.3.attention.dense', 'layers.0.mlp.lora_A.x')
    """
    return re.sub(r"^(?:base_model\.|model\.|gpt_neox\.|transformer\.)+|\.weight$", "", name)
