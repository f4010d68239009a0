"""Rows without padding: the same training on fewer tokens; models that mix the rows of a sequence are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, Lfm2Config, LlamaConfig, MistralConfig

from tests import tiny
from tests.unit.model.test_padding import SIZE
from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.model.self_test import self_test
from utils.model.shortcuts.padding_free import GAIN, fill, limit_of, pack
from utils.options import checks
from utils.run import fit as module
from utils.storage.files import read_json

LONGEST = 30


def saved(folder, shape):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def unlimited(monkeypatch):
    """Models as small as these would hardly be given two rows in a sequence."""
    monkeypatch.setattr(module, "limit_of", lambda _: None)


def losses(method, stream=None, **options):
    config = tiny.make_config(method, training_epochs=2, info_per_steps=1, **options)
    return [event["loss"] for event in tiny.learn(config, stream).log.events if event["event"] == "train"]


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=9), st.sampled_from([None, 1, 20, 64]))
def test_every_token_is_where_it_is_said_to_be_with_its_position(lengths, limit):
    rows = [Encoded([100 * i + k for k in range(n)], ()) for i, n in enumerate(lengths)]
    batch = collate(rows, [Example("", "")] * len(rows), tiny.PAD)
    packed = pack(batch, limit)
    if packed is None:
        full = fill(lengths, sum(lengths) if limit is None else limit)
        assert len(full) * max(sum(lengths[i] for i in room) for room in full) > GAIN * batch.input_ids.numel()
        return
    assert packed.ids.numel() < batch.input_ids.numel() and int(packed.positions.max()) == max(lengths) - 1
    assert int((packed.positions == 0).sum()) == len(lengths)
    used = [int(place) for i, n in enumerate(lengths) for place in packed.places[i, -n:]]
    assert len(set(used)) == sum(lengths)
    for i, n in enumerate(lengths):
        assert packed.ids.flatten()[packed.places[i, -n:]].tolist() == rows[i].prompt
        assert packed.positions.flatten()[packed.places[i, -n:]].tolist() == list(range(n))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["neox", "gpt2", "llama", "mistral"])
def test_training_is_the_same_on_fewer_tokens(family, attention, tmp_path):
    shapes = {"llama": lambda: LlamaConfig(**SIZE), "mistral": lambda: MistralConfig(**SIZE, sliding_window=6)}
    backbone = saved(tmp_path, shapes[family]()) if family in shapes else tiny.backbone_folder(family)
    options = {"backbone": backbone, "attn_implementation": attention}
    padded, packed = (losses("SEQ", padding_free=wish, **options) for wish in (False, True))
    assert packed == pytest.approx(padded, rel=1e-5)


def test_the_cost_counts_rows_and_fewer_tokens(tmp_path):
    for wish in (False, True):
        tiny.run(tmp_path / str(wish), tiny.make_config(padding_free=wish, training_epochs=1))
    padded, packed = (read_json(tmp_path / str(wish) / "cost.json") for wish in (False, True))
    assert packed["train_sequences"] == padded["train_sequences"]
    assert all(a < b for a, b in zip(packed["train_tokens"], padded["train_tokens"], strict=True))


def test_classes_too():
    options = {"il_mode": "CIL", "classifier": "Linear", "stream": tiny.class_stream()}
    padded, packed = (losses("SEQ", padding_free=wish, **options) for wish in (False, True))
    assert packed == pytest.approx(padded, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.TESTED)
def test_every_method_trains_the_same_or_refuses(name):
    refused = checks.problems(tiny.plan(tiny.make_config(name, padding_free=True)))
    if any("padding_free" in problem for problem in refused):
        return
    padded, packed = (losses(name, padding_free=wish) for wish in (False, True))
    assert packed == pytest.approx(padded, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"PEFT_type": "PromptTuning"}, "rows with virtual tokens are not packed"),
        ({"method": "ProgPrompt"}, "rows with virtual tokens are not packed"),
        ({"method": "MoELoRA", "PEFT_type": "LoRA"}, "routers read whole rows"),
        (
            {"keep_frozen_states": "memory", "freeze_parts": ("layers 0-0",)},
            "cannot be combined with keep_frozen_states",
        ),
        ({"backbone": "t5"}, "needs a decoder"),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused_before_weights_are_loaded(options, reason):
    if "backbone" in options:
        options = {"backbone": tiny.backbone_folder(options["backbone"])}
    plan = tiny.plan(tiny.make_config(**{"padding_free": True} | options))
    assert any(reason in problem for problem in checks.problems(plan))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (lambda: Lfm2Config(**SIZE, layer_types=["conv", "full_attention"]), "text that shares a sequence"),
        (lambda: BloomConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=2), "shares a sequence"),
        (lambda: Gemma2Config(**SIZE), "computes logits in its own way"),
    ],
)
def test_models_that_mix_rows_or_cap_logits_are_refused(shape, reason, tmp_path):
    config = tiny.make_config(backbone=saved(tmp_path, shape()), padding_free=True)
    method = tiny.make_method(tiny.make_session(config))
    with pytest.raises(UserError, match=f"padding_free: .*{reason}"):
        self_test(method.backbone, config, 1)
    assert "padding_free" not in vars(method.backbone.model)


def test_a_sequence_is_as_long_as_attention_stays_cheap_and_positions_last():
    model = tiny.make_model("neox", width=128)
    assert limit_of(model) == 64
    model.config.max_position_embeddings = 48
    assert limit_of(model) == 48
    model.config._attn_implementation = "flash_attention_2"
    assert limit_of(model) is None


def test_little_padding_stays():
    rows = [Encoded([5] * n, ()) for n in (10, 10, 9, 9)]
    assert pack(collate(rows, [Example("", "")] * 4, tiny.PAD), None) is None
