"""Adapters as a setting: every kind, on every family of models, with the frame and with peft's own loader."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from unittest import mock

import pytest
import torch

from tests import tiny
from utils.backbone import load_backbone, load_model
from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.model import adapters
from utils.model.forward import answer_logits, features, forward
from utils.model.generation import generate
from utils.options import consistency
from utils.options.parse import resolve
from utils.run import checkpoint
from utils.run.fit import fit

KINDS = ("LoRA", "IA3", "Bottleneck", "PromptTuning", "PrefixTuning")
FAMILIES = ("neox", "llama", "gpt2")
ROWS = [Encoded([5, 6, 7, 8, 9], [11, 12, 0]), Encoded([9, 8], [13, 0]), Encoded([20, 21, 22], [14, 15, 16, 0])]


def backbone(kind, family="neox", **options):
    """A backbone with an adapter that does something: fresh LoRA and IA3 change nothing."""
    made = load_backbone(tiny.make_config(backbone=tiny.backbone_folder(family), PEFT_type=kind, **options))
    torch.manual_seed(3)
    for name, w in made.model.named_parameters():
        if adapters.owner(name):
            w.data += 0.3 * torch.randn_like(w)
    made.model.eval()
    return made


def batch_of(rows):
    return collate(rows, [Example("", "")] * len(rows), tiny.PAD)


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind, family):
    made = backbone(kind, family)
    together, labels = answer_logits(made.model, batch_of(ROWS))
    states, whole = features(made.model, batch_of(ROWS)), forward(made.model, batch_of(ROWS))
    assert whole.shape[:2] == (3, 8)
    for i, row in enumerate(ROWS):
        alone, own = answer_logits(made.model, batch_of([row]))
        wanted = own[0] != -100
        assert torch.allclose(together[i][labels[i] != -100], alone[0][wanted], atol=1e-5)
        assert torch.allclose(states[i], features(made.model, batch_of([row]))[0], atol=1e-5)


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_peft(kind, family):
    made, plain = backbone(kind, family), load_model(tiny.make_config(backbone=tiny.backbone_folder(family))).eval()
    for row in ROWS:
        batch = batch_of([row])
        theirs = made.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        ours = forward(made.model, batch)
        assert torch.allclose(ours, theirs[:, -ours.shape[1] :], atol=1e-5)
        assert not torch.allclose(ours, forward(plain, batch), atol=1e-3)


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_generated_in_a_batch_as_token_by_token(kind, family):
    made = backbone(kind, family)
    for row, text in zip(ROWS, generate(made, ROWS, 5), strict=True):
        ids = list(row.prompt)
        for _ in range(5):
            ids.append(int(forward(made.model, batch_of([Encoded(ids, ())]))[0, -1].argmax()))
        assert tiny.tokenizer().decode(ids[len(row.prompt) :]).split("<eos>")[0].strip() == text


@pytest.mark.parametrize("kind", tiny.quick(KINDS, 2))
def test_verified_scores_are_generated_scores(kind, tmp_path):
    scores = []
    for mode in ("verify", "generate"):
        (tmp_path / mode).mkdir()
        config = tiny.make_config(PEFT_type=kind, lr=3e-2, evaluation_mode=mode, backbone=tiny.backbone_folder("gpt2"))
        scores.append(tiny.run(tmp_path / mode, config, tiny.micro_stream(2)).results["R"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("kind", tiny.quick(KINDS, 2))
def test_only_the_adapter_is_trained_and_all_of_it(kind, tmp_path):
    config = tiny.make_config(PEFT_type=kind, weight_decay=0.1, lr=1e-2)
    first = load_model(config)
    made = tiny.run(tmp_path, config)
    assert {name for name, _ in first.named_parameters()} == set(made.weights)
    for name, w in first.named_parameters():
        assert torch.equal(w, made.weights[name]) is (adapters.owner(name) is None), name
    learned = sum(w.numel() for name, w in made.weights.items() if adapters.owner(name))
    assert made.results["cost"]["trainable_parameters"] == [learned] * 3
    base = sum(w.numel() for w in tiny.make_model().parameters())
    assert made.results["cost"]["stored_parameters"] == [base + learned] * 3


@pytest.mark.parametrize(("kind", "random_init"), tiny.quick([*((kind, False) for kind in KINDS), ("LoRA", True)], 2))
@pytest.mark.slow
def test_a_resumed_run_finds_its_base_again(kind, random_init, tmp_path):
    options = {"PEFT_type": kind, "lr": 1e-2, "save_llm_ckpt_step_interval": 1, "backbone_random_init": random_init}
    cut = tmp_path / "cut"
    config = tiny.make_config(is_evaluate_init=False, training_epochs=1, **options)
    expected = tiny.run(tmp_path / "whole", config, tiny.micro_stream(2), cuts={"task_1_epoch_0_step_1": cut})
    assert not list(cut.rglob("model.safetensors"))
    assert tiny.same(expected.weights, tiny.run(cut, config, tiny.micro_stream(2)).weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_base_may_be_in_half_precision(kind, tmp_path):
    options = {"PEFT_type": kind, "lr": 1e-2, "backbone_dtype": "bfloat16", "mixed_precision": "bfloat16"}
    made = tiny.run(tmp_path, tiny.make_config(**options), tiny.micro_stream(2))
    types = {adapters.owner(name): w.dtype for name, w in made.weights.items()}
    assert types == {None: torch.bfloat16, "default": torch.float32}
    other = load_model(tiny.make_config(**options))
    checkpoint.load_weights(other, tmp_path / "checkpoints/task_1")
    assert tiny.same(made.weights, dict(other.named_parameters()))


def test_a_run_is_not_resumed_on_another_base(tmp_path):
    config = tiny.make_config(PEFT_type="LoRA", is_evaluate_init=False, training_epochs=1)
    tiny.run(tmp_path, config, tiny.micro_stream(1))
    other = config.model_copy(update={"backbone": tiny.backbone_folder("llama")})
    with pytest.raises(UserError, match=r"^backbone: not the one whose adapters are in "):
        tiny.run(tmp_path, other)


def test_the_seed_draws_the_adapter():
    def drawn(seed):
        torch.manual_seed(99)
        return dict(load_model(tiny.make_config(PEFT_type="LoRA", seed=seed)).named_parameters())

    assert tiny.same(drawn(1), drawn(1))
    assert not tiny.same(drawn(1), drawn(2))


def test_the_prompt_starts_as_asked():
    def prompt(text):
        model = load_model(tiny.make_config(PEFT_type="PromptTuning", PEFT_prompt_tuning_init_text=text))
        return model.prompt_encoder["default"].embedding.weight, model.get_input_embeddings().weight

    words, table = prompt("dog dog")
    ids = tiny.tokenizer()("dog dog")["input_ids"]
    assert torch.equal(words[: len(ids)], table[torch.tensor(ids)])
    drawn, _ = prompt("auto")
    assert all((row == table).all(dim=1).any() for row in drawn)
    numbers, _ = prompt("")
    assert not (numbers[0] == table).all(dim=1).any()


def test_freezing_a_layer_freezes_its_adapter(tmp_path):
    options = {"PEFT_type": "LoRA", "freeze_parts": ("layers 0",), "freeze_from_task": 0}
    made = tiny.learn(tiny.make_config(**options, lr=1e-2))
    first = load_model(tiny.make_config(PEFT_type="LoRA")).named_parameters()
    moved = {name for name, w in first if not torch.equal(w, made.weights[name])}
    assert moved
    assert all(".layers.1." in name and "lora_" in name for name in moved)


@pytest.mark.parametrize("options", [{"is_replay": True, "Replay_buffer_ratio": 0.5}, {"recovery": True}])
def test_replay_and_recovery_combine(options, tmp_path):
    made = tiny.run(tmp_path, tiny.make_config(PEFT_type="LoRA", **options))
    assert all(adapters.owner(name) for name, w in made.method.named().items() if w.requires_grad)


def test_joint_starts_again_from_the_first_adapter(tmp_path):
    session = tiny.make_session(tiny.make_config("Joint", PEFT_type="LoRA"))
    method = tiny.make_method(session)
    first = tiny.snapshot(method)
    fit(method, tiny.make_task(), session)
    assert not tiny.same(first, tiny.snapshot(method))
    method.before_task(tiny.make_task(1))
    assert tiny.same(first, tiny.snapshot(method))


def test_a_teacher_is_as_small_as_the_adapter(tmp_path):
    session = tiny.make_session(tiny.make_config(PEFT_type="LoRA", PEFT_lora_dropout=0.5))
    method = tiny.make_method(session)
    teacher = tiny.weights.snapshot(method.learning(tiny.make_task()))
    assert all(adapters.owner(name) for name in teacher)
    batch = batch_of(ROWS)
    before = tiny.teacher_logits(method, teacher, batch)
    fit(method, tiny.make_task(), session)
    assert torch.equal(before, tiny.teacher_logits(method, teacher, batch))


LOADER = """
import json, sys
import utils.model.bottleneck  # a kind that peft does not have
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, prompts, *folders = json.loads(sys.argv[1])
for folder in folders:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    words, answers = AutoTokenizer.from_pretrained(base), []
    for prompt in prompts:
        ids = words(prompt, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**ids, max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=2)[0].tolist()
        text = ids["input_ids"][0].tolist()
        new = out[len(text):] if out[: len(text)] == text else out
        answers.append(words.decode(new).split("<eos>")[0].strip())
    print(json.dumps(answers))
"""
PROMPTS = ["cat a", "yak b", "emu"]


def loaded_here(argument):
    """What saved adapters answer through peft alone."""
    with mock.patch.object(sys, "argv", ["-c", argument]), redirect_stdout(io.StringIO()) as out:
        exec(LOADER, {})
    return out.getvalue()


def loaded_elsewhere(argument):
    """The same in a fresh process."""
    done = subprocess.run([sys.executable, "-c", LOADER, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loaded", tiny.quick([loaded_here, loaded_elsewhere]))
def test_saved_adapters_answer_the_same_without_this_program(loaded, tmp_path):
    answers = []
    for kind in KINDS:
        made = backbone(kind)
        adapters.save(made.model, tmp_path / kind)
        answers.append(generate(made, [Encoded(made.tokenizer(prompt)["input_ids"], ()) for prompt in PROMPTS], 6))
    told = loaded(json.dumps([tiny.backbone_folder(), PROMPTS, *(str(tmp_path / kind) for kind in KINDS)]))
    assert [json.loads(line) for line in told.splitlines()] == answers
    assert len({str(answer) for answer in answers}) > 2


def test_embeddings_are_saved_if_tokens_were_added(tmp_path):
    made, other = backbone("LoRA"), backbone("LoRA")
    adapters.save(made.model, tmp_path / "plain")
    for model in (made.model, other.model):
        model.resize_token_embeddings(tiny.VOCABULARY + 2)
    made.model.get_input_embeddings().weight.data[-1] = 7.0
    adapters.save(made.model, tmp_path / "more")
    plain, more = ((tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("plain", "more"))
    assert more > plain + 2 * 4 * 32 * tiny.VOCABULARY
    checkpoint.load_weights(other.model, tmp_path / "more")
    assert tiny.same(dict(made.model.named_parameters()), dict(other.model.named_parameters()))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--PEFT_lora_r", "4"], "PEFT_lora_r: has no effect with PEFT_type None; it belongs to LoRA"),
        (
            ["--PEFT_type", "LoRA", "--PEFT_num_virtual_tokens", "4"],
            "PEFT_num_virtual_tokens: has no effect with PEFT_type LoRA; it belongs to PromptTuning and PrefixTuning",
        ),
        (
            ["--PEFT_type", "PromptTuning", "--freeze_parts", "[layers 0]"],
            "freeze_parts: has no effect with PEFT_type PromptTuning, as no part of the model is trained",
        ),
    ],
)
def test_options_without_effect_are_refused(words, expected):
    assert consistency.check(resolve(["--cfg", "None", *words]).config) == [expected]


def test_missing_modules_are_reported():
    with pytest.raises(UserError, match=r"^PEFT_type: LoRA does not fit GPTNeoXForCausalLM: .*_target_modules$"):
        load_model(tiny.make_config(PEFT_type="LoRA", PEFT_lora_target_modules=("nothing",)))


def test_all_linear_layers():
    model = load_model(tiny.make_config(PEFT_type="LoRA", PEFT_lora_target_modules=("all-linear",)))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 4
