"""Does a step or an evaluation take longer, the more tasks a method has learned?

    python -m benchmarks.growth [--tasks 100] [--methods SEQ OLoRA]          about ten minutes on one core

A small GPT-NeoX (random weights, 4 layers, width 256) learns a stream of tasks of twelve questions. Printed for each
method: milliseconds of an optimizer step of eight rows in the second task (the first in which there is something to
keep) and in the last ones, and of the evaluation of a question of task 0; medians, and last / second. The parameters
of all modules and the other bytes kept say whether a method promises constant memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models import METHODS
from models.Base import Method, Task
from tests import tiny
from utils.dataset import Example, Stream, TaskData
from utils.evaluation import Cell, predict
from utils.run.cost import kept_bytes
from utils.run.fit import fit
from utils.seed import seed_torch

# PEFT with a fresh adapter per task that answers alone is the default; these sum or choose.
VARIANTS: dict[str, dict[str, Any]] = {f"PEFT {way}": {"PEFT_inference": way} for way in ("sum", "route")}
CASES = [*METHODS, *VARIANTS]
SHAPE: dict[str, Any] = {"layers": 4, "width": 256, "initializer_range": 0.05}
STEPS, LAST = 6, 3  # steps that are timed in a task, tasks at the end whose median is printed


class Cost(NamedTuple):
    """Of one task."""

    step: float  # seconds of an optimizer step
    evaluation: float  # seconds of a question of task 0
    parameters: int  # of all modules
    kept: int  # bytes, without the modules


def write_backbone(folder: Path) -> str:
    """A random model with the tokenizer of the tests."""
    tiny.make_model("neox", **SHAPE).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def make_stream(tasks: int) -> Stream:
    """Tasks of twelve questions that name their task."""

    def examples(k: int) -> tuple[Example, ...]:
        pairs = enumerate(zip(tiny.ANIMALS, tiny.SOUNDS, strict=True))
        return tuple(Example(f"{a} {k}", s, i % 3 + 3 * k, i % 3, task=k) for i, (a, s) in pairs)

    data = tuple(TaskData(f"task {k}", rows, rows[::2], rows[::2]) for k in range(tasks) if (rows := examples(k)))
    facts = {"PROMPT_TYPE": "none", "IL_MODE": "CIT", "NUM_CLASS": 3 * tasks, "CUR_NUM_CLASS": [3] * tasks}
    return Stream("growth", data, facts | {"MAX_NEW_TOKENS": [8] * tasks, "MAX_SEQ_LENGTH": [48] * tasks})


def grow(case: str, stream: Stream, backbone: str) -> list[Cost]:
    """Let a method learn the stream; what a task costs, for each of them."""
    config = tiny.make_config(case.split()[0], backbone=backbone, batch_size=8, lr=1e-4)
    session = tiny.make_session(config, stream=stream)
    method = tiny.make_method(session, stream, **VARIANTS.get(case, {}))
    costs = []
    for index, data in enumerate(stream.tasks):
        task = Task(index, data.name, data.train, STEPS, 48, 8)
        seed_torch(config.seed, index)
        method.before_task(task)
        step = learn(method, task, STEPS if index == 1 or index >= len(stream.tasks) - LAST else 1)
        method.after_task(task)
        weights = sum(w.numel() for w in method.named().values())
        costs.append(Cost(step, evaluate(method), weights, kept_bytes(method.state_dict())))
    return costs


def learn(method: Method, task: Task, steps: int) -> float:
    """Median seconds of a step after the first."""
    ends: list[float] = []
    fit(method, task, method.session, on_step=lambda *_: ends.append(time.process_time()), limit=steps)
    return statistics.median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else 0.0


def evaluate(method: Method) -> float:
    """Seconds of a question of task 0, answered with one token: the length of an answer is no matter of growth."""
    examples = method.stream.tasks[0].test
    began = time.process_time()
    predict(method, method.session, Cell(Path("unused"), 0, examples, "exact_match", 48, 1))
    return (time.process_time() - began) / len(examples)


def line(case: str, costs: list[Cost]) -> str:
    """One row of the table."""
    cells = []
    for name in ("step", "evaluation"):
        second, last = getattr(costs[1], name), statistics.median(getattr(cost, name) for cost in costs[-LAST:])
        ratio = f"{last / second:.2f}x" if second else "-"
        cells.append(f"{1e3 * second:9.2f} {1e3 * last:9.2f} {ratio:>7}")
    sizes = f"{costs[-1].parameters / costs[1].parameters:8.2f}x {costs[-1].kept / max(costs[1].kept, 1):9.2f}x"
    return f"{case:20} " + "  ".join(cells) + f"  {sizes}"


def main(argv: list[str]) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--methods", nargs="*", default=CASES, choices=CASES, metavar="METHOD")
    options = parser.parse_args(argv)
    if options.tasks < LAST + 2:
        parser.error(f"--tasks: expected at least {LAST + 2}")
    torch.set_num_threads(1)
    print(f"tasks 1 and {options.tasks - 1} of {options.tasks}: ms per step, ms per question, growth of sizes")
    print(f"{'':20} {'step':>9} {'last':>9} {'ratio':>7}  {'question':>9} {'last':>9} {'ratio':>7}  weights      kept")
    stream = make_stream(options.tasks)
    with tempfile.TemporaryDirectory() as folder:
        backbone = write_backbone(Path(folder))
        for case in options.methods:
            print(line(case, grow(case, stream, backbone)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
