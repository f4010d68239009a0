"""Answers in stages are those of plain decoding, whatever the rows begin with."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tests import tiny
from utils.backbone import _make_greedy
from utils.dataloader import Encoded, Encoder
from utils.dataset import Example
from utils.model import staged
from utils.model.architecture import Backbone
from utils.model.generation import continuations, decode


def plain_and_staged(backbone, prompt=None):
    """Plain answers to prompts of several lengths, and those in stages, where the targets leave them at any token."""
    examples = [Example("cat " * (i % 5 + 1) + tiny.ANIMALS[i], "") for i in range(9)]
    prompts = Encoder(backbone.tokenizer, "none")(examples, None)
    said = continuations(backbone, prompts, 7, prompt)
    plain = [decode(backbone, ids) for ids in said]
    wanted = [[*ids[: i % 4], *([5] if i % 3 else []), *ids[i % 4 :], tiny.EOS] for i, ids in enumerate(said)]
    rows = [Encoded(row.prompt, ids) for row, ids in zip(prompts, wanted, strict=True)]
    # A target that may still become anything: nothing is refuted, so every answer is written to its end.
    return plain, staged.answer(backbone, rows, [["\ufffd"]] * 9, 7, prompt)


@pytest.mark.parametrize("family", ["neox", "gpt2", "llama", "bert"])
def test_rows_that_leave_their_targets_are_written_to_the_end(family):
    backbone = tiny.make_backbone(family, initializer_range=0.6)
    assert staged.can_answer(backbone.model)
    for prompt in (None, torch.randn(1, 32), torch.randn(4, 32)):
        plain, found = plain_and_staged(backbone, prompt)
        assert [answer.text for answer in found] == plain
        assert {answer.decided for answer in found} == {"verified", "generated"}
        assert len(set(plain)) > 3, "a test of equal answers"


def test_layers_with_a_sliding_window():
    shape = tiny.shape("llama").to_dict() | {"sliding_window": 4, "model_type": "mistral", "initializer_range": 0.6}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**shape)).eval()
    _make_greedy(model, tiny.PAD, [tiny.EOS])
    backbone = Backbone(model, tiny.tokenizer(), tiny.PAD, [tiny.EOS])
    assert staged.can_answer(model)
    plain, found = plain_and_staged(backbone)
    assert [answer.text for answer in found] == plain
    assert len(set(plain)) > 3


@pytest.mark.parametrize("kind", ["LoRA", "PromptTuning", "PrefixTuning", "IA3", "Bottleneck"])
def test_adapters(kind):
    session = tiny.make_session(tiny.make_config(PEFT_type=kind))
    backbone = tiny.make_method(session).backbone
    backbone.model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for w in backbone.model.parameters():
            w.add_(torch.randn_like(w), alpha=0.3)
    plain, found = plain_and_staged(backbone)
    assert [answer.text for answer in found] == plain
    assert len(set(plain)) > 3


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_models_that_keep_other_states_are_not_asked(family):
    assert not staged.can_answer(tiny.make_backbone(family).model)


def test_a_row_that_has_ended_is_not_read_again():
    backbone, read = tiny.make_backbone(initializer_range=0.6), []
    backbone.model.base_model.layers[0].register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    rows = Encoder(backbone.tokenizer, "none")([Example(f"cat {animal}", "zzz zzz") for animal in tiny.ANIMALS], None)
    answers = staged.answer(backbone, rows, [["zzz zzz"]] * 12, 8)
    refuted = sum(answer.decided == "refuted" for answer in answers)
    assert 2 < refuted < 12
    assert read[0] == (12, max(len(row.prompt) for row in rows)), "the first pass reads the questions alone"
    assert all(count <= 12 - refuted for count, _ in read[1:]), "wrong answers were noticed there"
