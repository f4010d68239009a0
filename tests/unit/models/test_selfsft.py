"""SelfSFT: which answers are learned, and what becomes of questions without one."""

from unittest import mock

import pytest
import torch

from models.common.rollouts import Rollout
from models.SelfSFT import SelfSFT
from tests import tiny
from utils.run.fit import fit
from utils.seed import random_for


def make(**options):
    session = tiny.make_session(tiny.make_config("SelfSFT", training_epochs=2, weight_decay=0.0))
    return tiny.make_method(session, **{"SelfSFT_fallback": "drop"} | options)


def answers_of(right):
    """`sample` by a model that has the right answer, as its second, to these questions."""

    def sample(backbone, prompts, *_args, **_options):
        wrong = Rollout((9, 0), "no idea", True)
        targets = [row.target for row in tiny.make_task(0).train]
        ids = [(*backbone.tokenizer(" " + target)["input_ids"], 0) for target in targets]
        return [[wrong, Rollout(ids[i], targets[i], True)] if i in right else [wrong] for i in range(len(prompts))]

    return mock.patch("models.SelfSFT.sample", sample)


def test_the_first_right_answer_is_kept_and_its_ids_are_learned():
    method, task = make(SelfSFT_refresh="task"), tiny.make_task(0)
    with answers_of({1, 3}):
        method.before_task(task)
    rows = method.train_examples(task)
    assert [row.target for row in rows] == [task.train[i].target for i in (1, 3)]
    assert [list(row.answer) for row in method.encode(rows, task)] == [method.own[2], method.own[4]]


def test_a_question_without_a_right_answer_keeps_its_target_or_is_dropped():
    task = tiny.make_task(0)
    whole = len(task.train)
    for refresh, fallback, count, empty in (
        ("task", "drop", 2, 0), ("task", "target", whole, 0), ("epoch", "drop", whole, whole - 2),
    ):  # fmt: skip
        method = make(SelfSFT_refresh=refresh, SelfSFT_fallback=fallback)
        with answers_of({0, 1}):
            method.before_task(task)
            rows = method.batch(method.train_examples(task), task, random_for(1))
        assert len(rows) == count, (refresh, fallback)
        assert sum(not row.answer for row in method.encode(rows, task)) == empty, (refresh, fallback)


def test_a_threshold_above_1_is_sequential_fine_tuning():
    weights = []
    for name, options in (
        ("SEQ", {}), ("SelfSFT", {"SelfSFT_threshold": 1.5, "SelfSFT_fallback": "target", "SelfSFT_samples": 1}),
    ):  # fmt: skip
        session, task = tiny.make_session(tiny.make_config(name, training_epochs=2)), tiny.make_task(0)
        method = tiny.make_method(session, **options)
        method.before_task(task)
        fit(method, task, session)
        weights.append(tiny.snapshot(method))
    assert all(torch.equal(w, weights[1][key]) for key, w in weights[0].items())


@pytest.mark.parametrize("refresh", ["task", "epoch"])
def test_a_task_without_any_right_answer_leaves_the_weights(refresh):
    method, task = make(SelfSFT_refresh=refresh), tiny.make_task(0)
    start = tiny.snapshot(method)
    with answers_of(set()):
        method.before_task(task)
        assert method.takes_steps(task) == (refresh == "epoch")
        fit(method, task, method.session)
    assert all(torch.equal(w, start[name]) for name, w in tiny.snapshot(method).items())


def test_answers_are_drawn_once_an_epoch():
    method, task, drawn = make(), tiny.make_task(0), []
    steps = -(-len(task.train) // method.config.batch_size)
    with mock.patch.object(SelfSFT, "_draw", lambda self, task, epoch: drawn.append(epoch)):
        method.before_task(task)
        for _ in range(2 * steps):
            method.batch(task.train[:4], task, random_for(1))
    assert drawn == [0, 1]
