"""The contract of every method; no method is named here."""

import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from models.Base import Method, Setting
from tests import tiny
from utils import backbone
from utils.dataset import save_stream
from utils.distributed import replicated
from utils.evaluation import Cell, predict
from utils.factory import check_capability, load_method
from utils.model.adapters import innermost
from utils.options.checks import check
from utils.options.parse import ConfigError, resolve
from utils.run import checkpoint
from utils.run.fit import DivergedError, fit
from utils.run.plan.memory import PASS, memory_of
from utils.storage.files import read_jsonl
from utils.wrapmodel import Step

pytestmark = pytest.mark.parametrize("name", tiny.one_of_each_kind())
CUTS = ("task_0_epoch_2_step_2", "task_2_epoch_0_step_2", "task_1")
# Dropout, so that random states count; decay and carried moments, so that a frozen weight in the optimizer would move.
OPTIONS = {
    "training_epochs": 2, "training_epochs_first_task": 4, "info_per_steps": 1, "save_llm_ckpt_step_interval": 2,
    "weight_decay": 0.1, "keep_optimizer_state": True, "freeze_parts": ("embeddings", "layers 0"),
    "freeze_from_task": 1,
}  # fmt: skip


def slow(value):
    """A case for the long run of the tests."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run of a method, made once, with what was seen in it and folders as a power failure left."""
    made = {}

    def maker(name):
        if name not in made:
            made[name] = watched_run(name, tmp_path_factory.mktemp("reference"))
        return made[name]

    return maker


def watched_run(name, folder):
    lists = {key: [] for key in ("terms", "inside", "moved", "trainable", "frozen")}
    seen = SimpleNamespace(folder=folder / "whole", chosen={}, **lists)
    optimizers, make = [], replicated.make_optimizer

    def modules(self):
        return [*self.model.named_parameters(), *self.extra.named_parameters(prefix="extra")]

    def forward(self, *args, original=Step.forward):
        terms = original(self, *args)
        if type(self._method) is kind:  # not its teacher
            seen.terms.append({key: value.detach() for key, value in terms.items()})
        return terms

    def trainable(self, original, task):
        groups = original(task)
        if task.index not in seen.chosen:  # some methods ask again
            self.start = tiny.snapshot(self)
        seen.chosen[task.index] = [id(w) for group in groups for w in group.parameters]
        return groups

    def after_task(self, original, task):
        seen.inside.append([id(w) for group in optimizers[-1].param_groups for w in group["params"]])
        seen.trainable.append({key: id(w) for key, w in modules(self) if w.requires_grad})
        seen.frozen.append({key for key, w in modules(self) if not w.requires_grad})
        seen.moved.append({key for key, w in modules(self) if not torch.equal(w, self.start[key])})
        original(task)

    trains = load_method(name).trains
    seen.cuts = {place: folder / place for place in CUTS if trains or "epoch" not in place}
    kind = spied(name, trainable=trainable, after_task=after_task) if trains else None
    with (
        mock.patch.object(replicated, "make_optimizer", lambda *a: optimizers.append(make(*a)) or optimizers[-1]),
        mock.patch.object(Step, "forward", forward),
    ):
        seen.run = tiny.run(seen.folder, config_of(name), None, kind, seen.cuts)
    return seen


def config_of(name, **options):
    return tiny.make_config(name, backbone=tiny.backbone_folder(dropout=0.1), **OPTIONS | options)


def spied(name, **hooks):
    """The method's class with some hooks replaced; each gets the method and a function that does the original."""

    def replaced(hook, action):
        def call(self, *args):
            return action(self, lambda *a: getattr(super(made, self), hook)(*a), *args)

        return call

    made = type(name, (load_method(name),), {hook: replaced(hook, action) for hook, action in hooks.items()})
    return made


def predictions(folder):
    return {str(path.relative_to(folder)): read_jsonl(path) for path in (folder / "predictions").rglob("*.jsonl")}


def skip_without_training(name):
    if not load_method(name).trains:
        pytest.skip("this method trains nothing")


def test_learns_three_tasks_with_finite_named_terms(name, reference):
    skip_without_training(name)
    made, seen = reference(name).run, reference(name).terms
    assert seen
    for terms in seen:
        assert terms
        assert all(isinstance(key, str) and key for key in terms)
        assert all(value.shape == () and torch.isfinite(value) for value in terms.values())
    assert len(made.losses) == len(seen) == made.log.step
    for event, terms in zip((e for e in made.log.events if e["event"] == "train"), seen, strict=True):
        assert event["loss"] == pytest.approx(sum(value.item() for value in terms.values()), rel=1e-5)
        assert {f"loss/{key}" for key in terms} == {key for key in event if key.startswith("loss/")}
    first = [event["loss"] for event in made.log.events if event["event"] == "train" and event["task"] == 0]
    assert sum(first[-3:]) < sum(first[:3])


def test_frozen_parameters_do_not_change(name, reference):
    """Weight decay, and momentum from an earlier task, would move it if it were in the optimizer."""
    skip_without_training(name)
    seen, parts = reference(name), ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.dense.weight")
    assert len(seen.moved) == 3
    for inside, chosen, learning in zip(seen.inside, seen.chosen.values(), seen.trainable, strict=True):
        assert len(inside) == len(set(inside))
        assert set(inside) == set(chosen) == set(learning.values())
    for moved, learning in zip(seen.moved, seen.trainable, strict=True):
        assert moved and moved <= learning.keys()
    for frozen in seen.frozen[1:]:
        for part in parts:
            assert any(key.endswith(part) for key in frozen)  # adapters put something before the names


@pytest.mark.slow
def test_repeats_itself_exactly(name, reference, tmp_path):
    first, folder = reference(name).run, reference(name).folder
    second = tiny.run(tmp_path, config_of(name))
    assert tiny.same(first.weights, second.weights)
    assert first.losses == second.losses
    assert predictions(folder) == predictions(tmp_path)
    for key in ("R", "base", "summary"):
        assert first.results[key] == second.results[key]


@pytest.mark.slow
def test_another_seed_is_another_run(name, reference):
    skip_without_training(name)
    other, made = tiny.learn(config_of(name, seed=0)), reference(name).run
    assert not tiny.same(made.weights, other.weights)
    assert made.losses != other.losses


@pytest.mark.parametrize("place", [slow(CUTS[0]), CUTS[1], slow(CUTS[2])])
def test_a_resumed_run_equals_an_uninterrupted_one(name, reference, place):
    if "epoch" in place:
        skip_without_training(name)
    whole, folder, cut = reference(name).run, reference(name).folder, reference(name).cuts[place]
    assert not (cut / "predictions/after_2").exists()
    torch.manual_seed(999)  # whatever the new process has drawn
    resumed = tiny.run(cut, config_of(name))
    assert tiny.same(whole.weights, resumed.weights)
    assert predictions(cut) == predictions(folder)
    for key in ("R", "base", "summary"):
        assert resumed.results[key] == whole.results[key]
    for key in ("train_examples", "trainable_parameters"):
        assert resumed.results["cost"][key] == whole.results["cost"][key]
    assert resumed.log.step == whole.log.step
    assert resumed.losses == whole.losses[len(whole.losses) - len(resumed.losses) :]


@pytest.mark.slow
def test_accumulated_parts_are_one_big_batch(name):
    """A large epsilon keeps AdamW's update in proportion to the gradient, so rounding is not blown up."""
    skip_without_training(name)
    options = {"adam_epsilon": 1.0, "lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
    options |= {"info_per_steps": 1, "training_epochs": 1}
    made = []
    for count in (1, 3):  # 4 rows make parts of 2, 1 and 1; the last 2 of task 2 leave one part empty
        made.append(tiny.learn(tiny.make_config(name, **options, gradient_accumulation_steps=count)))
    whole, cut = (run.weights for run in made)
    start = tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config(name))))
    assert len(made[0].losses) == len(made[1].losses)
    assert made[1].losses == pytest.approx(made[0].losses, rel=1e-4)
    for key in whole:
        moved = (whole[key] - start.get(key, 0)).abs().max()  # 0: made for a later task
        assert torch.allclose(whole[key], cut[key], rtol=1e-5, atol=1e-4 * moved.item() + 1e-7), key


@pytest.mark.parametrize("unseen", [False, slow(True)])
def test_the_matrix_has_exactly_the_cells_that_were_evaluated(name, reference, tmp_path, unseen):
    short = {"evaluate_unseen": True, "training_epochs": 1, "training_epochs_first_task": 1}
    made = tiny.run(tmp_path, config_of(name, **short)) if unseen else reference(name).run
    for i, row in enumerate(made.results["R"]):
        assert [value is not None for value in row] == [unseen or j <= i for j in range(3)]
        assert all(value is None or (0 <= value <= 1 and math.isfinite(value)) for value in row)
    assert [value is not None for value in made.results["base"]] == [True] * 3
    folder = tmp_path if unseen else reference(name).folder
    for key, rows in predictions(folder).items():
        task = int(key.split("task_")[-1].split(".")[0])
        assert [row["target"] for row in rows] == [e.target for e in tiny.micro_stream().tasks[task].test], key


def test_a_non_finite_loss_stops_before_anything_is_saved(name, tmp_path):
    skip_without_training(name)
    kept = {}

    def loss(self, original, model, batch, task):
        terms = original(model, batch, task)
        first = next(iter(terms))
        if task.index == 1 and kept.get("steps") == 1:
            terms[first] = terms[first] * math.inf * 0
        return terms

    def after_step(self, original, task):
        original(task)
        kept["steps"] = kept.get("steps", 0) + 1 if task.index == 1 else 0
        kept["most"] = max(kept.get("most", 0), kept["steps"])

    config = tiny.make_config(
        name, training_epochs=1, is_evaluate_init=False, save_llm_ckpt_step_interval=1, save_llm_ckpt=True
    )
    with pytest.raises(DivergedError) as caught:
        tiny.run(tmp_path, config, None, spied(name, loss=loss, after_step=after_step))
    text = str(caught.value)
    assert text.startswith("the loss is not finite in task 1 (micro 1), epoch 0, step 2: ")
    assert "= nan" in text
    assert "\n" not in text
    assert kept["most"] <= 3, "training continued"
    saved = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    assert (saved.task, saved.epoch, saved.step) == (1, 0, 1)  # what was learned before is not lost


@pytest.mark.parametrize("training", [True, slow(False)])
def test_predict_leaves_mode_and_weights(name, tmp_path, training):
    session = tiny.make_session(tiny.make_config(name))
    method = tiny.make_method(session)
    method.before_task(tiny.make_task())
    fit(method, tiny.make_task(), session)
    before = tiny.snapshot(method)
    examples = tiny.micro_stream().tasks[0].test
    method.model.train(training)
    predict(method, session, Cell(tmp_path / "x.jsonl", 0, examples, "exact_match", 48, 4))
    assert method.model.training is training
    rows = session.encoder.for_prediction(examples, 48)
    method.model.eval()
    answers = method.predict(rows, 0 if session.config.il_mode == "TIL" else None, 4)
    assert len(answers) == len(rows)
    assert all(isinstance(answer, str) for answer in answers)
    assert not method.model.training
    assert tiny.same(before, tiny.snapshot(method))


@pytest.mark.parametrize("il_mode", ["TIL", slow("IIL"), slow("CIL")])
def test_the_task_is_known_in_til_alone(name, tmp_path, il_mode):
    ids = []

    def spy(method, original, rows, task_id, limit):
        if not method.is_task_given:  # a router's upper bound, which is reported as such
            ids.append(task_id)
        return original(rows, task_id, limit)

    if il_mode not in load_method(name).scenarios:
        pytest.skip("refused before")
    config = tiny.make_config(name, il_mode=il_mode, training_epochs=0, is_evaluate_init=False)
    made = tiny.run(tmp_path, config, tiny.micro_stream(2), spied(name, predict=spy))
    assert set(ids) == ({0, 1} if il_mode == "TIL" else {None})
    assert ("R_train" in made.results) is (il_mode in ("IIL", "CKE"))


def test_unsupported_runs_are_refused_before_weights_are_loaded(name, tmp_path, monkeypatch):
    save_stream(tiny.micro_stream(), tmp_path)
    kind = load_method(name)
    monkeypatch.setattr(kind, "scenarios", frozenset({"CIT", "IIL"}))
    monkeypatch.setattr(kind, "needs", {Setting("recovery"): "of this"})
    monkeypatch.setattr(kind, "excludes", {Setting("evaluate_unseen"): "of that"})
    monkeypatch.setattr(backbone, "load_model", lambda *_: pytest.fail("loaded"))
    options = {"method": name, "il_mode": "CIL", "evaluate_unseen": "true", "dataset": "micro"}
    options |= {"dataset_path": str(tmp_path), "dump_path": str(tmp_path / "runs")}
    options |= {key: str(value) for key, value in tiny.OWN.get(name, {}).items()}
    argv = [word for key, value in options.items() for word in (f"--{key}", value)]
    with pytest.raises(ConfigError) as caught:
        check(resolve(["--cfg", "None", *argv]))
    assert caught.value.problems == [
        f"method {name} supports il_mode CIT, IIL; got CIL",
        f"method {name} needs recovery (of this); set recovery: True",
        f"method {name} cannot be combined with evaluate_unseen (of that); leave evaluate_unseen out",
    ]
    assert not (tmp_path / "runs").exists()


def test_declares_capabilities_with_known_values(name):
    kind, config = load_method(name), tiny.make_config(name)
    assert kind.__name__ == name.rpartition(":")[2]
    assert kind.scenarios <= {"CIL", "TIL", "IIL", "CIT", "CKE"}
    assert all(hasattr(config, setting.option) for setting in {**kind.needs, **kind.excludes})
    assert not kind.needs.keys() & kind.excludes.keys()
    family = tuple(f"{base.__name__}_" for base in kind.__mro__ if issubclass(base, Method))
    assert all(option.startswith(family) for option in kind.Options.model_fields)
    assert all(field.description for field in kind.Options.model_fields.values())
    assert check_capability(config.model_copy(update={"il_mode": min(kind.scenarios)}), kind) == []
    assert kind.__doc__


@pytest.mark.slow
def test_learns_and_resumes_with_an_encoder_decoder(name, tmp_path):
    if "encoder-decoder" not in load_method(name).backbones:
        pytest.skip("refused before")
    if not load_method(name).trains:
        pytest.skip("this method trains nothing")
    backbone = tiny.backbone_folder("t5", dropout=0.1)
    config = tiny.make_config(
        name, backbone=backbone, training_epochs=4, info_per_steps=1, save_llm_ckpt_step_interval=2
    )
    folders = [tmp_path / "whole", tmp_path / "cut"]
    whole = tiny.run(folders[0], config, cuts={"task_1_epoch_0_step_2": folders[1]})
    first = [event["loss"] for event in whole.log.events if event["event"] == "train" and event["task"] == 0]
    assert sum(first[-3:]) < sum(first[:3])
    torch.manual_seed(999)
    resumed = tiny.run(folders[1], config)
    assert tiny.same(whole.weights, resumed.weights)
    assert predictions(folders[0]) == predictions(folders[1])


@pytest.mark.slow
def test_passes_outside_of_steps_compute_as_in_training(name):
    """Fisher information, gradients of memory, sampled answers, projections: in bfloat16 as the steps."""
    session = tiny.make_session(tiny.make_config(name, mixed_precision="bfloat16", training_epochs=1))
    method, seen = tiny.make_method(session), set()
    layer = innermost(method.model).base_model.layers[0].attention.query_key_value
    getattr(layer, "base_layer", layer).register_forward_hook(lambda _layer, _args, h: seen.add(h.dtype))
    for index in (0, 1):
        task = tiny.make_task(index)
        method.before_task(task)
        fit(method, task, session, limit=2)
        method.after_task(task)
    assert seen == ({torch.bfloat16} if method.trains else set())


@pytest.mark.slow
def test_the_memory_of_training_is_planned(name):
    method = tiny.make_method(tiny.make_session(tiny.make_config(name)))
    if method.takes_steps(tiny.make_task()):
        found = memory_of(method, tiny.make_task(), 1, None)
        assert all(count > 0 for count in found.values())
        assert (PASS in found) == (name not in ("PCLL", "ProgPrompt"))
