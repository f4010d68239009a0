"""`--dry_run` prints the plan of a run; `--evaluate_checkpoint` repeats a run's evaluation of a checkpoint."""

from functools import cache

import pytest
import torch
from torch import nn

from models.SEQ import SEQ
from tests import tiny
from tests.e2e.test_cli import call, run
from tests.tiny import backbone_folder, class_stream, make_model, micro_stream
from utils.dataset import save_stream
from utils.storage.files import read_json, read_jsonl

SMALL = ["--cfg", "None", "--training_epochs", "3", "--batch_size", "4", "--lr", "1e-2", "--save_llm_ckpt"]
CLASSES = ["--dataset", "classes", "--il_mode", "CIL"]
KINDS = {
    "plain": ["--dataset", "micro"],
    "LoRA": ["--dataset", "micro", "--PEFT_type", "LoRA"],
    "an adapter each": ["--dataset", "micro", "--il_mode", "TIL", "--method", "PEFT", "--PEFT_type", "LoRA"],
    "merged": ["--dataset", "micro", "--method", "TaskVector"],
    "heads": [*CLASSES, "--classifier", "Linear", "--classifier_lr", "1e-2"],
    "heads on LoRA": [*CLASSES, "--classifier", "CosineLinear", "--classifier_scale", "10", "--PEFT_type", "LoRA"],
    "prompts": ["--dataset", "micro", "--il_mode", "TIL", "--method", "ProgPrompt"],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    save_stream(class_stream(), folder)
    return [*SMALL, "--dataset_path", str(save_stream(micro_stream(), folder).parent), "--backbone", backbone_folder()]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of a finished run of a kind."""
    return cache(lambda kind: run([*small, *KINDS[kind]], tmp_path_factory.mktemp("whole")))


def answers(folder, moment, task):
    return [row["prediction"] for row in read_jsonl(folder / "predictions" / moment / f"task_{task}.jsonl")]


@pytest.mark.parametrize("kind", tiny.quick(KINDS))
@pytest.mark.slow
def test_a_checkpoint_answers_as_in_its_run(whole, tmp_path, kind):
    whole = whole(kind)
    checkpoint = whole / "checkpoints/task_1"
    words = ["--cfg", str(whole / "config.yaml"), "--is_evaluate_only", "--evaluate_checkpoint", str(checkpoint)]
    alone = run(words, tmp_path / "alone")
    for task in (0, 1):
        assert answers(alone, "after_1", task) == answers(whole, "after_1", task)
    assert answers(alone, "after_1", 1) != answers(whole, "base", 1)
    assert read_json(alone / "results.json")["R"][1][:2] == read_json(whole / "results.json")["R"][1][:2]
    assert not (alone / "checkpoints").exists()


@pytest.mark.parametrize("kind", tiny.quick(["heads", "prompts", "LoRA"]))
def test_more_than_a_model_is_not_taken_for_one(whole, capsys, kind):
    whole = whole(kind)
    words = ["--cfg", str(whole / "config.yaml"), "--is_evaluate_only", "--load_llm_ckpt"]
    assert call([*words, "--backbone_cache_path", str(whole / "checkpoints/task_1")]) == 2
    assert "holds adapters, heads or prompts of a run" in capsys.readouterr().err


def test_a_model_alone_can_still_be_a_backbone(whole, tmp_path):
    whole = whole("plain")
    words = ["--cfg", str(whole / "config.yaml"), "--is_evaluate_only", "--load_llm_ckpt"]
    alone = run([*words, "--backbone_cache_path", str(whole / "checkpoints/task_1")], tmp_path / "alone")
    assert answers(alone, "base", 0) == answers(whole, "after_1", 0)


def test_a_wrong_checkpoint_is_reported(whole, small, tmp_path, capsys):
    whole = whole("heads")
    checkpoint = str(whole / "checkpoints/task_1")
    words = ["--is_evaluate_only", "--dump_path", str(tmp_path / "alone"), "--evaluate_checkpoint"]
    assert call([*small, *KINDS["plain"], *words, checkpoint]) == 2
    assert "is not of a run with these options" in capsys.readouterr().err
    assert call([*small, *KINDS["plain"], *words, str(whole)]) == 2
    assert "expected <run>/checkpoints/<name>" in capsys.readouterr().err
    assert call([*small, *KINDS["plain"], "--evaluate_checkpoint", checkpoint]) == 2
    assert "has no effect without is_evaluate_only" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_writes_and_loads_nothing(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_state_dict", None)
    total = sum(w.numel() for w in make_model().parameters())
    words = ["--dataset", "micro", "--is_replay", "--Replay_buffer_ratio", "0.5", "--freeze_parts", "[embeddings]"]
    assert call([*small, *words, "--dry_run", "--dump_path", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in out.splitlines() if line.startswith("|")}
    # 12 examples in batches of 4; then 8 in batches of 2 with 2 of memory; 3 epochs each
    assert [c.strip() for c in rows["0 (micro 0)"].split("|")[2:8]] == ["12", "6", "6", "12", "3", "9"]
    assert [c.strip() for c in rows["1 (micro 1)"].split("|")[2:8]] == ["8", "4", "4", "8", "3", "12"]
    assert f"/ {total:,} |" in rows["0 (micro 0)"] and f"/ {total:,} |" not in rows["1 (micro 1)"]
    assert f"parameters: {total:,}, at most {total:,} trainable" in out
    assert f"weights {4 * total / 1e6:.1f} MB" in out and "1 process of 4 examples each, in 1 part of at most 4" in out
    assert not (tmp_path / "none").exists()


def test_steps_of_the_plan_are_those_of_the_run(small, tmp_path, capsys):
    words = [*small, *KINDS["plain"], "--is_replay", "--Replay_buffer_ratio", "0.3", "--Replay_sampling_algorithm"]
    assert call([*words, "herding", "--dry_run"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "(micro" in line]
    folder = run([*words, "herding"], tmp_path)
    steps = max(row["step"] for row in read_jsonl(folder / "log.jsonl"))
    assert sum(int(row[7]) for row in rows) == steps


def test_errors_of_a_method_s_own_code_are_not_hidden_by_a_plan(small, monkeypatch):
    def broken(*_):
        raise KeyError("a slip of the method's author")

    for hook in ("setup", "trainable"):
        with monkeypatch.context() as patch, pytest.raises(KeyError, match="a slip"):
            patch.setattr(SEQ, hook, broken)
            call([*small, "--dataset", "micro", "--dry_run"])


def test_a_method_that_reads_weights_in_its_setup_gets_them(small, monkeypatch, capsys):
    monkeypatch.setattr(SEQ, "setup", lambda self: float(next(self.model.parameters()).sum()))
    assert call([*small, "--dataset", "micro", "--dry_run"]) == 0
    assert "2 (micro 2)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_for_each_kind(small, capsys, kind, tmp_path):
    assert call([*small, *KINDS[kind], "--dry_run", "--dump_path", str(tmp_path / "none")]) == 0
    assert "2 (micro 2)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch_size", "0"], "batch_size: expected greater than or equal to 1"),
        (["--method", "Joint", "--is_replay"], "method Joint cannot be combined with is_replay"),
        (["--freeze_parts", "[gpt_neox,head]", "--freeze_from_task", "0"], "freeze_parts: nothing is left to train"),
        (["--evaluate_interval", "1", "--keep_best"], "the dev split of micro is its test split"),
    ],
)
def test_a_plan_is_refused_as_the_run_would_be(small, capsys, words, expected):
    assert call([*small, "--dataset", "micro", "--dry_run", *words]) == 2
    assert expected in capsys.readouterr().err
