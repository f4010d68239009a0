"""Borrowed weights go back as they were, and leave gradients alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import tiny
from utils.model.weights import assign, borrowed, eval_mode, interpolate, snapshot


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_weights_change_places_and_come_back(net):
    named, before = dict(net.named_parameters()), snapshot(dict(net.named_parameters()))
    other = {name: torch.zeros_like(w) for name, w in before.items()}
    with borrowed(named, other):
        assert not torch.is_grad_enabled()
        assert all((w == 0).all() for w in net.parameters())
    assert tiny.same(before, snapshot(named))
    with pytest.raises(ZeroDivisionError), borrowed(named, other):
        raise ZeroDivisionError
    assert tiny.same(before, snapshot(named))


@pytest.mark.parametrize("teacher_first", [True, False])
def test_gradients_are_those_of_the_own_weights(net, teacher_first):
    net.eval()
    named, x = dict(net.named_parameters()), torch.randn(5, 3)
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))

    def teach():
        with borrowed(named, {name: torch.ones_like(w) for name, w in named.items()}):
            return net(x)

    if teacher_first:
        teach()
        loss = net(x).square().sum()
    else:
        loss = net(x).square().sum()
        teach()
    found = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_eval_mode_restores_every_module(net):
    net[1].eval()
    with eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert [net.training, net[0].training, net[1].training] == [True, True, False]


def test_tied_weights_are_borrowed_together():
    embedding, head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    head.weight = embedding.weight
    with borrowed({"embedding": embedding.weight}, {"embedding": torch.zeros(4, 3)}):
        assert (head.weight == 0).all() and (F.linear(torch.ones(3), head.weight) == 0).all()


def test_interpolation_is_exact_at_its_ends():
    a, b = {"w": torch.randn(50)}, {"w": torch.randn(50)}
    assert torch.equal(interpolate(a, b, 0.0)["w"], a["w"]) and torch.equal(interpolate(a, b, 1.0)["w"], b["w"])
    assert torch.allclose(interpolate(a, b, 0.25)["w"], 0.75 * a["w"] + 0.25 * b["w"])
    named = {"w": nn.Parameter(torch.zeros(50))}
    assign(named, a)
    assert torch.equal(named["w"], a["w"])


def test_autocast_does_not_remember_weights_that_have_changed_places(net):
    """Within one autocast it keeps the rounded copy of each parameter, whatever its values are now."""
    net.eval()
    named, x = dict(net.named_parameters()), torch.randn(5, 3)
    zeros = {name: torch.zeros_like(w) for name, w in named.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = net(x)
        with borrowed(named, zeros):
            assert not net(x).any()
        again = net(x)
        assert again.any() and torch.equal(own, again)
    again.float().square().sum().backward()
    assert all(w.grad is not None and w.grad.any() for w in named.values())
