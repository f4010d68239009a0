import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.dataloader import IGNORE
from utils.dataset import load_stream
from utils.errors import UserError
from utils.preprocess import biography_synth
from utils.preprocess.shared.raw import DATASET_DIR
from utils.pretrain import __main__ as pretrain
from utils.pretrain.__main__ import Pretraining, main, parse
from utils.pretrain.corpus import Chunks, make_tokenizer, read_stream, read_texts
from utils.pretrain.recipes import RECIPES

SMALL = ["--preset", "micro", "--steps", "12", "--save-steps", "5", "--out"]


class Stop(Exception):
    """The machine goes down."""


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "whole"
    run = Pretraining(parse([*SMALL, str(folder)]))
    facts = run.run()
    return folder, run, facts


def test_loss_goes_down_and_the_folder_loads(finished):
    folder, run, facts = finished
    assert sum(run.losses[-3:]) < sum(run.losses[:3]) - 1
    assert json.loads((folder / "pretrain.json").read_text(encoding="utf-8")) == facts
    assert facts["seed"] == 1 and facts["texts"] == 16 and facts["environment"]["versions"]["torch"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert equal(model.state_dict(), run.model.state_dict()) and not (folder / "checkpoints").exists()
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (len(tokenizer), 0, 1)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)


def test_resumed_run_equals_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    step = Pretraining._step

    def fails_at_8(self, number):
        if number == 8:
            raise Stop
        return step(self, number)

    monkeypatch.setattr(Pretraining, "_step", fails_at_8)
    with pytest.raises(Stop):
        Pretraining(parse([*SMALL, str(tmp_path)])).run()
    monkeypatch.undo()
    for words, text in (([], "interrupted run; give --resume"), (["--resume", "--lr", "0.1"], "made with another lr")):
        with pytest.raises(UserError, match=text):
            Pretraining(parse([*SMALL, str(tmp_path), *words]))
    resumed = Pretraining(parse([*SMALL, str(tmp_path), "--resume"]))
    assert len(resumed.losses) == 5
    resumed.run()
    assert resumed.losses == finished[1].losses and equal(weights(tmp_path), weights(finished[0]))


def test_finished_folder_is_not_overwritten(finished, capsys):
    assert main([*SMALL, str(finished[0])]) == 2
    assert "holds a finished model" in capsys.readouterr().err


def test_parts_of_a_batch_add_up_to_the_whole(finished, tmp_path):
    run = Pretraining(parse([*SMALL, str(tmp_path), "--accumulation", "2"]))
    assert [run._step(i) for i in range(3)] == pytest.approx(finished[1].losses[:3], rel=1e-5)


def test_shape_of_another_model(finished, tmp_path):
    run = Pretraining(parse([*SMALL, str(tmp_path), "--backbone", str(finished[0]), "--seed", "2"]))
    assert run.tokenizer.get_vocab() == finished[1].tokenizer.get_vocab()
    assert run.model.config.hidden_size == 32 and not equal(run.model.state_dict(), finished[1].model.state_dict())


def test_tokenizer_gives_the_text_back(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished[0])
    texts, questions = read_texts("micro", 1)
    for text in [*texts, *questions, "Zoë 中文\n\t{}"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and not {0, 1} & set(ids)
    same = make_tokenizer([*texts, *questions], RECIPES["micro"].vocab)
    assert same.backend_tokenizer.to_str() == finished[1].tokenizer.backend_tokenizer.to_str()


def test_chunks_hold_every_token_once_an_epoch():
    rows = [[10 * i + j for j in range(i)] for i in range(1, 9)]  # 36 tokens and 8 ends
    chunks = Chunks(rows, 0, seed=1, context=4, batch=2)
    assert (chunks.tokens, chunks.steps) == (44, 5)
    seen = [chunks.step(number) for number in range(10)]
    stream = torch.cat([ids.flatten() for ids, _ in seen])
    assert stream.shape == (10 * 2 * 3,) and not torch.equal(stream[:30], stream[30:])
    ids, labels = Chunks(rows, 0, seed=1, context=4, batch=2).step(7)  # out of order
    assert torch.equal(ids, seen[7][0]) and torch.equal(labels, seen[7][1])
    for ids, labels in seen:
        after_end = ids == 0
        assert (labels[after_end] == IGNORE).all() and (labels[~after_end] != IGNORE).all()
        assert torch.equal(labels[:, :-1][~after_end[:, :-1]], ids[:, 1:][~after_end[:, :-1]])


def test_biographies_are_read_from_a_file(tmp_path):
    biography_synth.write_raw(tmp_path, biography_synth.Options(preset="micro"), 1, False)
    assert read_texts("micro", 1, 3, tmp_path)[0] == read_texts("micro", 1, 3)[0]
    with pytest.raises(UserError, match="expected persons 0-12, some are missing"):
        read_texts("micro", 1, 13, tmp_path)
    path = tmp_path / "biography_qa/biography/multi2_permute_fullname.json"
    path.write_text('{"0_0": "text"}', encoding="utf-8")
    with pytest.raises(UserError, match="expected"):
        read_texts("micro", 1, 1, tmp_path)


def test_a_streams_training_texts_are_read_and_its_answers_only_known_by_name():
    texts, answers = read_stream("biography_demo_task2")
    first = load_stream("biography_demo_task2", DATASET_DIR).tasks[0].train[0]
    assert (texts[0], answers[0]) == (first.input, first.target) and len(texts) == len(answers) == 1200 + 240
    run = Pretraining(parse([*SMALL, "unused", "--stream", "biography_demo_task2"]))
    ids = run.tokenizer(texts)["input_ids"]
    assert [list(row) for row in run.chunks.rows] == [[*row, 0] for row in ids]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--steps", "0"], "--steps: expected at least 1, got 0"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'; see --help"),
        (["--precision", "fp8"], "--precision: expected float32 or bfloat16, got fp8"),
        (["--lr", "1e-5"], "expected 0 <= min-lr <= lr"),
        (["--heads", "3"], "--width 32: expected a multiple of twice --heads"),
        (["--accumulation", "3"], "--batch 4: expected a multiple of processes x --accumulation = 3"),
        (["--batch", "400"], "--batch 400: a step takes 25600 tokens, but all text has"),
        (["--raw-dir", "nowhere"], "is missing"),
        (["--stream", "nowhere"], "nowhere/continual_data.json is missing; "),
        (["--stream", "nowhere", "--persons", "3"], "--persons: has no effect with --stream"),
        (["--backbone", "tests"], "--backbone: tests could not be loaded: "),
        (["--backbone", "./nowhere"], "--backbone: ./nowhere is not a folder with a model and could not be fetched"),
    ],
)
def test_errors_are_one_sentence(words, text, tmp_path, capsys):
    assert main([*SMALL, str(tmp_path), *words]) == 2
    assert text in capsys.readouterr().err


def test_recipe_of_the_paper():
    recipe = pretrain.RECIPES["paper"]
    assert (recipe.context, recipe.batch, recipe.steps, recipe.warmup) == (512, 96, 80_000, 1000)
    assert (recipe.lr, recipe.min_lr, recipe.weight_decay, recipe.epsilon) == (1e-3, 1e-4, 0.1, 1e-6)
    assert (recipe.precision, recipe.backbone) == ("bfloat16", "EleutherAI/pythia-160m")
