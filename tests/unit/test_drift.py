"""Drift: the divergences by hand, the model before the stream under all kinds of methods, and what a run keeps."""

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from tests.tiny import EOS, one_of_each_kind, same
from utils import drift
from utils.dataloader import Encoded
from utils.errors import UserError
from utils.model.head import as_scores
from utils.options import checks
from utils.report.columns import columns_of
from utils.report.compare import compare_text
from utils.report.results import group
from utils.report.summary import table
from utils.storage import drift as stored

BASE, NOW = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])  # the same at every position


@pytest.fixture
def two_distributions(monkeypatch):
    """A method whose model gives three tokens fixed probabilities; answers of two tokens before, of one now."""
    at = {"first": False}

    @contextmanager
    def as_first(_):
        at["first"] = True
        yield
        at["first"] = False

    def scores(_model, batch, _index):
        p = BASE if at["first"] else NOW
        return as_scores(p.log().expand(*batch.labels.shape, 3)), batch.labels

    def sample(_backbone, rows, *_):
        return [[SimpleNamespace(ids=(1, EOS) if at["first"] else (EOS,))] for _ in rows]

    monkeypatch.setattr(drift, "sample", sample)
    tiny.forget_processes()
    method = tiny.make_method(tiny.make_session(tiny.make_config(evaluate_batch_size=5)))
    monkeypatch.setattr(method, "as_first", as_first)
    monkeypatch.setattr(method, "scores", scores)
    return method


def test_both_directions_by_hand(two_distributions):
    row = drift.measure(two_distributions, {}, tiny.make_task(1), 7)
    forward = 0.5 * math.log(2) + 0.25 * math.log(0.5)  # per token: sum_v p_0 log(p_0 / p_t)
    reverse = 0.25 * math.log(0.5) + 0.5 * math.log(2)  # sum_v p_t log(p_t / p_0)
    assert row == {
        "task": 1,
        "forward": pytest.approx(2 * forward),  # drawn from the first model: answers of two tokens
        "forward_per_token": pytest.approx(forward),
        "reverse": pytest.approx(reverse),
        "reverse_per_token": pytest.approx(reverse),
    }


def test_unchanged_weights_have_not_drifted_and_others_have():
    method = tiny.make_method(tiny.make_session(tiny.make_config()))
    task = tiny.make_task(0)
    first = drift.first_weights(method, [task])
    row = drift.measure(method, first, task, 3)
    assert {name: row[name] for name in stored.NUMBERS} == dict.fromkeys(stored.NUMBERS, 0)
    with torch.no_grad():
        method.model.get_output_embeddings().weight.mul_(2)
    moved, again = (drift.measure(method, first, task, 3) for _ in range(2))
    assert moved == again and all(moved[name] > 0.01 for name in stored.NUMBERS)
    assert drift.measure(method, first, task, 100)["forward"] != moved["forward"], "all 12 questions, not 3"


def test_chunks_hold_few_tokens_and_few_rows():
    rows = [Encoded([1], [2] * n) for n in (3, 3, 9, 1, 1, 1)]
    assert drift._chunks(rows, 6, 2) == [[0, 1], [2], [3, 4], [5]]


def test_what_is_stored_is_read_by_task(tmp_path):
    row = {"forward": 1.0, "reverse": 0.5, "forward_per_token": 0.25, "reverse_per_token": 0.125}
    assert stored.by_task(tmp_path, 2) == {} and stored.columns({}) == {"drift_forward": None, "drift_reverse": None}
    for task, forward in ((1, 4.0), (0, 3.0), (1, 2.0)):
        stored.add(tmp_path, row | {"task": task, "forward": forward})
    found = stored.by_task(tmp_path, 3)
    assert found["forward"] == [3.0, 2.0, None] and found["reverse_per_token"] == [0.125, 0.125, None]
    assert stored.columns({"drift": stored.by_task(tmp_path, 2)}) == {"drift_forward": 2.0, "drift_reverse": 0.5}
    for damaged in ({"task": 0}, row, row | {"task": 0, "forward": math.nan}, row | {"task": 0, "reverse": math.inf}):
        (tmp_path / stored.FILE).write_text(json.dumps([damaged]), encoding="utf-8")
        with pytest.raises(UserError, match="damaged: expected rows with task, forward"):
            stored.rows(tmp_path)


REFUSED = {
    "has no effect without drift": {"drift_questions": 5},
    "with classifier Linear none are": {"drift": True, "classifier": "Linear", "il_mode": "CIL"},
    "nothing is trained": {"method": "ICL", "drift": True},
    "several answer": {"method": "PEFT", "drift": True, "PEFT_inference": "route"},
    "there is no PromptTuning": {"method": "PEFT", "drift": True, "PEFT_type": "PromptTuning"},
    "several adapters answer": {"method": "AdapterCL", "drift": True},
    "only prompts are trained": {"method": "ProgPrompt", "drift": True},
    "which learns no task": {"drift": True, "is_evaluate_only": True},
}


def test_what_cannot_be_compared_is_refused():
    for reason, options in REFUSED.items():
        own = {name: value for name, value in options.items() if name == "PEFT_inference"}
        config = tiny.make_config(**{name: value for name, value in options.items() if name not in own})
        problems = checks.problems(tiny.plan(config, **own))
        assert any(reason in problem for problem in problems), (reason, problems)


def can_drift(name: str) -> bool:
    return not checks.problems(tiny.plan(tiny.make_config(name, drift=True), **tiny.OWN.get(name, {})))


def logits(method) -> torch.Tensor:
    task = tiny.make_task(0)
    with torch.no_grad():
        return tiny.outputs(method, method.model.eval(), method.collated(task.train[:4], task), None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_each_kind([*tiny.TESTED]))
def test_the_model_before_the_stream_is_read_again(name):
    if not can_drift(name):
        pytest.skip("refuses drift")
    config, own = tiny.make_config(name, training_epochs=1, lr=1e-2), {}
    before = tiny.make_method(tiny.make_session(config), **own)
    first = drift.first_weights(before, [tiny.make_task(k) for k in range(3)])
    method = tiny.learn(config, **own).method
    after, expected = logits(method), logits(before)
    assert not torch.allclose(after, expected, atol=1e-3), "nothing was learned"
    with method.as_first(first):
        torch.testing.assert_close(logits(method), expected)
    assert torch.equal(logits(method), after)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SEQ", "OLoRA", "CLSER"])
def test_a_run_with_drift_is_the_run_without_and_can_be_resumed(name, tmp_path):
    config = tiny.make_config(name, training_epochs=2, save_llm_ckpt_step_interval=1)
    plain = tiny.run(tmp_path / "plain", config)
    cuts = {"task_1_epoch_0_step_1": tmp_path / "cut", "task_1": tmp_path / "unmeasured"}
    whole = tiny.run(tmp_path / "whole", config.updated(drift=True, drift_questions=4), cuts=cuts)
    assert same(plain.weights, whole.weights) and plain.results["R"] == whole.results["R"]
    rows = stored.rows(tmp_path / "whole")
    assert [row["task"] for row in rows] == [0, 1, 2] and all(row["forward"] > 0 for row in rows)
    for place in cuts.values():
        resumed = tiny.run(place, config.updated(drift=True, drift_questions=4))
        assert stored.rows(place) == rows and same(resumed.weights, whole.weights)
    assert "KL" in compare_text(group([(tmp_path / "whole", whole.results)]))
    assert "forward per token" in table(whole.results) and "forward per token" not in table(plain.results)
    assert columns_of(whole.results)["drift_forward"] == rows[-1]["forward"]
    assert columns_of(plain.results)["drift_forward"] is None
