"""A base of 4 or 8 bits, moments of 8 bits: what is refused, what is stored, what a resumed run computes."""

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from utils import quantization
from utils.model.adapters import innermost, owner
from utils.optimizer import Group, make_optimizer
from utils.options import checks, consistency
from utils.run.plan import dry_run
from utils.run.plan.memory import state_bytes

KINDS = ("nf4", "int8")
LORA = {"PEFT_type": "LoRA", "PEFT_lora_target_modules": ("all-linear",), "PEFT_lora_dropout": 0.0}


def skip_without_bitsandbytes():
    if not quantization.is_installed():
        pytest.skip("bitsandbytes is absent")


def config_of(kind: str | None, **options):
    values = LORA | {"backbone": tiny.backbone_folder("llama")} | options
    return tiny.make_config(backbone_quantization=kind, **values)


def test_what_cannot_work_is_refused_before_the_backbone_is_loaded(monkeypatch):
    plain, drawn = tiny.make_config(backbone_quantization="nf4"), config_of("nf4")
    assert any("set PEFT_type" in one for one in consistency.check(plain))
    assert any("loads no weights" in one for one in consistency.check(drawn.updated(backbone_random_init=True)))
    assert consistency.check(drawn) == []
    monkeypatch.setattr(quantization, "is_installed", lambda: False)
    (problem,) = checks.problems(tiny.plan(drawn))
    assert problem.startswith("backbone_quantization: needs a working bitsandbytes; pip install")
    (problem,) = checks.problems(tiny.plan(tiny.make_config(adam_states="int8")))
    assert problem.startswith("adam_states: needs a working bitsandbytes; pip install")


def test_a_model_that_bitsandbytes_saved_is_refused(monkeypatch):
    shape = tiny.shape("llama", quantization_config={"quant_method": "bitsandbytes"})
    monkeypatch.setattr(checks, "shape", lambda _: shape)
    (problem,) = checks.problems(tiny.plan(tiny.make_config()))
    assert "is quantised already" in problem


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_has_the_size_of_the_weights(kind):
    skip_without_bitsandbytes()
    plain, loaded = (tiny.make_method(tiny.make_session(config_of(k))).model for k in (None, kind))
    planned = _bytes(plain) - quantization.saved_bytes(plain, kind)
    scales = []
    for w in loaded.parameters():
        state = getattr(w, "quant_state", None)
        scales += [] if state is None else [state.absmax, state.state2.absmax]
        scales += [w.SCB] if getattr(w, "SCB", None) is not None else []
    stored = _bytes(loaded) + sum(scale.numel() * scale.element_size() for scale in scales)
    assert planned == pytest.approx(stored, rel=0.01)
    assert planned < 0.75 * _bytes(plain)  # half of this model's parameters are embeddings


def _bytes(model):
    return sum(w.numel() * w.element_size() for w in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_changes_neither_base_nor_gradients(kind):
    skip_without_bitsandbytes()
    method = tiny.make_method(tiny.make_session(config_of(kind)))
    batch, task = method.collated(tiny.micro_stream().tasks[0].train[:4], tiny.make_task()), tiny.make_task()
    method.model.train()
    method.loss(method.model, batch, task)["answer"].backward()  # int8 sets its layout in the first pass
    before, gradients = _base(method), _gradients(method)
    method.model.eval()
    with torch.no_grad():
        method.loss(method.model, batch, task)
    method.model.train()
    method.loss(method.model, batch, task)["answer"].backward()
    assert tiny.same(before, _base(method))
    assert tiny.same(gradients, _gradients(method))


def _base(method):
    return {name: w.detach().clone() for name, w in method.model.named_parameters() if owner(name) is None}


def _gradients(method):
    found = {name: w.grad.clone() for name, w in method.model.named_parameters() if w.grad is not None}
    method.model.zero_grad()
    assert found and any(w.abs().sum() > 0 for w in found.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_resumes_as_without(kind, tmp_path):
    skip_without_bitsandbytes()
    config = config_of(kind, save_llm_ckpt_step_interval=2, training_epochs=4, lr=1e-2)
    cuts = {"task_1_epoch_0_step_2": tmp_path / "cut"}
    whole = tiny.run(tmp_path / "whole", config, cuts=cuts)
    resumed = tiny.run(tmp_path / "cut", config)
    assert tiny.same(whole.weights, resumed.weights)
    assert whole.losses[-1] == resumed.losses[-1]
    plain = tiny.learn(config_of(None, training_epochs=4, lr=1e-2))
    assert whole.losses != plain.losses
    assert whole.losses == pytest.approx(plain.losses, rel=0.1)
    assert {"nf4": torch.uint8, "int8": torch.int8}[kind] in {
        w.dtype for w in innermost(whole.method.model).parameters()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert_encoder"])
def test_heads_learn_on_a_quantised_base(family, tmp_path):
    skip_without_bitsandbytes()
    options = {"classifier": "Linear", "il_mode": "CIL", "backbone": tiny.backbone_folder(family)}
    found = [tiny.learn(config_of(kind, **options), tiny.class_stream()) for kind in (None, "nf4")]
    assert found[1].losses == pytest.approx(found[0].losses, rel=0.2)


@pytest.mark.slow
def test_the_plan_has_the_size_of_moments_of_8_bits():
    skip_without_bitsandbytes()
    method = tiny.make_method(tiny.make_session(tiny.make_config(adam_states="int8")))
    learning = method.learning(tiny.make_task()).values()
    optimizer = make_optimizer([Group(list(learning), 1e-3, 0.0)], method.config)
    for w in learning:
        w.grad = torch.ones_like(w)
    optimizer.step()
    moments = ("state1", "state2", "absmax1", "absmax2")
    kept = [state[name] for state in optimizer.state.values() for name in moments if name in state]
    assert torch.uint8 in {one.dtype for one in kept}
    stored = sum(one.numel() * one.element_size() for one in kept)
    assert state_bytes(method, dry_run.largest(dry_run.planned(method)).learning)["AdamW"] == stored


@pytest.mark.slow
def test_moments_of_8_bits_learn_alike_and_resume(tmp_path):
    skip_without_bitsandbytes()
    options = {"save_llm_ckpt_step_interval": 2, "training_epochs": 3, "keep_optimizer_state": True}
    config = tiny.make_config(adam_states="int8", **options)
    cuts = {"task_1_epoch_0_step_2": tmp_path / "cut"}
    whole = tiny.run(tmp_path / "whole", config, cuts=cuts)
    assert tiny.same(whole.weights, tiny.run(tmp_path / "cut", config).weights)
    plain = tiny.learn(tiny.make_config(**options))
    assert whole.losses != plain.losses
    assert whole.losses == pytest.approx(plain.losses, rel=0.05)
    saved = load_file(tmp_path / "whole/checkpoints/task_2/state.safetensors")
    assert torch.uint8 in {value.dtype for value in saved.values()}
