"""A sweep in a real Slurm of two nodes: arrays, a lost node, a time limit, a run on two nodes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.e2e.test_cli import SMALL, run
from tests.e2e.test_two_processes import LAUNCH, losses_of
from tests.fixtures import two_nodes
from tests.stress import faults
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.storage.files import read_json, read_jsonl, write_text

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not two_nodes.is_possible(), reason="needs root, and slurmctld, slurmd, slurm-client and munge"),
]


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp())  # not in pytest's folder, which other users cannot enter
    folder.chmod(0o755)
    nodes = two_nodes.TwoNodes(folder)
    yield nodes
    nodes.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    return [*SMALL, "--dataset_path", str(streams), "--backbone", backbone_folder(dropout=0.1)]


def written(options, file: Path) -> Path:
    """A YAML file with these options."""
    pairs = dict(zip(options[2::2], options[3::2], strict=True)).items()
    write_text(file, "".join(f"{name.removeprefix('--')}: {value}\n" for name, value in pairs))
    return file


def begin(slurm, cfg: Path, root: Path, *words: str) -> subprocess.Popen:
    """A sweep in a separate process."""
    command = [sys.executable, "-m", "utils.sweep", str(cfg), "--dump_path", str(root), "--slurm", "time=30", *words]
    environment = os.environ | slurm.environment
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def running(slurm) -> dict[str, tuple[str, str]]:
    """Job and run of each node that has one."""
    lines = slurm.call("squeue", "-h", "-t", "RUNNING", "-o", "%N|%F_%K|%K").splitlines()
    return {node: (job, f"seed{int(place) + 1}") for node, job, place in (line.split("|") for line in lines)}


def test_jobs_outlive_their_sweep_a_node_and_a_limit(slurm, options, tmp_path):
    long = [*options, "--training_epochs", "100", "--save_llm_ckpt_step_interval", "20", "--is_replay", "true"]
    cfg, root, seeds = written(long, tmp_path / "c/SEQ.yaml"), tmp_path / "runs", ("--seeds", "1", "2", "3")
    first = begin(slurm, cfg, root, *seeds)
    wait_for(lambda: len(list(root.glob("sweep-c-SEQ/*/checkpoints/task_*"))) == 2)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and "3 runs stay in Slurm; the same command waits for them" in said, said
    second, at = begin(slurm, cfg, root, *seeds), running(slurm)
    assert at.keys() == {"n1", "n2"}
    slurm.warn(at["n2"][0])
    slurm.lose("n1")
    slurm.start("n1")
    wait_for(lambda: slurm.release() or second.poll() is not None)
    said = second.communicate()[0]
    assert second.returncode == 0 and "in the queue already" in said and "submitted" not in said, said
    folders = {folder.name[-5:]: folder for folder in (root / "sweep-c-SEQ").iterdir()}
    assert len(list((root / "sweep-c-SEQ").iterdir())) == 3 == len(folders)  # nothing was run twice
    for name in (at["n1"][1], at["n2"][1]):
        events = read_jsonl(folders[name] / "log.jsonl")
        assert sum(row["event"] == "resume" for row in events) == 1, name
        whole = run([*long, "--seed", name[-1]], tmp_path / name)
        assert faults.compare(whole, folders[name]) == [], name
    third = begin(slurm, cfg, root, *seeds)
    assert "3 runs, 3 finished before; nothing to do" in third.communicate(timeout=100)[0] and third.returncode == 0


def test_a_run_on_two_nodes_is_one_in_two_processes(slurm, options, tmp_path):
    words = "--config_file config/accelerate/cpu_2.yaml"
    command = [*LAUNCH, *words.split(), "main_CL.py", *options, "--dump_path", str(tmp_path / "local")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    cfg, root = written(options, tmp_path / "c/SEQ.yaml"), tmp_path / "runs"
    launch = f"--launch={words} --main_process_ip 127.0.0.1"
    sweep = begin(slurm, cfg, root, "nodes=2", "--seeds", "1", launch)
    said = sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 0, said
    (local,), (nodes,) = (list(folder.glob("*/*-seed1")) for folder in (tmp_path / "local", root))
    assert read_json(nodes / "env.json")["processes"] == 2
    assert losses_of(nodes) == losses_of(local) and faults.compare(local, nodes) == []
