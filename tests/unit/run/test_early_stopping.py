"""Weights that were best on dev, tasks that end early, checkpoints that are kept."""

from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch

from models.ICL import ICL
from models.SEQ import SEQ
from tests import tiny
from utils.dataset import Stream
from utils.model.weights import snapshot
from utils.options.checks import watching_fits
from utils.run import early_stopping
from utils.run.checkpoint import checkpoints
from utils.storage.files import read_json

EACH = {"evaluate_interval": 1, "training_epochs": 6, "lr": 1e-2}


@cache
def stream() -> Stream:
    """The micro stream with separate dev and test splits."""
    micro = tiny.micro_stream()
    tasks = tuple(replace(task, dev=task.train[1::2]) for task in micro.tasks)
    return Stream("apart", tasks, micro.config)


class Noted(SEQ):
    """Remembers its weights after each epoch and at each task's end, and how many steps led there."""

    state = ("count",)
    count = 0

    def setup(self):
        self.ends, self.steps = {}, []

    def after_step(self, task):
        super().after_step(task)
        self.count += 1
        self.steps.append((task.index, self.count, snapshot(self.named())))

    def after_task(self, task):
        super().after_task(task)
        self.ends[task.index] = (self.count, snapshot(self.named()))


def scored(dev=(), train=()):
    """Scores that are given instead of measured: of each epoch of any task."""

    def score(self, split, at, task):
        return {"dev": dev, "train": train}[split][at.epoch]

    return mock.patch.object(early_stopping.Watch, "_score", score)


def events(made, kind):
    return [event for event in made.log.events if event["event"] == kind]


def test_the_next_task_starts_from_the_best_weights(tmp_path):
    with scored(dev=[0.1, 0.3, 0.2, 0.3, 0.25, 0.0]):
        made = tiny.run(tmp_path, tiny.make_config(**EACH, keep_best=True), stream(), Noted)
    first = [step for step in made.method.steps if step[0] == 0]
    assert len(first) == 18  # 3 steps an epoch: all epochs are learned
    count, weights = made.method.ends[0]
    assert count == 6 and tiny.same(weights, first[5][2])  # the second epoch; of equals the first
    assert made.method.steps[18][1] == 7  # the state of the method goes back too
    assert [event["epoch"] for event in events(made, "keep_best")] == [1, 1, 1]
    assert made.results["cost"]["train_visits"] == [72, 48, 60]


@pytest.mark.slow
def test_the_end_can_be_the_best_and_is_scored_between_intervals(tmp_path):
    options = EACH | {"evaluate_interval": 4, "training_epochs": 6}
    with scored(dev=[None, None, None, 0.5, None, 0.7]):
        made = tiny.run(tmp_path, tiny.make_config(**options, keep_best=True), stream(), Noted)
    plain = tiny.run(tmp_path / "plain", tiny.make_config(**options), stream(), Noted)
    assert not events(made, "keep_best")
    assert tiny.same(made.weights, plain.weights)
    assert made.results["R"] == plain.results["R"]


def test_less_can_be_better():
    config = tiny.make_config(**EACH, keep_best=True, metric_for_each_task=("jailbreak_rate",) * 3)
    session = tiny.make_session(config)
    seen = early_stopping.Watch(tiny.make_method(session, stream()), session, None)
    at, task = early_stopping.Progress(0, 0, 3, 3), tiny.make_task(epochs=4)
    for epoch, score in enumerate([0.5, 0.2, 0.4]):
        seen._compare(score, replace(at, epoch=epoch), task)
    assert (seen.state["best"], seen.state["epoch"], seen.state["since"]) == (0.2, 2, 1)


def test_patience(tmp_path):
    with scored(dev=[0.3, 0.3, 0.2, 0.9, 0.9, 0.9]):
        made = tiny.run(tmp_path, tiny.make_config(**EACH, early_stop_patience=2), stream(), Noted)
    stops = events(made, "early_stop")
    assert [(event["task"], event["epoch"]) for event in stops] == [(0, 2), (1, 2), (2, 2)]
    assert made.results["cost"]["train_visits"] == [36, 24, 30]
    assert made.results["cost"]["train_sequences"] == [36, 24, 30]
    assert made.log.step == 3 * (3 + 2 + 3)
    assert any("ended after 3 of 6 epochs: dev has not been better than 30.0" in text for text in made.log.messages)


def test_a_goal_on_the_training_questions_needs_no_dev(tmp_path):
    with scored(train=[0.5, 0.95, 1, 1, 1]):
        made = tiny.learn(tiny.make_config(**EACH, early_stop_accuracy=0.95))
    assert [event["epoch"] for event in events(made, "early_stop")] == [1, 1, 1]


def test_real_scores_are_measured_and_saved(tmp_path):
    config = tiny.make_config(**EACH | {"training_epochs": 3}, early_stop_accuracy=1.0, keep_best=True)
    made = tiny.run(tmp_path, config, stream())
    cells = {event["cell"] for event in events(made, "evaluate") if event["moment"] == "task_1_epoch_2"}
    assert cells == {"task_0", "task_1", "dev_task_1", "train_task_1"}
    assert (tmp_path / "predictions/task_1_epoch_2/dev_task_1.jsonl").is_file()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = tiny.make_config(
        **EACH, keep_best=True, early_stop_patience=3, save_llm_ckpt_step_interval=2, is_replay=True,
        Replay_update="step", Replay_sampling_algorithm="reservoir", Replay_buffer_size=6,
        backbone=tiny.backbone_folder(dropout=0.1),
    )  # fmt: skip
    with scored(dev=[0.1, 0.3, 0.2, 0.3, 0.25, 0.0]):
        cuts = {place: tmp_path / place for place in ("task_1_epoch_1_step_2", "task_1_epoch_3_step_2")}
        whole = tiny.run(tmp_path / "whole", config, stream(), Noted, cuts=cuts)
        assert len(events(whole, "early_stop")) == 3 and len(events(whole, "keep_best")) == 3
        for place in cuts:
            torch.manual_seed(5)
            resumed = tiny.run(tmp_path / place, config, stream(), Noted)
            assert tiny.same(whole.weights, resumed.weights), place
            assert whole.method.state_dict() == resumed.method.state_dict(), place
            assert whole.results["R"] == resumed.results["R"], place
            for key in ("train_visits", "train_sequences"):
                assert whole.results["cost"][key][2] == resumed.results["cost"][key][2], place


def test_impossible_options_are_refused():
    def problems(made=None, method=SEQ, **options):
        return watching_fits(tiny.plan(tiny.make_config(**EACH, **options), method, made or stream()))

    assert problems() == problems(keep_best=True, early_stop_accuracy=0.5) == []
    own = tiny.micro_stream()
    assert problems(own, early_stop_accuracy=0.9) == []
    assert problems(own, keep_best=True, early_stop_patience=1) == [
        "keep_best, early_stop_patience: the dev split of micro is its test split, which must not be used for selection"
    ]
    bare = Stream("bare", (stream().tasks[0], replace(stream().tasks[1], dev=())))
    assert problems(bare, early_stop_patience=1) == ["early_stop_patience: bare has no dev examples in task 1"]
    assert problems(method=ICL, early_stop_accuracy=0.5) == [
        "early_stop_accuracy: has no effect with method SEQ, which trains nothing"
    ]
    rates = ("exact_match", "exact_match", "jailbreak_rate")
    assert problems(early_stop_accuracy=0.5, metric_for_each_task=rates) == [
        "early_stop_accuracy: needs a metric where higher is better; got jailbreak_rate"
    ]


def test_the_newest_checkpoints_are_kept(tmp_path):
    config = tiny.make_config(save_llm_ckpt=True, save_total_limit=2, save_llm_ckpt_epoch_interval=1)
    tiny.run(tmp_path, config)
    assert [place.name for place in checkpoints(tmp_path / "checkpoints")] == ["task_2_epoch_1_step_3", "task_2"]
    state = read_json(tmp_path / "checkpoints/task_2/state.json")
    assert state["place"]["task"] == 2
