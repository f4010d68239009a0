"""The study for a GPU, rehearsed with a micro model, and what happens when its time is over."""

import sys
from pathlib import Path

import pytest

from benchmarks import gpu_study
from benchmarks.gpu_study import SIZES, Stage, perform, stages
from utils.storage.files import read_json


@pytest.mark.slow
def test_a_stage_that_is_over_its_time_is_ended(capfd):
    words = ("-c", "import time; print('begun', flush=True); time.sleep(60)")
    code, seconds = perform(Stage("sleep", words, 1), 0.2)
    assert code is None and seconds < 20
    assert "sleep: out of time" in capfd.readouterr().out
    assert perform(Stage("fail", ("-c", "raise SystemExit(3)"), 1), 60)[0] == 3


def test_what_cannot_follow_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    out = tmp_path / "out"
    assert gpu_study.main(["--out", str(out), "--size", "micro"]) == 1
    assert [stage["stage"] for stage in read_json(out / "gpu_study.json")["stages"]] == ["persons"]


def test_a_finished_backbone_is_kept(tmp_path):
    def names() -> list[str]:
        return [stage.name for stage in stages(SIZES["small"], tmp_path, tmp_path, ends=0)]

    assert names()[:3] == ["persons", "pretraining", "runs"]
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/config.json").touch()
    assert names()[:2] == ["persons", "runs"]


@pytest.mark.slow
def test_the_rehearsal(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_study, "FILES", [file for file in gpu_study.FILES if Path(file).stem in ("SEQ", "Freeze")])
    out = tmp_path / "out"
    assert gpu_study.main(["--out", str(out), "--size", "micro", "--minutes", "20"]) == 0
    found = read_json(out / "gpu_study.json")
    assert [stage["stage"] for stage in found["stages"]][:4] == ["persons", "pretraining", "runs", "report"]
    assert found["pretraining"]["layers"] == 12
    assert "| SEQ " in (out / "compare.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 16e6
