"""Runs of main_CL.py in separate processes: which are finished, which are resumed, how many at a time.

Finished runs are not repeated and interrupted runs are resumed, by the identity of a run (utils/run/identity.py), so
the folder of the runs is all the state that a sweep or a search needs.

Where there are GPUs, each run gets one, as long as there are enough. With `launcher` each run is started by
`accelerate launch` with these words, and the GPUs are divided among the runs at a time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config import OWN_FILES, Config
from utils.dataset import Stream
from utils.errors import UserError
from utils.jobs import times
from utils.options.parse import ConfigError, clean_name, resolve
from utils.progress import SECONDS, duration, say, say_with_time
from utils.report.results import read_facts
from utils.storage.files import lock, read_json

if TYPE_CHECKING:
    from utils.options.checks import Plan  # seconds to import: not for --help

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.2  # between two checks of the runs
GRACE_SECONDS = 60  # for a run to end after SIGTERM
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_STREAMS: dict[tuple[Any, ...], Stream] = {}  # stored streams, by where they are
_DIGESTS: dict[tuple[Any, ...], str] = {}


class Job(NamedTuple):
    """One run that is wanted."""

    cfg: Path
    seed: int
    prefix: str
    root: Path  # dump_path
    options: tuple[str, ...]  # further words for main_CL.py
    launcher: tuple[str, ...] | None = None  # words for `accelerate launch`; None: plain Python
    label: str = ""  # what tells it from jobs with the same YAML file

    @property
    def title(self) -> str:
        """YAML file and label; the same YAML name in two folders makes two experiments."""
        return "-".join(word for word in (self.cfg.parent.name, self.cfg.stem, self.label) if word)

    @property
    def name(self) -> str:
        """Of the run."""
        return clean_name(f"{self.prefix}-{self.title}")

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
        return f"{self.cfg}{f' {self.label}' if self.label else ''}, seed {self.seed}"


class Running(NamedTuple):
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    is_resumed: bool


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
    from utils.run import identity

    options = resolve(job.words())
    place = _place(options.config)
    if place not in _DIGESTS:
        _DIGESTS[place] = identity.of_stream(_read(options.config))
    return identity.of(options, _DIGESTS[place])


def _place(config: Config) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in ("dataset", "dataset_path", "dataset_files", *OWN_FILES))


def _read(config: Config) -> Stream:
    """The stored stream of these options; jobs with the same one share it."""
    from utils.options.checks import read_stream

    place = _place(config)
    if place not in _STREAMS:
        _STREAMS[place] = read_stream(config)
    return _STREAMS[place]


def is_finished(run: Path | None) -> bool:
    """True if the last row of R is complete."""
    results = run / "results.json" if run is not None else None
    if results is None or not results.is_file():
        return False
    content = read_json(results)
    rows = content.get("R") if isinstance(content, dict) else None  # what is no result is made again by the run
    return isinstance(rows, list) and bool(rows) and isinstance(rows[-1], list) and None not in rows[-1]


def check_all(jobs: Sequence[Job]) -> dict[Job, Plan]:
    """Check every job before the first one starts; seeds share their checks.

    Returns:
        The plan of each job.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    from utils.options.checks import check

    found: list[str] = []
    plans: dict[tuple[Any, ...], Plan] = {}
    for job in {_without_seed(job): job for job in jobs}.values():
        try:
            plans[_without_seed(job)] = check(resolve(job.words()), _read)
        except ConfigError as error:
            found += [f"{job.cfg}{f' {job.label}' if job.label else ''}: {problem}" for problem in error.problems]
    if found:
        raise ConfigError(found)
    return {job: plans[_without_seed(job)] for job in jobs}


def _without_seed(job: Job) -> tuple[Any, ...]:
    return job.cfg, job.options


def run_all(jobs: Sequence[Job], workers: int, plans: Mapping[Job, Plan]) -> list[Job]:
    """Do what is not done; returns the jobs that failed.

    Args:
        jobs: Finished ones are left alone.
        workers: Runs at a time.
        plans: Of the unfinished jobs, from `check_all`.
    """
    todo = [job for job in jobs if not is_finished(job.folder())]
    for job in todo:
        if job.folder() is None and (others := job.begun()):
            say(f"{job}: a new run; {others[-1]} is another one: {'; '.join(differences(job, others[-1]))}")
    ahead = times.in_words(jobs[0].root, [plans[job] for job in todo], workers)
    say(f"{len(jobs)} runs, {len(jobs) - len(todo)} finished before; {ahead}")
    work = _Work(todo, workers, plans)
    try:
        return work.run()
    finally:  # also after Ctrl-C and SIGTERM
        work.stop()


class _Work:
    """Jobs that wait, run and have ended; one thread, as a child dies with the thread that started it."""

    def __init__(self, todo: list[Job], workers: int, plans: Mapping[Job, Plan]):
        self.waiting, self.total, self.gpus, self.plans = list(todo), len(todo), _gpus(), plans
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
        is_resumed = "--resume" in command
        self.running.append(Running(job, process, slot, time.monotonic(), is_resumed))
        say_with_time(f"{job}: {'resumed' if is_resumed else 'started'}")

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
            words = f"failed: {reason(one.job.output, one.process.returncode)}"
        elif not one.is_resumed:
            times.note(one.job.root, self.plans[one.job], self.seconds[-1])
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


def reason(output: Path, code: int = 0) -> str:
    """Why a run failed, in one line; all that it printed is in the file."""
    lines = _lines(output)
    errors = [line for line in lines if line.startswith("error: ")]
    # Several options can be wrong: the sentence continues on the lines after it.
    said = " ".join(lines[lines.index(errors[-1]) :]) if errors else (lines or ["it printed nothing"])[-1]
    ended = f"signal {-code}: " if code < 0 else ""
    return f"{ended}{said.removeprefix('error: ')}  ({output})"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second command with the same prefix out.

    Raises:
        UserError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "sweep.lock", "w", encoding="utf-8") as file:
        lock(file, f"--prefix: {folder} is in use by another command; wait for it or stop it")
        yield
