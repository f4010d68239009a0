"""Two real processes train one model: same numbers as one process with the same global batch, equal replicas."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_cli import call, run
from tests.tiny import backbone_folder, micro_stream
from utils.dataset import save_stream
from utils.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
TWO = ["--config_file", "config/accelerate/cpu_2.yaml"]
LOSS_TOLERANCE = 1e-5  # relative, at every step: float32 sums in another order; 2e-7 was seen over 50 steps
# Odd on purpose: 4 rows do not divide by 2 processes x 3 parts, and the last task has 5 test questions.
OPTIONS = (
    "--cfg None --dataset micro --training_epochs 4 --batch_size 4 --gradient_accumulation_steps 3 --lr 1e-3 "
    "--info_per_steps 1 --is_replay"
)
# Enough training for samples that are well formed; a small step thereafter, as a sample that differs is another run.
WRITING = "--is_replay false --LAMOL_gamma 0.5 --training_epochs_first_task 12 --lr_list [1e-2,1e-3,1e-3]"
LORA = "--PEFT_type LoRA --PEFT_lora_dropout 0 --is_replay false"
# Where student and teacher nearly agree the gradient is nearly 0, and AdamW would make steps of its rounding.
SMOOTH = "--adam_epsilon 1e-4"
VARIANTS = {
    "batch level": "--Replay_buffer_ratio 0.5 --recovery",
    "dataset level": "--Replay_buffer_size 7 --Replay_batch_level false --keep_optimizer_state --max_grad_norm 0.5",
    "herding": "--Replay_buffer_ratio 0.5 --Replay_sampling_algorithm herding --lr_scheduler cosine --warmup_ratio 0.1",
    "reservoir": "--Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --freeze_parts [head] --il_mode IIL",
    "joint": "--method Joint --is_replay false",
    "single": "--method Single --is_replay false",
    "stored logits": "--method DERpp --Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --Replay_update step",
    "averages": "--method CLSER --Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --Replay_update step",
    "merged": "--method TaskVector --is_replay false --TaskVector_merge magmax --TaskVector_grid [0.4]",
    "EWC": "--method EWC --EWC_lambda 100 --EWC_samples 7 --is_replay false",
    "probing": "--il_mode CIL --is_probing --save_features --Replay_buffer_ratio 0.5",
    "LwF": "--method LwF --Replay_buffer_ratio 0.5",
    "AGEM": "--method AGEM --Replay_buffer_ratio 0.5 --AGEM_batch_size 5",
    "GEM": "--method GEM --Replay_buffer_ratio 0.3",
    "GradientProjection": "--method GradientProjection --GradientProjection_begin_step 2 "
    "--GradientProjection_end_step 5 --GradientProjection_runs 2 --is_replay false",
    "ProgPrompt": "--method ProgPrompt --is_replay false --il_mode TIL --ProgPrompt_num_tokens_per_task 3",
    "LFPT5": "--method LFPT5 --is_replay false --LFPT5_num_virtual_tokens 4 --LFPT5_label_filter false --lr 1e-2",
    "LAMOL": f"--method LAMOL {WRITING} --LAMOL_use_task_specific_gen_token true",
    "prompts": "--method PEFT --PEFT_type PromptTuning --lr 1e-2 --is_replay false",
    "bottleneck": "--method PEFT --PEFT_type Bottleneck --is_replay false",
    "adaptercl": f"--method AdapterCL {LORA}",
    "olora": f"--method OLoRA {LORA}",
    "inflora": f"--method InfLoRA {LORA} --evaluate_batch_size 5",
    "slao": f"--method SLAO {LORA}",
    "LAMOL_KD": f"--method LAMOL_KD {WRITING} {SMOOTH}",
    "L2KD": f"--method L2KD {WRITING} --L2KD_variant seq_soft --adam_epsilon 1e-3",
    "PCLL": f"--method PCLL {WRITING} --PCLL_latent_size 8",
}


def launch(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with these words."""
    return subprocess.run(
        [*LAUNCH, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    streams = save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent
    return [*shlex.split(OPTIONS), "--dataset_path", str(streams), "--backbone", backbone_folder()]


def pair(options: list[str], folder: Path) -> tuple[Path, Path, list[dict]]:
    """Run folders of one process and of two, and what each of the two holds."""
    one = run(options, folder / "one")
    done = launch([*TWO, "-m", "tests.replicas", *options, "--dump_path", str(folder / "two")], REPLICAS=str(folder))
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout and "Traceback" not in done.stderr
    (two,) = folder.glob("two/*/*")
    return one, two, [read_json(folder / f"{rank}.json") for rank in range(2)]


def check(one: Path, two: Path, replicas: list[dict]) -> None:
    """Everything that has to hold for any options."""
    assert read_json(two / "env.json")["processes"] == 2
    assert read_json(two / "env.json")["distributed_type"] == "MULTI_CPU"
    assert [replica["world_size"] for replica in replicas] == [2, 2]
    check_replicas(*replicas)
    check_losses(one, two)
    check_scores(one, two, replicas)


def check_replicas(a: dict, b: dict) -> None:
    assert len(a["weights"]) == 3 and len(set(a["weights"])) == 3  # it did learn, in every task
    assert a["weights"] == b["weights"] and a["final"] == b["final"]
    assert a["memory"] == b["memory"]


def check_losses(one: Path, two: Path) -> None:
    losses = [[row["loss"] for row in read_jsonl(x / "log.jsonl") if row["event"] == "train"] for x in (one, two)]
    assert len(losses[0]) > 20
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE)


def check_scores(one: Path, two: Path, replicas: list[dict]) -> None:
    names = ("base", "R", "R_train", "recovery", "summary", "probing")
    results = [read_json(folder / "results.json") for folder in (one, two)]
    assert [results[0].get(name) for name in names] == [results[1].get(name) for name in names]
    files = sorted(path.relative_to(two) for path in two.glob("predictions/*/*.jsonl"))
    assert files == sorted(path.relative_to(one) for path in one.glob("predictions/*/*.jsonl"))
    counts = []
    for file in files:
        rows = read_jsonl(two / file)
        assert [row["index"] for row in rows] == list(range(len(rows)))
        assert [row["input"] for row in rows] == [row["input"] for row in read_jsonl(one / file)]
        counts.append(len(rows))
    shares = [sum(replica["scored"]) for replica in replicas]
    assert sum(shares) == sum(counts) and any(count % 2 for count in counts)  # each example by one process only


@pytest.fixture(scope="module")
def first(common, tmp_path_factory):
    return pair([*common, *shlex.split(VARIANTS["batch level"])], tmp_path_factory.mktemp("first"))


def test_two_processes_are_one(first):
    check(*first)


def test_a_run_of_two_processes_is_resumed_by_one(first, tmp_path):
    """The folder says nothing about the number of processes: the last evaluation and R come out the same."""
    folder = Path(shutil.copytree(first[1], tmp_path / "copy"))
    (folder / "predictions/after_2/task_1.jsonl").unlink()
    assert call(["--resume", str(folder)]) == 0
    assert read_json(folder / "results.json")["R"] == read_json(first[1] / "results.json")["R"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS)[1:])
def test_two_processes_are_one_with(name, common, tmp_path):
    check(*pair([*common, *shlex.split(VARIANTS[name])], tmp_path))


@pytest.mark.slow
def test_two_processes_answer_as_one_without_training(common, tmp_path):
    check_scores(*pair([*common, *shlex.split("--method ICL --is_replay false")], tmp_path))


REFUSED = {
    "cpu": (["--cpu", "--num_processes", "2"], "several processes were asked for, but this mode starts one"),
    "number": (["--num_processes", "2"], "several processes were asked for, but this mode starts one"),
    "fsdp": (["--use_fsdp", "--num_processes", "2", "--main_process_port", "0"], "FSDP is not supported"),
    "deepspeed": (
        ["--use_deepspeed", "--num_processes", "2", "--main_process_port", "0"],
        "DeepSpeed is not supported",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_would_not_synchronise_is_refused(name, common, tmp_path):
    words, expected = REFUSED[name]
    done = launch([*words, "main_CL.py", *common, "--dump_path", str(tmp_path / "runs")])
    assert done.returncode != 0
    assert f"error: accelerate launch: {expected}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variables", ["USE_FSDP", "USE_DEEPSPEED", "USE_CPU MASTER_ADDR"])
def test_what_these_launches_set_is_refused(variables, common, tmp_path, monkeypatch, capsys):
    for name in variables.split():
        monkeypatch.setenv(name if name == "MASTER_ADDR" else f"ACCELERATE_{name}", "true")
    assert call([*common, "--dump_path", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("error: accelerate launch: ")
    assert not (tmp_path / "runs").exists()
