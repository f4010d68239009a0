"""Gradients computed outside the training step, and projections. A gradient is a dict of tensors by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.common.losses import answer_loss
from utils.dataloader import Batch
from utils.dataset import Example
from utils.distributed.collectives import share, sum_over_processes
from utils.model.head import Scores

Gradient = dict[str, Tensor]
Outputs = Callable[[Batch], tuple[Tensor | Scores, Tensor]]  # logits (B, K, V) and the labels (B, K) they are about
RIDGE = 1e-7  # added to a Gram matrix with 1 on its diagonal: about the rounding of its other elements


def answer_gradient(
    outputs: Outputs, parameters: Mapping[str, nn.Parameter], batch: Batch, tokens: float = 1
) -> Gradient:
    """Gradient of the batch's answer loss, summed over its tokens and divided by `tokens`, in float32.

    Nothing is added to `.grad`, and no hook of data parallelism fires: the result is local to the process.
    """
    loss = answer_loss(*outputs(batch), tokens)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {name: g.float() for name, g in zip(parameters, found, strict=True)}


def shared_gradient(
    outputs: Outputs,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    size: int,
    collated: Callable[[Sequence[Example]], Batch],
) -> Gradient:
    """Gradient of the mean loss per answer token over these examples; each process does a share of them.

    Args:
        outputs: Of the model, in the mode it is to be measured in.
        parameters: What the gradient is taken of.
        examples: The same on every process.
        size: Most examples that go through the model together.
        collated: Makes a batch of examples.
    """
    mine = [examples[i] for i in share(len(examples))]
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in parameters.items()}
    tokens = torch.zeros((), device=next(iter(parameters.values())).device)
    for i in range(0, len(mine), size):
        batch = collated(mine[i : i + size])
        tokens += batch.tokens["all"]
        for name, g in answer_gradient(outputs, parameters, batch).items():
            total[name] += g
    summed = sum_over_processes(total | {"": tokens})
    return {name: summed[name].div_(summed[""]) for name in total}


def dot(a: Gradient, b: Gradient) -> float:
    """Inner product of two gradients as one long vector each."""
    return float(sum((a[name] * b[name]).sum(dtype=torch.float64) for name in a))


def cone_multipliers(gram: NDArray[np.float64], products: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """GEM's v: the nearest vector to g that no g_k opposes is g + sum_k v_k g_k (Lopez-Paz and Ranzato, eq. 11).

    Minimises 1/2 v'Pv + p'v with v >= margin. With v = margin + S u and SPS = LL' that is a least-squares problem,
    min |L'u + L^-1 S(p + P margin)| with u >= 0; S scales every g_k to length 1, so that no task is lost in rounding.

    Args:
        gram: P = (K, K), <g_i, g_k>.
        products: p = (K,), <g, g_k>.
        margin: Least share of each g_k in the result, if any of them is opposed.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    if (products >= 0).all():
        return np.zeros_like(products)
    length = np.sqrt(np.diag(gram))
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    lower = np.linalg.cholesky(gram * np.outer(scale, scale) + RIDGE * np.eye(len(gram)))
    target = solve_triangular(lower, -scale * (products + margin * gram.sum(axis=1)), lower=True)
    return margin + scale * nnls(lower.T, target)[0]
