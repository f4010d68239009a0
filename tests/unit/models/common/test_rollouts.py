"""Rollouts: the same seed draws the same answers; divergences by hand."""

import math
from unittest import mock

import pytest
import torch

from models.common import rollouts
from models.common.rollouts import Sampling, divergence, sample
from tests import tiny
from utils.model.weights import eval_mode


@pytest.fixture(scope="module")
def method():
    made = tiny.make_method(tiny.make_session(tiny.make_config()))
    made.model.eval()
    return made


def drawn(method, *seed, rows=None, **how):
    rows = rows or method.encoder.for_prediction(tiny.make_task(0).train[:5], None)
    with eval_mode(method.model):
        return sample(method.backbone, rows, 6, Sampling(**how), *seed)


def test_answers_depend_on_the_seed_alone(method):
    first = drawn(method, 1, count=3)
    torch.rand(7)  # other draws in between
    assert drawn(method, 1, count=3) == first != drawn(method, 2, count=3)
    assert [len(answers) for answers in first] == [3] * 5
    assert any(len(set(answers)) > 1 for answers in first)


def test_an_answer_ends_with_its_stop_token_or_is_cut(method):
    for answer in (answer for answers in drawn(method, 3, count=8) for answer in answers):
        stops = [token in method.backbone.stop_ids for token in answer.ids]
        assert not any(stops[:-1]) and stops[-1] == answer.ended
        assert answer.ended or len(answer.ids) == 6


def test_greedy_limits_and_the_checkpoint_s_own_settings_do_not_count(method):
    config = method.model.generation_config
    with mock.patch.multiple(config, temperature=0.01, repetition_penalty=1.0, top_k=1, create=True):
        assert len({answers[0].ids for answers in drawn(method, 4)}) > 1
    ones = drawn(method, 5, count=4, top_k=1)
    assert all(len(set(answers)) == 1 for answers in ones)  # the most likely token alone


def test_long_lists_are_cut_into_chunks(method):
    rows = method.encoder.for_prediction(tiny.make_task(0).train[:5], None)
    for limit in (1, 40, 10_000):
        with mock.patch.object(rollouts, "TOKENS", limit):
            chunks = rollouts._chunks(list(range(5)), rows, 6)
        assert [i for chunk in chunks for i in chunk] == list(range(5)), limit
    assert len(chunks) == 1


def test_divergences_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    reverse = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert divergence(p.log(), q.log(), "reverse").item() == pytest.approx(reverse)
    assert divergence(p.log(), q.log(), "forward").item() == pytest.approx(reverse)  # the same by symmetry
    m = (p + q) / 2
    half = [float((x * (x / m).log()).sum()) for x in (p, q)]
    assert divergence(p.log(), q.log(), "jsd").item() == pytest.approx(sum(half) / 2, rel=1e-5)
    tail = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)  # the most likely token and the rest
    assert divergence(p.log(), q.log(), "reverse", top_k=1).item() == pytest.approx(tail, rel=1e-5)
    for kind in ("reverse", "forward", "jsd"):
        assert divergence(p.log(), p.log(), kind).item() == pytest.approx(0, abs=1e-7)
