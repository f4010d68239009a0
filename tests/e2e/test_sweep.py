"""Many runs by one command, which can be given again."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.test_cli import SMALL
from tests.tiny import backbone_folder, micro_stream
from utils import sweep
from utils.dataset import save_stream
from utils.jobs import runs, work
from utils.jobs.runs import Job, is_finished
from utils.storage.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[2]
HOW = "interrupted; the same command resumes the runs\n"


def begun(root: Path, name: str, last_row: list) -> Path:
    """A run folder that looks begun."""
    folder = root / "p-demo-SEQ" / name
    write_text(folder / "config.yaml", "seed: 1\n")
    write_json(folder / "results.json", {"R": [[0.5, None], last_row]})
    return folder


def test_a_job_is_started_resumed_or_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "differences", lambda job, run: [])
    job = Job(Path("config/demo/SEQ.yaml"), 1, "p", tmp_path, ("--lr", "1e-3"))
    assert job.folder() is None and not is_finished(job.folder())
    words = job.command()[2:]
    assert words[:6] == ["--cfg", "config/demo/SEQ.yaml", "--seed", "1", "--wandb_name", "p-demo-SEQ"]
    assert words[-2:] == ["--lr", "1e-3"]
    (tmp_path / "p-demo-SEQ/2026-01-03-seed1").mkdir(parents=True)  # died before it could be resumed
    begun(tmp_path, "2026-01-02-seed11", [0.1, 0.9])
    assert job.folder() is None
    half = begun(tmp_path, "2026-01-01-seed1", [None, None])
    assert job.folder() == half and not is_finished(half)
    assert job.command()[2:] == ["--resume", str(half)]
    assert is_finished(begun(tmp_path, "2026-01-02-seed1", [0.1, 0.9]))


@pytest.fixture
def files(tmp_path):
    """YAML files of small runs: one that works, one that diverges, one with a wrong option, one that is long."""
    streams = save_stream(micro_stream(), tmp_path / "streams").parent
    options = dict(zip(SMALL[2::2], SMALL[3::2], strict=True))
    options |= {"--dataset_path": str(streams), "--backbone": backbone_folder()}
    yaml = "".join(f"{name.removeprefix('--')}: {value}\n" for name, value in options.items())
    write_text(tmp_path / "c/SEQ.yaml", yaml)
    write_text(tmp_path / "c/diverges.yaml", yaml.replace("lr: 3e-3", "lr: 1e30"))
    write_text(tmp_path / "c/wrong.yaml", yaml + "lrr: 1\n")
    write_text(tmp_path / "c/long.yaml", yaml.replace("training_epochs: 2", "training_epochs: 100000"))
    return tmp_path / "c"


@pytest.mark.slow
def test_everything_is_done_once(files, tmp_path, capsys):
    words = [str(files / "SEQ.yaml"), str(files / "diverges.yaml")]
    words += ["--seeds", "1", "2", "2", "--jobs", "2", "--dump_path", str(tmp_path / "runs")]
    words += ["--set", "training_epochs=1"]
    assert sweep.main(words) == 1
    told = capsys.readouterr().out
    failed = [line for line in told.splitlines() if "failed: the loss is not finite in task 0" in line]
    assert "4 runs, 0 finished before" in told and len(failed) == 2
    assert all(f"{tmp_path}/runs/sweep/sweep-c-diverges-seed" in line for line in failed)
    section = read_json(tmp_path / "runs/sweep/compare.json")[0]
    assert [row["seeds"] for row in section["rows"]] == [[1, 2]]
    runs = sorted((tmp_path / "runs/sweep-c-SEQ").iterdir())
    shutil.rmtree(runs[0] / "predictions/after_2")
    (runs[0] / "results.json").unlink()
    assert sweep.main(words) == 1
    assert "4 runs, 1 finished before" in capsys.readouterr().out
    assert sorted((tmp_path / "runs/sweep-c-SEQ").iterdir()) == runs and is_finished(runs[0])


@pytest.mark.slow
def test_a_forked_run_is_the_run_of_a_new_process(files, tmp_path):
    found = []
    for name, variables in (("forked", None), ("new", {})):
        job = Job(files / "SEQ.yaml", 3, "p", tmp_path / name, ("--is_replay", "true"))
        assert runs.start(job, job.output, variables).wait(300) == 0
        saved = sorted(path for kind in ("jsonl", "safetensors") for path in job.begun()[0].rglob(f"*.{kind}"))
        found.append({path.name: path.read_bytes() for path in saved if path.name != "log.jsonl"})
    assert found[0] == found[1] and "model.safetensors" in found[0] and len(found[0]) > 3


def test_where_there_are_gpus_or_a_launcher_runs_are_not_forked(monkeypatch):
    job = Job(Path("c.yaml"), 1, "p", Path("runs"), ())
    for gpus, launcher, expected in (
        ([], None, None),
        ([], ("x",), {}),
        (["0", "1"], None, {"CUDA_VISIBLE_DEVICES": "1"}),
    ):
        monkeypatch.setattr(work, "_gpus", lambda gpus=gpus: gpus)
        assert work._Work([job], 2, {})._variables(job._replace(launcher=launcher), 1) == expected


def test_a_wrong_option_is_reported_before_any_run_starts(files, tmp_path, capsys):
    words = [str(files / "SEQ.yaml"), str(files / "wrong.yaml"), "--dump_path", str(tmp_path / "runs")]
    assert sweep.main(words) == 2
    assert "did you mean 'lr'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("sweep-c-*"))


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A sweep that a failed test has started ends with the test, and its runs with it."""
    yield
    while STARTED:
        STARTED.pop().kill()


def begin_long(files, root, *more):
    """A sweep of two long runs in a separate process, with both running."""
    command = [sys.executable, "-m", "utils.sweep", str(files / "long.yaml"), "--seeds", "1", "2", "--jobs", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    parent = subprocess.Popen([*command, *more, "--dump_path", str(root)], cwd=ROOT, preexec_fn=hear, **pipes)
    STARTED.append(parent)
    wait_for(lambda: len(list(root.glob("sweep-c-long/*/predictions/base/task_2.jsonl"))) == 2, parent)
    return parent, [pid for folder in root.glob("sweep-c-long/*") for pid in users(folder / "log.jsonl")]


def users(file):
    """Processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has ended, or is another user's
            if os.path.samefile(link, file):
                found.add(int(link.parts[2]))
    return sorted(found)


def wait_for(condition, parent=None):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end and (parent is None or parent.poll() is None)
        time.sleep(0.02)


def is_alive(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_runs_end_with_their_sweep(files, tmp_path, capsys, number):
    parent, children = begin_long(files, tmp_path / "runs")
    assert len(children) == 2
    assert sweep.main([str(files / "SEQ.yaml"), "--dump_path", str(tmp_path / "runs")]) == 2
    assert "is in use by another command" in capsys.readouterr().err
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)
    wait_for(lambda: not any(map(is_alive, children)))
    expected = {signal.SIGKILL: (-9, ""), signal.SIGTERM: (143, HOW), signal.SIGINT: (130, HOW)}
    assert (parent.returncode, errors) == expected[number]
    for seed in (1, 2):  # each has ended in order
        assert "interrupted; resume it from" in runs.last_line(tmp_path / f"runs/sweep/sweep-c-long-seed{seed}.out")


@pytest.mark.slow
def test_launched_runs_end_with_their_sweep(files, tmp_path):
    parent, _ = begin_long(files, tmp_path / "runs", "--launch", "--config_file config/accelerate/cpu_2.yaml")
    parent.kill()
    parent.communicate(timeout=60)
    folders = list((tmp_path / "runs/sweep-c-long").iterdir())
    wait_for(lambda: not any(map(is_in_use, folders)))
    for folder in folders:
        assert "interrupted; resume it from" in (folder / "train.log").read_text(encoding="utf-8")


def is_in_use(folder):
    """True if a process holds the lock of the run folder."""
    with open(folder / "log.jsonl", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_gpus_are_divided(monkeypatch):
    for gpus, workers, several, expected in (
        ("0,1,2", 3, False, [["0"], ["1"], ["2"]]),
        ("4,7", 3, False, [["4"], ["7"], ["4"]]),
        ("0,1,2,3", 1, False, [["0"]]),
        ("0,1,2,3", 2, True, [["0", "2"], ["1", "3"]]),
        ("0,1", 2, True, [["0"], ["1"]]),
    ):
        monkeypatch.setattr(work, "_gpus", lambda gpus=gpus: gpus.split(","))
        todo = work._Work([], workers, {})
        assert [todo._own_gpus(slot, several) for slot in range(workers)] == expected, (gpus, workers, several)


def test_a_launcher_starts_the_runs():
    job = Job(Path("c/SEQ.yaml"), 1, "p", Path("runs"), (), ("--config_file", "two.yaml"))
    words = job.command()
    assert words[1:4] == ["-m", "accelerate.commands.launch", "--main_process_port"]
    assert words[5:8] == ["--config_file", "two.yaml", str(ROOT / "main_CL.py")]


def test_the_reason_is_one_line(tmp_path):
    output = tmp_path / "x.out"
    for text, code, expected in (
        ("[1:2:3] hello\nerror: invalid options:\n  - lr: wrong\n  - seed: wrong\n", 2, "invalid options: - lr: wrong"),
        ("Traceback\n  File x\nKeyError: 'a'\n", 1, "KeyError: 'a'"),
        ("", -9, "signal 9: it printed nothing"),
    ):
        write_text(output, text)
        found = runs.reason(output, code)
        assert found.startswith(expected) and found.endswith(f"({output})") and "\n" not in found, found


def test_how_far_a_run_is(tmp_path):
    write_text(tmp_path / "x.out", "[15:04:05] run folder: x\n[15:04:06] task 0, step 25 of 50: loss 1.0\n\n")
    assert runs.last_line(tmp_path / "x.out") == "task 0, step 25 of 50: loss 1.0"
    assert runs.last_line(tmp_path / "none.out") == ""
