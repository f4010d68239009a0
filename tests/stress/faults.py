"""Kill runs at random moments, resume them, and compare them with a run that was left alone.

    python -m tests.stress.faults --kills 20 [--seed 0] [--work DIR]

Besides the random kills (uniform over the life of a run, from the moment its folder is there) some are aimed: between
two cells of an evaluation, while a checkpoint is being written, during the recovery stage. Some runs are killed again
while they resume. Weights, optimizer state, memory, predictions and R have to be equal bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.storage.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
COMMON = (
    "--cfg None --training_epochs 10 --batch_size 4 --lr 3e-3 --is_replay --recovery --recovery_epochs 20 "
    "--save_llm_ckpt_step_interval 4"
)
VARIANTS = {  # name -> (dropout, options)
    "plain": (0.0, "--Replay_buffer_ratio 0.5 --gradient_accumulation_steps 2 --lr_scheduler linear"),
    "dropout": (0.1, "--Replay_buffer_size 7 --Replay_batch_level false --evaluate_interval 4"),
    "moments": (0.1, "--keep_optimizer_state --Replay_buffer_ratio 0.5 --il_mode IIL --evaluate_interval 5"),
}
SECOND_KILL = 0.3  # share of the runs that are killed again while they resume
TIMEOUT_SECONDS = 300


class Case(NamedTuple):
    """A run that was left alone, and how to start another one like it."""

    name: str
    command: list[str]
    folder: Path
    life: float  # seconds from the making of its folder to its end
    recovery: float  # seconds of its recovery stage and final report


class Kill(NamedTuple):
    """A killed and resumed run."""

    moment: str
    resumed: list[str]
    differences: list[str]


def main(argv: list[str]) -> int:
    """Run the script; 1 if any resumed run differs."""
    parser = argparse.ArgumentParser("python -m tests.stress.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="random kills; about a third as many aimed ones follow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        return check(options.work or Path(temporary), options.kills, options.seed)


def check(work: Path, kills: int, seed: int) -> int:
    """Do all kills below `work` and print a line for each."""
    save_stream(micro_stream(), work / "streams")
    cases = [reference(name, work) for name in VARIANTS]
    moments = ["random"] * kills + list(MOMENTS)[1:] * max(1, round(kills / 9))
    bad = 0
    for number, moment in enumerate(moments):
        case, rng = cases[number % len(cases)], random.Random(f"{seed}-{number}")
        result = kill(case, moment, work / f"kill_{number:02}", rng)
        bad += bool(result.differences)
        verdict = "; ".join(result.differences) or "same"
        print(
            f"{number + 1:3}  {case.name:8} {moment:10} {result.moment} -> from {', '.join(result.resumed)}: {verdict}",
            flush=True,
        )
    print(f"{len(moments)} kills, seed {seed}: {len(moments) - bad} runs the same bit for bit, {bad} different")
    return int(bad > 0)


def reference(name: str, work: Path) -> Case:
    """The undisturbed run."""
    dropout, extra = VARIANTS[name]
    folders = [
        "--dataset_path",
        str(work / "streams"),
        "--dataset",
        "micro",
        "--backbone",
        backbone_folder("neox", False, dropout),
    ]
    command = [sys.executable, "main_CL.py", *shlex.split(f"{COMMON} {extra}"), *folders]
    process = start(command, work / name)
    folder, began = wait_for_folder(process, work / name), time.monotonic()
    wait_until(process, lambda: (folder / "predictions/after_2/task_2.jsonl").exists())
    recovers = time.monotonic()
    finish(process)
    ended = time.monotonic()
    print(f"{name}: the undisturbed run takes {ended - began:.1f} s, its recovery {ended - recovers:.1f} s", flush=True)
    return Case(name, command, folder, ended - began, ended - recovers)


def kill(case: Case, moment: str, dump: Path, rng: random.Random) -> Kill:
    """Start a run, kill it, resume it (perhaps with another kill), compare it."""
    folder, place = start_and_kill(case, moment, dump, rng)
    if rng.random() < SECOND_KILL:
        process = start([sys.executable, "main_CL.py", "--resume", str(folder)])
        wait_until(process, lambda: (folder / "env-2.json").exists())
        time.sleep(rng.uniform(0, case.life / 2))
        place += " and again" * stop(process)
    finish(start([sys.executable, "main_CL.py", "--resume", str(folder)]))
    log = (folder / "train.log").read_text(encoding="utf-8")
    return Kill(place, re.findall(r"resuming after (\S+)", log) or ["the beginning"], compare(case.folder, folder))


def start_and_kill(case: Case, moment: str, dump: Path, rng: random.Random) -> tuple[Path, str]:
    """The folder of a killed run and its progress; repeated if the run ended before the kill."""
    while True:
        process = start(case.command, dump)
        folder, began = wait_for_folder(process, dump), time.monotonic()
        MOMENTS[moment](process, folder, case, rng)
        if stop(process):
            return folder, f"{time.monotonic() - began:5.2f} s ({last_line(folder)})"
        shutil.rmtree(dump)


def at_random(process: subprocess.Popen, folder: Path, case: Case, rng: random.Random) -> None:
    """Return at any moment of the run's life."""
    wait(process, rng.uniform(0, case.life))


def in_evaluation(process: subprocess.Popen, folder: Path, case: Case, rng: random.Random) -> None:
    """Return when a cell of R has just been written."""
    cells = sorted((case.folder / "predictions").rglob("*.jsonl"))
    cell = folder / rng.choice(cells).relative_to(case.folder)
    wait_until(process, cell.exists)


def in_checkpoint(process: subprocess.Popen, folder: Path, case: Case, rng: random.Random) -> None:
    """Return while a checkpoint has its temporary name."""
    wait(process, rng.uniform(0, 0.6 * case.life))
    wait_until(process, lambda: any((folder / "checkpoints").glob(".task_*.tmp")))
    time.sleep(rng.uniform(0, 0.02))


def in_recovery(process: subprocess.Popen, folder: Path, case: Case, rng: random.Random) -> None:
    """Return after the last task's evaluation."""
    wait_until(process, lambda: (folder / "predictions/after_2/task_2.jsonl").exists())
    wait(process, rng.uniform(0, case.recovery / 2))


MOMENTS: dict[str, Callable[[subprocess.Popen, Path, Case, random.Random], None]] = {
    "random": at_random,
    "evaluation": in_evaluation,
    "checkpoint": in_checkpoint,
    "recovery": in_recovery,
}


def compare(expected: Path, got: Path) -> list[str]:
    """What differs between two run folders, apart from times."""
    last = sorted(path.name for path in (expected / "checkpoints").iterdir())
    found = sorted(path.name for path in (got / "checkpoints").iterdir())
    differences = [] if last == found else [f"checkpoints {found} instead of {last}"]
    weights = compare_files(*(folder / "checkpoints" / last[-1] for folder in (expected, got)), "*.safetensors")
    differences += [f"{last[-1]}/{name}" for name in weights]
    memories = [
        [
            row
            for row in read_json(folder / "checkpoints" / last[-1] / "state.json")["state"]["dict"]
            if row[0] == "method"
        ]
        for folder in (expected, got)
    ]
    differences += [] if memories[0] == memories[1] else ["memory"]
    results = [read_json(folder / "results.json") for folder in (expected, got)]
    facts = ("base", "R", "R_train", "summary", "recovery", "probing")
    differences += [name for name in facts if results[0].get(name) != results[1].get(name)]
    differences += [] if trained(expected) == trained(got) else ["training in log.jsonl"]
    differences += [f"left over: {path.relative_to(got)}" for path in got.rglob(".*")]
    return differences + compare_files(expected / "predictions", got / "predictions")


def trained(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each event of training; a resumed run logs a step once, with the mean of the whole window."""
    events = read_jsonl(folder / "log.jsonl")
    return [(event["step"], event["loss"]) for event in events if event["event"] == "train"]


def compare_files(expected: Path, got: Path, pattern: str = "*") -> list[str]:
    """Names of the files that are in one folder only or have other bytes."""
    roots = (expected, got)
    files = [{path.relative_to(root): path for path in root.rglob(pattern) if path.is_file()} for root in roots]
    names = sorted(files[0].keys() | files[1].keys())
    missing = [name for name in names if name not in files[0] or name not in files[1]]
    both = [name for name in names if name not in missing]
    return [str(n) for n in [*missing, *(n for n in both if files[0][n].read_bytes() != files[1][n].read_bytes())]]


def start(command: list[str], dump: Path | None = None) -> subprocess.Popen:
    """Start a run in a separate process group."""
    where = [] if dump is None else ["--dump_path", str(dump)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *where], cwd=ROOT, env=environment, start_new_session=True, text=True, **pipes)


def stop(process: subprocess.Popen) -> bool:
    """kill -9 the process group; False if the run was over."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def finish(process: subprocess.Popen) -> None:
    """Let a run come to its end."""
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args)} ended with code {process.returncode}:\n{errors}")


def wait_for_folder(process: subprocess.Popen, dump: Path) -> Path:
    """The folder of the run below `dump`, as soon as it can be resumed."""
    wait_until(process, lambda: any(dump.glob("*/*/config.yaml")))
    if process.poll():
        finish(process)
    return next(dump.glob("*/*/config.yaml")).parent


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Look a thousand times a second, until the condition holds or the run is over."""
    while process.poll() is None and not condition():
        time.sleep(0.001)


def wait(process: subprocess.Popen, seconds: float) -> None:
    """Wait, but no longer than the run lives."""
    end = time.monotonic() + seconds
    wait_until(process, lambda: time.monotonic() >= end)


def last_line(folder: Path) -> str:
    """The progress of a run, from its log."""
    log = folder / "train.log"
    lines = log.read_text(encoding="utf-8").strip().split("\n") if log.exists() else [""]
    return re.sub(r"^\[[\d:]+\] ", "", lines[-1])[:50]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
