"""Does a run stay as fast and as small over a long stream? Tiny runs of many tasks, watched from inside.

    python -m tests.stress.long_stream [--methods SEQ EWC] [--tasks 100] [--examples 1000] [--words 3] [--work DIR]

First a separate process loads the stream, and its cost is printed; without --methods nothing else is run.
Each method learns the stream once, one epoch of batches of 1000 a task. After each task its memory (resident, of the
whole process), its seconds of training and what it keeps are noted. Something grows if over the second half of the
stream the median task takes a quarter more seconds than over the first (machines are noisy), or memory at the end is
2 MB and a hundredth above that in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from models import METHODS
from tests import tiny
from tests.stress import injected
from utils.run.trainer import Trainer
from utils.storage.files import read_json, write_json, write_text

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
TESTED = 5  # questions of a task that are evaluated after each later task
LOAD = """
import sys, time
from pathlib import Path
from utils.dataset import load_stream
load_stream(sys.argv[1], Path(sys.argv[2]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(1024 * int(peak.split()[1]), time.process_time())
"""


def write_stream(root: Path, tasks: int, examples: int, words: int) -> str:
    """A stream of made-up questions, written task by task, as it may not fit into memory; returns its name."""
    rng, name = random.Random(0), f"long_{tasks}_{examples}"
    (root / name).mkdir(parents=True, exist_ok=True)
    with open(root / name / "continual_data.json", "w", encoding="utf-8") as file:
        for k in range(tasks):
            train = _split(rng, k, examples, words)
            test = {column: cells[:TESTED] for column, cells in train.items()}
            file.write("{" if k == 0 else ",")
            file.write(f'"{k}": {json.dumps({"train": train, "dev": test, "test": test})}\n')
        file.write("}\n")
    facts = {"NUM_TASK": tasks, "PROMPT_TYPE": "none", "MAX_NEW_TOKENS": [4] * tasks, "MAX_SEQ_LENGTH": [24] * tasks}
    write_json(root / name / "continual_config.json", facts)
    return name


def _split(rng: random.Random, k: int, examples: int, words: int) -> dict[str, list[str]]:
    questions = [" ".join([str(k), *rng.choices(WORDS, k=words)]) for _ in range(examples)]
    return {"input": questions, "target": [rng.choice(WORDS) for _ in questions]}


def load(stream: str, work: Path) -> str:
    """What it takes to load and check the stream."""
    command = [sys.executable, "-c", LOAD, stream, str(work)]
    memory, seconds = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    size = (work / stream / "continual_data.json").stat().st_size
    return f"{size / 1e6:.0f} MB of JSON: {memory / 1e6:.0f} MB of memory at most, {seconds:.1f} s of processor time"


def write_config(name: str, stream: str, work: Path) -> Path:
    """The YAML of a method on that stream."""
    config = tiny.make_config(name, backbone=tiny.backbone_folder())
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"cfg", "wandb_name"}) | tiny.OWN.get(name, {})
    values |= {"dataset": stream, "dataset_path": str(work), "training_epochs": 1, "is_evaluate_init": False}
    values |= {"batch_size": 1000, "evaluate_batch_size": 100, "info_per_steps": 10**6, "lr": 1e-4}
    write_text(work / f"{name}.yaml", yaml.safe_dump(values))
    return work / f"{name}.yaml"


def watch(notes: Path) -> None:
    """Let the trainer of this process note its memory after each task."""
    report = Trainer._report

    def noted(trainer: Trainer, plots: bool) -> Any:
        with open("/proc/self/statm", encoding="ascii") as file, open(notes, "a", encoding="ascii") as out:
            out.write(f"{int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')}\n")
        return report(trainer, False)

    Trainer._report = noted


def run(name: str, stream: str, work: Path) -> dict[str, list[float]]:
    """One run; bytes in memory and the counters of cost.json, each per task."""
    dump = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))
    argv, notes = ["--cfg", str(write_config(name, stream, work)), "--dump_path", str(dump)], dump / "memory"
    done = injected.child(argv, lambda: watch(notes))
    if done.code:
        raise SystemExit(f"{name}: exit code {done.code}: {done.text[-2000:]}")
    cost = read_json(injected.folder_in(dump) / "cost.json")
    memory = [int(line) for line in notes.read_text(encoding="ascii").split()][: len(cost["train_seconds"])]
    return {"memory": memory, **{key: value for key, value in cost.items() if isinstance(value, list)}}


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    """One line of the table."""
    seconds, memory, kept = (found[key] for key in ("train_seconds", "memory", "kept_bytes"))
    half = len(seconds) // 2
    early, late = statistics.median(seconds[1:half]), statistics.median(seconds[half:])
    grown = memory[-1] - memory[half]
    return [
        name,
        f"{early:.2f} -> {late:.2f}{'' if late <= 1.25 * early else ' grows'}",
        f"{memory[half] / 1e6:.0f} -> {memory[-1] / 1e6:.0f}{'' if grown <= memory[half] / 100 + 2e6 else ' grows'}",
        f"{kept[half] / 1e3:.1f} -> {kept[-1] / 1e3:.1f}",
        f"{found['stored_parameters'][half]:,} -> {found['stored_parameters'][-1]:,}",
        f"{found['train_sequences'][half]:,} -> {found['train_sequences'][-1]:,}",
    ]


HEADER = ["method", "seconds of a task", "memory, MB", "kept, kB", "parameters", "sequences of a task"]


def lines(rows: Iterable[list[str]]) -> Iterable[str]:
    """A Markdown table, line by line as it comes."""
    yield from (f"| {' | '.join(HEADER)} |", f"|---{'|--:' * (len(HEADER) - 1)}|")
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def main(argv: list[str]) -> int:
    """Print the table: medians of the first and of the second half, and sizes at the middle and at the end."""
    parser = argparse.ArgumentParser("python -m tests.stress.long_stream", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--examples", type=int, default=1000, help="training examples of each task")
    parser.add_argument("--words", type=int, default=3, help="words of a question")
    parser.add_argument("--work", type=Path, help="folder for stream and runs; default: a temporary one")
    options = parser.parse_args(argv)
    if options.tasks < 4:
        parser.error("--tasks: expected at least 4, two halves to compare")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        stream = write_stream(work, options.tasks, options.examples, options.words)
        print(load(stream, work), flush=True)
        if options.methods:
            for line in lines(row(name, run(name, stream, work)) for name in options.methods):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
