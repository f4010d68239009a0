"""GRPO: the gradient by hand, and groups that teach nothing."""

from unittest import mock

import pytest
import torch

from models.GRPO import OWN, advantages
from tests import tiny
from utils.dataloader import IGNORE, micro_batches
from utils.run.fit import fit
from utils.seed import random_for


def make(rewards=None, **options):
    session = tiny.make_session(tiny.make_config("GRPO", training_epochs=2, weight_decay=0.0, max_grad_norm=None))
    method = tiny.make_method(session, **{"GRPO_samples": 4, "GRPO_warm_start": 0} | options)
    if rewards is not None:
        method.rewards = rewards
    return method


def batch_of(method, task, count=3):
    rows = method.batch(task.train[:count], task, random_for(1))
    (batch,) = micro_batches(method.encode(rows, task), rows, method.backbone.pad_id, 0, 1, 1)
    return batch


def test_advantages_by_hand():
    assert advantages([1.0, 0.0, 0.0, 1.0], scale=True) == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert advantages([0.5, 0.5], scale=True) == [0, 0]


def test_a_group_of_equal_rewards_moves_nothing():
    method, task = make(lambda answers, *_: [1.0] * len(answers)), tiny.make_task(0)
    start = tiny.snapshot(method)
    fit(method, task, method.session, limit=2)
    assert all(torch.equal(w, start[name]) for name, w in tiny.snapshot(method).items())
    assert method.sums["level_groups"] == method.sums["steps"] == 2


def test_the_gradient_is_that_of_reinforce():
    """- 1/N sum_i A_i / |y_i| d log pi(y_i), from transformers' own loss, answer by answer."""
    for normalise in ("sample", "batch", "fixed"):
        method = make(lambda answers, *_: [float(i) for i, _ in enumerate(answers)], GRPO_normalise=normalise)
        task = tiny.make_task(0)
        method.before_task(task)
        batch = batch_of(method, task)
        sum(method.loss(method.model, batch, task).values()).backward()
        found = {name: w.grad.clone() for name, w in method.named().items() if w.grad is not None}
        method.model.zero_grad()
        rows, total = len(batch.examples), 0
        for i, example in enumerate(batch.examples):
            one = batch.only([i])
            length = int((one.labels != IGNORE).sum())
            mean = method.model.eval()(input_ids=one.input_ids, labels=one.labels).loss
            parts = {
                "sample": rows * length,
                "batch": int((batch.labels != IGNORE).sum()),
                "fixed": rows * task.max_new_tokens,
            }
            total = total + method.advantages[example.presentation] * mean * length / parts[normalise]
        total.backward()
        for name, g in found.items():
            assert torch.allclose(g, method.named()[name].grad, rtol=1e-3, atol=1e-6), (normalise, name)


def test_rewards_are_scores_of_the_stream_s_metric():
    method, task = make(GRPO_must_end=True), tiny.make_task(0)
    answer = mock.Mock(ended=True, text=task.train[0].target)
    wrong, cut = mock.Mock(ended=True, text="?"), mock.Mock(ended=False, text=task.train[0].target)
    assert method.rewards([answer, wrong, cut], task.train[0], task) == [1, 0, 0]


def test_the_kl_to_the_weights_before_the_task_is_0_at_first():
    method, task = make(GRPO_beta=2.0), tiny.make_task(0)
    method.before_task(task)
    batch = batch_of(method, task)
    assert method.loss(method.model, batch, task)["kl"].item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        next(iter(method.named().values())).mul_(1.5)
    assert method.loss(method.model, batch, task)["kl"].item() > 0  # k3 is positive sample by sample


def test_a_warm_start_is_fine_tuning():
    method, task = make(GRPO_warm_start=1), tiny.make_task(0)
    method.before_task(task)
    steps, rng = -(-len(task.train) // method.config.batch_size), random_for(1)
    sources = [{row.source for row in method.batch(task.train[:4], task, rng)} for _ in range(steps + 1)]
    assert sources == [{"task"}] * steps + [{OWN}]
