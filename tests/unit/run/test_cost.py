"""Time and passes are charged once, to the innermost block."""

import pytest

from tests import tiny
from utils.run import cost
from utils.run.cost import Cost


@pytest.fixture
def made(monkeypatch):
    """Counters of a run of two tasks, and a clock that is set by hand."""
    clock = [0.0]
    monkeypatch.setattr(cost.time, "monotonic", lambda: clock[0])
    method = tiny.make_method(tiny.make_session(tiny.make_config()))
    return Cost(method, 2), clock, method


def test_the_innermost_block_is_charged(made):
    counters, clock, _ = made

    def work(seconds):
        clock[0] += seconds
        counters._sequences += seconds
        counters._tokens += 10 * seconds
        counters.scored(seconds)

    work(1)  # outside: booked nowhere
    with counters.training(1):
        work(2)
        with counters.evaluating():
            work(4)
        work(8)
        with counters.neither():
            work(16)
            assert counters.values["train_seconds"] == [0, 10]  # what a checkpoint that is written here holds
        work(32)
    with counters.evaluating(0):
        work(64)
    work(128)
    values = counters.values
    assert values["train_seconds"] == values["train_sequences"] == [0, 42]
    assert values["train_tokens"] == [0, 420]
    assert values["evaluate_seconds"] == 4 + 64
    assert values["evaluate_examples"] == values["evaluate_sequences"] == [64, 0]  # only those after a task


def test_passes_of_the_model_are_counted(made):
    counters, _, method = made
    ids = tiny.torch.zeros(3, 5, dtype=tiny.torch.long)
    with counters.training(0):
        method.model(ids)
        method.model(ids[:, :1])  # a step of generation
        method.model(ids[:2, :1])
    assert counters.values["train_sequences"] == [3, 0] and counters.values["train_tokens"] == [15, 0]
    assert counters.values["train_generated_tokens"] == [3 + 2, 0]


def test_the_check_of_the_head_generates_nothing():
    method = tiny.make_method(tiny.make_session(tiny.make_config()))
    cost = Cost(method, 1)
    with cost.training(0):
        method.loss(method.model, method.collated(method.stream.tasks[0].train[:4], tiny.make_task()), tiny.make_task())
    assert cost.values["train_generated_tokens"] == [0] and cost.values["train_sequences"] == [4]
