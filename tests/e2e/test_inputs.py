"""Spoilt and wrong inputs at every entry point of the program; the large search is `python -m tests.stress.inputs`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main_CL
from tests import tiny
from tests.stress import inputs
from tests.stress.input_folders import SPOIL_MODEL
from tests.stress.input_world import Case
from utils.backbone import load_backbone
from utils.dataset import save_stream
from utils.errors import UserError
from utils.jobs.runs import is_finished
from utils.options.parse import resolve
from utils.preprocess import jsonl
from utils.run.identity import named_after_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_miniature_of_the_search_finds_nothing(capsys):
    assert inputs.main(["--count", "64", "--seed", "1"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_failures_are_found(tmp_path, capsys):
    world = inputs.World(tmp_path)

    def refuse() -> int:
        print("error: no", file=sys.stderr)
        return 2

    def loop() -> None:
        while True:
            pass

    ends = {"accepted": lambda: 0, "refused": refuse, "no sentence": lambda: 2, "traceback": lambda: [][0]}
    for word, call in ends.items():
        assert inputs.attempt(Case("", call), world).word == word
    assert inputs.attempt(Case("", lambda: 0, wrong=True), world).word == "accepted although wrong"
    inputs.SECONDS, before = 1, inputs.SECONDS
    try:
        assert inputs.attempt(Case("", loop), world).word == "hang"
    finally:
        inputs.SECONDS = before


def test_draws_repeat():
    world = inputs.World(Path("/nowhere"))
    words = [[case.what for case in inputs.draws(inputs.ENTRIES["raw"](world), 3, 5)] for _ in range(2)]
    assert words[0] == words[1] and len(words[0]) == 5


@pytest.mark.parametrize("name", ["a" * 300 + ".jsonl", "\x00.jsonl"], ids=["long", "null"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(UserError):
        jsonl.read_tasks([tmp_path / name], jsonl.Options(), 1)


def test_a_checkpoint_at_the_top_of_a_relative_path_is_of_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = resolve(["--cfg", "None", "--is_evaluate_only", "--evaluate_checkpoint", "x"])
    assert named_after_checkpoint(options) is options


def test_control_characters_in_names_are_escaped_in_all_output(tmp_path, capsys):
    stream = tiny.micro_stream(2)
    save_stream(type(stream)("s", stream.tasks, stream.config), tmp_path)
    path = tmp_path / "s/continual_config.json"
    path.write_text(path.read_text().replace('"micro 0"', '"a\\u001b[2J\\nb\\u2028"'))
    words = ["--backbone", tiny.backbone_folder(), "--training_epochs", "1", "--dump_path", str(tmp_path / "out")]
    assert main_CL.main(["--cfg", "None", "--dataset", "s", "--dataset_path", str(tmp_path), *words]) == 0
    said = capsys.readouterr()
    page = next((tmp_path / "out").rglob("results.md")).read_text()
    log = next((tmp_path / "out").rglob("train.log")).read_text()
    for text in (said.out, said.err, page, log):
        assert "\x1b" not in text and "\u2028" not in text
    assert "a\\x1b[2J\\nb\\u2028" in said.out
    assert main_CL.main(["--cfg", "a\x1b[2J\nb.yaml"]) == 2
    assert "\\x1b[2J\\nb.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "family"), [("a layer fewer", "neox"), ("no layers", "neox"), ("a layer fewer", "bert_encoder")]
)
def test_layers_that_the_configuration_does_not_have_are_refused(spoil, family, tmp_path):
    folder = shutil.copytree(tiny.backbone_folder(family), tmp_path / "model")
    SPOIL_MODEL[spoil](folder)
    with pytest.raises(UserError, match=r"holds weights of layers that its config\.json does not have"):
        load_backbone(tiny.make_config(backbone=str(folder)))


@pytest.mark.parametrize(
    "command",
    [
        ["main_CL.py", "--dry_run"],
        ["main_CL.py", "--help"],
        ["-m", "utils.sweep", "--help"],
        ["-m", "utils.report", "-h"],
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_a_reader_that_has_gone_leaves_no_traceback(command):
    program = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    program.stdout.close()
    assert program.stderr.read() == ""
    assert program.wait() in (0, 128 + 13)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"R": []}', '{"R": [3]}', '{"R": [[null]]}'])
def test_results_that_are_none_are_of_no_finished_run(tmp_path, content):
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    assert not is_finished(tmp_path)
