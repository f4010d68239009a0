"""MIGU: which units rest, by hand, and the ends q = 0 and q = 1."""

import pytest
import torch
from torch import nn

from tests import tiny
from utils.run.fit import fit


def run(name, family="neox", tasks=(0, 1), **options):
    """A method after these tasks."""
    config = tiny.make_config(name, backbone=tiny.backbone_folder(family), training_epochs=1)
    session = tiny.make_session(config)
    method = tiny.make_method(session, **options)
    for index in tasks:
        fit(method, tiny.make_task(index, epochs=1), session)
    return method


def moved_units(method, start, name):
    layer, change = method.layers[name], method.named()[f"{name}.weight"].detach() - start[f"{name}.weight"]
    return change.abs().sum(dim=1 if isinstance(layer, nn.Linear) else 0) > 0


def test_q_0_is_sequential_fine_tuning():
    plain, ours = (tiny.snapshot(run(name, **own)) for name, own in (("SEQ", {}), ("MIGU", {"MIGU_threshold": 0.0})))
    assert all(torch.equal(w, ours[name]) for name, w in plain.items())


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_q_1_moves_one_unit_of_each_layer_in_a_step(family):
    method = run("MIGU", family, tasks=(), MIGU_threshold=1.0, MIGU_strict=True)
    start = tiny.snapshot(method)
    fit(method, tiny.make_task(1), method.session, limit=1)
    assert method.layers and all(int(moved_units(method, start, name).sum()) == 1 for name in method.layers)
    head = method.model.get_output_embeddings().weight
    assert not torch.equal(head, start[next(n for n, w in method.named().items() if w is head)])


def test_the_first_task_updates_all_units():
    plain, ours = (tiny.snapshot(run(name, tasks=(0,))) for name in ("SEQ", "MIGU"))
    assert all(torch.equal(w, ours[name]) for name, w in plain.items())


def test_the_units_with_large_outputs_on_real_tokens_are_updated():
    for normalise in ("token", "none"):
        method = run("MIGU", tasks=(), MIGU_normalise=normalise, MIGU_strict=True, MIGU_threshold=0.5)
        task, name = tiny.make_task(1), next(name for name in method.layers if name.endswith("dense_h_to_4h"))
        batch = method.collated(task.train[:4], task)  # of different lengths
        assert not batch.attention_mask.bool().all()
        seen = []
        hook = method.layers[name].register_forward_hook(lambda _m, _a, h, seen=seen: seen.append(h.detach()))
        method.model.train()
        sum(method.loss(method.model, batch, task).values()).backward()
        hook.remove()
        h = seen[0].abs()
        h = h / h.sum(dim=-1, keepdim=True) if normalise == "token" else h
        n = h[batch.attention_mask.bool()].sum(dim=0)
        method.on_gradients(task)
        gradient = method.named()[f"{name}.weight"].grad
        assert torch.equal(gradient.abs().sum(dim=1) == 0, n < n.quantile(0.5)), normalise


def test_random_units_are_as_many_and_others_each_step():
    method = run("MIGU", tasks=(), MIGU_choose="random", MIGU_strict=True)
    resting = []
    for _ in range(2):
        fit(method, tiny.make_task(1), method.session, limit=1)
        resting.append({name: rows.clone() for name, rows in method.resting.items() if name.endswith("weight")})
    for name, rows in resting[0].items():
        assert int(rows.sum()) == int(resting[1][name].sum())
    assert any(not torch.equal(rows, resting[1][name]) for name, rows in resting[0].items())
