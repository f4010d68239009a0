"""The table of "Spurious Forgetting" (Zheng et al., ICLR 2025) at 23 M parameters, in ten minutes on one GPU.

    python -m benchmarks.gpu_study --out gpu_study
    python -m benchmarks.gpu_study --out /tmp/rehearsal --size micro      # on a CPU: 0.2 M parameters, 12 persons

Invents 22,000 persons, pretrains a GPT-NeoX of 12 layers on the biographies of the first 20,000 for 32 epochs,
and runs config/biography_gpu_task2 on the questions: task 0 trains on half of these persons and tests on others, task 1
adds 2,000 new persons. The last stage is the speed table of benchmarks.gpu. A stage that is over its time ends with a
checkpoint, and the same command resumes it. OUT gets gpu_study.json and the comparison of the runs (a few MB); models,
stream and runs are in --work.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import ROOT
from utils.errors import exit_with
from utils.progress import say_with_time
from utils.storage.files import read_json, write_json

GRACE = 30  # seconds that a stage gets to write its checkpoint
FILES = sorted(str(path) for path in (ROOT / "config/biography_gpu_task2").glob("*.yaml"))


class Size(NamedTuple):
    """How much is done."""

    stream: tuple[str, ...]  # words for utils/dataformat_preprocess.py
    pretrain: tuple[str, ...]  # words for utils.pretrain
    runs: tuple[str, ...]  # words for utils.sweep


SIZES = {
    "small": Size(
        ("--preset", "small", "--num-person", "22000", "--num-person-first-task", "20000", "--dev-persons-first", "250",
         "--dev-persons-each", "250"),
        ("--preset", "small", "--save-steps", "200"),
        ("--seeds", "1", "2", "--jobs", "6"),
    ),
    "micro": Size(
        ("--preset", "micro"),
        ("--preset", "micro", "--layers", "12", "--steps", "8"),
        ("--seeds", "1", "--set", "training_epochs=1", "--set", "training_epochs_first_task=1"),
    ),
}  # fmt: skip
NAME = "biography_gpu_task2"


class Stage(NamedTuple):
    """A command that can be given again."""

    name: str
    words: tuple[str, ...]  # for Python
    share: float  # of the time that is left, at most


def stages(size: Size, work: Path, out: Path, ends: float) -> Iterator[Stage]:
    """The stages in turn, until `ends` of the clock; what is made by an earlier one is looked for when it is due."""
    backbone = work / "backbone"
    stream = ("--dataset", "biography_qa", "--name", NAME, "--out-dir", str(work / "dataset"), *size.stream)
    yield Stage("persons", ("utils/dataformat_preprocess.py", *stream), 0.5)
    if not (backbone / "config.json").exists():
        yield Stage("pretraining", ("-m", "utils.pretrain", *size.pretrain, "--out", str(backbone), "--resume"), 0.6)
    places = [f"dataset_path={work / 'dataset'}", f"dataset={NAME}", f"backbone={backbone}"]
    words = [word for place in places for word in ("--set", place)]
    runs = ("-m", "utils.sweep", *FILES, "--dump_path", str(work), "--prefix", "gpu_study", "--baseline", "SEQ")
    yield Stage("runs", (*runs, *words, *size.runs), 0.75)
    found = sorted(str(path.parent) for path in work.glob("gpu_study-*/*/results.json"))
    if found:
        yield Stage("report", ("-m", "utils.report", *found, "--baseline", "SEQ", "--out", str(out)), 1)
    if torch.cuda.is_available():
        words = ("--minutes", f"{(ends - time.monotonic()) / 60:.2f}", "--no-tests")
        yield Stage("speed", ("-m", "benchmarks.gpu", "--out", str(out / "speed.json"), *words), 1)


def perform(stage: Stage, seconds: float) -> tuple[int | None, float]:
    """Run a stage; returns its exit code (None: it ran out of time and can be resumed) and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *stage.words], cwd=ROOT, start_new_session=True)
    code = None
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        say_with_time(f"{stage.name}: out of time")
    finally:  # also after Ctrl-C
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            _wait(process)
    return code, time.monotonic() - began


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def device() -> str:
    """Name of the card, or that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if all stages came to their end, 1 otherwise."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_study", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file and the comparison")
    parser.add_argument("--work", type=Path, help="folder for models, stream and runs; default: OUT-work")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--minutes", type=float, default=10, help="after which stages are ended or left out")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    work = (given.work or out.with_name(f"{out.name}-work")).resolve()
    ends, done = time.monotonic() + 60 * given.minutes, []
    for stage in stages(SIZES[given.size], work, out, ends):
        left = ends - time.monotonic()
        say_with_time(f"{stage.name}: {left / 60:.1f} minutes left")
        code, seconds = perform(stage, left * stage.share) if left > 0 else (None, 0.0)
        say_with_time(f"{stage.name}: {'not finished' if code is None else f'exit code {code}'}, {seconds:.0f} s")
        done.append({"stage": stage.name, "code": code, "seconds": round(seconds, 1)})
        if code != 0 and stage.name in ("persons", "pretraining"):
            break  # the next stages need it
    backbone = work / "backbone/pretrain.json"
    facts = read_json(backbone) if backbone.exists() else None
    write_json(out / "gpu_study.json", {"device": device(), "size": given.size, "stages": done, "pretraining": facts})
    print(
        f"{out / 'gpu_study.json'}: {'all done' if all(s['code'] == 0 for s in done) else 'the same command resumes'}"
    )
    return 0 if all(stage["code"] == 0 for stage in done) else 1


if __name__ == "__main__":
    exit_with(main)
