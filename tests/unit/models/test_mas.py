"""MAS: the sensitivity of a linear model by hand, and what it does not depend on."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.common.fisher import mean_magnitude
from models.MAS import squared_norm
from tests import tiny
from utils.classifier import MASKED
from utils.run.fit import fit


def test_sensitivity_of_a_linear_model_is_the_closed_form():
    tiny.make_session(tiny.make_config())
    x, w = torch.randn(5, 3), nn.Parameter(torch.randn(4, 3))

    class Rows(list):
        examples = property(lambda self: self)

    def gradient(rows):
        (g,) = torch.autograd.grad(squared_norm(x[rows] @ w.T, "logits"), [w])
        return {"w": g}

    found = mean_magnitude(gradient, {"w": w}, lambda i: Rows([i]), 5, power=1)["w"]
    wanted = torch.stack([(2 * (w @ row)[:, None] * row).abs() for row in x]).mean(dim=0)
    assert torch.allclose(found, wanted.detach(), rtol=1e-5)


def test_squared_norm_is_of_known_classes():
    logits = torch.tensor([[1.0, 3.0, MASKED], [2.0, 2.0, MASKED]])
    assert squared_norm(logits, "logits").item() == 10 + 8
    assert squared_norm(logits, "centred").item() == 1 + 1 + 0


@pytest.fixture(scope="module")
def learned():
    session = tiny.make_session(tiny.make_config("MAS"))
    method = tiny.make_method(session)
    fit(method, tiny.make_task(0), session)
    return method


def test_sensitivity_needs_no_labels_and_is_not_cancelled_by_opposite_gradients(learned):
    task = tiny.make_task(0)
    found = learned.sensitivity(task)
    assert found.keys() == learned.learning(task).keys() and all((o >= 0).all() for o in found.values())
    one_by_one = [learned.sensitivity(replace(task, train=task.train[i : i + 1])) for i in range(len(task.train))]
    for name, omega in found.items():
        assert torch.allclose(omega, torch.stack([one[name] for one in one_by_one]).mean(dim=0), rtol=1e-4, atol=1e-8)


def test_importance_is_summed_or_blended_over_tasks(learned):
    for blend, weights in ((None, (1.0, 1.0)), (0.25, (0.25, 0.75))):
        learned.options = learned.options.model_copy(update={"MAS_blend": blend})
        learned.importance, parts = {}, []
        for index in (0, 1):
            parts.append(learned.sensitivity(tiny.make_task(index)))
            learned.after_task(tiny.make_task(index))
        for name, total in learned.importance.items():
            assert torch.allclose(total, weights[0] * parts[0][name] + weights[1] * parts[1][name]), (blend, name)


def test_lambda_0_is_sequential_fine_tuning_and_a_large_one_holds_the_weights(learned):
    ends = {}
    for name, options in (("SEQ", {}), ("MAS", {"MAS_lambda": 0.0}), ("MAS", {"MAS_lambda": 1e5})):
        session = tiny.make_session(tiny.make_config(name, weight_decay=0.0))
        method = tiny.make_method(session, **options)
        for task in (0, 1):
            fit(method, tiny.make_task(task), session)
            method.after_task(tiny.make_task(task))
            if task == 0:
                start = tiny.snapshot(method)
        end = tiny.snapshot(method)
        ends[name, *options.values()] = end, sum(float((end[key] - w).square().sum()) for key, w in start.items())
    same = zip(ends["SEQ",][0].items(), ends["MAS", 0.0][0].values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in same)
    assert ends["MAS", 1e5][1] < 0.5 * ends["SEQ",][1]
