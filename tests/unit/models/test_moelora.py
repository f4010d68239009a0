"""MoELoRA: the mixture by hand, its ends, and what is refused."""

import pytest
import torch

from models.MoELoRA import MoELoRA
from tests import tiny
from utils.model import adapters
from utils.run.fit import fit


def made(**options):
    method = tiny.make_method(tiny.make_session(tiny.make_config("MoELoRA", PEFT_lora_r=4)), **options)
    generator = torch.Generator().manual_seed(1)
    for side in "AB":
        for w in adapters.factors(method.model, side, adapters.FIRST).values():
            w.data = torch.randn(w.shape, generator=generator)
    return method, next(part for part in method.model.modules() if hasattr(part, "lora_A"))


def test_a_layer_is_the_mixture_of_its_experts():
    method, layer = made(MoELoRA_experts=2)
    a, b = (part[adapters.FIRST].weight for part in (layer.lora_A, layer.lora_B))
    x, scale = torch.randn(2, 3, a.shape[1], generator=torch.Generator().manual_seed(2)), layer.scaling[adapters.FIRST]
    p = torch.softmax(x @ method.routers[0].weight.T, dim=-1)
    expected = layer.base_layer(x)
    for i, rows in enumerate((slice(0, 2), slice(2, 4))):
        expected = expected + scale * p[..., i : i + 1] * (x @ a[rows].T @ b[:, rows].T)
    assert torch.allclose(layer(x), expected, atol=1e-4)
    method.routers[0].weight.data.zero_()
    assert torch.allclose(layer(x), layer.base_layer(x) + scale / 2 * (x @ a.T @ b.T), atol=1e-4)
    row = torch.randn(5, a.shape[1])  # layers may read tokens as rows
    assert layer(row).shape == (5, b.shape[0])


def test_equal_experts_make_the_router_irrelevant():
    method, layer = made(MoELoRA_experts=2)
    a, b = (part[adapters.FIRST].weight for part in (layer.lora_A, layer.lora_B))
    a.data[2:], b.data[:, 2:] = a.data[:2], b.data[:, :2]
    x = torch.randn(1, 3, a.shape[1])
    before = layer(x)
    method.routers[0].weight.data.normal_()
    assert torch.allclose(layer(x), before, atol=1e-4)


@pytest.mark.slow
def test_routers_learn_once_the_experts_are_not_0_and_are_measured():
    session = tiny.make_session(tiny.make_config("MoELoRA", weight_decay=0))
    method, task = tiny.make_method(session), tiny.make_task(0, epochs=2)
    start = tiny.snapshot(method)
    fit(method, task, session, limit=1)
    routers = [name for name in start if ".routers." in name]
    assert routers and all(torch.equal(method.named()[name], start[name]) for name in routers)  # B was 0
    fit(method, task, session)
    assert not any(torch.equal(method.named()[name], start[name]) for name in routers)
    method.after_task(task)
    (event,) = [event for event in session.log.events if event["event"] == "routing"]
    assert sum(event["shares"]) == pytest.approx(1, abs=1e-5) and 0 < event["entropy"] <= 1.3863


def test_what_cannot_work_is_refused():
    config = tiny.make_config("MoELoRA", PEFT_lora_r=6)
    assert MoELoRA.problems(config, MoELoRA.Options(), tiny.micro_stream()) == [
        "MoELoRA_experts: expected a divisor of PEFT_lora_r 6, got 4"
    ]
    other = tiny.make_config("MoELoRA", PEFT_type="IA3")
    assert MoELoRA.problems(other, MoELoRA.Options(), tiny.micro_stream()) == [
        "PEFT_type: method MoELoRA needs LoRA, got IA3"
    ]
