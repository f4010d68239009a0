"""Chats through the whole program: a tiny model that has learned every answer scores 100 with any template."""

import json

import pytest
import torch

from main_CL import main
from tests import tiny
from tests.chat_templates import FAMILIES, words_of
from utils.storage.files import read_json, read_jsonl

ANSWERS = dict(zip(tiny.ANIMALS[:6], tiny.SOUNDS[:6], strict=True))
# Answers that a wrong end or head would spoil: two turns of the same chat, and text like a special token.
ROWS = [
    {"messages": [{"role": "user", "content": animal}, {"role": "assistant", "content": sound}]}
    for animal, sound in ANSWERS.items()
]
ROWS[0]["messages"][1]["content"] = "it is </s>"


@pytest.fixture
def program(tmp_path):
    """Run main_CL.py on these chats with a template; returns the run folder."""

    def run(name):
        words = words_of(FAMILIES[name])
        words.save_pretrained(tmp_path / "model")
        torch.manual_seed(0)
        model = tiny.make_model("llama", width=64, initializer_range=0.05)
        model.resize_token_embeddings(len(words), mean_resizing=False)
        model.config.eos_token_id = model.generation_config.eos_token_id = words.eos_token_id
        model.save_pretrained(tmp_path / "model")
        task = tmp_path / "animals"
        task.mkdir()
        for split in ("train", "test"):
            (task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
        options = {
            "backbone": tmp_path / "model", "dataset_files": f"[{task}]", "dump_path": tmp_path / "runs",
            "training_epochs": 60, "batch_size": 6, "lr": "5e-3", "is_evaluate_init": "false",
        }  # fmt: skip
        assert main([word for key, value in options.items() for word in (f"--{key}", str(value))]) == 0
        (folder,) = (tmp_path / "runs").glob("*/*")
        return folder

    return run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("ChatML, eos <|endoftext|>", "ChatML, eos <|im_end|>", "Gemma", "Qwen3")
    ],
)
def test_what_has_been_learned_scores_100(name, program, capsys):
    folder = program(name)
    rows = read_jsonl(folder / "predictions/after_0/task_0.jsonl")
    assert [row["prediction"] for row in rows] == [row["messages"][1]["content"] for row in ROWS], name
    assert read_json(folder / "results.json")["R"] == [[1.0]]
