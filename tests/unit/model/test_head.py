"""A loss over pieces of the positions is the loss over all of them: value, gradients, and less memory."""

import pytest
import torch
from torch import nn

from models.common.losses import answer_loss, distillation
from tests import tiny
from utils.dataloader import Encoder, collate
from utils.model import head
from utils.model.forward import answer_logits, answer_scores, has_plain_head
from utils.model.head import Scores, sum_over_pieces


def entropy(logits, wanted):
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")


def made(bias=True, learns=True, hook=None):
    torch.manual_seed(0)
    layer = nn.Linear(6, 11, bias=bias).requires_grad_(learns)
    if hook is not None:
        layer.register_forward_hook(hook)
    states = torch.randn(9, 6, requires_grad=True)
    return layer, states, torch.randint(11, (9,))


def gradients(monkeypatch, size, learns=True, hook=None, more=()):
    """Value and gradients of a loss in pieces of `size` logits."""
    monkeypatch.setattr(head, "PIECE", size)
    layer, states, wanted = made(learns=learns, hook=hook)
    loss = sum_over_pieces(entropy, Scores(states, layer, 11, layer), wanted) / 7
    inputs = [states, *(w for w in layer.parameters() if w.requires_grad), *more]
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def test_pieces_are_the_whole(monkeypatch):
    for learns in (True, False):
        whole = gradients(monkeypatch, 10**6, learns)
        for size in (1, 22, 45):  # pieces of 1, 2 and 4 positions
            for a, b in zip(whole, gradients(monkeypatch, size, learns), strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-7), (learns, size)


def test_what_a_hook_of_the_head_reads_gets_its_gradient(monkeypatch):
    own = nn.Parameter(torch.ones(11))
    hook = lambda _module, _given, output: output * own  # noqa: E731
    whole, pieces = (gradients(monkeypatch, size, hook=hook, more=[own]) for size in (10**6, 22))
    assert whole[-1].abs().sum() > 0
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(whole, pieces, strict=True))


def test_no_piece_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr(head, "PIECE", 25)
    layer, states, wanted = made()
    seen = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    with torch.no_grad():
        sum_over_pieces(entropy, Scores(states, layer, 11, layer), wanted)
    assert seen == [2, 2, 2, 2, 1]


def test_bfloat16_is_summed_in_float32(monkeypatch):
    """The mean of 9 equal losses is each of them; torch's linear_cross_entropy is off by 4 % there."""
    monkeypatch.setattr(head, "PIECE", 11)
    layer = nn.Linear(6, 11).bfloat16()
    states = torch.ones(9, 6, dtype=torch.bfloat16, requires_grad=True)
    wanted = torch.zeros(9, dtype=torch.int64)
    loss = sum_over_pieces(entropy, Scores(states, layer, 11, layer), wanted)
    loss.backward()
    expected = entropy(layer(states).float(), wanted)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert states.grad.dtype == layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("family", tiny.quick(["neox", "llama", "gpt2", "bert", "t5"], 2))
def test_scores_are_the_logits_of_the_model(family, monkeypatch):
    monkeypatch.setattr(head, "PIECE", 700)
    backbone = tiny.make_backbone(family)
    examples = tiny.micro_stream().tasks[0].train[:5]
    batch = collate(Encoder(backbone.tokenizer, "none", family == "t5")(examples, None), examples, backbone.pad_id)
    assert has_plain_head(backbone.model) == (family in ("neox", "llama", "gpt2"))
    found = []
    for make in (answer_scores, answer_logits):
        backbone.model.zero_grad()
        scores, labels = make(backbone.model, batch)
        (answer_loss(scores, labels, 3.0) + distillation(scores, torch.zeros(*scores.shape), labels, 2.0)).backward()
        found.append({name: w.grad for name, w in backbone.model.named_parameters()})
    for name, g in found[0].items():
        assert torch.allclose(g, found[1][name], rtol=1e-4, atol=1e-6), name


def test_a_model_that_caps_its_logits_is_noticed():
    from transformers import AutoModelForCausalLM, Gemma2Config

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape = Gemma2Config(vocab_size=30, intermediate_size=16, head_dim=8, final_logit_softcapping=0.5, **sizes)
    assert not has_plain_head(AutoModelForCausalLM.from_config(shape))
