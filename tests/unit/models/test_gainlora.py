"""GainLoRA: gates by hand, closed on old inputs, and what is left without them."""

import math

import pytest
import torch

from models.common.gates import Gate, mean, prompts
from tests import tiny
from utils.dataloader import IGNORE, Batch
from utils.dataset import Example
from utils.model import adapters
from utils.run.fit import fit


def silu(x):
    return x / (1 + math.exp(-x))


def test_a_gate_by_hand():
    gate = Gate(2, 1)
    gate.down.weight.data, gate.up.weight.data = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [1.0]])
    gate.key.data = torch.tensor([3.0, 0.0])
    hidden = silu(0.5 * 1 - 0.25)
    x = silu(2 * hidden), silu(hidden)
    cosine = x[0] / math.hypot(*x)
    assert float(gate(torch.tensor([[0.5, 0.25]])).detach()) == pytest.approx(abs(2 / (1 + math.exp(-4 * cosine)) - 1))
    gate.key.data = torch.tensor([-x[1], x[0]])  # at a right angle to the features
    assert float(gate(torch.tensor([[0.5, 0.25]])).detach()) == pytest.approx(0, abs=1e-6)
    gate.key.data = torch.zeros(2)
    gate(torch.tensor([[0.5, 0.25]])).sum().backward()
    assert float(gate.key.grad.abs().sum()) == 0  # and not infinite


def test_the_mean_is_of_the_prompt_alone_whatever_the_padding():
    labels = torch.tensor([[IGNORE, IGNORE, 7, IGNORE, 8, 9]])  # 7: an earlier turn of a chat
    batch = Batch(
        torch.zeros(1, 6, dtype=torch.int64), torch.tensor([[0, 1, 1, 1, 1, 1]]), labels, [Example("", "")], {}
    )
    assert prompts(batch).tolist() == [[0, 1, 1, 1, 0, 0]]
    vectors = torch.tensor([[[9.0], [1.0], [2.0], [6.0], [50.0], [50.0]]])
    assert mean(vectors, prompts(batch)).tolist() == [[3.0]]


def learned(name, tasks=(0, 1), method_class=None, family="neox", steps=None, **options):
    config = tiny.make_config(name, backbone=tiny.backbone_folder(family), weight_decay=0.1, lr=1e-2)
    session = tiny.make_session(config)
    method = tiny.make_method(session, None, method_class, **options)
    for index in tasks:
        task = tiny.make_task(index, epochs=3)
        method.before_task(task)
        fit(method, task, session, limit=steps)
        if index != tasks[-1]:
            method.after_task(task)
    return method


@pytest.mark.slow
@pytest.mark.parametrize("family", ["neox", "t5"])
@pytest.mark.parametrize("branch", ["InfLoRA", "OLoRA"])
def test_the_new_gate_is_closed_on_inputs_of_the_old_task(branch, family):
    method = learned("GainLoRA", family=family, GainLoRA_branch=branch, GainLoRA_threshold=0.9)
    for part, w in method.gate.parts():
        basis, before = method.held[part], dict(method.gates[0].parts())[part]
        assert 0 < basis.shape[1] < w.shape[-1], part
        if part != "key":
            assert not torch.equal(w, before)
            assert float(((w - before).double() @ basis).abs().max()) < 1e-5, part
        else:
            assert float((w.double() @ basis).abs().max()) < 1e-4 * float(w.norm())
    p = method.held["down"].T.float()  # what the basis holds
    features = method.gate.inputs(p)["up"]
    assert torch.allclose(features, method.gates[0].inputs(p)["up"], atol=1e-5)


@pytest.mark.slow
def test_gate_2_on_the_old_prompts_is_closed_where_they_are_held_in_full():
    method = learned("GainLoRA", GainLoRA_threshold=0.999999)
    old, new = (method.collated(tiny.make_task(k).train, tiny.make_task(k)) for k in (0, 1))
    with torch.no_grad():
        assert float(method.gate(method.pooled(old)).max()) < 1e-3
        assert float(method.gate(method.pooled(new)).max()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["neox", "gpt2", "t5"])
def test_branches_are_added_by_their_gains(family):
    method = learned("GainLoRA", family=family, GainLoRA_threshold=0.9, steps=3)
    layer, name = next((part, n) for n, part in method.model.named_modules() if hasattr(part, "lora_B"))
    seen = {}
    hook = layer.register_forward_hook(lambda _m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    task = tiny.make_task(1)
    batch = method.collated(task.train[:3], task)
    with torch.no_grad():
        method.scores(method.model, batch, 1)
        hook.remove()
        expected = layer.base_layer(seen["x"])
        gains = [gate(method.pooled(batch)) for gate in method.gates[:2]]
        for gain, branch in zip(gains, ("task_0", "task_1"), strict=True):
            update = layer.lora_B[branch].weight @ layer.lora_A[branch].weight * layer.scaling[branch]
            expected = expected + gain[:, None, None] * (seen["x"] @ update.T)
    assert float(gains[1].min()) > 1e-3
    assert torch.allclose(seen["y"], expected, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["neox", "t5"])
def test_training_and_generation_see_the_same_gains(family):
    method = learned("GainLoRA", family=family, GainLoRA_threshold=0.9, steps=3)
    task = tiny.make_task(1)
    method.model.eval()
    with torch.no_grad():
        method.scores(method.model, method.collated(task.train[:3], task), 1)
        trained = torch.stack(method.gains)
        rows = method.encoder(task.train[:3], 48)
        method.likelihoods(rows, None)
        assert torch.allclose(trained, torch.stack(method.gains), atol=1e-6)
        method.predict(method.encoder.for_prediction(task.train[:3], 48), None, 4)
    assert torch.allclose(trained, torch.stack(method.gains), atol=1e-6)


@pytest.mark.slow
def test_recomputed_activations_change_no_gradient():
    gradients = []
    for again in (False, True):
        method = learned("GainLoRA", steps=2, GainLoRA_threshold=0.9)
        if again:
            adapters.innermost(method.model).gradient_checkpointing_enable()
        method.model.train()
        task = tiny.make_task(1)
        sum(method.loss(method.model, method.collated(task.train, task), task).values()).backward()
        gradients.append([w.grad for w in method.gate.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-9)


def test_options_without_effect_are_refused():
    from models.GainLoRA import GainLoRA

    config = tiny.make_config("GainLoRA")
    for own, name in (
        ({"GainLoRA_lambda": 1.0}, "GainLoRA_lambda"),
        ({"GainLoRA_branch": "OLoRA", "InfLoRA_threshold": 0.9}, "InfLoRA_threshold"),
    ):
        (problem,) = GainLoRA.problems(config, GainLoRA.Options(**own), tiny.micro_stream())
        assert problem.startswith(f"{name}: has no effect")
