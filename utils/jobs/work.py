"""Do the runs that are not done: here, so many at a time, or in Slurm.

Where there are GPUs, each run here gets one, as long as there are enough. With `launcher` each run is started by
`accelerate launch` with these words, and the GPUs are divided among the runs at a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.jobs import slurm, times
from utils.jobs.runs import Job, Started, differences, is_finished, last_line, reason, start
from utils.progress import SECONDS, duration, say, say_with_time
from utils.report.page.watch import JOBS
from utils.storage.files import write_json

if TYPE_CHECKING:
    from utils.options.checks import Plan  # seconds to import: not for --help

POLL_SECONDS = 0.2  # between two checks of the runs
GRACE_SECONDS = 60  # for a run to end after SIGTERM


class How(NamedTuple):
    """Where runs are done, and how many at a time."""

    jobs: int | None = None  # runs at a time; None: one here, all in Slurm
    slurm: Mapping[str, Any] | None = None  # options of sbatch; None: here

    def at_a_time(self, count: int) -> int:
        """How many of so many runs are done at a time."""
        return min(count, self.jobs or (1 if self.slurm is None else count))

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise UserError if Slurm is wanted and would refuse the jobs."""
        if self.slurm is not None and jobs:
            slurm.check(self.slurm, jobs)

    def show(self, jobs: Sequence[Job]) -> None:
        """Say which jobs would be submitted to Slurm."""
        if self.slurm is not None and jobs:
            slurm.show(self.slurm, jobs, self.at_a_time(len(jobs)))

    def in_words(self, root: Path, plans: Sequence[Plan]) -> str:
        """How long these runs will take."""
        return times.in_words(root, plans, self.at_a_time(len(plans)))


class Running(NamedTuple):
    """A job at work."""

    job: Job
    process: Started
    slot: int
    began: float
    is_resumed: bool


def run_all(jobs: Sequence[Job], how: How, plans: Mapping[Job, Plan]) -> list[Job]:
    """Do what is not done; returns the jobs that failed.

    Args:
        jobs: Finished ones are left alone.
        how: Where, and how many at a time.
        plans: Of the unfinished jobs, from `check_all`.
    """
    todo = [job for job in jobs if not is_finished(job.folder())]
    for job in todo:
        if job.folder() is None and (others := job.begun()):
            say(f"{job}: a new run; {others[-1]} is another one: {'; '.join(differences(job, others[-1]))}")
    ahead = how.in_words(jobs[0].root, [plans[job] for job in todo])
    say(f"{len(jobs)} runs, {len(jobs) - len(todo)} finished before; {ahead}")
    if not todo:
        return []
    workers = how.at_a_time(len(todo))
    listed = [{"title": str(job), "name": job.name, "seed": job.seed} for job in jobs]
    write_json(jobs[0].root / jobs[0].prefix / JOBS, {"at_a_time": workers, "jobs": listed})
    work = _Work(todo, workers, plans) if how.slurm is None else slurm.Queue(todo, workers, how.slurm)
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
                    say_with_time(f"{one.job}: {last_line(one.job.output) or 'starting'}")
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
        is_resumed = job.folder() is not None
        process = start(job, job.output, self._variables(job, slot))
        self.running.append(Running(job, process, slot, time.monotonic(), is_resumed))
        say_with_time(f"{job}: {'resumed' if is_resumed else 'started'}")

    def _variables(self, job: Job, slot: int) -> dict[str, str] | None:
        """Of the environment of a run; None: it can be forked."""
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(self._own_gpus(slot, job.launcher is not None))}
        return None if job.launcher is None else {}

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


def _gpus() -> list[str]:
    """Names of the GPUs that runs may use."""
    import torch  # seconds to import: not for --help

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return chosen.split(",")[:count] if chosen else [str(i) for i in range(count)]
