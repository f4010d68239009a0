"""SI: the path integral on functions whose integral is known, and what the penalty does to a step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.SI import SI, SIOptions
from tests import tiny
from utils.run.fit import fit

TASK = SimpleNamespace(index=0)


class Toy(SI):
    """SI on one parameter tensor and a loss that is a function of it."""

    def __init__(self, start, **options):
        log = SimpleNamespace(info=lambda *_: None, event=lambda *_, **__: None)
        self.session, self.options, self.memory = SimpleNamespace(log=log), SIOptions(**options), None
        self.importance, self.anchor, self.path, self.slope = {}, {}, {}, {}
        self.w = nn.Parameter(torch.tensor(start))

    config = SimpleNamespace(Replay_update="task")

    def named(self):
        return {"w": self.w}

    def learning(self, task):
        return self.named()

    def learn(self, loss, steps, rate):
        self.before_task(TASK)
        for _ in range(steps):
            before = {"w": self.w.detach().clone()}
            self.w.grad = None
            loss(self.w).backward()
            self.on_gradients(TASK)
            with torch.no_grad():
                self.w -= rate * self.w.grad
                self.on_update(before, TASK)
        self.after_task(TASK)
        return self


def test_the_path_integral_of_small_steps_is_the_drop_of_the_loss():
    h, a = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, -1.0, 2.0])
    toy = Toy([0.0, 0.0, 0.0], SI_xi=1e-9)
    toy.before_task(TASK)
    seen = []
    toy.session.log.event = lambda _name, **values: seen.append(values["sum"])
    toy.learn(lambda w: (h / 2 * (w - a) ** 2).sum(), 4000, 0.005)
    assert seen == [pytest.approx(float((h / 2 * a**2).sum()), rel=0.01)]
    assert torch.allclose(toy.importance["w"], h / 2, rtol=0.01)  # half the curvature (section 3 of the paper)
    assert torch.equal(toy.anchor["w"], toy.w.detach())


def test_importance_adds_up_and_does_not_fall_below_zero():
    toy = Toy([0.0, 0.0], SI_xi=1.0, SI_c=0.0)
    for slope, change in (([2.0, -2.0], [-1.0, -1.0]), ([-1.0, 3.0], [-1.0, -2.0])):
        toy.before_task(TASK)
        toy.slope = {"w": torch.tensor(slope)}
        before = {"w": toy.w.detach().clone()}
        toy.w.data += torch.tensor(change)
        toy.on_update(before, TASK)
        toy.after_task(TASK)
        if slope[0] == 2.0:
            assert toy.importance["w"].tolist() == [1.0, 0.0]  # 2 / (1 + 1); -2 / 2, cut at 0
    assert toy.importance["w"].tolist() == [0.5, pytest.approx(1.2)]  # 1 - 1 / 2; 6 / (4 + 1)


def test_the_gradient_of_the_penalty_is_not_in_the_path():
    toy = Toy([1.0], SI_c=0.5)
    toy.importance, toy.anchor, toy.path = (
        {"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}, {"w": torch.zeros(1)},
    )  # fmt: skip
    (4 * toy.w).sum().backward()
    toy.on_gradients(TASK)
    assert toy.w.grad.tolist() == [4 + 2 * 0.5 * 3 * 2]
    assert toy.slope["w"].tolist() == [4]


def test_c_0_is_sequential_fine_tuning(tmp_path):
    weights = []
    for name, options in (("SEQ", {}), ("SI", {"SI_c": 0.0})):
        session = tiny.make_session(tiny.make_config(name))
        method = tiny.make_method(session, **options)
        for task in (0, 1):
            if name == "SI":
                method.before_task(tiny.make_task(task))
            fit(method, tiny.make_task(task), session)
            method.after_task(tiny.make_task(task))
        weights.append(tiny.snapshot(method))
    assert all(torch.equal(w, weights[1][key]) for key, w in weights[0].items())
    assert all((o >= 0).all() for o in method.importance.values())
    assert set(method.importance) == set(method.learning(tiny.make_task(1)))


def test_a_large_c_holds_the_weights(tmp_path):
    moved = []
    for c in (0.0, 1e6):
        session = tiny.make_session(tiny.make_config("SI", weight_decay=0.0))
        method = tiny.make_method(session, SI_c=c, SI_xi=1e-8)
        for task in (0, 1):
            method.before_task(tiny.make_task(task))
            before = tiny.snapshot(method)
            fit(method, tiny.make_task(task), session)
            method.after_task(tiny.make_task(task))
        after = tiny.snapshot(method)
        moved.append(sum(float((after[key] - w).square().sum()) for key, w in before.items()))
    assert moved[1] < 0.5 * moved[0]
