"""States of frozen layers that are kept: the same training, without running these layers."""

import pytest
import torch

from tests import tiny
from utils.errors import UserError
from utils.model.forward import has_plain_head
from utils.model.freeze import blocks
from utils.model.shortcuts.kept_states import KeptStates, frozen_blocks, needs_frozen_blocks
from utils.run.fit import fit
from utils.run.plan import dry_run

FROZEN = {"freeze_parts": ("embeddings", "layers 0"), "freeze_from_task": 0, "info_per_steps": 1}


def trained(monkeypatch, family="neox", epochs=3, **options):
    """Losses, weights, and the texts that the frozen block has read."""
    session = tiny.make_session(tiny.make_config(backbone=tiny.backbone_folder(family), **FROZEN | options))
    method, read = tiny.make_method(session), []
    block = blocks(method.model)[0]
    assert has_plain_head(method.model)  # asks the model
    block.mlp.register_forward_hook(lambda _, __, output: read.append(output.shape[0]))
    fit(method, tiny.make_task(epochs=epochs), session)
    losses = [event["loss"] for event in session.log.events if event["event"] == "train"]
    assert "forward" not in vars(block), "the block is left as it was"
    return losses, tiny.snapshot(method), sum(read)


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_training_is_the_same_and_frozen_layers_read_each_text_once(family, monkeypatch):
    plain, memory, disk = (trained(monkeypatch, family, keep_frozen_states=where) for where in (None, "memory", "disk"))
    assert memory[0] == pytest.approx(plain[0], rel=1e-5)
    for name, w in plain[1].items():
        if not name.endswith("bias"):  # that of keys has a gradient of 0 but for rounding, which AdamW enlarges
            assert torch.allclose(memory[1][name], w, rtol=1e-3, atol=1e-5), name
    assert (plain[2], memory[2]) == (36, 12)
    assert disk[0] == memory[0] and tiny.same(disk[1], memory[1])


def test_texts_that_come_later_are_read(monkeypatch):
    """A step with a text that was not known when the task began runs all layers."""
    monkeypatch.setattr("utils.run.fit.texts_of", lambda method, task, examples: method.encoder(examples[:5], 48))
    losses, _, read = trained(monkeypatch, keep_frozen_states="memory")
    assert losses == pytest.approx(trained(monkeypatch)[0], rel=1e-5)
    assert 5 < read <= 36 + 5


def test_the_plan_states_the_size(tmp_path):
    method = tiny.make_method(tiny.make_session(tiny.make_config(keep_frozen_states="memory", **FROZEN)))
    text = dry_run.text(method, 1)
    tasks = [tiny.make_task(k) for k in range(3)]
    sizes = []
    for task in tasks:
        states = KeptStates(method.model, 1, "memory", tmp_path)
        states.fill(method.encoder(task.train, task.max_length), method.backbone.pad_id, 4)
        sizes.append(sum(row.numel() * 4 for row in states.states.values()))
    assert f"states of frozen layers, memory: {max(sizes) / 1e6:.1f} MB" in text


def test_what_differs_from_epoch_to_epoch_is_refused():
    def count(backbone=None, **options):
        config = tiny.make_config(**({"backbone": backbone} if backbone else {}), **FROZEN, **options)
        method = tiny.make_method(tiny.make_session(config))
        return frozen_blocks(method.model, method.learning(tiny.make_task()))

    assert count() == 1
    with pytest.raises(UserError, match="has dropout"):
        count(tiny.backbone_folder(dropout=0.1))
    with pytest.raises(UserError, match="without adapters"):
        count(PEFT_type="LoRA")
    with pytest.raises(UserError, match="decoder"):
        count(tiny.backbone_folder("t5"))
    method = tiny.make_method(tiny.make_session(tiny.make_config(**FROZEN)))
    with pytest.raises(UserError, match="extra modules"):
        frozen_blocks(method.model, {"extra.prior.weight": torch.nn.Parameter(torch.ones(1))})
    everything = method.named()
    assert frozen_blocks(method.model, everything) == 0
    with pytest.raises(UserError, match="has no effect"):
        needs_frozen_blocks(method.model, everything)
