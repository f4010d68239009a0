"""Runs of main_CL.py in separate processes: which are finished, which are resumed, how one is started.

Finished runs are not repeated and interrupted runs are resumed, by the identity of a run (utils/run/identity.py), so
the folder of the runs is all the state that a sweep or a search needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config import OWN_FILES, Config
from utils.dataset import Stream
from utils.errors import UserError
from utils.jobs.forked import Forked, fork
from utils.options.parse import ConfigError, clean_name, resolve
from utils.progress import without_time
from utils.report.results import read_facts
from utils.storage.files import lock, read_json

if TYPE_CHECKING:
    from utils.options.checks import Plan  # seconds to import: not for --help

PROGRAM = Path(__file__).resolve().parents[2] / "main_CL.py"
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
Started = subprocess.Popen[bytes] | Forked
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
    label: str = ""  # distinguishes jobs with the same YAML file

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
        return [*self._program(), str(PROGRAM), *self.arguments()]

    def arguments(self) -> list[str]:
        """What main_CL.py is given to start or resume it."""
        begun = self.folder()
        return self.words() if begun is None else ["--resume", str(begun)]

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


@cache
def differences(job: Job, run: Path) -> list[str]:
    """What keeps a run folder from being this job's, see utils/run/identity.py."""
    from utils.run import identity  # seconds to import: not for --help

    try:
        return identity.differences(read_facts(run), identity_of(job))
    except UserError as error:  # wrong options, which the run itself reports
        return [str(error)]


@cache
def identity_of(job: Job) -> dict[str, Any]:
    """What its results depend on, see utils/run/identity.py."""
    from utils.run import identity

    options = resolve(job.words())
    place = _place(options.config)
    if place not in _DIGESTS:
        _DIGESTS[place] = identity.of_stream(stream_of(options.config))
    return identity.of(options, _DIGESTS[place])


def _place(config: Config) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in ("dataset", "dataset_path", "dataset_files", *OWN_FILES))


def stream_of(config: Config) -> Stream:
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


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are.

    >>> few(["a", "b", "c"]), few(["a", "b", "c", "d"])
    ('a, b, c', 'a and 3 more')
    """
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def check_all(jobs: Sequence[Job]) -> dict[Job, Plan]:
    """Check every job before the first one starts; seeds share their checks.

    Returns:
        The plan of each job.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    from utils.options.checks import check

    found: dict[str, list[str]] = {}  # problem -> jobs that have it
    plans: dict[tuple[Any, ...], Plan] = {}
    for job in {_without_seed(job): job for job in jobs}.values():
        try:
            plans[_without_seed(job)] = check(resolve(job.words()), stream_of)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(f"{job.cfg}{f' {job.label}' if job.label else ''}")
    if found:
        raise ConfigError([f"{few(names)}: {problem}" for problem, names in found.items()])
    return {job: plans[_without_seed(job)] for job in jobs}


def _without_seed(job: Job) -> tuple[Any, ...]:
    return job.cfg, job.options


def start(job: Job, output: Path, variables: dict[str, str] | None = None) -> Started:
    """Start or resume a run; it gets SIGTERM when this process ends, however it ends.

    Args:
        job: The run.
        output: File for what it prints.
        variables: Of the environment, in addition to those of this process; None: fork the run, see forked.py.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process, and so of all its runs
    if variables is None:
        return fork(PROGRAM, job.arguments(), output)
    with open(output, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(os.environ) | variables,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends the runs
            preexec_fn=_die_with(os.getpid()),
        )


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes a run: ask Linux for SIGTERM when the sweep ends, however it ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(DIES_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in the meantime
            os._exit(1)

    return ask


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _lines(output: Path) -> list[str]:
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    return [line.strip() for line in text.splitlines() if line.strip()]


def last_line(output: Path) -> str:
    """The last line that a run printed, without its time."""
    return without_time((_lines(output) or [""])[-1])


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
