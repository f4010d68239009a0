"""What the literature knows about continual learning, seen with this program: three seeds each, hours in all.

    python -m pytest -m science -n 0 -s

These tests run `utils.sweep` in experiments/science, so an interrupted test is resumed by the same command, and they
print the figures, which experiments/science.md holds. A claim counts as seen if the 95 % interval of its mean over the
seeds (Student's t, paired by seed) lies on the right side.
"""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import utils.sweep
from utils.report.probing import last_mean
from utils.report.results import build
from utils.storage.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)
T_975 = 4.303  # Student's t with two degrees of freedom
RUNS = ROOT / "experiments/science"
DEMO, DEMO6 = "config/biography_demo_task2", "config/biography_demo_task6"
INTENTS = "config/minilm_clinc150"
DEMO_RUNS = ("demo", [f"{DEMO}/{name}" for name in ("SEQ", "Replay", "Joint", "EWC")], "recovery=true")
CLIFF = ("cliff", [f"{DEMO}/SEQ"], "evaluate_interval=1")


def words_of(prefix, files, *options):
    """Words for utils.sweep."""
    paths, sets = [f"{file}.yaml" for file in files], [word for option in options for word in ("--set", option)]
    return [*paths, "--seeds", *map(str, SEEDS), "--prefix", prefix, "--dump_path", str(RUNS), *sets]


def sweep(prefix, files, *options):
    """Results of runs by the name of the YAML file, in the order of the seeds; finished runs are not repeated."""
    subprocess.run([sys.executable, "-m", "utils.sweep", *words_of(prefix, files, *options)], cwd=ROOT, check=True)
    found = {}
    for path in map(Path, files):
        found[path.name] = [newest(f"{prefix}-{path.parent.name}-{path.name}", seed) for seed in SEEDS]
    return found


def newest(name, seed):
    return build(sorted((RUNS / name).glob(f"*-seed{seed}"))[-1])


@pytest.mark.slow
def test_the_sweeps_are_valid(capsys):
    for prefix, files, *options in (DEMO_RUNS, CLIFF):
        assert utils.sweep.main([*words_of(prefix, files, *options), "--dry_run"]) == 0, capsys.readouterr().err


def interval(values):
    """Mean and half the width of its 95 % interval."""
    return statistics.fmean(values), T_975 * statistics.stdev(values) / len(values) ** 0.5


def check(claim, values):
    """Print and assert that the mean is positive with its whole interval; values in [-1, 1]."""
    mean, half = interval(values)
    print(
        f"\n{claim}: {100 * mean:+.1f} ± {100 * half:.1f} points, seeds {', '.join(f'{100 * v:.1f}' for v in values)}"
    )
    assert mean - half > 0, claim


def average(results):
    return [run["summary"]["average_accuracy"] for run in results]


def differences(results, other):
    return [a - b for a, b in zip(results, other, strict=True)]


@pytest.fixture(scope="module")
def demo():
    return sweep(*DEMO_RUNS)


@pytest.fixture(scope="module")
def intents():
    """Classes of 50 intents with an encoder of six layers."""
    for path, how in {
        "dataset/clinc150_small_task5": "bash preprocess_dataset.sh",
        "dataset/minilm": "SEQ.yaml says",
    }.items():
        if not (ROOT / path).is_dir():
            pytest.skip(f"{path} is absent: {how}")
    return sweep("intents", [f"{INTENTS}/{name}" for name in ("SEQ", "SEQ_star")])


@pytest.mark.science
def test_task_0_falls_off_a_cliff_in_the_first_epochs_of_task_1():
    sweep(*CLIFF)
    shares = []
    for seed in SEEDS:
        run = sorted((RUNS / "cliff-biography_demo_task2-SEQ").glob(f"*-seed{seed}"))[-1]
        scores = [
            score(run / f"predictions/{place}") for place in ("after_0", *(f"task_1_epoch_{k}" for k in range(1, 9)))
        ]
        print("\ntask 0 after each epoch of task 1:", ", ".join(f"{100 * value:.1f}" for value in scores))
        shares.append((scores[0] - scores[2]) / (scores[0] - min(scores)))
    check("share of the fall that happens in 2 of 8 epochs, less one half", [share - 0.5 for share in shares])


def score(folder):
    return statistics.fmean(row["score"] for row in read_jsonl(folder / "task_0.jsonl"))


@pytest.mark.science
def test_an_epoch_on_half_of_task_0_brings_it_back(demo):
    found = [run["recovery"] for run in demo["SEQ"]]
    check("SEQ, task 0: after recovery less before", [one["after"] - one["before"] for one in found])


@pytest.mark.science
def test_replay_is_better_than_seq(demo):
    check("Replay less SEQ, average", differences(average(demo["Replay"]), average(demo["SEQ"])))


@pytest.mark.science
def test_joint_is_better_than_all_on_a_consistent_stream(demo):
    for name in ("SEQ", "Replay", "EWC"):
        check(f"Joint less {name}, average", differences(average(demo["Joint"]), average(demo[name])))


@pytest.mark.science
def test_adapters_that_are_routed_do_not_forget():
    runs = sweep("adapters", [f"{DEMO6}/{name}" for name in ("AdapterCL", "SeqLoRA")])
    check("AdapterCL less SeqLoRA, average", differences(average(runs["AdapterCL"]), average(runs["SeqLoRA"])))


@pytest.mark.science
def test_seq_star_is_better_than_seq_with_classes(intents):
    check("SEQ* less SEQ, average", differences(average(intents["SEQ_star"]), average(intents["SEQ"])))


@pytest.mark.science
def test_heads_forget_rather_than_features(intents):
    probed = [last_mean(run) for run in intents["SEQ"]]
    check("SEQ: linear probe on its features less its own answers", differences(probed, average(intents["SEQ"])))
