"""The diagonal of the Fisher information, and other means of gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.common.gradients import Gradient, Outputs, answer_gradient
from utils.dataloader import Batch
from utils.distributed.collectives import share, sum_over_processes


def diagonal_fisher(
    outputs: Outputs,
    parameters: Mapping[str, nn.Parameter],
    batch: Callable[[int], Batch],
    count: int,
    unit: float | None = None,
) -> dict[str, Tensor]:
    """Mean over N examples of the squared gradient of the log-likelihood of the answers, in float32.

    Batches of one example give the empirical Fisher F = 1/N sum_n (d log p(y_n | x_n) / d theta)^2 / unit^2, where log
    p is the sum over the answer's tokens. With B_b examples in batch b it is 1/N sum_b B_b (gradient of batch b)^2.

    One backward pass per example: vmap(grad) was 1.7 times as fast on a tiny GPT-NeoX, but fails on transformers'
    default attention and holds a gradient for every example of a batch.

    Args:
        outputs: Of the model, in the mode it is to be measured in.
        parameters: Whose diagonal.
        batch: Makes batch i; only called for the share of this process.
        count: Number of batches; all processes get the result of all.
        unit: What the log-likelihood of a batch is divided by; None: its number of answer tokens.
    """
    return mean_magnitude(
        lambda rows: answer_gradient(outputs, parameters, rows, unit or rows.tokens["all"]), parameters, batch, count, 2
    )


def mean_magnitude(
    gradient: Callable[[Batch], Gradient],
    parameters: Mapping[str, nn.Parameter],
    batch: Callable[[int], Batch],
    count: int,
    power: Literal[1, 2],
) -> Gradient:
    """Mean over examples of |gradient|^power, element by element, in float32; a batch counts by its examples.

    Args:
        gradient: Of a batch, by parameter name.
        parameters: What it is taken of.
        batch: Makes batch i; only called for the share of this process.
        count: Number of batches; all processes get the result of all.
        power: 1 or 2.
    """
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in parameters.items()}
    examples = torch.zeros((), device=next(iter(parameters.values())).device)
    for i in share(count):
        rows = batch(i)
        size = len(rows.examples)
        examples += size
        for name, g in gradient(rows).items():
            total[name].addcmul_(g, g if power == 2 else g.sign(), value=size)
    summed = sum_over_processes(total | {"": examples})
    return {name: summed[name].div_(summed[""]) for name in total}
