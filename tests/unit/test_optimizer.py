"""Learning rates of a task, by hand."""

import math

import pytest
import torch

from tests.tiny import make_config
from utils.optimizer import Group, as_laid_out, lost_updates, make_optimizer, schedule_factor, set_learning_rate


@pytest.mark.parametrize(
    ("kind", "warmup", "least", "expected"),
    [
        ("constant", 0, 0, [1, 1, 1, 1]),
        ("constant", 0.5, 0, [0.5, 1, 1, 1]),
        ("constant", 0, 0.5, [1, 1, 1, 1]),
        ("linear", 0, 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0, 0.2, [1, 0.8, 0.6, 0.4]),
        ("linear", 0.25, 0, [1, 1, 2 / 3, 1 / 3]),
        ("linear", 0.5, 0.5, [0.5, 1, 1, 0.75]),
        ("cosine", 0, 0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("cosine", 0, 1, [1, 1, 1, 1]),
        ("cosine", 0.5, 0.5, [0.5, 1, 1, 0.75]),
    ],
)
def test_schedules(kind, warmup, least, expected):
    assert [schedule_factor(kind, step, 4, warmup, least) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"), [(0.07, 100, 7), (0.28, 25, 7), (0.1, 30, 3), (0.1, 31, 4), (0.01, 5, 1)]
)
def test_warm_up_takes_its_share_of_the_steps(ratio, steps, warmup):
    factors = [schedule_factor("constant", step, steps, ratio, 0) for step in range(steps)]
    assert factors[: warmup + 1] == pytest.approx([(step + 1) / warmup for step in range(warmup)] + [1.0])


def test_a_single_step_learns_at_the_full_rate():
    assert [schedule_factor(kind, 0, 1, 0, 0) for kind in ("constant", "linear", "cosine")] == [1, 1, 1]


def test_each_group_keeps_its_own_rate_and_decay():
    config = make_config(lr_scheduler="linear", adam_epsilon=1e-3)
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = make_optimizer([Group(parameters[:2], 0.1, 0.01), Group(parameters[2:], 0.4, 0.0)], config)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert {group["eps"] for group in optimizer.param_groups} == {1e-3}
    assert set_learning_rate(optimizer, config, 2, 4) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.2])
    assert set_learning_rate(optimizer, config, 0, 4) == pytest.approx(0.1)  # scales the first rate, not the last one


def test_one_step_of_adamw_by_hand():
    config, w = make_config(), torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer([Group([w], 0.1, 0.5)], config)
    w.grad = torch.tensor([3.0])
    optimizer.step()
    assert w.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + config.adam_epsilon), rel=1e-6)


def test_the_fused_step_is_that_of_the_loop_whatever_the_layout():
    """torch's fused AdamW reads weight, gradient and moments in the order of memory."""
    config, torch_way = make_config(), []
    start, grads = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.randn(3, 6, 4)
    for fused in (True, False):
        w = torch.nn.Parameter(start.T.contiguous().T)  # columns first
        optimizer = make_optimizer([Group([w], 0.1, 0.5)], config)
        optimizer.param_groups[0]["fused"] = fused
        for g in grads:
            w.grad = g.clone()
            as_laid_out([w])
            optimizer.step()
        torch_way.append(w.detach().clone())
    assert torch.allclose(*torch_way, rtol=1e-5, atol=1e-6)


def test_updates_that_bfloat16_weights_cannot_take_up_are_reported():
    assert lost_updates(make_config(lr=1e-5), torch.float32) == []
    assert lost_updates(make_config(lr=1e-4), torch.bfloat16) == []
    assert lost_updates(make_config(lr=1e-5, PEFT_type="LoRA"), torch.bfloat16) == []
    (warning,) = lost_updates(make_config(lr=1e-3, lr_list=(1e-3, 1e-5)), torch.bfloat16)
    assert "learning rate of 1e-05 most updates" in warning
    w, config = torch.nn.Parameter(torch.full((1000,), 0.02, dtype=torch.bfloat16)), make_config(adam_epsilon=1e-8)
    optimizer = make_optimizer([Group([w], 1e-5, 0.0)], config)
    for _ in range(20):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert (w == torch.tensor(0.02, dtype=torch.bfloat16)).all()
