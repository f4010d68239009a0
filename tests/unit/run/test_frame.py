"""What the frame offers to methods: versions of the weights, a stepwise memory, nested training, views, cost."""

import random
import time
from dataclasses import replace

import pytest
import torch
import yaml

from models.Base import Method
from models.common.losses import answer_loss
from models.SEQ import SEQ
from tests import tiny
from utils.buffer import Memory
from utils.dataloader import collate
from utils.errors import UserError
from utils.model.weights import borrowed, snapshot
from utils.run import checkpoint
from utils.run.cost import kept_bytes
from utils.run.fit import fit
from utils.session import Progress
from utils.storage.files import read_jsonl, write_text

STEPWISE = {
    "is_replay": True,
    "Replay_update": "step",
    "Replay_sampling_algorithm": "reservoir",
    "Replay_buffer_size": 7,
}


class Averaged(SEQ):
    """Answers with the mean of the weights after each task; trains on from its own."""

    state = ("mean", "count")
    mean, count = {}, 0

    def after_task(self, task):
        super().after_task(task)
        now = snapshot(self.named())
        self.mean = {name: (self.count * self.mean.get(name, w) + w) / (self.count + 1) for name, w in now.items()}
        self.count += 1

    def versions(self):
        return {"": self.mean, "working": None} if self.count else {"": None}


@pytest.mark.slow
def test_versions_are_evaluated_and_the_answering_one_is_saved(tmp_path):
    made = tiny.run(tmp_path, tiny.make_config(training_epochs=8), None, Averaged)
    plain = tiny.run(tmp_path / "plain", tiny.make_config(training_epochs=8))
    assert tiny.same(made.weights, plain.weights)  # evaluating other weights changes nothing in training
    assert made.results["versions"] == {"working": plain.results["R"]}
    assert made.results["R"] != plain.results["R"]
    saved = tiny.make_method(tiny.make_session(tiny.make_config()))
    checkpoint.load_weights(saved.model, tmp_path / "checkpoints/task_2")
    assert tiny.same(snapshot(saved.named()), made.method.mean)


@pytest.mark.parametrize("place", tiny.quick(["task_1", "task_1_epoch_1_step_1"]))
@pytest.mark.slow
def test_a_resumed_run_trains_on_from_the_working_weights(tmp_path, place):
    config = tiny.make_config(save_llm_ckpt_step_interval=1)
    whole = tiny.run(tmp_path / "whole", config, None, Averaged, cuts={place: tmp_path / "cut"})
    resumed = tiny.run(tmp_path / "cut", config, None, Averaged)
    assert tiny.same(whole.weights, resumed.weights)
    for key in ("R", "versions"):
        assert resumed.results[key] == whole.results[key]


def test_a_stepwise_memory_sees_each_step_and_keeps_the_plan(tmp_path):
    steps = []

    class Watched(SEQ):
        def batch(self, examples, task, rng):
            rows = super().batch(examples, task, rng)
            steps.append((task.index, len(examples), len(rows)))
            return rows

    made = tiny.learn(tiny.make_config(**STEPWISE), None, Watched)
    memory = made.method.memory
    assert len(memory) == 7
    assert memory.seen == 2 * (12 + 8 + 10)  # presentations
    assert [new for task, new, _ in steps if task == 0] == [2] * 12  # 12 examples, 2 a step, 2 epochs
    assert steps[0][2] == 2 and steps[1][2] == 4  # nothing, then two remembered rows
    assert {rows for _, _, rows in steps[2:]} == {4}


@pytest.mark.slow
def test_a_stepwise_memory_is_resumed_in_the_middle_of_a_task(tmp_path):
    config = tiny.make_config(**STEPWISE, save_llm_ckpt_step_interval=1)
    whole = tiny.run(tmp_path / "whole", config, cuts={"task_0_epoch_0_step_3": tmp_path / "cut"})
    resumed = tiny.run(tmp_path / "cut", config)
    assert tiny.same(whole.weights, resumed.weights)
    assert whole.method.memory.state_dict() == resumed.method.memory.state_dict()


def test_the_reservoir_is_fair():
    """Every one of 12 examples is kept with chance 4/12; chi-square over 2000 seeded draws."""
    config = tiny.make_config(**STEPWISE | {"Replay_buffer_size": 4})
    counts, examples = dict.fromkeys(range(12), 0), tiny.micro_stream().tasks[0].train
    for seed in range(2000):
        memory, rng = Memory(config), random.Random(seed)
        for start in range(0, 12, 2):
            memory.update(examples[start : start + 2], rng, None)
        for row in memory.rows():
            counts[examples.index(replace(row, source="task"))] += 1
    expected = 2000 * 4 / 12
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 31.3  # 11 degrees of freedom, p = 0.001


def test_training_stops_at_its_limit():
    session = tiny.make_session(tiny.make_config())
    method, seen = tiny.make_method(session), []
    fit(method, tiny.make_task(epochs=4), session, on_step=lambda at, _: seen.append(at), limit=5)
    assert seen[-1] == Progress(0, 1, 2, 3) and [at.done for at in seen] == [1, 2, 3, 4, 5]
    again = tiny.make_method(session)
    fit(again, tiny.make_task(epochs=4), session, limit=5)
    assert tiny.same(snapshot(method.named()), snapshot(again.named()))


def test_views_and_sources_share_one_pass():
    """Terms over parts of a batch add up to the terms of batches of those parts."""
    session = tiny.make_session(tiny.make_config())
    method = tiny.make_method(session)
    plain = list(tiny.micro_stream().tasks[0].train[:6])
    examples = [*plain[:3], *(replace(e, source="pseudo") for e in plain[3:])]
    examples += [replace(e, view="lm") for e in examples]
    batch = collate(session.encoder(examples, None), examples, method.backbone.pad_id)
    logits = tiny.teacher_logits(method, {}, batch)
    labels = batch.labels[:, -logits.shape[1] :]
    for source, view in (("task", "lm"), ("pseudo", "answer"), ("pseudo", None), (None, "lm")):
        rows = batch.rows(source, view)
        kind = " ".join(word for word in (source, view) if word)
        part = [examples[i] for i in rows]
        alone = collate(session.encoder(part, None), part, method.backbone.pad_id)
        expected = method.loss(method.model, alone, tiny.make_task())["answer"]
        found = answer_loss(logits[rows], labels[rows], batch.tokens[kind])
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_format_of_its_own_replaces_the_prompt():
    session = tiny.make_session(tiny.make_config())
    session.encoder.render = lambda example: (f"<{example.view}>", f" {example.target}!")
    row = session.encoder([tiny.micro_stream().tasks[0].train[0]], None)[0]
    text = session.encoder.tokenizer.decode([*row.prompt, *row.answer])
    assert text == "<answer> meow!<eos>"


def test_a_teacher_is_not_disturbed_by_dropout_nor_disturbs():
    session = tiny.make_session(tiny.make_config(backbone=tiny.backbone_folder(dropout=0.5)))
    method = tiny.make_method(session)
    method.model.train()
    teacher = {name: w + 0.1 for name, w in snapshot(method.named()).items()}
    examples = list(tiny.micro_stream().tasks[0].train[:3])
    batch = collate(session.encoder(examples, None), examples, method.backbone.pad_id)
    before = snapshot(method.named())
    first, second = (tiny.teacher_logits(method, teacher, batch) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    with borrowed(method.named(), teacher):
        assert not torch.equal(first, tiny.teacher_logits(method, before, batch))
    assert tiny.same(before, snapshot(method.named())) and method.model.training


def test_passes_and_sizes_are_counted(tmp_path):
    class Doubled(SEQ):
        """Reads each batch twice, and keeps a tensor of 100 numbers."""

        state = ("kept",)
        kept = torch.zeros(100)

        def loss(self, model, batch, task):
            self.teacher_scores({}, batch)
            return super().loss(model, batch, task)

    options = {"training_epochs": 2, "evaluation_mode": "generate"}
    once = tiny.run(tmp_path / "once", tiny.make_config(**options)).results["cost"]
    twice = tiny.run(tmp_path / "twice", tiny.make_config(**options), None, Doubled).results["cost"]
    assert once["train_visits"] == once["train_sequences"] == [24, 16, 20]
    assert twice["train_sequences"] == [48, 32, 40]
    assert twice["train_tokens"] == [2 * n for n in once["train_tokens"]] and min(once["train_tokens"]) > 0
    assert once["evaluate_examples"] == once["evaluate_sequences"] == [6, 10, 15]
    total = sum(w.numel() for w in tiny.make_model().parameters())
    assert once["stored_parameters"] == once["trainable_parameters"] == [total] * 3
    assert all(b - a > 400 for a, b in zip(once["kept_bytes"], twice["kept_bytes"], strict=True))
    assert kept_bytes({"w": torch.zeros(3, dtype=torch.bfloat16)}) < kept_bytes({"w": torch.zeros(3)})


def test_base_method_refuses_nothing():
    assert Method.problems(tiny.make_config(), None, tiny.micro_stream()) == []


def test_predictions_of_versions_have_folders_of_their_own(tmp_path):
    tiny.run(tmp_path, tiny.make_config(), None, Averaged)
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert names == {"base", "after_0", "after_1", "after_2", "after_0_working", "after_1_working", "after_2_working"}
    assert len(read_jsonl(tmp_path / "predictions/after_2_working/task_0.jsonl")) == 6


def test_group_by_length_changes_the_order_and_the_results_say_so(tmp_path):
    made = {}
    for grouped in (False, True):
        config = tiny.make_config(group_by_length=grouped, info_per_steps=1)
        folder = tmp_path / str(grouped)
        folder.mkdir()
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json")))
        made[grouped] = tiny.run(folder, config).losses
        assert ("group_by_length" in (folder / "results.md").read_text(encoding="utf-8")) == grouped
    assert made[False] != made[True]
    table = tiny.compare([tmp_path / "False", tmp_path / "True"])
    assert "group_by_length" in table


def test_logged_losses_do_not_depend_on_the_parts_of_a_step(tmp_path):
    whole, parts = (
        tiny.learn(tiny.make_config(gradient_accumulation_steps=n, info_per_steps=1)).losses for n in (1, 4)
    )
    assert len(whole) > 4
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_training(value):
    class Broken(SEQ):
        def loss(self, model, batch, task):
            return {"answer": super().loss(model, batch, task)["answer"] * 0 + value}

    session = tiny.make_session(tiny.make_config())
    with pytest.raises(UserError, match=rf"not finite in task 0 \(micro 0\), epoch 0, step 1: answer = {value:g}"):
        fit(tiny.make_method(session, method_class=Broken), tiny.make_task(), session)


def test_the_logged_speed_is_that_of_the_steps_of_the_window():
    session = tiny.make_session(tiny.make_config(info_per_steps=2))
    method, task, start = tiny.make_method(session), tiny.make_task(), time.monotonic()
    fit(method, task, session)
    elapsed, windows = time.monotonic() - start, [e for e in session.log.events if e["event"] == "train"]
    seconds = [steps * e["seconds_per_step"] for steps, e in zip((2, 1), windows, strict=True)]
    assert 0 < sum(seconds) <= elapsed
    tokens = sum(s * e["tokens_per_second"] for s, e in zip(seconds, windows, strict=True))
    assert tokens == pytest.approx(sum(session.encoder.lengths(task.train)))
