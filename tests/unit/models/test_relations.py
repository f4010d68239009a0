"""Relations between runs, which catch errors that no single number shows."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from models.GainLoRA import GainLoRA
from models.SEQ import SEQ
from tests import tiny
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.model.freeze import select
from utils.options.parse import resolve
from utils.report import summary
from utils.run import checkpoint, tasks
from utils.run import cost as cost_module
from utils.run import fit as fit_module
from utils.run.fit import fit
from utils.session import Session

FAST = {"is_evaluate_init": False, "training_epochs": 1}


@pytest.fixture
def scored(tmp_path):
    """A run of the micro stream with these options, in a separate folder."""
    count = iter(range(100))

    def runner(stream=None, **options):
        return tiny.run(tmp_path / str(next(count)), tiny.make_config(**FAST | options), stream)

    return runner


def trained(method_class=None, stream=None, **options):
    """Training with these options, without evaluation."""
    return tiny.learn(tiny.make_config(**FAST | options), stream, method_class)


@pytest.fixture
def watched():
    """Train with a method and note the rows of every step, by task, and the start and end of every task."""

    def runner(method="SEQ", **options):
        from utils.factory import load_method

        class Watched(load_method(method)):
            steps, start, end, epoch_examples = {}, {}, {}, {}

            def train_examples(self, task):
                rows = super().train_examples(task)
                self.epoch_examples[task.index] = list(rows)
                return rows

            def trainable(self, task):
                self.start[task.index] = tiny.snapshot(self)
                return super().trainable(task)

            def batch(self, examples, task, rng):
                rows = super().batch(examples, task, rng)
                self.steps.setdefault(task.index, []).append(list(rows))
                return rows

            def after_task(self, task):
                self.end[task.index] = tiny.snapshot(self)
                super().after_task(task)

        trained(Watched, method=method, **options)
        return Watched

    return runner


def sources(rows):
    return [row.source for row in rows]


def test_replay_in_the_batch_keeps_its_size(watched):
    seen = watched(is_replay=True, Replay_buffer_ratio=0.5, batch_size=5)
    sizes = (12, 8, 10)
    assert sorted(len(rows) for rows in seen.steps[0]) == [2, 5, 5]
    for task in (1, 2):
        steps = seen.steps[task]
        assert len(steps) == math.ceil(sizes[task] / 3)  # 5 - 5 // 2 new ones in each step
        full = [rows for rows in steps if len(rows) == 5]
        assert len(full) >= len(steps) - 1
        for rows in steps:
            assert sources(rows).count("memory") == 2
            assert len(set(rows)) == len(rows)
            assert {row.task for row in rows if row.source == "memory"} <= set(range(task))
        new = [row for rows in steps for row in rows if row.source == "task"]
        assert sorted(row.input for row in new) == sorted(row.input for row in tiny.micro_stream().tasks[task].train)
    assert len({row.input for rows in seen.steps[2] for row in rows if row.source == "memory"}) > 2  # drawn anew


def test_a_memory_smaller_than_half_a_batch_makes_room_for_new_examples(watched):
    seen = watched(is_replay=True, Replay_buffer_size=1, batch_size=6)
    assert sorted(map(len, seen.steps[1])) == [4, 6]  # 8 new ones: 5 + 3, and the remembered one in each step
    assert all(sources(rows).count("memory") == 1 for rows in seen.steps[1])


def test_replay_in_the_epoch_joins_the_whole_memory(watched):
    seen = watched(is_replay=True, Replay_buffer_ratio=0.5, Replay_batch_level=False)
    for task, old in ((0, 0), (1, 6), (2, 10)):
        new = tiny.micro_stream().tasks[task].train
        rows = [row for step in seen.steps[task] for row in step]
        assert sources(rows).count("memory") == old
        assert len(rows) == len(new) + old == len(set(rows))
        assert len(seen.steps[task]) == math.ceil((len(new) + old) / 4)


def test_replay_changes_training():
    assert not tiny.same(trained().weights, trained(is_replay=True, Replay_buffer_ratio=0.5).weights)


def test_herding_runs_on_the_model_s_own_features():
    made = trained(is_replay=True, Replay_buffer_ratio=0.25, Replay_sampling_algorithm="herding")
    assert len(made.method.memory) == 3 + 2 + 2


def test_features_are_of_prompts_cut_as_in_training(tmp_path):
    """A prompt longer than the model has positions is cut, not a crash; padding and batches do not matter."""
    config = tiny.make_config(backbone=tiny.backbone_folder("gpt2"), evaluate_batch_size=3)
    method = tiny.make_method(tiny.make_session(config))
    examples = [Example("cow " * 400, "moo"), *tiny.micro_stream().tasks[0].train]
    found = method.features(examples, 20)
    assert found.shape == (13, 32)
    for row, example in zip(found, examples, strict=True):
        assert row == pytest.approx(method.features([example], 20)[0], abs=1e-4)
    assert found[1] == pytest.approx(method.features([replace(examples[1], target="other")], 20)[0], abs=1e-4)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_frozen_parts_are_constant_from_their_task_on_and_not_before(watched, start):
    parts = ("embeddings", "layers 1", "attention 0")
    seen = watched(freeze_parts=parts, freeze_from_task=start, weight_decay=0.1, keep_optimizer_state=True)
    frozen = select(tiny.make_model(), parts)
    for task in range(3):
        moved = {name for name, w in seen.end[task].items() if not torch.equal(w, seen.start[task][name])}
        if task >= start:
            assert not moved & frozen
            assert moved == set(seen.end[task]) - frozen
        else:
            assert frozen <= moved


def test_freezing_everything_is_an_error():
    parts = ("embeddings", "layers 0-1", "final_layer_norm", "head")
    with pytest.raises(UserError, match="nothing is left to train; freeze less"):
        trained(freeze_parts=parts, freeze_from_task=0)


def test_frozen_parts_have_no_gradients_and_no_moments(tmp_path):
    options = {"freeze_parts": ("layers 0", "embeddings"), "freeze_from_task": 0, "keep_optimizer_state": True}
    session = tiny.make_session(tiny.make_config(**options))
    method, sizes = tiny.make_method(session), []

    def look(*_):
        sizes.append({name for name, w in method.model.named_parameters() if w.grad is not None})

    with mock.patch.object(SEQ, "on_gradients", look):
        moments = fit(method, tiny.make_task(), session)
    frozen = select(method.model, ("layers 0", "embeddings"))
    assert sizes
    assert not any(names & frozen for names in sizes)
    assert {name.removeprefix("model.") for name in moments} == {n for n, _ in method.model.named_parameters()} - frozen


def test_joint_starts_from_the_first_weights_and_trains_on_the_union(watched):
    seen = watched("Joint")
    first = tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config("Joint"))))
    assert all(tiny.same(seen.start[task], first) for task in range(3))
    tasks = tiny.micro_stream().tasks
    for task in range(3):
        rows = [row for step in seen.steps[task] for row in step]
        union = [row for data in tasks[: task + 1] for row in data.train]
        assert sorted(map(str, rows)) == sorted(map(str, union))


def test_single_starts_from_the_first_weights_and_trains_on_one_task(watched):
    seen = watched("Single")
    first = tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config("Single"))))
    assert all(tiny.same(seen.start[task], first) for task in range(3))
    for task, data in enumerate(tiny.micro_stream().tasks):
        rows = [row for step in seen.steps[task] for row in step]
        assert sorted(map(str, rows)) == sorted(map(str, data.train))


def test_the_only_task_is_the_same_for_all_references():
    stream = tiny.micro_stream(1)
    single, joint, seq = (trained(stream=stream, method=name) for name in ("Single", "Joint", "SEQ"))
    assert tiny.same(single.weights, seq.weights)
    assert tiny.same(joint.weights, seq.weights)


@pytest.mark.parametrize("name", ["Joint", "Single"])
def test_a_reference_with_random_weights_starts_from_the_same_ones(watched, name):
    seen = watched(name, backbone_random_init=True)
    assert tiny.same(seen.start[0], seen.start[1])
    assert tiny.same(seen.start[0], seen.start[2])


def test_the_first_task_is_the_same_for_joint_and_seq(watched):
    assert tiny.same(watched("Joint").end[0], watched("SEQ").end[0])


def test_carrying_the_optimizer_on_matters_from_the_second_task(watched):
    fresh, kept = watched(), watched(keep_optimizer_state=True)
    assert tiny.same(fresh.end[0], kept.end[0])
    assert not tiny.same(fresh.end[1], kept.end[1])


def test_carried_moments_are_those_of_one_long_optimizer(tmp_path):
    """Two tasks with carried moments are two epochs of one AdamW, step count included."""
    session = tiny.make_session(tiny.make_config(keep_optimizer_state=True))
    method, moments = tiny.make_method(session), {}
    for index in range(2):
        moments = fit(method, tiny.make_task(index), session, None, moments)
    assert {int(tensors["step"]) for tensors in moments.values()} == {3 + 2}


def test_evaluation_does_not_change_training(scored):
    dropout = {"backbone": tiny.backbone_folder(dropout=0.1), "training_epochs": 2}
    plain = scored(**dropout)
    often = {"evaluate_interval": 1, "is_evaluate_init": True, "evaluate_unseen": True, "info_per_steps": 1}
    often |= {"save_llm_ckpt": True, "save_llm_ckpt_step_interval": 3}
    for options in (often, {"evaluation_mode": "generate", "evaluate_batch_size": 1}):
        looked = scored(**dropout | options)
        assert tiny.same(plain.weights, looked.weights), options
        assert plain.results["R"] == [[v if j <= i else None for j, v in enumerate(r)]
                                      for i, r in enumerate(looked.results["R"])], options  # fmt: skip


def test_a_learning_rate_of_0_leaves_the_weights():
    made = trained(lr=0.0, weight_decay=0.0)
    assert tiny.same(made.weights, tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config()))))


def test_no_epochs_leave_the_weights(scored):
    made = scored(training_epochs=0)
    assert tiny.same(made.weights, tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config()))))
    assert all(row[i] is not None for i, row in enumerate(made.results["R"]))


def test_epochs_per_task(watched):
    for options, expected in (
        ({"training_epochs": 1, "training_epochs_first_task": 2}, [6, 2, 3]),
        ({"training_epochs_list": (0, 3, 1), "training_epochs_first_task": 2}, [0, 6, 3]),
        ({"training_epochs_first_task": 0}, [0, 2, 3]),
    ):
        seen = watched(**options)
        assert [len(seen.steps.get(task, [])) for task in range(3)] == expected


def test_epochs_differ_in_their_order(watched):
    steps = watched(training_epochs=3).steps[0]
    epochs = [steps[i : i + 3] for i in (0, 3, 6)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(len({row for step in epoch for row in step}) == 12 for epoch in epochs)
    assert len({frozenset(step) for epoch in epochs for step in epoch}) > 3  # batches are mixed anew


def test_the_order_and_source_of_options_do_not_change_a_run(tmp_path):
    lines = ["lr: 3e-3", "batch_size: 4", "seed: 5", "training_epochs: 1", f"backbone: {tiny.backbone_folder()}"]
    configs = []
    for k, text in enumerate(("\n".join(lines), "\n".join(reversed(lines)))):
        (tmp_path / f"{k}.yaml").write_text(text, encoding="utf-8")
        configs.append(resolve(["--cfg", str(tmp_path / f"{k}.yaml"), "--wandb_name", "x"]).config)
    first, second = (c.model_copy(update={"cfg": None}) for c in configs)
    assert first == second
    made = [trained(**{name: getattr(c, name) for name in ("lr", "batch_size", "seed")}) for c in (first, second)]
    assert tiny.same(made[0].weights, made[1].weights)


def disjoint(stream):
    """The stream with test questions that are no training questions."""

    def split(task: TaskData) -> TaskData:
        test = tuple(replace(e, input=f"{e.input} test") for e in task.train[:3])
        return replace(task, dev=test, test=test)

    return Stream(stream.name, tuple(map(split, stream.tasks)), stream.config)


def test_recovery_trains_on_training_examples_alone_and_changes_no_other_number(scored):
    stream, fitted = disjoint(tiny.micro_stream()), []
    plain = scored(stream=stream)

    def spy(session, method, task, **options):
        fitted.append((task, list(method.train_examples(task)), type(method), method.config))
        return fit(method, task, session, **options)

    with mock.patch.object(Session, "fit", spy):
        made = scored(stream=stream, recovery=True, recovery_ratio=0.25, recovery_epochs=2, is_replay=True,
                       Replay_buffer_ratio=0.01, freeze_parts=("layers 0",))  # fmt: skip
    task, rows, kind, config = fitted[-1]
    assert rows == list(stream.tasks[0].train[:3])
    assert task.epochs == 2
    assert kind is not SEQ
    assert not config.is_replay
    assert config.freeze_parts == ()
    assert len(fitted) == 4
    tested = {row.input for data in stream.tasks for row in data.test}
    assert not any(row.input in tested for _, rows, _, _ in fitted for row in rows)
    again = scored(stream=stream, freeze_parts=("layers 0",))
    assert made.results["R"] == again.results["R"]
    assert made.results["recovery"]["before"] == made.results["R"][2][0]
    assert plain.results["recovery"] is None


def test_recovery_is_not_in_the_checkpoint(tmp_path):
    from transformers import AutoModelForCausalLM

    made = tiny.run(tmp_path, tiny.make_config(**FAST, recovery=True))
    plain = tmp_path / "plain"
    plain.mkdir()
    without = tiny.run(plain, tiny.make_config(**FAST))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints/task_2")
    assert tiny.same(dict(saved.named_parameters()), without.weights)
    assert not tiny.same(made.weights, without.weights)


def test_learning_and_forgetting_are_seen_in_the_matrix(scored):
    """What was just learned is known; sequential training forgets the rest, training on all does not."""
    options = {"training_epochs": 25, "batch_size": 12, "lr": 2e-2, "stream": tiny.micro_stream(2)}
    seq, joint = scored(**options).results["R"], scored(**options, method="Joint").results["R"]
    assert seq[0][0] == seq[1][1] == 1.0
    assert seq[1][0] < 0.5
    assert joint[1][0] == joint[1][1] == 1.0


@pytest.mark.parametrize("limit", [0.5, None])
def test_clipping_limits_the_norm_of_the_whole_gradient(tmp_path, limit):
    session = tiny.make_session(tiny.make_config(max_grad_norm=limit))
    method, norms, step = tiny.make_method(session), [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [w.grad for group in self.param_groups for w in group["params"] if w.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, *args, **kwargs)

    with mock.patch.object(torch.optim.AdamW, "step", spy):
        fit(method, tiny.make_task(), session)
    if limit:
        assert norms == pytest.approx([limit] * len(norms), rel=1e-4)
    else:
        assert min(norms) > 0.5


def test_no_gradient_is_left_from_step_to_step(tmp_path):
    session = tiny.make_session(tiny.make_config(gradient_accumulation_steps=2))
    method, start = tiny.make_method(session), []

    def loss(model, batch, task):
        start.append(all(w.grad is None or not w.grad.any() for w in model.parameters()))
        return SEQ.loss(method, model, batch, task)

    with mock.patch.object(method, "loss", loss):
        fit(method, tiny.make_task(), session)
    assert start == [True, False] * 3


def test_a_step_of_the_loop_is_a_step_by_hand(tmp_path):
    """One step over twelve rows in three parts, against the mean over all answer tokens and AdamW."""
    config = tiny.make_config(batch_size=12, gradient_accumulation_steps=3, lr=1e-2, weight_decay=0.1)
    session = tiny.make_session(config)
    ours, plain = tiny.make_method(session), tiny.make_method(session)
    seen = {}

    def look(*_):
        seen.update({name: w.grad.clone() for name, w in ours.model.named_parameters()})

    with mock.patch.object(SEQ, "on_gradients", look):
        fit(ours, tiny.make_task(), session)
    model = plain.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, eps=config.adam_epsilon, fused=True)
    total, tokens = 0.0, 0
    for row in session.encoder(tiny.micro_stream().tasks[0].train, None):
        ids = torch.tensor([[*row.prompt, *row.answer]])
        labels = ids.clone()
        labels[:, : len(row.prompt)] = -100
        total = total + model(input_ids=ids, labels=labels).loss * len(row.answer)
        tokens += len(row.answer)
    (total / tokens).backward()
    for name, w in model.named_parameters():
        assert torch.allclose(w.grad, seen[name], rtol=1e-4, atol=1e-7), name
        w.grad = seen[name]  # the first step is lr * sign(gradient): rounding would decide where it is nearly 0
    optimizer.step()
    assert tiny.same(tiny.snapshot(plain), tiny.snapshot(ours))


def test_the_schedule_spans_a_task(tmp_path):
    rates = []
    config = tiny.make_config(lr_scheduler="linear", lr=1.0, warmup_ratio=0.34, info_per_steps=1, training_epochs=2)
    session = tiny.make_session(config)
    method = tiny.make_method(session)
    with mock.patch.object(fit_module, "set_learning_rate", lambda *a: rates.append(a[2:]) or 1e-5):
        fit(method, tiny.make_task(epochs=2), session)
    assert rates == [(step, 6) for step in range(6)]


def test_cost_counts_what_was_done(scored):
    cost = scored(
        freeze_parts=("layers 0",), is_replay=True, Replay_buffer_ratio=0.5, Replay_batch_level=False
    ).results["cost"]
    net = tiny.make_model()
    total = sum(w.numel() for w in net.parameters())
    frozen = sum(w.numel() for n, w in net.named_parameters() if n in select(net, ("layers 0",)))
    assert cost["trainable_parameters"] == [total, total - frozen, total - frozen]
    assert cost["train_examples"] == [12, 8 + 6, 10 + 10]
    assert all(seconds > 0 for seconds in [*cost["train_seconds"], cost["evaluate_seconds"]])


@pytest.mark.slow
def test_gainlora_with_one_task_and_an_open_gate_is_one_lora():
    class Opened(GainLoRA):
        def _open(self, p):
            self.gains = [p.new_ones(len(p))]

    options = {"stream": tiny.micro_stream(1), "PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0}
    plain = trained(method="OLoRA", **options).weights
    opened = tiny.learn(
        tiny.make_config(method="GainLoRA", **FAST), options["stream"], Opened, GainLoRA_branch="OLoRA"
    ).weights
    assert all(torch.equal(w, opened[name]) for name, w in plain.items())


@pytest.mark.slow
def test_treelora_without_weight_is_sequential_fine_tuning_of_the_lora():
    lora = {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.1}
    plain = trained(method="SEQ", **lora).weights
    assert tiny.same(plain, tiny.learn(tiny.make_config("TreeLoRA", **FAST | lora), TreeLoRA_lambda=0.0).weights)


@pytest.fixture
def slow(monkeypatch):
    """Makes a call take an hour, on a clock on which everything else takes no time."""
    now = [0.0]

    def hour(call, *args, **options):
        now[0] += 3600
        return call(*args, **options)

    monkeypatch.setattr(cost_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return lambda module, name: monkeypatch.setattr(module, name, partial(hour, getattr(module, name)))


def test_evaluating_inside_a_task_is_not_training_time(scored, slow):
    slow(tasks, "evaluate")
    cost = scored(evaluate_interval=1, training_epochs=2, stream=tiny.micro_stream(1)).results["cost"]
    assert cost["train_seconds"] == [0] and cost["evaluate_seconds"] == 3 * 3600


def test_checkpoints_and_reports_are_neither_training_nor_evaluation(scored, slow):
    slow(checkpoint, "save")
    slow(summary, "write")
    cost = scored(save_llm_ckpt_step_interval=3, stream=tiny.micro_stream(2)).results["cost"]
    assert cost["train_seconds"] == [0, 0] and cost["evaluate_seconds"] == 0
