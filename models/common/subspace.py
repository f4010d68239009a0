"""Directions of the inputs of a layer: those to learn in, and those to protect (GPM; Saha et al., ICLR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.distributed.collectives import of_main


def design(covariance: Tensor, basis: Tensor, rank: int) -> Tensor:
    """The down-projection: the main directions of the inputs, as far as the basis does not hold them.

    Args:
        covariance: (D, D) float64, sum of x x^T.
        basis: (D, k) float64, orthonormal columns.
        rank: Rows of the result.

    Returns:
        (rank, D) float64; rows orthogonal to the basis and to each other, each of length 1 / sqrt(3), or 0 where the
        inputs have no direction left.
    """
    values, vectors = _rest(covariance, basis)
    used = values > 1e-10 * covariance.trace()
    return (vectors * used)[:, :rank].T / math.sqrt(3)


def extend(basis: Tensor, covariance: Tensor, wanted: float, power: int = 2) -> Tensor:
    """A basis that spans at least a share of the inputs; its first columns are the old one.

    Args:
        basis: (D, k) float64, orthonormal columns.
        covariance: (D, D) float64, sum of x x^T.
        wanted: The share, in (0, 1].
        power: Of the singular values of the inputs, whose sum the share is of: 2 or 4.
    """
    values, vectors = _rest(covariance, basis)
    whole, sizes = covariance.trace(), values
    used = values > 1e-10 * whole
    if power == 4:
        whole, sizes = covariance.square().sum(), values.square()
    held = whole - sizes.sum() + sizes.cumsum(dim=0) - sizes  # with the directions before each one
    needed = (held < wanted * whole) & used
    return torch.cat([basis, vectors[:, needed]], dim=1)


def _rest(covariance: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), largest first, and eigenvectors (columns) of the inputs without what the basis holds."""
    off = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device) - basis @ basis.T
    values, vectors = map(of_main, torch.linalg.eigh(off @ covariance @ off))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values, vectors * largest.sign()  # the same sign everywhere
