"""Loading a backbone, and running it on padded batches."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch

from tests import tiny
from utils.backbone import find_source, load_backbone, load_model
from utils.dataloader import Encoded, collate
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.model.forward import answer_logits, features, forward
from utils.model.generation import generate

ROWS = [Encoded([5, 6, 7, 8, 9, 10], [11, 0]), Encoded([20], [21, 22, 23, 0]), Encoded([30, 31, 32], [33, 0])]


def batch_of(rows):
    return collate(rows, [Example("", "")] * len(rows), tiny.PAD)


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_answer_logits_are_those_of_all_columns(family):
    model, batch = tiny.make_model(family), batch_of(ROWS)
    with torch.no_grad():
        whole = forward(model, batch)
        logits, labels = answer_logits(model, batch)
    assert whole.shape == (3, batch.input_ids.shape[1], tiny.VOCABULARY)
    assert labels.shape == (3, 4)
    assert torch.equal(labels, batch.labels[:, -4:])
    assert torch.allclose(logits, whole[:, -5:-1], atol=1e-5)


def test_the_head_runs_on_the_answer_columns_alone():
    model, batch, seen = tiny.make_model("neox"), batch_of(ROWS), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.no_grad():
        answer_logits(model, batch)
    assert seen == [5]


def test_answers_as_long_as_the_row_lose_no_label_that_can_be_predicted():
    model, batch = tiny.make_model("gpt2"), batch_of([Encoded([], [5, 6, 0])])
    with torch.no_grad():
        logits, labels = answer_logits(model, batch)
    assert labels.tolist() == [[6, 0]]
    assert logits.shape[:2] == (1, 2)


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_padding_does_not_change_logits(family):
    """GPT-2 has absolute positions: a padded row must be counted from its first real token."""
    model = tiny.make_model(family)
    with torch.no_grad():
        together, _ = answer_logits(model, batch_of(ROWS))
        for i, row in enumerate(ROWS):
            alone, _ = answer_logits(model, batch_of([row]))
            assert torch.allclose(together[i, -len(row.answer) :], alone[0], atol=1e-4)


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_padding_does_not_change_features(family):
    model = tiny.make_model(family)
    together = features(model, batch_of(ROWS))
    assert together.shape == (3, 32)
    for i, row in enumerate(ROWS):
        assert torch.allclose(together[i], features(model, batch_of([row]))[0], atol=1e-4)


def test_features_leave_the_mode_and_have_no_dropout():
    model, batch = tiny.make_model(dropout=0.5), batch_of(ROWS)
    for training in (True, False):
        model.train(training)
        assert torch.equal(features(model, batch), features(model, batch))
        assert model.training is training


def test_generation_is_greedy_whatever_the_checkpoint_asks(tmp_path):
    folder = copy_of(tmp_path)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings |= {"do_sample": True, "temperature": 5.0, "num_beams": 3, "repetition_penalty": 3.0, "max_new_tokens": 1}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded = [load_backbone(tiny.make_config(backbone=path)) for path in (tiny.backbone_folder(), str(folder))]
    answers = [[generate(backbone, ROWS, 6) for _ in range(2)] for backbone in loaded]
    assert answers[0][0] == answers[0][1] == answers[1][0] == answers[1][1]
    assert not loaded[1].model.generation_config.do_sample


def test_several_stop_tokens(tmp_path):
    folder = copy_of(tmp_path)
    plain = load_backbone(tiny.make_config())
    assert plain.stop_ids == [tiny.EOS]
    with torch.no_grad():
        first = int(plain.model(input_ids=torch.tensor([ROWS[0].prompt])).logits[0, -1].argmax())
    assert generate(plain, ROWS[:1], 4) != [""]
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings["eos_token_id"] = [first, 299]
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    backbone = load_backbone(tiny.make_config(backbone=str(folder)))
    assert backbone.stop_ids == sorted([tiny.EOS, first, 299])
    assert generate(backbone, ROWS[:1], 4) == [""]


def test_the_pad_token_falls_back_to_eos(tmp_path):
    folder = copy_of(tmp_path)
    words = tiny.tokenizer.__wrapped__()
    words.pad_token = None
    words.save_pretrained(folder)
    backbone = load_backbone(tiny.make_config(backbone=str(folder)))
    assert backbone.tokenizer.pad_token_id is None
    assert backbone.pad_id == tiny.EOS


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    folder = copy_of(tmp_path)
    tiny.tokenizer(eos=False).save_pretrained(folder)
    with pytest.raises(UserError, match=rf"backbone: the tokenizer of {folder} has no end-of-sequence token"):
        load_backbone(tiny.make_config(backbone=str(folder)))


def copy_of(tmp_path):
    return shutil.copytree(tiny.backbone_folder(), tmp_path / "model")


def test_find_source(tmp_path):
    folder = tiny.backbone_folder()
    assert find_source(tiny.make_config(backbone=folder)) == folder
    assert find_source(tiny.make_config(backbone="EleutherAI/pythia-160m")) == "EleutherAI/pythia-160m"
    assert find_source(tiny.make_config(backbone="gpt2")) == "gpt2"
    shutil.copytree(folder, tmp_path / "pythia-160m")
    for cache in (tmp_path, tmp_path / "pythia-160m"):
        config = tiny.make_config(backbone="EleutherAI/pythia-160m", load_llm_ckpt=True, backbone_cache_path=str(cache))
        assert find_source(config) == str(tmp_path / "pythia-160m")


@pytest.mark.parametrize("name", ["./no", "/no/where", "~/model", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(UserError) as caught:
        find_source(tiny.make_config(backbone=name))
    assert str(caught.value) == f"backbone: {name}/config.json does not exist; expected a folder with a saved model"


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="expected a folder with a saved model"):
        find_source(tiny.make_config(backbone=str(tmp_path)))
    config = tiny.make_config(backbone="x/y", load_llm_ckpt=True, backbone_cache_path=str(tmp_path))
    with pytest.raises(UserError) as caught:
        find_source(config)
    assert str(caught.value) == (
        f"backbone_cache_path: expected a folder with a saved model, but neither {tmp_path}/config.json nor "
        f"{tmp_path}/y/config.json exists"
    )


def test_a_hub_name_without_a_network_is_one_quick_sentence():
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_backbone(tiny.make_config(backbone="EleutherAI/pythia-160m"))
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    assert "EleutherAI/pythia-160m is no local folder and could not be fetched" in str(caught.value)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["truncated", "missing", "not json"])
def test_a_damaged_folder_is_one_sentence(tmp_path, damage, how):
    folder = copy_of(tmp_path)
    path = folder / damage
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if how == "truncated" else b"not json")
    with pytest.raises(UserError) as caught:
        load_backbone(tiny.make_config(backbone=str(folder)))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_code_of_strangers_is_not_run_nor_offered(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    folder = copy_of(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tiny.make_config(backbone=str(folder)))


def test_random_init_keeps_the_shape_and_is_seeded():
    saved = load_model(tiny.make_config())
    first, same, other = (load_model(tiny.make_config(backbone_random_init=True, seed=s)) for s in (1, 1, 2))
    a, b, c, d = (dict(net.named_parameters()) for net in (first, same, other, saved))
    assert {n: w.shape for n, w in a.items()} == {n: w.shape for n, w in d.items()}
    assert tiny.same(a, b)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])
    assert not torch.equal(a["lm_head.weight"], d["lm_head.weight"])


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_type_of_the_weights(name, dtype):
    for random in (False, True):
        assert load_model(tiny.make_config(backbone_dtype=name, backbone_random_init=random)).dtype is dtype
    assert load_model(tiny.make_config(backbone_dtype="auto")).dtype is torch.float32


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path):
    folder = copy_of(tmp_path)
    words = tiny.tokenizer.__wrapped__()
    words.add_tokens(["<image>"], special_tokens=True)  # data never hold it: text stays text
    words.save_pretrained(folder)
    load_backbone(tiny.make_config(backbone=str(folder)))
    words.add_tokens(["zebra"])
    words.save_pretrained(folder)
    with pytest.raises(
        UserError, match=r"has tokens for which the model has no row, such as 'zebra': 322 tokens, 320 "
    ):
        load_backbone(tiny.make_config(backbone=str(folder)))


def test_a_folder_that_cannot_be_loaded_is_not_to_be_downloaded(tmp_path):
    folder = copy_of(tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load_backbone(tiny.make_config(backbone=str(folder)))
    assert str(caught.value).startswith(f"backbone: the model in {folder} could not be loaded: ")
    assert "download" not in str(caught.value)


def test_a_question_is_as_long_as_the_model_has_positions():
    method = tiny.make_method(tiny.make_session(tiny.make_config(max_seq_length=-1)))
    assert method.max_length(0) == 48  # of the stream
    stream = replace(
        tiny.micro_stream(), config={k: v for k, v in tiny.micro_stream().config.items() if "SEQ" not in k}
    )
    for options, expected in (
        ({}, 256 - 8),
        ({"backbone_max_new_token": 30}, 256 - 30),
        ({"PEFT_type": "PromptTuning", "PEFT_num_virtual_tokens": 5}, 256 - 8 - 5),
        ({"max_seq_length": 20}, 20),
        ({"max_seq_length": 0, "backbone_max_new_token": 0}, 256 - 8),  # like -1
        ({"backbone": tiny.backbone_folder("t5")}, None),
        ({"backbone": tiny.backbone_folder("bart")}, 256),
    ):
        method = tiny.make_method(tiny.make_session(tiny.make_config(**options), stream=stream), stream)
        assert method.max_length(0) == expected, options
    config = tiny.make_config(backbone=tiny.backbone_folder("roberta"), classifier="Linear", il_mode="CIL")
    classes = replace(tiny.class_stream(), config=tiny.class_stream().config | {"MAX_SEQ_LENGTH": [1000] * 3})
    method = tiny.make_method(tiny.make_session(config, stream=classes), classes)
    assert method.max_length(0) == 256 - tiny.PAD - 1  # RoBERTa counts from its padding on
    long = Example("dog " * 500, "kind 0", label=0, label_in_task=0)
    assert method.features([long], method.max_length(0)).shape == (1, 32)


def test_long_questions_are_answered(tmp_path):
    long = Example("cat " * 400, "meow", task=0)
    task = TaskData("long", (long,) * 4, (long,), (long,))
    stream = Stream("long", (task,), {"PROMPT_TYPE": "none", "IL_MODE": "CIT", "MAX_NEW_TOKENS": [8]})
    for mode in ("verify", "generate"):
        (tmp_path / mode).mkdir()
        config = tiny.make_config(backbone=tiny.backbone_folder("gpt2"), evaluation_mode=mode)
        log = tiny.run(tmp_path / mode, config, stream).log
        told = [message for message in log.messages if "have more than 248 tokens" in message]
        assert any("1 of 1 questions" in message for message in told)
        assert any("4 of 4 examples" in message for message in told)


def test_lora_goes_into_all_linear_layers_of_models_that_peft_does_not_know():
    from transformers import AutoModelForCausalLM, Olmo2Config

    from utils.model import adapters

    shape = Olmo2Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    model = adapters.wrap(AutoModelForCausalLM.from_config(shape), tiny.make_config(PEFT_type="LoRA"))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 7
