"""Time and memory of a training step of every method, relative to sequential fine-tuning on the same batches.

    python -m benchmarks.methods [--methods NAME ...]                         about ten minutes on one core
    python -m benchmarks.methods --smollm2 FOLDER --methods SEQ SDFT GRPO     SmolLM2-135M-Instruct with LoRA
    python -m benchmarks.methods --smollm2 FOLDER --rollouts                  sampling against training

Each method has the options of its YAML in config/biography_demo_task2 and runs in a separate process. It learns the
first questions of the first task of the embedded stream, then is measured on those of the second task, so that memory,
teachers and penalties are there: batches of 16 questions, answers of at most 26 tokens. Printed:

    step    seconds of a step (median; the processor's time, which a busy machine changes little), and SEQ's share of it
    task    seconds of what comes before and after the steps of the task, such as pseudo-samples and Fisher
    memory  MB that the second task adds at most to what the process holds with the model loaded, and relative to SEQ
    passes  sequences through the model, and tokens sampled, per question and epoch

`--rollouts` samples 16 tokens after each of 32 questions and trains on as many rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, machine, seconds
from benchmarks.memory import resident
from models import METHODS
from models.common.rollouts import Sampling, sample
from utils.distributed.modes import make_accelerator
from utils.errors import UserError
from utils.logger import RunLog
from utils.model.weights import eval_mode
from utils.options.checks import check
from utils.options.parse import resolve
from utils.run.launch import build_method, quieten
from utils.run.tasks import task_of
from utils.run.trainer import Trainer

CONFIGS = ROOT / "config" / "biography_demo_task2"
LORA = ("--PEFT_type", "LoRA", "--PEFT_lora_dropout", "0.0")
BATCH = 16


def main(argv: list[str]) -> int:
    """Measure the methods; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.methods", description=__doc__.split("\n")[0])
    names = [name for name in METHODS if (CONFIGS / f"{name}.yaml").exists()]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="NAME", help="default: all")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured (default 8)")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2, which replaces the embedded backbone")
    parser.add_argument("--rollouts", action="store_true", help="compare sampling with training, for SEQ")
    parser.add_argument("--alone", action="store_true", help="measure one method in this process")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if given.alone:
        print(json.dumps(measure(given.methods[0], given.steps, given.smollm2)))
        return 0
    print(machine(1))
    if given.rollouts:
        print(rollouts(given.smollm2, given.steps))
        return 0
    print(f"{'method':20}{'step, s':>9}{'x SEQ':>8}{'task, s':>9}{'MB':>8}{'x SEQ':>8}{'passes':>8}{'sampled':>9}")
    plain = in_a_process("SEQ", given)
    for name in given.methods:
        print(line(name, plain if name == "SEQ" else in_a_process(name, given), plain), flush=True)
    return 0


def in_a_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What `measure` returns in a new process, whose memory holds nothing else."""
    words = ["--alone", "--methods", name, "--steps", str(given.steps)]
    words += ["--smollm2", str(given.smollm2)] if given.smollm2 else []
    command = [sys.executable, "-m", "benchmarks.methods", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, own: dict[str, Any], plain: dict[str, Any]) -> str:
    """One row of the table."""
    if "refused" in own:
        return f"{name:20}  {own['refused']}"
    if not own["step"]:
        return f"{name:20}  no steps"
    ratios = own["step"] / plain["step"], own["memory"] / max(plain["memory"], 1e-9)
    numbers = f"{own['step']:9.3f}{ratios[0]:8.2f}{own['task']:9.2f}{own['memory']:8.0f}{ratios[1]:8.2f}"
    return f"{name:20}{numbers}{own['passes']:8.2f}{own['sampled']:9.2f}"


def build(name: str, smollm2: Path | None, *more: str) -> Trainer:
    """A run of a method that has not begun, in a temporary folder."""
    words = ["--cfg", str(CONFIGS / f"{name}.yaml"), "--batch_size", str(BATCH), *more]
    words += ["--backbone", str(smollm2), *LORA] if smollm2 else []
    quieten()
    plan = check(resolve(words))
    log = RunLog(plan.config, is_main=False)
    method = build_method(plan, make_accelerator(plan.config), log)
    return Trainer(method, Path(tempfile.mkdtemp()))


def measure(name: str, steps: int, smollm2: Path | None) -> dict[str, Any]:
    """Seconds of a step and of the rest of the second task, MB, passes and sampled tokens."""
    try:
        trainer = build(name, smollm2)
    except UserError as error:
        return {"refused": str(error).replace("\n", " ")}
    held, ends = resident("VmRSS"), list[float]()
    on_step = trainer._on_step

    def timed(*call: Any) -> bool:
        ends.append(time.process_time())
        return on_step(*call)

    trainer._on_step = timed  # type: ignore[method-assign]
    for index in range(2):
        task, ends[:] = task_of(trainer.method, index), []
        train = task.train[: BATCH * (steps + 1)]
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far is what there is now
        began = time.process_time()
        with trainer.cost.training(index):
            trainer._learn(replace(task, train=train, epochs=1), None)
        whole = time.process_time() - began
    between = [b - a for a, b in pairwise(ends)]
    step = statistics.median(between) if between else 0.0
    values = trainer.cost.values
    return {
        "step": step,
        "task": max(0.0, whole - step * len(ends)),
        "memory": (resident("VmHWM") - held) / 1e3,
        "passes": values["train_sequences"][1] / len(train),
        "sampled": values["train_generated_tokens"][1] / len(train),
    }


def rollouts(smollm2: Path | None, rounds: int) -> str:
    """Seconds of sampling 16 tokens after each of 32 questions, and of a training step on as many rows."""
    trainer = build("SEQ", smollm2, "--batch_size", "32")
    method, task = trainer.method, task_of(trainer.method, 1)
    prompts = method.encoder.for_prediction(task.train[:32], task.max_length)
    one = replace(task, train=task.train[:32], epochs=1)
    times = []
    for number in range(rounds):
        trained = seconds(partial(method.session.fit, method, one))
        with eval_mode(method.model):
            times.append((seconds(partial(sample, method.backbone, prompts, 16, Sampling(), number)), trained))
    drawn, trained = (statistics.median(column) for column in zip(*times, strict=True))
    text = f"32 questions x 16 tokens: {drawn:.2f} s; a training step of 32 rows: {trained:.2f} s"
    return f"{text}; ratio {drawn / trained:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
