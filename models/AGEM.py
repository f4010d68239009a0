"""Averaged gradient episodic memory."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.GEM import GEM
from utils.config import Count, OptionGroup
from utils.dataset import Example


class AGEMOptions(OptionGroup):
    """AGEM."""

    AGEM_batch_size: Count = Field(
        256, description="Examples drawn from memory for g_ref at each step; all if there are fewer."
    )


class AGEM(GEM):
    """Projects each gradient so that the step does not raise the mean loss of the earlier tasks.

    Chaudhry et al., ICLR 2019. GEM with a single constraint, on g_ref, the gradient of examples drawn at each step from
    the memory of all earlier tasks. Its solution needs no quadratic program:

        g  :=  g - <g, g_ref> / |g_ref|^2  g_ref     if <g, g_ref> < 0

    A step keeps one gradient and passes `AGEM_batch_size` examples of memory (256, as published) through the model. The
    notes of models/GEM.py on eval mode, AdamW and the memory apply here too.
    """

    Options = AGEMOptions
    options: AGEMOptions  # type: ignore[assignment]  # all code of GEM that reads options is overridden here

    def draw(self, rng: random.Random) -> list[list[Example]]:
        rows = self.needed_memory.sample(self.options.AGEM_batch_size, rng)
        return [rows] if rows else []

    def multipliers(self, gram: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
        return half_space_multipliers(gram, products)


def half_space_multipliers(gram: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """The v that makes <g + v g_ref, g_ref> = 0, if it is negative; (1,) for shapes like GEM's."""
    (square,), (product,) = gram.ravel(), products
    return np.array([-product / square if product < 0 else 0.0])
