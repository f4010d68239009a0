"""The commands of docs/own-data.md with four small files and a tiny model."""

import json
import shlex
from pathlib import Path

import pytest

import main_CL
from tests.e2e.test_documents import commands
from tests.tiny import ANIMALS, SOUNDS, backbone_folder, forget_processes
from utils import sweep
from utils.quantization import is_installed

ROOT = Path(__file__).parents[2]
NAMES = ("law", "medicine", "code", "news")


@pytest.fixture
def lines(tmp_path, monkeypatch) -> list[list[str]]:
    """The words of each command that uses a recipe; the working directory has its files."""
    for k, name in enumerate(NAMES):
        answers = SOUNDS[k:] + SOUNDS[:k]
        rows = [{"instruction": "Say", "input": x, "output": y} for x, y in zip(ANIMALS, answers, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = [line for line in commands("", ROOT / "docs/own-data.md") if "config/recipes/" in line]
    places = {"config/recipes": str(ROOT / "config/recipes"), "my_model": backbone_folder("llama")}
    for old, new in places.items():
        found = [line.replace(old, new) for line in found]
    return [shlex.split(line) for line in found]


def test_the_plan_says_how_the_files_are_read(lines, capsys, monkeypatch):
    words = lines[0]
    monkeypatch.setattr("utils.quantization.is_installed", lambda: True)  # which takes seconds
    for recipe in "lora.yaml", "qlora.yaml", "full.yaml":
        forget_processes()
        assert main_CL.main([word.replace("lora.yaml", recipe) for word in words[2:]]) == 0
        plan = capsys.readouterr().out
        for name in NAMES:
            assert f"{name}: fields of alpaca: input=instruction+input?,target=output" in plan
            assert f"({name})" in plan
    Path("code.jsonl").write_text('{"question": "Say", "reply": "x"}\n', encoding="utf-8")
    forget_processes()
    assert main_CL.main(words[2:]) == 2
    error = capsys.readouterr().err
    assert (
        "code.jsonl, line 1: which fields are question and answer? the record has the fields question, reply" in error
    )


@pytest.mark.slow
def test_the_five_methods_can_run_with_the_recipe(lines, capsys):
    words = lines[1]
    assert words[:3] == ["python", "-m", "utils.sweep"]
    forget_processes()
    assert sweep.main([*words[3:], "--dry_run"]) == 0
    assert "15 runs, 15 to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_recipe_for_4_bits_trains(lines, tmp_path):
    if not is_installed():
        pytest.skip("bitsandbytes is absent")
    words = [word.replace("lora.yaml", "qlora.yaml") for word in lines[0][2:] if word != "--dry_run"]
    forget_processes()
    more = ["--training_epochs", "1", "--max_seq_length", "48", "--backbone_max_new_token", "8"]
    assert main_CL.main([*words, *more, "--dump_path", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert (folder / "results.md").is_file()
