"""LwF: the teacher, the distilled rows, and the weight of the term."""

import math

import pytest
import torch

from models.common.losses import distillation
from models.LwF import only
from tests import tiny
from utils.dataloader import IGNORE
from utils.dataset import Example
from utils.model.forward import answer_logits
from utils.run.fit import fit


def method_of(options=None, **own):
    """LwF at the beginning of task 1, with a batch of it."""
    session = tiny.make_session(tiny.make_config("LwF", **(options or {})))
    method = tiny.make_method(session, **own)
    fit(method, tiny.make_task(), session)
    task = tiny.make_task(1)
    method.before_task(task)
    return method, task, method.collated(task.train[:3], task)


def test_the_first_task_has_no_teacher():
    session = tiny.make_session(tiny.make_config("LwF"))
    method, task = tiny.make_method(session), tiny.make_task()
    method.before_task(task)
    assert method.loss(method.model, method.collated(task.train, task), task).keys() == {"answer"}


def test_nothing_to_distil_while_the_student_is_the_teacher():
    method, task, batch = method_of()
    method.model.eval()
    assert method.loss(method.model, batch, task)["distillation"].item() == pytest.approx(0, abs=1e-6)
    fit(method, task, method.session)
    method.model.eval()
    assert method.loss(method.model, batch, task)["distillation"].item() > 1e-4


def test_the_term_by_hand():
    method, task, batch = method_of(LwF_lambda=3.0, LwF_temperature=4.0)
    teacher = answer_logits(method.model.eval(), batch)[0].detach()
    fit(method, task, method.session)
    student, labels = answer_logits(method.model.eval(), batch)
    wanted, count = 0.0, 0
    for i, k in (labels != IGNORE).nonzero().tolist():
        p, q = (torch.softmax(z[i, k].double() / 4, dim=0) for z in (teacher, student.detach()))
        wanted += 3 * sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
        count += 1
    found = method.loss(method.model, batch, task)["distillation"].item()
    assert found == pytest.approx(wanted / count, rel=1e-3)  # a small difference of float32 logarithms


def test_the_teacher_is_frozen_and_has_no_dropout():
    method, task, batch = method_of({"backbone": tiny.backbone_folder(dropout=0.5)})
    before = {name: w.clone() for name, w in method.teacher.items()}
    a, b = (tiny.teacher_logits(method, method.teacher, batch) for _ in range(2))
    assert torch.equal(a, b)
    fit(method, task, method.session)
    assert tiny.same(before, method.teacher)
    assert torch.equal(a, tiny.teacher_logits(method, method.teacher, batch))


def test_the_teacher_stores_only_trainable_parameters():
    method, task, _ = method_of({"freeze_parts": ("embeddings", "layers 0")})
    assert set(method.teacher) == set(method.learning(task)) < set(method.named())


def test_lambda_0_is_plain_fine_tuning(tmp_path):
    made = []
    for name, own in (("SEQ", {}), ("LwF", {"LwF_lambda": 0})):
        (tmp_path / name).mkdir()
        config = tiny.make_config(name, backbone=tiny.backbone_folder(dropout=0.1))
        made.append(tiny.learn(config, **own))
    assert tiny.same(made[0].weights, made[1].weights)
    assert made[0].losses == made[1].losses


def test_a_huge_lambda_keeps_the_answers():
    moved = {}
    for strength in (0.0, 1e4):
        method, _, batch = method_of({"lr": 1e-3}, LwF_lambda=strength)
        teacher = tiny.teacher_logits(method, method.teacher, batch)
        fit(method, tiny.make_task(1, epochs=10), method.session)
        student, labels = answer_logits(method.model.eval(), batch)
        moved[strength] = distillation(student, teacher, labels, 1).item()
    assert moved[1e4] < moved[0.0] / 10


def test_only_rows_of_the_task_are_distilled():
    method, task, _ = method_of()
    fit(method, task, method.session)
    method.model.eval()
    old = [Example("cat a", "meow", source="memory"), Example("hen a", "cluck", source="memory")]
    alone, mixed = (method.collated(rows, task) for rows in (task.train[:3], [*old, *task.train[:3]]))
    terms = [method.loss(method.model, batch, task) for batch in (alone, mixed)]
    assert terms[1]["distillation"].item() == pytest.approx(terms[0]["distillation"].item(), rel=1e-4)
    nothing = method.loss(method.model, method.collated(old, task), task)
    assert nothing["distillation"].item() == 0
    sum(nothing.values()).backward()


def test_only():
    labels = torch.tensor([[1, 2], [3, IGNORE], [5, 6]])
    assert only(labels, [1]).tolist() == [[IGNORE] * 2, [3, IGNORE], [IGNORE] * 2]
    assert only(labels, []).tolist() == [[IGNORE] * 2] * 3
