"""TreeLoRA: the chosen task and the turned gradient by hand, and that equal tasks help each other."""

import math
from dataclasses import replace

import pytest
import torch

from models.TreeLoRA import TreeLoRA, lowest, turn
from tests import tiny
from utils.run.fit import fit


def made(**options):
    session = tiny.make_session(tiny.make_config("TreeLoRA", lr=3e-3, training_epochs=1))
    return tiny.make_method(session, **options)


def test_the_task_with_the_lowest_bound_is_chosen():
    distances, counts = torch.tensor([[0.99, 2.0], [0.4, 1.4]]), torch.tensor([[1.0, 4.0], [1.0, 4.0]])
    wide, narrow = math.sqrt(math.log(5) / 2), math.sqrt(math.log(5) / 8)  # of 1 and of 4 measurements
    bounds = [[0.99 - wide, 0.5 - narrow], [0.4 - wide, 0.35 - narrow]]
    assert lowest(distances, counts).tolist() == [int(row[1] < row[0]) for row in bounds] == [1, 0]
    assert lowest(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [1]  # an unmeasured one first


def given(method, gradients, means):
    """One earlier task with these means; the first two entries of the first layer have gradients, all others 0."""
    task = tiny.make_task(1)
    method.before_task(task)
    layer, *_ = factors = method.factors()
    method.means = [{name: torch.zeros(sum(w.numel() for w in ws)) for name, ws in factors.items()}]
    method.distances, method.counts = torch.zeros(len(factors), 1), torch.zeros(len(factors), 1)
    for ws in factors.values():
        for w in ws:
            w.grad = torch.zeros_like(w)
    method.means[0][layer][:2], factors[layer][0].grad.view(-1)[:2] = torch.tensor(means), torch.tensor(gradients)
    return task, layer, factors[layer][0]


def test_a_step_turns_the_gradient_and_measures_the_distance(monkeypatch):
    method = made()
    task, layer, w = given(method, [3.0, 4.0], [0.0, 2.0])
    monkeypatch.setattr(method, "_ramp", lambda task: 0.5)
    method.on_gradients(task)
    assert w.grad.view(-1)[:2].tolist() == [3, 4 + 0.5 * 0.5 * 5]
    assert method.sums[layer][:2].tolist() == [3, 4]  # the mean is of the gradients before they are turned
    assert method.distances[0, 0] == pytest.approx(5 / 9) and method.counts[0, 0] == 1  # (3 + 2) / (7 + 2)


def test_parameters_are_pulled_towards_their_means(monkeypatch):
    method = made(TreeLoRA_direction="parameter")
    task, _, w = given(method, [3.0, 4.0], [0.0, 2.0])
    monkeypatch.setattr(method, "_ramp", lambda task: 1.0)
    method.on_gradients(task)
    assert w.grad.view(-1)[:2].tolist() == [3, 4 - 0.5 * 5]  # a step against it moves the weight along the mean


def test_the_weight_rises_within_an_epoch():
    method = made()
    task = tiny.make_task(1)
    steps = math.ceil(len(task.train) / method.config.batch_size)
    ramps = []
    for step in range(2 * steps):
        method.steps = step
        ramps.append(method._ramp(task))
    assert ramps == [k / steps for k in range(steps)] * 2


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_two_equal_quadratic_tasks_never_raise_the_loss(share):
    """The loss of the task, which is the earlier one's too, falls in every step of gradient descent."""
    curvature, w = torch.tensor([1.0, 30.0]), torch.tensor([4.0, -1.0])
    gradients = []
    for step in range(200):
        g = {"a": curvature * w}
        if step < 50:  # the first task
            gradients.append(g["a"])
            change = {"a": torch.zeros(2)}
        else:
            change = turn(g, {"a": torch.stack(gradients).mean(dim=0)}, share)
        before = (curvature * w * w).sum()
        w = w - 1e-3 * (g["a"] + change["a"])
        assert (curvature * w * w).sum() < before


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["gradient", "parameter"])
def test_the_same_task_again_is_not_unlearned(direction):
    method = made(TreeLoRA_direction=direction, TreeLoRA_lambda=1.0)
    first = tiny.make_task(0, epochs=4)
    losses = []
    for task in (first, replace(first, index=1)):
        method.before_task(task)
        fit(method, task, method.session)
        method.after_task(task)
        with torch.no_grad():
            losses.append(float(method.loss(method.model, method.collated(first.train, first), first)["answer"]))
    assert len(method.means) == 2 and losses[1] < losses[0]
    (event,) = [event for event in method.session.log.events if event["event"] == "similar"]
    assert event["measurements"] == [len(method.factors()) * method.steps]


def test_what_cannot_work_is_refused():
    other = tiny.make_config("TreeLoRA", PEFT_type="IA3")
    assert TreeLoRA.problems(other, TreeLoRA.Options(), tiny.micro_stream()) == [
        "PEFT_type: method TreeLoRA needs LoRA, got IA3"
    ]
