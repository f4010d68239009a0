"""SDFT: what the teacher reads, and when student and teacher are the same."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from utils.dataloader import IGNORE
from utils.run.fit import fit


def make(**options):
    session = tiny.make_session(tiny.make_config("SDFT", training_epochs=1))
    return tiny.make_method(session, **{"SDFT_probe": 2} | options)


def step(method, task, seed=1):
    """The batch of one step, on the CPU, as the loop makes it."""
    from utils.dataloader import micro_batches
    from utils.seed import random_for

    rows = method.batch(task.train[:4], task, random_for(seed))
    (batch,) = micro_batches(method.encode(rows, task), rows, method.backbone.pad_id, 0, 1, 1)
    return batch


def test_a_live_teacher_without_the_demonstration_teaches_nothing():
    method, task = make(SDFT_teacher="live", SDFT_template="{prompt}", SDFT_skip_tokens=0), tiny.make_task(0)
    method.before_task(task)
    (term,) = method.loss(method.model, step(method, task), task).values()
    assert term.item() == pytest.approx(0, abs=1e-6)
    term.backward()
    assert all(w.grad.abs().max() < 1e-6 for w in method.named().values() if w.grad is not None)


def test_the_labels_are_the_model_s_own_answers_and_the_teacher_reads_the_right_ones():
    method, task = make(), tiny.make_task(0)
    batch = step(method, task)
    for labels, example in zip(batch.labels, batch.examples, strict=True):
        assert tuple(labels[labels != IGNORE].tolist()) == method.answers_drawn[example.presentation].ids
    for row, example in zip(method.informed(batch.examples, task, 4), batch.examples, strict=True):
        text = method.backbone.tokenizer.decode(row.prompt)
        assert example.input in text and example.target in text
    chat = replace(tiny.make_task(0).train[0], messages=(("user", "Who?"), ("assistant", "Me.")))
    assert "Me." in method._informed(chat, "Me.").messages[0][1]


def test_a_long_demonstration_is_cut_and_the_question_stays():
    method, task = make(), tiny.make_task(0)
    example = replace(task.train[0], target="word " * 400)
    (row,) = method.informed([example], task, 10)
    assert len(row.prompt) + 10 <= method.backbone.positions
    text = method.backbone.tokenizer.decode(row.prompt)
    assert example.input in text and "of your own" in text


def test_answers_weigh_the_same_whatever_their_length():
    method = make(SDFT_skip_tokens=1)
    labels = torch.tensor([[IGNORE, IGNORE, 5], [5, 6, 7], [IGNORE, IGNORE, IGNORE]])
    chosen, weights = method.scored(labels)
    assert chosen.tolist() == [[False, False, True], [False, True, True], [False] * 3]
    assert weights.tolist() == [1, 0.5, 0.5]


def test_the_teacher_is_an_average_that_starts_as_the_student_and_runs_on():
    method = make(SDFT_rate=0.25)
    task = tiny.make_task(0, epochs=1)
    method.before_task(task)
    start = tiny.snapshot(method)
    assert tiny.same(start, method.teacher)
    fit(method, task, method.session, limit=1)
    after = tiny.snapshot(method)
    for name, w in start.items():
        assert torch.allclose(method.teacher[name], w.lerp(after[name], 0.25), atol=1e-7), name
    kept = dict(method.teacher)
    method.before_task(tiny.make_task(1))
    assert tiny.same(kept, method.teacher)
