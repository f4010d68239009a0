"""Virtual tokens that all rows begin with are read once, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F

from tests import tiny
from utils.dataloader import IGNORE, Encoder, collate
from utils.model import forward

FAMILIES = ["neox", "gpt2", "llama", "bert"]  # rotary and learned positions


def outputs(model, batch, prompt, monkeypatch, ahead):
    """Logits where rows have labels, hidden states of their tokens, and the gradient of the virtual tokens."""
    if not ahead:
        monkeypatch.setattr(forward, "can_read_ahead", lambda net: False)
    logits, labels = forward.answer_logits(model, batch, prompt)
    used = labels != IGNORE
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits[used], labels[used]), prompt)
    states = forward.token_states(model, batch, prompt)[batch.attention_mask.bool()]
    monkeypatch.undo()
    return logits[used], states, gradient


@pytest.mark.parametrize("first_too", [False, True])  # the first token of a text is predicted by the last virtual one
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_ahead_changes_nothing(family, first_too, monkeypatch):
    backbone = tiny.make_backbone(family)
    examples = tiny.micro_stream().tasks[0].train[:5]
    rows = Encoder(backbone.tokenizer, "none")(examples, 48)
    if first_too:
        rows = [row._replace(labelled=range(len(row.prompt))) for row in rows]
    batch = collate(rows, examples, backbone.pad_id)
    prompt = torch.nn.Parameter(torch.randn(7, 32) * 0.1)
    backbone.model.eval()
    assert forward.can_read_ahead(backbone.model)
    fast, plain = (outputs(backbone.model, batch, prompt, monkeypatch, ahead) for ahead in (True, False))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_is_less_work(monkeypatch):
    backbone = tiny.make_backbone()
    examples = tiny.micro_stream().tasks[0].train
    batch = collate(Encoder(backbone.tokenizer, "none")(examples, 48), examples, backbone.pad_id)
    seen = []
    backbone.model.base_model.layers[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[:2].numel())
    )
    outputs(backbone.model.eval(), batch, torch.nn.Parameter(torch.randn(50, 32)), monkeypatch, True)
    once, text = seen[:2]
    assert once == 49 and text == batch.input_ids.numel() + len(examples)


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_rows_that_drop_out_at_random_share_nothing(family):
    model = tiny.make_backbone(family, dropout=0.1).model
    assert not forward.can_read_ahead(model.train())
    assert forward.can_read_ahead(model.eval())
    model = tiny.make_backbone(family).model.train()
    assert forward.can_read_ahead(model)
    model.gradient_checkpointing_enable()  # which keeps no keys and values
    assert not forward.can_read_ahead(model)
    assert forward.can_read_ahead(model.eval())


@pytest.mark.parametrize("family", ["t5", "bert_encoder"])
def test_only_decoders_read_ahead(family):
    assert not forward.can_read_ahead(tiny.make_backbone(family).model.eval())


def test_the_head_scores_only_the_columns_that_hold_answers():
    """K columns of labels are predicted by K before them; the last column of the row comes along and is dropped."""
    backbone, seen = tiny.make_backbone(), []
    examples = tiny.micro_stream().tasks[0].train
    batch = collate(Encoder(backbone.tokenizer, "none")(examples, 48), examples, backbone.pad_id)
    backbone.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    logits, labels = forward.answer_logits(backbone.model, batch)
    assert seen == [batch.answer_length + 1]
    assert logits.shape[1] == labels.shape[1] == batch.answer_length
