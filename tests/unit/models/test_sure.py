"""SuRe: surprise by hand, the moment it is measured, the slow average, and what it is without its parts."""

import pytest
import torch

from tests import tiny
from utils.model.weights import borrowed
from utils.options.checks import problems
from utils.surprise import surprises

SURPRISE = {"is_replay": True, "Replay_buffer_size": 6, "Replay_buffer_ratio": 0.01,
            "Replay_sampling_algorithm": "surprise"}  # fmt: skip


def method_of(name="SuRe", stream=None, **options):
    return tiny.make_method(tiny.make_session(tiny.make_config(name, **SURPRISE | options)))


def by_hand(method, example, on):
    """Mean of -log p over the tokens of one text, alone in its batch."""
    (row,) = method.encoder([example], 48)
    ids = torch.tensor([[*row.prompt, *row.answer]])
    first = 1 if on == "sequence" else len(row.prompt)
    with torch.no_grad():
        log_p = method.model(ids).logits[0, first - 1 : -1].log_softmax(dim=-1)
    return -log_p.gather(1, ids[0, first:, None]).mean().item()


def test_surprise_is_the_mean_loss_of_an_example():
    method, task = method_of(evaluate_batch_size=5), tiny.make_task()
    for on in ("answer", "sequence"):
        found = surprises(method, task.train, task, on)
        assert found == pytest.approx([by_hand(method, example, on) for example in task.train], rel=1e-4), on


def test_the_slow_average_by_hand():
    method = method_of()
    method = tiny.make_method(method.session, SuRe_beta=0.75)
    method.before_task(tiny.make_task())
    first = tiny.snapshot(method)
    with torch.no_grad():
        for w in method.model.parameters():
            w.add_(4)
    method.after_step(tiny.make_task())
    method.before_task(tiny.make_task(1))  # the average continues
    slow, fast = method.versions()[""], method.versions()["fast"]
    assert fast is None and slow.keys() == first.keys()
    for name, value in slow.items():
        torch.testing.assert_close(value, first[name] + 1)


def test_what_has_no_effect_or_no_meaning_is_refused():
    for reason, options in {
        "no effect without Replay_sampling_algorithm surprise": {"Replay_sampling_algorithm": "random"},
        "needs a decoder": {"backbone": tiny.backbone_folder("t5")},
    }.items():
        config = tiny.make_config("SuRe", **SURPRISE | {"Replay_surprise_on": "sequence"} | options)
        assert any(reason in problem for problem in problems(tiny.plan(config))), reason


@pytest.mark.slow
def test_beta_0_is_replay_of_the_most_surprising(tmp_path):
    options = {"training_epochs": 1, **SURPRISE}
    sure = tiny.run(tmp_path / "sure", tiny.make_config("SuRe", **options), SuRe_beta=0.0)
    replay = tiny.run(tmp_path / "replay", tiny.make_config("SEQ", **options))
    assert tiny.same(sure.weights, replay.weights) and sure.results["R"] == replay.results["R"]
    assert repr(sure.method.memory.rows()) == repr(replay.method.memory.rows())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_memory_holds_what_surprised_the_model_at_that_moment(when):
    config = tiny.make_config("SEQ", **SURPRISE | {"Replay_surprise_when": when})
    one = tiny.micro_stream(1)
    run = tiny.learn(config, one)
    fresh, task = method_of("SEQ"), tiny.make_task(0, one)
    with borrowed(fresh.named(), run.weights if when == "after" else {}):
        values = surprises(fresh, task.train, task, "answer")
    ranked = sorted(range(len(values)), key=lambda i: -values[i])[:6]
    assert [row.input for row in run.method.memory.rows()] == [task.train[i].input for i in ranked]


@pytest.mark.slow
def test_a_run_resumed_inside_a_task_remembers_its_surprise(tmp_path):
    config = tiny.make_config("SuRe", **SURPRISE, save_llm_ckpt_step_interval=1)
    whole = tiny.run(tmp_path / "whole", config, cuts={"task_1_epoch_0_step_1": tmp_path / "cut"})
    resumed = tiny.run(tmp_path / "cut", config)
    assert tiny.same(whole.weights, resumed.weights) and whole.results["R"] == resumed.results["R"]
    assert whole.method.memory.state_dict() == resumed.method.memory.state_dict()
