"""The self-test finds models that padding changes, that accept no prefix, that are damaged."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, RwkvConfig

from models.Base import Method
from tests import tiny
from utils.errors import UserError
from utils.model import self_test as module
from utils.model.freeze import blocks, describe


def saved(folder, shape):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def self_test(method, processes):
    virtual = type(method).soft_prompt is not Method.soft_prompt
    return module.self_test(method.backbone, method.config, processes, virtual, method.is_plain)


def method_of(**options):
    return tiny.make_method(tiny.make_session(tiny.make_config(**options)))


def rwkv(folder):
    shape = RwkvConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, context_length=64, bos_token_id=None,
        eos_token_id=tiny.EOS, attention_hidden_size=32, intermediate_size=64,
    )  # fmt: skip
    return saved(folder, shape)


@pytest.mark.parametrize("kind", [None, "LoRA", "PromptTuning", "PrefixTuning"])
@pytest.mark.parametrize("family", ["neox", "gpt2", "t5", "bert_encoder"])
def test_models_that_padding_does_not_change(family, kind):
    if family in ("t5", "bert_encoder") and kind in ("PromptTuning", "PrefixTuning"):
        return
    head = {"classifier": "Linear", "il_mode": "CIL"} if family == "bert_encoder" else {}
    session = tiny.make_session(
        tiny.make_config(backbone=tiny.backbone_folder(family), PEFT_type=kind, **head), stream=tiny.class_stream()
    )
    method = tiny.make_method(session, tiny.class_stream())
    before, training = torch.get_rng_state(), method.model.training
    found = self_test(method, 1)
    assert found["largest_difference_by_padding"] < 1e-4
    assert found["positions"] == (None if family == "t5" else 256)
    assert found["vocabulary"]["model"] == tiny.VOCABULARY
    assert found["seconds"] < 10
    assert torch.equal(before, torch.get_rng_state()) and method.model.training is training


def test_with_virtual_tokens_of_a_method():
    assert self_test(method_of(method="ProgPrompt"), 1)["largest_difference_by_padding"] < 1e-4


def test_a_model_that_ignores_the_mask_reads_texts_one_by_one(tmp_path):
    folder = rwkv(tmp_path)
    with pytest.raises(UserError) as caught:
        self_test(method_of(backbone=folder), 2)
    assert str(caught.value).startswith("backbone: RwkvForCausalLM gives other results for a text that is padded")
    assert "set evaluate_batch_size: 1 and gradient_accumulation_steps: 2," in str(caught.value)
    one = {"evaluate_batch_size": 1, "gradient_accumulation_steps": 4}
    assert self_test(method_of(backbone=folder, **one), 1)["largest_difference_by_padding"] > 0.01
    assert self_test(method_of(backbone=folder, backbone_self_test=False), 1) == {"skipped": "backbone_self_test"}


def test_a_model_that_takes_no_prefix_is_one_sentence(tmp_path):
    shape = Lfm2Config(
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, layer_types=["conv", "full_attention"], eos_token_id=tiny.EOS, pad_token_id=tiny.PAD,
        bos_token_id=None,
    )  # fmt: skip
    folder = saved(tmp_path, shape)
    with pytest.raises(UserError, match=r"^PEFT_type: PrefixTuning does not fit Lfm2ForCausalLM: .+ use PromptTuning$"):
        method_of(backbone=folder, PEFT_type="PrefixTuning")
    method = method_of(backbone=folder)
    assert self_test(method, 1)["largest_difference_by_padding"] < 1e-4
    assert len(blocks(method.model)) == 2 and "layers 0-1 of 2" in describe(method.model)  # layers of two classes


def test_damaged_weights_are_refused():
    method = method_of()
    next(method.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite; its weights are damaged"):
        self_test(method, 1)
