"""Runs as the jobs of a Slurm array, through submitit.

The queue is the only state outside the run folders: an array has the name of a folder in <dump_path>/<prefix>/slurm,
whose runs.json lists its runs. A command submits what is neither finished nor in the queue, and waits. If it ends
earlier, the jobs stay; given again, it waits for them.

A job resumes its run, also after Slurm has requeued it because its node was lost or was given to another job. Before
its time limit Slurm sends it SIGUSR2: the run writes a checkpoint, and the job requeues itself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import UserError, reason_of
from utils.jobs.runs import PROGRAM, Job, Started, differences, is_finished, reason, start
from utils.options.parse import clean_name
from utils.progress import SECONDS, say, say_with_time
from utils.storage.files import read_json, write_json

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.core.utils import DelayedSubmission

RUNS = "runs.json"
MINUTES = 60  # time limit of a job, unless one is given; submitit's own is 5
RENEWALS = 1000  # times that a job may reach its time limit
OURS = ("job_name", "array_parallelism", "stderr_to_stdout", "num_gpus")  # set here, or of earlier versions
FIELDS = "%j|%F|%K|%T|%r"  # of squeue: name, number of the array, place in it, state, why it waits
PORTS = 20_000  # first port of runs on several nodes, and how many there are


class Queued(NamedTuple):
    """A run in the queue."""

    number: str  # of its job, for scancel
    state: str  # PENDING, RUNNING, ...
    why: str  # it waits


class Run:
    """What a job does. submitit pickles it into the folder of the array, and loads it on each node of the job."""

    def __init__(self, job: Job):
        self.job = job
        self.process: Started | None = None
        self.is_ending = False

    def __call__(self) -> None:
        """Start or resume the run, and wait for it.

        Raises:
            UserError: it failed; so that Slurm marks the job as failed.
        """
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        rank = int(os.environ.get("SLURM_NODEID", "0"))
        output = self.job.output if rank == 0 else self.job.output.with_suffix(f".{rank}.out")
        job = over_nodes(self.job)
        self.process = start(job, output, {})
        while self.process.poll() is None:  # not wait(): `checkpoint` waits, too, in the middle of this line
            time.sleep(0.2)
        while self.is_ending:  # until Slurm ends the job; if it ended first it would count as failed
            signal.pause()
        if self.process.returncode:
            raise UserError(reason(output, self.process.returncode))

    def checkpoint(self) -> DelayedSubmission:
        """Let the run write a checkpoint and end; submitit calls this at SIGUSR2, then requeues the job."""
        from submitit.core.utils import DelayedSubmission

        self._end()
        with suppress(ChildProcessError):  # it has ended
            if self.process is not None:
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Run(self.job))

    def _end(self) -> None:
        self.is_ending = True
        with suppress(ProcessLookupError):
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGTERM)


def over_nodes(job: Job) -> Job:
    """The job as this one of its nodes starts it: accelerate gets the number of nodes, its own, and where they meet."""
    count = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if count == "1":
        return job
    from submitit.slurm.slurm import SlurmJobEnvironment

    port = PORTS + int(os.environ["SLURM_JOB_ID"]) % PORTS  # the same on all nodes, another one for each job
    words = ["--num_machines", count, "--machine_rank", os.environ["SLURM_NODEID"]]
    words += ["--main_process_ip", SlurmJobEnvironment().hostnames[0], "--main_process_port", str(port)]
    return job._replace(launcher=(*words, *(job.launcher or ())))  # the user's words win


class Queue:
    """Submit what is not in the queue, and wait."""

    def __init__(self, todo: Sequence[Job], workers: int, options: Mapping[str, Any]):
        self.todo, self.workers, self.options = todo, workers, options
        self.waiting: dict[Job, Queued] = {}  # and running

    def run(self) -> list[Job]:
        """Until all have ended; returns the failed ones."""
        self.waiting = in_queue(self.todo)
        if self.waiting:
            say(f"in the queue already: {'; '.join(map(str, self.waiting))}")
        if missing := [job for job in self.todo if job not in self.waiting]:
            submit(missing, self.workers, self.options)
        left, gone, failed, said = list(self.todo), list[Job](), list[Job](), ""
        while left:
            now = self._read()
            ended = [job for job in left if job not in self.waiting]
            for job in [job for job in ended if job in gone or is_finished(job.folder())]:
                left.remove(job)
                is_done, words = self._ending(job)
                failed += [] if is_done else [job]
                say_with_time(f"{job}: {words}; {len(left)} of {len(self.todo)} left")
            gone = ended  # the next reading decides: files that another machine wrote appear late
            if said != now:
                say_with_time(said := now)
            time.sleep(SECONDS if left else 0)
        return failed

    def _read(self) -> str:
        """Read the queue; returns what it looks like."""
        try:
            self.waiting = in_queue(self.todo)
        except UserError as error:  # Slurm's controller may be starting again
            return str(error)
        waits = [one.why for one in self.waiting.values() if one.state == "PENDING"]
        reasons = ", ".join(sorted(set(waits) - {"None"}))
        whys = f" ({reasons})" if reasons else ""
        running = len(self.waiting) - len(waits)
        return f"Slurm: {running} running, {len(waits)} waiting{whys}"

    def stop(self) -> None:
        """The jobs stay in the queue."""
        if self.waiting:
            numbers = " ".join(one.number for one in self.waiting.values())
            count = len(self.waiting)
            say(f"{count} runs stay in Slurm; the same command waits for them; this ends them: scancel {numbers}")

    def _ending(self, job: Job) -> tuple[bool, str]:
        """Whether a job that has left the queue did its run, and in words."""
        if is_finished(job.folder()):
            return True, "done"
        if (others := job.begun()) and is_finished(others[-1]):  # the program was changed in the meantime
            return False, f"failed: {others[-1]} is another run: {'; '.join(differences(job, others[-1]))}"
        why = reason(job.output) if job.output.is_file() else f"it did not start; see {folder_of(job)}"
        return False, f"failed: {why}"


def words_of(job: Job) -> str:
    """What identifies a run in runs.json."""
    return shlex.join(job.words())


def folder_of(job: Job) -> Path:
    """Folder of the arrays that jobs of this prefix are in."""
    return (job.root / job.prefix / "slurm").absolute()


def check(options: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    """Check all that can be checked before a job is submitted.

    Args:
        options: Of sbatch.
        jobs: To be submitted.

    Raises:
        UserError: there is no Slurm or no submitit here, or one of them refuses an option.
    """
    if shutil.which("sbatch") is None:
        raise UserError("slurm: sbatch is not on this machine; run the command where it is, or leave out slurm")
    if find_spec("submitit") is None:
        raise UserError("slurm: submitit is not installed; run pip install submitit, or leave out slurm")
    for name, kind, words in (
        ("time", int, "minutes"),
        ("setup", list, "a list"),
        ("additional_parameters", dict, "a map"),
    ):
        if name in options and not isinstance(options[name], kind):
            raise UserError(f"slurm: {name}: expected {words}, got {options[name]!r}")
    if options.get("ntasks_per_node", 1) != 1:
        raise UserError("slurm: ntasks_per_node: each node starts its processes with --launch; leave it out")
    if options.get("nodes", 1) != 1 and any(job.launcher is None for job in jobs):
        raise UserError("slurm: nodes: several nodes need --launch")
    script = _executor(folder_of(jobs[0]), "test", 1, options)._make_submission_file_text("true", "")
    tested = _call(["sbatch", "--test-only"], script)
    if tested.returncode:
        raise UserError(f"slurm: sbatch refuses the options: {_said(tested)}")


def show(options: Mapping[str, Any], jobs: Sequence[Job], workers: int) -> None:
    """Say which of these jobs would be submitted, and how."""
    waiting = in_queue(jobs)
    for job, one in waiting.items():
        say(f"in the queue as job {one.number}, {one.state}: {job}")
    given = ", ".join(f"{name}={value}" for name, value in ({"time": MINUTES} | dict(options)).items())
    say(f"to submit as one array, at most {workers} at a time, with {given}:")
    for job in jobs:
        if job not in waiting:
            say(f"  {job}")


def submit(jobs: Sequence[Job], workers: int, options: Mapping[str, Any]) -> None:
    """Submit one array.

    Raises:
        UserError: sbatch refuses it.
    """
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    name = clean_name(f"{jobs[0].prefix}-{uuid.uuid4().hex[:8]}")
    folder = folder_of(jobs[0]) / name
    write_json(folder / RUNS, [{"title": str(job), "words": words_of(job)} for job in jobs])
    for job in jobs:
        job.output.unlink(missing_ok=True)  # of an earlier try: why that failed
    try:
        submitted = _executor(folder, name, workers, options).submit_array([Run(job) for job in jobs])
    except (UncompletedJobError, FailedSubmissionError) as error:  # with what sbatch said
        shutil.rmtree(folder)
        raise UserError(f"slurm: sbatch refuses the jobs: {reason_of(error)}") from None
    number = submitted[0].job_id.partition("_")[0]
    say_with_time(f"Slurm: submitted {len(jobs)} runs as job {number}, at most {workers} at a time")


def in_queue(jobs: Sequence[Job]) -> dict[Job, Queued]:
    """Those of these jobs that wait or run.

    Raises:
        UserError: Slurm does not answer; or a job of the same name with other options is in the queue.
    """
    asked = _call(["squeue", "--me", "-h", "-r", "-o", FIELDS])
    if asked.returncode:
        raise UserError(f"slurm: squeue: {_said(asked)}")
    queued: dict[str, Queued] = {}
    for line in asked.stdout.splitlines():
        name, number, place, state, why = line.split("|", 4)
        file = folder_of(jobs[0]) / name / RUNS
        if file.is_file():
            index = int(place) if place.isdecimal() else 0  # a single job is no array
            full = f"{number}_{place}" if place.isdecimal() else number
            queued[read_json(file)[index]["words"]] = Queued(full, state, why)
    return {job: queued[words] for job in jobs if (words := words_of(job)) in queued}


def _executor(folder: Path, name: str, workers: int, options: Mapping[str, Any]) -> SlurmExecutor:
    """submitit's executor with the options of sbatch.

    Raises:
        UserError: it does not know one.
    """
    import submitit

    known = submitit.SlurmExecutor._valid_parameters() - set(OURS)
    if unknown := sorted(set(options) - known):
        raise UserError(f"slurm: unknown option {', '.join(unknown)}; expected one of {', '.join(sorted(known))}")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=RENEWALS)
    given = {"time": MINUTES} | dict(options)
    given["setup"] = [f"export PYTHONPATH={shlex.quote(str(PROGRAM.parent))}:$PYTHONPATH", *given.get("setup", [])]
    given["additional_parameters"] = {"requeue": True} | dict(given.get("additional_parameters", {}))
    executor.update_parameters(job_name=name, array_parallelism=workers, stderr_to_stdout=True, **given)
    return executor


def _call(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _said(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join((result.stderr or result.stdout).split())
