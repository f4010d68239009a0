"""Many runs by one command: `python -m utils.sweep config/biography_demo_task2/*.yaml --seeds 1 2 3 --jobs 2`.

Each YAML file with each seed is one run of main_CL.py, in a separate process. Finished runs are not repeated and
interrupted runs are resumed, so the command can be given again until all is done. At the end `utils.report` compares
them in FOLDER/compare.md, FOLDER being <dump_path>/<prefix>; FOLDER/<name>-seed<k>.out holds what a run printed.

Where there are GPUs, each run gets one, as long as there are enough. With --launch each run is started by
`accelerate launch` with these words, and the GPUs are divided among the runs at a time.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError, exit_code, exit_with, termination_interrupts
from utils.options.parse import ConfigError, clean_name, fail, resolve
from utils.progress import SECONDS, duration, say, say_with_time
from utils.report.__main__ import main as report
from utils.report.results import read_facts
from utils.storage.files import lock, read_json

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.2  # between two checks of the runs
GRACE_SECONDS = 60  # for a run to end after SIGTERM
_DIGESTS: dict[tuple[Any, ...], str] = {}  # of streams, by where they are
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Job(NamedTuple):
    """One run that is wanted."""

    cfg: Path
    seed: int
    prefix: str
    root: Path  # dump_path
    options: tuple[str, ...]  # further words for main_CL.py
    launcher: tuple[str, ...] | None = None  # words for `accelerate launch`; None: plain Python

    @property
    def name(self) -> str:
        """Of the run; the same YAML name in two folders makes two experiments."""
        return clean_name(f"{self.prefix}-{self.cfg.parent.name}-{self.cfg.stem}")

    @property
    def output(self) -> Path:
        """File with what the run prints."""
        return self.root / self.prefix / f"{self.name}-seed{self.seed}.out"

    def begun(self) -> list[Path]:
        """Run folders of its name and seed with a saved configuration, oldest first."""
        runs = (self.root / self.name).glob(f"*-seed{self.seed}")
        return sorted(run for run in runs if (run / "config.yaml").is_file())

    def folder(self) -> Path | None:
        """Its run folder, if it was begun: the newest one with the same options, stream, backbone and code."""
        same = [run for run in self.begun() if not differences(self, run)]
        return same[-1] if same else None

    def command(self) -> list[str]:
        """What starts or resumes it."""
        begun = self.folder()
        program = [*self._program(), str(ROOT / "main_CL.py")]
        if begun is not None:
            return [*program, "--resume", str(begun)]
        return [*program, *self.words()]

    def words(self) -> list[str]:
        """Options of its run from the beginning."""
        words = ["--cfg", str(self.cfg), "--seed", str(self.seed), "--wandb_name", self.name]
        return [*words, "--dump_path", str(self.root), *self.options]

    def _program(self) -> list[str]:
        if self.launcher is None:
            return [sys.executable]
        port = ["--main_process_port", str(_free_port())]  # two launchers cannot share the default port
        return [sys.executable, "-m", "accelerate.commands.launch", *port, *self.launcher]

    def __str__(self) -> str:
        return f"{self.cfg}, seed {self.seed}"


class Running(NamedTuple):
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    began: float


@cache
def differences(job: Job, run: Path) -> list[str]:
    """What keeps a run folder from being this job's, see utils/run/identity.py."""
    from utils.run import identity  # seconds to import: not for --help

    try:
        return identity.differences(read_facts(run), _identity(job))
    except UserError as error:  # wrong options, which the run itself reports
        return [str(error)]


@cache
def _identity(job: Job) -> dict[str, Any]:
    from utils.options.checks import read_stream
    from utils.run import identity

    options = resolve(job.words())
    places = (options.config.dataset, options.config.dataset_path, options.config.dataset_files)
    if places not in _DIGESTS:
        _DIGESTS[places] = identity.of_stream(read_stream(options.config))
    return identity.of(options, _DIGESTS[places])


def is_finished(run: Path | None) -> bool:
    """True if the last row of R is complete."""
    results = run / "results.json" if run is not None else None
    if results is None or not results.is_file():
        return False
    content = read_json(results)
    rows = content.get("R") if isinstance(content, dict) else None  # what is no result is made again by the run
    return isinstance(rows, list) and bool(rows) and isinstance(rows[-1], list) and None not in rows[-1]


def check_all(jobs: list[Job]) -> None:
    """Check every job that is to be run before the first one starts; seeds share their checks.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    from utils.options.checks import check  # seconds to import: not for --help

    found: list[str] = []
    for job in {job.cfg: job for job in jobs if not is_finished(job.folder())}.values():
        try:
            check(resolve(job.words()))
        except ConfigError as error:
            found += [f"{job.cfg}: {problem}" for problem in error.problems]
    if found:
        raise ConfigError(found)


def sweep(jobs: list[Job], workers: int) -> list[Job]:
    """Do what is not done; returns the jobs that failed."""
    todo = [job for job in jobs if not is_finished(job.folder())]
    for job in todo:
        if job.folder() is None and (others := job.begun()):
            say(f"{job}: a new run; {others[-1]} is another one: {'; '.join(differences(job, others[-1]))}")
    say(f"{len(jobs)} runs, {len(jobs) - len(todo)} finished before")
    work = _Work(todo, workers)
    try:
        return work.run()
    finally:  # also after Ctrl-C and SIGTERM
        work.stop()


class _Work:
    """Jobs that wait, run and have ended; one thread, as a child dies with the thread that started it."""

    def __init__(self, todo: list[Job], workers: int):
        self.waiting, self.total, self.gpus = list(todo), len(todo), _gpus()
        self.slots, self.workers = list(range(workers)), workers
        self.running: list[Running] = []
        self.failed: list[Job] = []
        self.seconds: list[float] = []  # of the runs that have ended
        self.said = time.monotonic()

    def run(self) -> list[Job]:
        """Until all have ended; returns the failed ones."""
        while self.waiting or self.running:
            while self.waiting and self.slots:
                self._start(self.waiting.pop(0), self.slots.pop(0))
            time.sleep(POLL_SECONDS)
            for one in [one for one in self.running if one.process.poll() is not None]:
                self._end(one)
            if time.monotonic() - self.said >= SECONDS:
                self.said = time.monotonic()
                for one in self.running:
                    say_with_time(f"{one.job}: {_last_line(one.job.output) or 'starting'}")
        return self.failed

    def stop(self) -> None:
        """Let the runs that are still at work end; they can be resumed."""
        for one in self.running:
            with suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGTERM)  # the launcher's own processes too
        for one in self.running:
            try:
                one.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()

    def _start(self, job: Job, slot: int) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._own_gpus(slot, job.launcher is not None))
        command = job.command()
        with open(job.output, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends the runs
                preexec_fn=_die_with(os.getpid()),
            )
        self.running.append(Running(job, process, slot, time.monotonic()))
        say_with_time(f"{job}: {'resumed' if '--resume' in command else 'started'}")

    def _own_gpus(self, slot: int, several: bool) -> list[str]:
        if not several or self.workers >= len(self.gpus):
            return [self.gpus[slot % len(self.gpus)]]
        return self.gpus[slot :: self.workers]

    def _end(self, one: Running) -> None:
        self.running.remove(one)
        self.slots.append(one.slot)
        self.seconds.append(time.monotonic() - one.began)
        words = f"done in {duration(self.seconds[-1])}"
        if one.process.returncode:
            self.failed.append(one.job)
            words = f"failed: {_reason(one.job.output, one.process.returncode)}"
        left = len(self.waiting) + len(self.running)
        mean = sum(self.seconds) / len(self.seconds)
        pace = f"; {left} of {self.total} left, about {duration(mean * left / self.workers)}" if left else ""
        say_with_time(f"{one.job}: {words}{pace}")


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes a run: ask Linux for SIGTERM when the sweep ends, however it ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(DIES_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in the meantime
            os._exit(1)

    return ask


def _gpus() -> list[str]:
    """Names of the GPUs that runs may use."""
    import torch  # seconds to import: not for --help

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return chosen.split(",")[:count] if chosen else [str(i) for i in range(count)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _lines(output: Path) -> list[str]:
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _last_line(output: Path) -> str:
    """The last line that a run printed, without its time."""
    last = (_lines(output) or [""])[-1]
    return last.partition("] ")[2] if last.startswith("[") else last


def _reason(output: Path, code: int) -> str:
    """Why a run failed, in one line; all that it printed is in the file."""
    lines = _lines(output)
    errors = [line for line in lines if line.startswith("error: ")]
    # Several options can be wrong: the sentence continues on the lines after it.
    said = " ".join(lines[lines.index(errors[-1]) :]) if errors else (lines or ["it printed nothing"])[-1]
    ended = f"signal {-code}: " if code < 0 else ""
    return f"{ended}{said.removeprefix('error: ')}  ({output})"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second sweep with the same prefix out.

    Raises:
        UserError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "sweep.lock", "w", encoding="utf-8") as file:
        lock(file, f"--prefix: {folder} is in use by another sweep; wait for it or stop it")
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.sweep", description=__doc__.split("\n\n")[1])
    parser.add_argument("cfg", nargs="+", type=Path, help="YAML files of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--prefix", default="sweep", help="first part of the names of the runs")
    parser.add_argument("--dump_path", type=Path, default=Path("experiments"))
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument(
        "--launch",
        metavar="WORDS",
        type=shlex.split,
        help="start each run with `accelerate launch WORDS`: --launch='--config_file config/accelerate/gpu_8.yaml'",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if every run is finished, 130 or 143 if interrupted."""
    given = _parser().parse_args(arguments)
    extra = tuple(word for name, value in given.option for word in (f"--{name}", value))
    launcher = None if given.launch is None else tuple(given.launch)
    runs = dict.fromkeys((cfg, seed) for cfg in given.cfg for seed in given.seeds)  # named twice is run once
    jobs = [Job(cfg, seed, given.prefix, given.dump_path, extra, launcher) for cfg, seed in runs]
    try:
        with termination_interrupts(), _alone(given.dump_path / given.prefix):
            check_all(jobs)
            failed = sweep(jobs, given.jobs)
            done = [str(job.folder()) for job in jobs if is_finished(job.folder())]
            if done and report([*done, "--out", str(given.dump_path / given.prefix)]):
                return 2
    except UserError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        with suppress(OSError):
            print("interrupted; the same command resumes the runs", file=sys.stderr)
        return exit_code(error)
    return 1 if failed else 0


if __name__ == "__main__":
    exit_with(main)
