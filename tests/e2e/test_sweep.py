"""Many runs by one command, which can be given again."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.test_cli import SMALL
from tests.tiny import backbone_folder, micro_stream
from utils import sweep
from utils.dataset import save_stream
from utils.storage.files import read_json, write_json, write_text
from utils.sweep import Job, is_finished


def begun(root: Path, name: str, last_row: list) -> Path:
    """A run folder that looks begun."""
    folder = root / "p-demo-SEQ" / name
    write_text(folder / "config.yaml", "seed: 1\n")
    write_json(folder / "results.json", {"R": [[0.5, None], last_row]})
    return folder


def test_a_job_is_started_resumed_or_left_alone(tmp_path):
    job = Job(Path("config/demo/SEQ.yaml"), 1, "p", tmp_path, ("--lr", "1e-3"))
    assert job.folder() is None and not is_finished(job.folder())
    words = job.command()[2:]
    assert words[:6] == ["--cfg", "config/demo/SEQ.yaml", "--seed", "1", "--exp_prefix", "p-demo"]
    assert words[-2:] == ["--lr", "1e-3"]
    (tmp_path / "p-demo-SEQ/2026-01-03-seed1").mkdir(parents=True)  # died before it could be resumed
    begun(tmp_path, "2026-01-02-seed11", [0.1, 0.9])
    assert job.folder() is None
    half = begun(tmp_path, "2026-01-01-seed1", [None, None])
    assert job.folder() == half and not is_finished(half)
    assert job.command()[2:] == ["--resume", str(half)]
    assert is_finished(begun(tmp_path, "2026-01-02-seed1", [0.1, 0.9]))


@pytest.mark.slow
def test_everything_is_done_once(tmp_path, capsys):
    streams = save_stream(micro_stream(), tmp_path / "streams").parent
    options = dict(zip(SMALL[2::2], SMALL[3::2], strict=True))
    options |= {"--dataset_path": str(streams), "--backbone": backbone_folder()}
    yaml = "".join(f"{name.removeprefix('--')}: {value}\n" for name, value in options.items())
    write_text(tmp_path / "c/SEQ.yaml", yaml)
    write_text(tmp_path / "c/wrong.yaml", yaml + "lrr: 1\n")
    files = [str(tmp_path / f"c/{name}.yaml") for name in ("SEQ", "wrong")]
    words = [*files, "--seeds", "1", "2", "--jobs", "2", "--dump_path", str(tmp_path / "runs")]
    words += ["--option", "training_epochs", "1"]
    assert sweep.main(words) == 1
    told = capsys.readouterr().out
    assert "4 runs, 0 finished before" in told and told.count("did you mean 'lr'") == 2
    section = read_json(tmp_path / "runs/sweep/compare.json")[0]
    assert [row["seeds"] for row in section["rows"]] == [[1, 2]]
    runs = sorted((tmp_path / "runs/sweep-c-SEQ").iterdir())
    shutil.rmtree(runs[0] / "predictions/after_2")
    (runs[0] / "results.json").unlink()
    assert sweep.main(words) == 1
    assert "4 runs, 1 finished before" in capsys.readouterr().out
    assert sorted((tmp_path / "runs/sweep-c-SEQ").iterdir()) == runs and is_finished(runs[0])
