"""CONTRIBUTING.md, "Add a method": its steps alone add a method, and no test fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## Add a method\n")[1].split("\n## ")[0]
METHOD, LINE, YAML = (dedent(block) for block in re.findall(r"^ +```\w+\n(.*?)```", SECTION, re.S | re.M))
# Tests outside `tests.check` that count, list or document methods.
OTHERS = [
    "tests/golden/test_losses.py::test_every_method_has_curves",
    "tests/e2e/test_documents.py",
    "tests/unit/options/test_config_files.py",
    "tests/unit/options/test_hints.py",
    "tests/unit/options/test_parse.py",
    "tests/unit/distributed/test_modes.py",
    "tests/e2e/test_two_processes.py::test_every_method_runs_in_two_processes_of_every_mode_it_allows",
]


def python(folder: Path, *words: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def copy_of_the_project(folder: Path) -> Path:
    """Everything but data and run folders; data are linked."""

    def left_out(path: str, names: list[str]) -> list[str]:
        if Path(path) == ROOT:
            return [".git", "dataset"]
        return [n for n in names if n == "__pycache__" or (Path(path) == ROOT / "experiments" and "." not in n)]

    shutil.copytree(ROOT, folder, ignore=left_out)
    (folder / "dataset").symlink_to(ROOT / "dataset")
    return folder


def test_the_steps_add_a_method(tmp_path):
    project = copy_of_the_project(tmp_path / "project")
    (project / "models/Anchor.py").write_text(METHOD, encoding="utf-8")
    table = project / "models/__init__.py"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("\n}\n", f"\n    {LINE.strip()}\n}}\n", 1), encoding="utf-8")
    (project / "config/biography_demo_task2/Anchor.yaml").write_text(YAML, encoding="utf-8")
    python(project, "-m", "tests.make", "Anchor")
    python(project, "-m", "tests.check", "Anchor")
    python(project, "-m", "pytest", "-q", "-n", "0", *OTHERS)


def test_a_method_in_a_user_s_package(tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "anchor.py").write_text(METHOD, encoding="utf-8")
    few = ["-k", "not resume and not killed and not two_processes"]  # Anchor passes these in the test above
    python(ROOT, "-m", "tests.check", "my_package.anchor:Anchor", *few, PYTHONPATH=str(tmp_path))
