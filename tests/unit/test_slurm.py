"""Runs in Slurm, with a queue that is made up; tests/e2e/test_slurm.py has a real one."""

import os
import signal
import threading
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from utils import errors
from utils.errors import Terminated, UserError, termination_waits
from utils.jobs import slurm
from utils.jobs.runs import Job
from utils.storage.files import write_json, write_text


def jobs(root: Path, launcher=None) -> list[Job]:
    return [Job(Path("c/SEQ.yaml"), seed, "p", root, (), launcher) for seed in (1, 2, 3)]


@pytest.fixture
def answers(monkeypatch):
    """What the commands of Slurm answer, by their name: exit code and text."""
    said = {"sbatch": (0, ""), "squeue": (0, "")}

    def call(command, text=""):
        code, answer = said[command[0]]
        return CompletedProcess(command, code, answer, "" if code == 0 else answer)

    monkeypatch.setattr(slurm, "_call", call)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    return said


def test_the_queue_says_which_runs_it_has(answers, tmp_path):
    todo = jobs(tmp_path)
    for name, listed in (("p-1", todo[:2]), ("p-2", todo[2:])):
        write_json(tmp_path / "p/slurm" / name / "runs.json", [{"words": slurm.words_of(job)} for job in listed])
    answers["squeue"] = (0, "p-1|7|0|RUNNING|None\np-1|7|1|PENDING|Resources\nother|9|0|RUNNING|None\n")
    found = slurm.in_queue(todo)
    assert found == {todo[0]: ("7_0", "RUNNING", "None"), todo[1]: ("7_1", "PENDING", "Resources")}
    answers["squeue"] = (0, "p-2|8|N/A|RUNNING|None\n")
    assert slurm.in_queue(todo) == {todo[2]: ("8", "RUNNING", "None")}
    answers["squeue"] = (1, "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(UserError, match="slurm: squeue: slurm_load_jobs error: Unable to contact"):
        slurm.in_queue(todo)


def test_what_is_missing_is_submitted_and_waited_for(monkeypatch, tmp_path, capsys):
    todo, submitted = jobs(tmp_path), []
    waits, runs = slurm.Queued("7_1", "PENDING", "Resources"), slurm.Queued("7_0", "RUNNING", "None")
    silent = UserError("no answer")
    readings = [{todo[0]: runs}, {todo[0]: runs, todo[1]: waits}, silent, silent, {todo[1]: runs}, {}, {}]

    def in_queue(_):
        if isinstance(reading := readings.pop(0), UserError):
            raise reading
        return reading

    monkeypatch.setattr(slurm, "in_queue", in_queue)
    monkeypatch.setattr(slurm, "submit", lambda missing, workers, options: submitted.extend(missing))
    monkeypatch.setattr(slurm, "is_finished", lambda folder: folder is not None)
    monkeypatch.setattr(Job, "folder", lambda job: Path("run") if job.seed == 1 and len(readings) < 3 else None)
    monkeypatch.setattr(slurm, "SECONDS", 0)
    write_text(todo[1].output, "error: the loss is not finite\n")
    assert slurm.Queue(todo, 3, {}).run() == [todo[2], todo[1]] and not readings
    assert submitted == todo[1:]
    told = capsys.readouterr().out
    for words in (
        "in the queue already: c/SEQ.yaml, seed 1\n",
        "1 running, 1 waiting (Resources)\n",
        "no answer",
        "seed 1: done; 1 of 3 left",
        "seed 2: failed: the loss is not finite  (",
        "seed 3: failed: it did not start; see ",
    ):
        assert told.count(words) == 1, (words, told)


def test_problems_are_reported_before_anything_is_submitted(answers, monkeypatch, tmp_path):
    for options, expected in (
        ({"partion": "p"}, "unknown option partion; expected one of account, "),
        ({"job_name": "x"}, "unknown option job_name; expected"),
        ({"time": "1:00"}, "time: expected minutes, got '1:00'"),
        ({"setup": "module load cuda"}, "setup: expected a list, got 'module load cuda'"),
        ({"nodes": 2}, "nodes: several nodes need --launch"),
        ({"ntasks_per_node": 8}, "ntasks_per_node: each node starts its processes with --launch"),
    ):
        with pytest.raises(UserError, match=expected):
            slurm.check(options, jobs(tmp_path))
    slurm.check({"nodes": 2}, jobs(tmp_path, ()))
    answers["sbatch"] = (1, "sbatch: error: invalid partition specified: q\n")
    with pytest.raises(UserError, match="sbatch refuses the options: sbatch: error: invalid partition specified: q"):
        slurm.check({"partition": "q"}, jobs(tmp_path))
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="submitit is not installed; run pip install submitit"):
        slurm.check({}, jobs(tmp_path))
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        slurm.check({}, jobs(tmp_path))
    assert not list(tmp_path.iterdir())


def test_each_node_gets_its_number(monkeypatch, tmp_path):
    job = jobs(tmp_path, ("--num_processes", "4"))[0]
    assert slurm.over_nodes(job) == job
    named = {"JOB_NUM_NODES": "2", "NODEID": "1", "JOB_ID": "20007", "JOB_NODELIST": "n[3-4]"}
    for name, value in named.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = "--num_machines 2 --machine_rank 1 --main_process_ip n3 --main_process_port 20007 --num_processes 4"
    assert slurm.over_nodes(job).launcher == tuple(words.split())


def test_a_job_near_its_limit_ends_its_run(monkeypatch, tmp_path):
    """The job itself then waits for Slurm."""
    run = slurm.Run(jobs(tmp_path)[0])
    monkeypatch.setattr(Job, "command", lambda job: ["sleep", "60"])
    before = signal.getsignal(signal.SIGTERM)
    again = []

    def pause():
        raise TimeoutError

    monkeypatch.setattr(slurm.signal, "pause", pause)

    def limit():
        while run.process is None:
            pass
        again.append(run.checkpoint())

    threading.Thread(target=limit).start()
    try:
        with pytest.raises(TimeoutError):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.process.returncode == -signal.SIGTERM
    assert again[0].function.job == run.job and again[0].function.process is None


def test_sigterm_waits_for_the_end_of_a_step(monkeypatch):
    with pytest.raises(Terminated), termination_waits() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as launchers do
        assert came()
    monkeypatch.setattr(errors, "GRACE_SECONDS", 0.01)
    with pytest.raises(Terminated), termination_waits():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    with termination_waits():
        pass
