"""Quadratic penalties: by hand, on whole weights and on parts of them."""

import pytest
import torch
from torch import nn

from utils.penalty import Penalty, ShardedPenalty

W = {name: nn.Parameter(torch.tensor(values)) for name, values in {"a": [1.0, 2.0], "b": [3.0], "free": [9.0]}.items()}
PENALTY = Penalty(
    0.5,
    {
        "a": (torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0]), torch.tensor(2.0)),
        "b": (torch.tensor([2.0]), torch.tensor([1.0]), 0.0),
        "frozen": (torch.ones(5), torch.ones(5), 1.0),  # not among the trainable ones
    },
)


def test_value_and_gradient_by_hand():
    value = PENALTY.on(W)
    assert value.item() == 0.5 * (1 * 1 + 4 * 1 + 2 + 2 * 4)
    gradients = torch.autograd.grad(value, [W["a"], W["b"]])
    assert [g.tolist() for g in gradients] == [[1.0, 4.0], [4.0]]


def test_two_processes_with_a_part_each_pull_as_one():
    pulls, values = [{}, {}], []
    for rank, pulled in enumerate(pulls):
        part = lambda whole, w, rank=rank: whole[rank::2].detach()  # noqa: E731
        sharded = ShardedPenalty(PENALTY, W, part)
        own = lambda w, part=part: part(w, w)  # noqa: E731
        values.append(sharded.add_gradient(own, lambda w, g, pulled=pulled: pulled.__setitem__(id(w), g.tolist()), 2))
    assert torch.stack(values).mean().item() == pytest.approx(PENALTY.on(W).item())
    assert [[pulled[id(W[name])] for name in ("a", "b")] for pulled in pulls] == [[[1.0], [4.0]], [[4.0], []]]
