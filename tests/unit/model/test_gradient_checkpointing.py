"""Layers computed again in the backward pass: less memory, the same numbers."""

import pytest
import torch
from torch.utils import checkpoint

from tests import tiny
from utils.model.architecture import recompute, recomputes
from utils.options.consistency import check

ADAPTERS = ({}, {"PEFT_type": "LoRA"}, {"PEFT_type": "PromptTuning"}, {"PEFT_type": "IA3"})


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("options", ADAPTERS, ids=lambda options: options.get("PEFT_type", "whole"))
@pytest.mark.slow
def test_losses_and_weights_are_the_same(family, options):
    if family in tiny.ENCODER_DECODERS and options.get("PEFT_type") == "PromptTuning":
        pytest.skip("not for these models")
    runs = []
    for on in (False, True):
        config = tiny.make_config(
            backbone=tiny.backbone_folder(family, dropout=0.1), gradient_checkpointing=on, training_epochs=1, **options
        )
        runs.append(tiny.learn(config, tiny.micro_stream(1)))
    assert runs[0].losses == runs[1].losses
    assert tiny.same(runs[0].weights, runs[1].weights)


def test_layers_are_computed_again_in_training_and_only_there(monkeypatch, tmp_path):
    calls = []
    plain = checkpoint.checkpoint
    monkeypatch.setattr(
        "transformers.modeling_utils.checkpoint", lambda *args, **given: calls.append(given) or plain(*args, **given)
    )
    session = tiny.make_session(tiny.make_config(gradient_checkpointing=True))
    method = tiny.make_method(session)
    batch = method.collated(tiny.micro_stream().tasks[0].train[:2], tiny.make_task())
    method.model.eval()
    method.loss(method.model, batch, tiny.make_task())
    assert calls == []
    method.model.train()
    sum(method.loss(method.model, batch, tiny.make_task()).values()).backward()
    assert len(calls) == 2 and all(given["use_reentrant"] is False for given in calls)
    assert all(torch.isfinite(w.grad).all() for w in method.model.parameters())


def test_the_names_of_older_versions_of_transformers_are_used_too():
    class Old:
        """A model of transformers 5.17."""

        is_gradient_checkpointing = False

        def gradient_checkpointing_enable(self, options):
            self.options, self.is_gradient_checkpointing = options, True

    net = Old()
    assert not recomputes(net)
    recompute(net)
    assert recomputes(net) and net.options == {"use_reentrant": False}


def test_prefixes_are_refused():
    config = tiny.make_config(gradient_checkpointing=True, PEFT_type="PrefixTuning")
    assert any(problem.startswith("gradient_checkpointing") for problem in check(config))
