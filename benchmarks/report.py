"""Time and memory of a report over many runs: `python -m benchmarks.report --runs 30 --tasks 15`.

The run folders are made up: random answers, written as a run writes them. Printed are seconds, peak memory of the
report's process and the size of its page.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from utils.report.summary import write
from utils.storage.moment import BASE, Moment

METHODS = 12  # methods among the runs; the others are seeds


def make_run(folder: Path, number: int, tasks: int, questions: int) -> None:
    """One run folder.

    Args:
        folder: Of all runs.
        number: Of the run; decides method, seed and answers.
        tasks: Of the stream.
        questions: Of each task.
    """
    rng = random.Random(number)
    method, seed = f"Method{number % METHODS}", number // METHODS + 1
    run = folder / method / f"seed{seed}"
    facts = {
        "name": method,
        "stream": f"synthetic_task{tasks}",
        "method": method,
        "seed": seed,
        "il_mode": "CIT",
        "backbone": "none",
        "task_names": [f"a task with a long name {j}" for j in range(tasks)],
        "metrics": ["exact_match"] * tasks,
        "chance": [0.1] * tasks,
        "options": {"method": method, "seed": seed, "lr": 1e-4, "batch_size": 16},
        "identity": {"stream": "0" * 16, "backbone": "1" * 16, "code": "2" * 16},
    }
    environment = {"command": f"python main_CL.py --method {method} --seed {seed}", "device": "cpu", "versions": {}}
    costs = {name: [10.0 + rng.random()] * tasks for name in ("train_seconds", "train_sequences", "train_visits")}
    losses = [
        json.dumps(
            {"event": "train", "step": 10 * k, "task": k * tasks // 600, "loss": 2 * rng.random() / (1 + k % 40)}
        )
        for k in range(600)
    ]
    predictions = [(BASE, j, 0.1) for j in range(tasks)]
    predictions += [
        (Moment(i), j, 0.9 - 0.03 * (i - j) * (number % METHODS)) for i in range(tasks) for j in range(i + 1)
    ]
    for moment, j, share in predictions:
        path = moment.predictions(run, f"task_{j}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_row(k, rng.random() < share) for k in range(questions)), encoding="utf-8")
    for name, content in (("facts.json", facts), ("env.json", environment), ("cost.json", costs)):
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    (run / "log.jsonl").write_text("\n".join(losses) + "\n", encoding="utf-8")
    write(run, plots=False)
    for name in ("R.png", "accuracy.png"):  # a run has drawn them; a report draws them only where results changed
        (run / name).touch()


def _row(index: int, is_right: bool) -> str:
    target = f"the answer to question {index}"
    cells = {"index": index, "input": f"What is the answer to question {index}?\nAnswer:", "target": target}
    return json.dumps(cells | {"prediction": target if is_right else "another answer", "score": float(is_right)}) + "\n"


def measure(folder: Path, out: Path) -> dict[str, float]:
    """Seconds, peak memory and size of the page of a report over all runs below a folder."""
    runs = sorted(str(facts.parent) for facts in folder.rglob("facts.json"))
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "utils.report", *runs, "--out", str(out)], check=True, stdout=subprocess.DEVNULL
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = (out / "report.html").stat().st_size
    return {"seconds": seconds, "CPU seconds": worked, "peak MB": after.ru_maxrss / 1e3, "page MB": size / 1e6}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=15)
    parser.add_argument("--questions", type=int, default=100, help="of each task")
    parser.add_argument("--keep", type=Path, help="folder for runs and report; default: a temporary one")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp())
    for number in range(given.runs):
        make_run(folder / "runs", number, given.tasks, given.questions)
    found = measure(folder / "runs", folder / "out")
    print(f"{given.runs} runs of {given.tasks} tasks:", {name: round(x, 2) for name, x in found.items()})
    if given.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
