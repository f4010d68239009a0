"""A killed run is resumed to identical weights, predictions and logged losses; SIGTERM ends a run in order.

Each run here is a child of this process that kills itself (SIGKILL, nothing is cleaned up) just before or just after
it renames its n-th file: that is where the run folder changes. tests/stress/faults.py kills at random moments.
"""

import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.e2e.test_cli import call
from tests.forks import exit_code, fork
from tests.stress import faults
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.report import summary
from utils.run.checkpoint import checkpoints

OPTIONS = (
    "--cfg None --dataset micro --info_per_steps 4 --training_epochs 2 --batch_size 4 --lr 3e-3 --is_replay "
    "--Replay_buffer_ratio 0.5 --keep_optimizer_state --recovery --evaluate_interval 1 "
    "--save_llm_ckpt_epoch_interval 1 --save_llm_ckpt_step_interval 2"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    return [*shlex.split(OPTIONS), "--dataset_path", str(streams), "--backbone", backbone_folder(dropout=0.1)]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of the undisturbed run, and the files it renamed into place, in order."""
    dump = tmp_path_factory.mktemp("whole")
    renamed = in_child([*command, "--dump_path", str(dump)], dump / "renamed")
    (folder,) = dump.glob("*/*-seed1")
    return folder, renamed


def in_child(argv: list[str], names: Path, kill_at: int | None = None, before: bool = True) -> list[str]:
    """Run in a child process that kills itself around its n-th rename; returns what it had renamed."""
    child = fork(lambda: _kill_itself(names, kill_at, before) or call(argv), names.with_suffix(".out"))
    assert exit_code(child) == (0 if kill_at is None else -signal.SIGKILL)
    return names.read_text().split("\n")[:-1]


def _kill_itself(names: Path, kill_at: int | None, before: bool) -> None:
    replace, count = os.replace, 0

    def watched(source, target):
        nonlocal count
        count += 1
        if count == kill_at and before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        with open(names, "a") as file:
            file.write(f"{Path(target).parent.name}/{Path(target).name}\n")
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    names.touch()
    os.replace = watched


def kill_and_resume(command, whole, dump: Path, number: int, before: bool) -> list[str]:
    """Differences after a kill around the n-th rename, counted from 0."""
    in_child([*command, "--dump_path", str(dump)], dump / "renamed", number + 1, before)
    (folder,) = dump.glob("*/*-seed1")
    in_child(["--resume", str(folder)], dump / "renamed_again")
    return faults.compare(whole[0], folder)


@pytest.mark.parametrize(
    "place",
    tiny.quick(
        [
            "before checkpoints/task_0",
            "after checkpoints/task_1_epoch_0_step_2",
            "after after_1/task_0.jsonl",
            "after base/task_2.jsonl",
            "after checkpoints/task_2",
        ],
        2,
    ),
)
def test_killed_around(command, whole, tmp_path, place):
    when, name = place.split()
    assert kill_and_resume(command, whole, tmp_path, whole[1].index(name), when == "before") == []


def test_what_a_run_renames_is_what_it_leaves(whole):
    cells = [name for name in whole[1] if name.endswith(".jsonl")]
    assert len(cells) == len(set(cells))  # no cell is written twice
    assert whole[1].index("checkpoints/task_0") < whole[1].index("after_0/task_0.jsonl")


def terminated(command, dump: Path, is_time) -> tuple[Path, str, str]:
    """The folder of a run that got SIGTERM when it was time, what it printed last, and the checkpoint it names."""
    child = fork(lambda: call([*command, "--dump_path", str(dump)]), dump / "out")
    while not (is_time() or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    code, out = exit_code(child), (dump / "out").read_text(encoding="utf-8")
    assert code == 143 and "Traceback" not in out, out
    (folder,) = dump.glob("*/*-seed1")
    last = out.strip().split("\n")[-1]
    assert last.endswith(f" with: python main_CL.py --resume {folder}"), last
    assert (folder / "train.log").read_text(encoding="utf-8").strip().endswith(last)
    return folder, out, last


def test_sigterm_in_training(command, tmp_path):
    never = ["--evaluate_interval", "999999", "--save_llm_ckpt_epoch_interval", "999999"]
    endless = ["--training_epochs", "1000000", "--save_llm_ckpt_step_interval", "999999", *never]

    def is_time():
        return any("step 4 of" in path.read_text(encoding="utf-8") for path in tmp_path.glob("*/*/train.log"))

    folder, out, last = terminated([*command, *endless], tmp_path, is_time)
    (place,) = checkpoints(folder / "checkpoints")  # the signal's
    assert place.step and f"interrupted; resume it from checkpoint {place.name} with" in last
    lines = [line for line in out.split("\n") if "step 4 of " in line]
    assert len(lines) == 1 and re.search(
        r"\] task 0, epoch 2 of 1000000, step 4 of 3000000: loss \d+\.\d{4}, lr 0\.003, [\d,]+ tokens/s, "
        r"peak memory \d+\.\d\d GB, [\d]+ (h|min|s) .*left$",
        lines[0],
    ), lines


@pytest.mark.slow
def test_sigterm_in_a_long_evaluation(command, tmp_path):
    endless = ["--evaluation_mode", "generate", "--backbone_max_new_token", "1000000", "--evaluate_batch_size", "1"]
    began = f"{tmp_path}/*/*/env.json"
    folder, _, last = terminated([*command, *endless], tmp_path, lambda: glob.glob(began) and time.sleep(1) is None)
    assert "interrupted; resume it from the beginning with" in last
    assert not list((folder / "predictions").glob("*/*"))  # it stopped inside the first question


@pytest.mark.slow
def test_sigterm_in_a_report(command, whole, tmp_path):
    """The run ends inside the report after the first task, and is resumed to the results of one left alone."""

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupted():
        summary.write = interrupt
        return call([*command, "--dump_path", str(tmp_path)])

    assert exit_code(fork(interrupted, tmp_path / "out")) == 143
    (folder,) = tmp_path.glob("*/*-seed1")
    in_child(["--resume", str(folder)], tmp_path / "renamed")
    assert faults.compare(whole[0], folder) == []


@pytest.mark.slow
def test_sigterm_in_preprocessing(tmp_path):
    words = ["utils/dataformat_preprocess.py", "--dataset", "biography_synth", "--preset", "paper", "--out-dir"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *words, str(tmp_path)], cwd=faults.ROOT, **pipes)
    while not list(tmp_path.rglob(".*.tmp")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert all("writing raw files" in line for line in out.splitlines())  # after 10 s, on a busy machine
    assert errors == "interrupted; no incomplete file was written, run the same command again\n"
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
def test_killed_before_any_kind_of_file(command, whole, tmp_path):
    """The last one of each kind: its numbers are those of other tasks, epochs or steps."""
    resumable = next(i for i, name in enumerate(whole[1]) if name.endswith("/config.yaml")) + 1
    kinds = {re.sub(r"\d+", "N", name): number for number, name in enumerate(whole[1]) if number >= resumable}
    for name, number in kinds.items():
        if name.endswith(("/state.json", "/manifest.json")):  # inside a checkpoint's temporary folder
            continue
        dump = tmp_path / str(number)
        dump.mkdir()
        assert kill_and_resume(command, whole, dump, number, True) == [], whole[1][number]
        shutil.rmtree(dump)


@pytest.mark.slow
def test_killed_at_random(tmp_path):
    assert faults.check(tmp_path, kills=1, seed=0) == 0
