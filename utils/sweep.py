"""Many runs by one command: `python -m utils.sweep config/biography_demo_task2/*.yaml --seeds 1 2 3 --jobs 2`.

Each YAML file with each seed is one run of main_CL.py, in a process of its own. Runs that are finished are not
repeated and runs that were cut off are resumed, so the command can be given again until all is done. At the end
`utils.report` sets them side by side in FOLDER/compare.md, FOLDER being <dump_path>/<prefix>.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.report import summary
from utils.storage.files import read_json

ROOT = Path(__file__).resolve().parents[1]


class Job(NamedTuple):
    """One run that is wanted."""

    cfg: Path
    seed: int
    prefix: str
    root: Path  # dump_path
    options: tuple[str, ...]  # further words for main_CL.py

    @property
    def exp_prefix(self) -> str:
        """The same YAML name in two folders makes two experiments."""
        return f"{self.prefix}-{self.cfg.parent.name}"

    def folder(self) -> Path | None:
        """Its run folder, if it was begun: the newest one with a saved configuration."""
        runs = (self.root / f"{self.exp_prefix}-{self.cfg.stem}").glob(f"*-seed{self.seed}")
        begun = sorted(run for run in runs if (run / "config.yaml").is_file())
        return begun[-1] if begun else None

    def command(self) -> list[str]:
        """What starts it, or goes on with it."""
        begun = self.folder()
        program = [sys.executable, str(ROOT / "main_CL.py")]
        if begun is not None:
            return [*program, "--resume", str(begun)]
        words = ["--cfg", str(self.cfg), "--seed", str(self.seed), "--exp_prefix", self.exp_prefix]
        return [*program, *words, "--dump_path", str(self.root), *self.options]


def is_finished(run: Path | None) -> bool:
    """True if the last row of R is complete."""
    results = run / "results.json" if run is not None else None
    return results is not None and results.is_file() and None not in read_json(results)["R"][-1]


def sweep(jobs: list[Job], workers: int) -> list[Job]:
    """Do what is not done; returns the jobs that failed."""
    todo = [job for job in jobs if not is_finished(job.folder())]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} finished before", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        ended = list(pool.map(_run, todo))
    return [job for job, good in zip(todo, ended, strict=True) if not good]


def _run(job: Job) -> bool:
    """Run one job to its end; its output is in its run folder, its errors are shown."""
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    done = subprocess.run(job.command(), capture_output=True, text=True, env=environment)
    words = "done" if done.returncode == 0 else f"failed: {(done.stderr.strip() or done.stdout).splitlines()[-1:]}"
    print(f"{job.cfg}, seed {job.seed}: {words}", flush=True)
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if every run is finished."""
    parser = argparse.ArgumentParser(prog="python -m utils.sweep", description=__doc__.split("\n\n")[1])
    parser.add_argument("cfg", nargs="+", type=Path, help="YAML files of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--prefix", default="sweep", help="first part of exp_prefix")
    parser.add_argument("--dump_path", type=Path, default=Path("experiments"))
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    given = parser.parse_args(arguments)
    extra = tuple(word for name, value in given.option for word in (f"--{name}", value))
    jobs = [Job(cfg, seed, given.prefix, given.dump_path, extra) for cfg in given.cfg for seed in given.seeds]
    failed = sweep(jobs, given.jobs)
    runs = [str(job.folder()) for job in jobs if is_finished(job.folder())]
    if runs and summary.main([*runs, "--out", str(given.dump_path / given.prefix)]):
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
