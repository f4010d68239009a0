"""utils/download_backbones.py, with a hub that is a folder."""

import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from tests.tiny import backbone_folder
from utils import backbone
from utils.download_backbones import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository on a hub that answers; returns its folder."""
    repository = tmp_path / "hub"
    shutil.copytree(backbone_folder(), repository)
    for name in ("pytorch_model.bin", "README.md", "onnx/config.json", "onnx/model.onnx", "consolidated.safetensors"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")

    def files(name, revision=None):
        if name != "some/model":
            raise OSError(f"404: {name}\nmore")
        return [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]

    def snapshot_download(name, *, revision, local_dir, allow_patterns, ignore_patterns):
        for file in files(name):
            wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(file, pattern) for pattern in ignore_patterns):
                Path(local_dir).mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / file, Path(local_dir) / file)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(backbone, "hub_answers", lambda: True)
    return repository


def test_only_what_transformers_loads_is_fetched(hub, tmp_path, capsys):
    out = tmp_path / "out" / "model"
    assert main(["--backbone", "some/model", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in Path(backbone_folder()).iterdir()}
    text = capsys.readouterr().out
    assert f"--backbone {out}" in text and f"--load_llm_ckpt True --backbone_cache_path {out}" in text


def test_a_model_that_does_not_load_is_reported(hub, tmp_path, capsys):
    (hub / "config.json").write_text("{}")
    assert main(["--backbone", "some/model", "--out", str(tmp_path / "out")]) == 2
    assert "AutoConfig cannot load" in capsys.readouterr().err


def test_a_model_without_safetensors_is_refused(hub, tmp_path, capsys):
    (hub / "model.safetensors").unlink()
    assert main(["--backbone", "some/model", "--out", str(tmp_path / "out")]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_reported_in_one_line(hub, tmp_path, capsys):
    assert main(["--backbone", "other/model", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: --backbone: other/model could not be downloaded (404: other/model more)\n"


def test_a_network_that_breaks_off_is_one_sentence(hub, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("connection\nreset")  # httpx's errors are not OSErrors

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert main(["--backbone", "some/model", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: --backbone: some/model could not be downloaded (connection reset)\n"


def test_a_folder_that_holds_something_else_is_left_alone(hub, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert main(["--backbone", "some/model", "--out", str(tmp_path / "out")]) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_without_a_network_one_sentence(tmp_path):
    """As a user starts it; HF_HUB_OFFLINE is set for all tests."""
    command = [
        sys.executable,
        "utils/download_backbones.py",
        "--backbone",
        "some/model",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --backbone: the hub cannot be reached") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
