"""README.md: what comes from the code is up to date, and every command in it works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, DOCUMENTS
from tests.e2e.test_cli import SMALL, run
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.diagnose import __main__ as diagnose
from utils.options.parse import resolve

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
SHORT = ["--training_epochs", "1", "--training_epochs_first_task", "1", "--lr_list", "[1e-4, 1e-4]"]


def commands(language: str) -> list[str]:
    """The command lines in the blocks of one language, without what only prepares the environment."""
    lines = [line for kind, block in BLOCKS if kind == language for line in block.splitlines()]
    lines = [line.removeprefix("pip install -r requirement.txt && ") for line in lines]
    starts = ("python ", "bash ", "accelerate ")
    return list(dict.fromkeys(line for line in lines if line.startswith(starts) and line != "python -m pytest"))


def test_generated_documents_are_up_to_date():
    for name, make in DOCUMENTS.items():
        assert (DOCS / name).read_text(encoding="utf-8") == make() + "\n", f"docs/{name}: run python -m tests.make"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", [c for c in commands("") if " main_CL.py" in c and "--resume" not in c])
def test_options_with_places_to_fill_are_valid(command):
    words = shlex.split(re.sub(r"\{([^}]*)\}", "something", command))
    arguments = words[words.index("main_CL.py") + 1 :]
    resolve(arguments)
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()


@pytest.mark.parametrize("command", [c for c in commands("") if c.startswith("python utils/")])
def test_options_of_other_programs_exist(command):
    words = shlex.split(command)
    extra = words[2:4] if words[2] == "--dataset" else []
    done = subprocess.run([sys.executable, words[1], *extra, "--help"], cwd=ROOT, capture_output=True, text=True)
    for word in words[2:]:
        assert not word.startswith("--") or word in done.stdout, (word, done.stderr)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a small run whose checkpoints were kept."""
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    options = ["--dataset_path", str(streams), "--save_llm_ckpt", "true", "--save_llm_ckpt_step_interval", "2"]
    return run([*SMALL, *options, "--backbone", backbone_folder()], tmp_path_factory.mktemp("kept"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands("") if "utils.diagnose" in c])
def test_diagnosis_runs(command, kept, tmp_path, capsys):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "utils.diagnose"] and words[4].startswith("experiments/")
    assert diagnose.main([words[3], str(kept), *words[5:], "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{words[3]}.png").is_file() and "SEQ on micro, seed 1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("bash"))
def test_it_runs(command, tmp_path):
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    if "main_CL.py" in words:
        words += ["--dump_path", str(tmp_path), *SHORT]
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=path, capture_output=True, text=True)
    assert done.returncode == (2 if "--lrr" in command else 0), done.stderr
    assert "Traceback" not in done.stderr
