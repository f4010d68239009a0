"""One of two processes is killed at some point: the other reports it and exits; the run is resumed in one process."""

import os
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.test_cli import SMALL, call, run
from tests.e2e.test_two_processes import LAUNCH, LOSS_TOLERANCE, MODES, ROOT, losses_of
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.storage.files import read_json

OPTIONS = (
    "--training_epochs 60 --info_per_steps 1 --save_llm_ckpt_step_interval 20 --is_replay --Replay_buffer_ratio 0.5"
)
MOMENTS = ("base/task_1.jsonl", "after_0/task_0.jsonl", "after_1/task_0.jsonl")  # predictions: the kill comes after


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    return [*SMALL, *shlex.split(OPTIONS), "--dataset_path", str(streams), "--backbone", backbone_folder()]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The run that nothing happens to, in one process."""
    return run(options, tmp_path_factory.mktemp("whole"))


def process_of(rank: int, dump: Path) -> int:
    """The number of the process that has a rank in the run below a folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(dump).encode() in (entry / "cmdline").read_bytes()
            if ours and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue  # it has ended
    raise AssertionError(f"no process of rank {rank}")


def lose(rank: int, mode: str, options: list[str], dump: Path) -> tuple[Path, str]:
    """Kill one process of two a moment after some file is there; the run folder, and what was printed."""
    rng = random.Random(f"{rank} {mode}")
    command = [*LAUNCH, *MODES[mode][0].split(), "main_CL.py", *options, "--dump_path", str(dump)]
    dump.mkdir()
    output = dump / "output.txt"
    with open(output, "w", encoding="utf-8") as file:
        launched = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    moment = rng.choice(MOMENTS)
    try:
        while not list(dump.glob(f"*/*/predictions/{moment}")):
            assert launched.poll() is None, output.read_text()[-3000:]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process_of(rank, dump), signal.SIGKILL)
        assert launched.wait(timeout=120) != 0  # where nobody noticed, the other would wait for half an hour
    finally:
        launched.kill()
    (folder,) = dump.glob("*/*")
    return folder, output.read_text()


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow if mode == "DDP" else pytest.mark.long) for mode in MODES],
)
def test_a_process_is_killed(mode, options, whole, tmp_path):
    for rank in (1, 0):
        folder, text = lose(rank, mode, options, tmp_path / str(rank))
        assert "deprecated" not in text
        if rank == 1:  # else the one that speaks for all is dead
            # The launcher ends the others; they notice that, or the broken connection before it.
            assert re.search("error: (another process of this run ended|interrupted); resume it ", text)
            assert f"--resume {folder}" in text
        assert call(["--resume", str(folder)]) == 0
        # 500 steps in two processes and in one: rounding adds up, while the losses fall from 6 to 0.01.
        assert losses_of(folder) == pytest.approx(losses_of(whole), rel=100 * LOSS_TOLERANCE, abs=10 * LOSS_TOLERANCE)
        assert read_json(folder / "results.json")["R"] == read_json(whole / "results.json")["R"]
