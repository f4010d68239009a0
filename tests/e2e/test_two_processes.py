"""Two real processes train one model: same numbers as one process with the same global batch, equal replicas.

Starting processes takes longer than a run of theirs, so each launch does many runs (tests/stress/replicas.py).
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest

from tests.e2e.test_cli import call, run
from tests.forks import exit_code, fork
from tests.stress import replicas
from tests.tiny import SETTINGS, TESTED, backbone_folder, class_stream, micro_stream, word_stream
from utils.dataset import Stream, save_stream
from utils.distributed.modes import WHOLE_WEIGHTS
from utils.factory import load_method
from utils.run.checkpoint import checkpoints
from utils.storage.files import read_json, read_jsonl, write_json

ROOT = Path(__file__).parents[2]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
CONFIG = "--config_file config/accelerate/"
MODES = {  # arguments of accelerate launch, and accelerate's name of the mode
    "DDP": (f"{CONFIG}cpu_2.yaml", "MULTI_CPU"),
    "ZeRO-1": (f"{CONFIG}zero_1.yaml --num_processes 2 --mixed_precision no", "DEEPSPEED"),
    "ZeRO-2": (f"{CONFIG}zero_2.yaml --num_processes 2 --mixed_precision no", "DEEPSPEED"),
    "ZeRO-2 offload": (f"{CONFIG}zero_2_offload.yaml --num_processes 2 --mixed_precision no", "DEEPSPEED"),
    "ZeRO-3": (f"{CONFIG}zero_3.yaml --num_processes 2 --mixed_precision no", "DEEPSPEED"),
    "ZeRO-3 offload": (f"{CONFIG}zero_3_offload.yaml --num_processes 2 --mixed_precision no", "DEEPSPEED"),
    "FSDP2": (f"{CONFIG}fsdp_2.yaml --num_processes 2 --mixed_precision no", "MULTI_CPU"),
}
LOSS_TOLERANCE = 1e-5  # relative, at every step: float32 sums in another order; mostly 2e-7, 5e-6 at most
BF16_TOLERANCE = 5e-3  # as much as between one batch and its parts in one process
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
    "dataset level": "--Replay_buffer_size 7 --Replay_batch_level false --keep_optimizer_state --max_grad_norm 0.5 "
    "--drift --drift_questions 5",
    "herding": "--Replay_buffer_ratio 0.5 --Replay_sampling_algorithm herding --lr_scheduler cosine --warmup_ratio 0.1",
    "reservoir": "--Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --freeze_parts [head] --il_mode IIL",
    "joint": "--method Joint --is_replay false",
    "single": "--method Single --is_replay false",
    "stored logits": "--method DERpp --Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --Replay_update step",
    "averages": "--method CLSER --Replay_buffer_size 7 --Replay_sampling_algorithm reservoir --Replay_update step",
    "merged": "--method TaskVector --is_replay false --TaskVector_merge magmax --TaskVector_grid [0.4]",
    "masked": "--method tests.fixtures.masked:Masked --is_replay false --weight_decay 0.1 --keep_optimizer_state",
    "EWC": f"--method EWC --EWC_lambda 100 --EWC_samples 7 --is_replay false --max_grad_norm 0.5 {SMOOTH}",
    "probing": "--il_mode CIL --is_probing --save_features --Replay_buffer_ratio 0.5",
    "LwF": f"--method LwF --Replay_buffer_ratio 0.5 {SMOOTH}",
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
    "SSR": "--method SSR --is_replay false --SSR_demonstrations 3 --SSR_draws 1 --SSR_new_tokens 24",
    "ICL": "--method ICL --is_replay false",
    "bfloat16": "--mixed_precision bfloat16 --Replay_buffer_ratio 0.5 --gradient_checkpointing",
    "kept": "--Replay_buffer_ratio 0.5 --keep_optimizer_state --max_grad_norm 0.5 --evaluate_interval 2 "
    "--save_llm_ckpt --save_llm_ckpt_step_interval 5 --gradient_checkpointing",
}
LONGER = "--evaluate_interval 1 --training_epochs 12 --lr 3e-3 --Replay_buffer_ratio 0.5"
VARIANTS |= {
    "learned": f"--early_stop_accuracy 0.5 {LONGER}",
    "best": f"--dataset apart --keep_best --early_stop_patience 3 {LONGER}",
}
HEADS = "--dataset classes --classifier Linear --backbone ENCODER"
VARIANTS |= {
    "heads": f"{HEADS} --il_mode CIL --Replay_buffer_ratio 0.5 --Replay_sampling_algorithm herding",
    "star": f"{HEADS} --il_mode CIL --is_replay false --SEQ_fix_encoder --SEQ_fix_old_classifier "
    "--SEQ_preallocated_classifier --SEQ_warmup_epoch_before_fix_encoder 2 --SEQ_warmup_target ce-loss",
    "prototypes": f"{HEADS} --il_mode CIL --is_replay false --SEQ_use_prototype_for_prediction "
    "--SEQ_warmup_epoch_before_fix_encoder 8 --SEQ_warmup_target ce-loss",
    "til": f"{HEADS} --method LwF --il_mode TIL --Replay_buffer_ratio 0.5",
    "words": f"{HEADS} --dataset words --il_mode CIL --Replay_buffer_ratio 0.5",
}


def plain_variant(name: str) -> str:
    """The options of a method that has no variant above: a scenario it supports, and what it cannot do without."""
    method = load_method(name)
    needed = {key: value for need in map(str, method.needs) for key, value in SETTINGS[need].items()}
    options = {"method": name, "is_replay": False, "il_mode": min(method.scenarios & {"CIT"} or method.scenarios)}
    return " ".join(f"--{key} {value}" for key, value in (options | needed).items())


WITH_VARIANT = {"SEQ", *re.findall(r"--method (\S+)", " ".join(VARIANTS.values()))}
VARIANTS |= {name: plain_variant(name) for name in TESTED if name not in WITH_VARIANT}
FEW = (
    "batch level",
    "dataset level",
    "EWC",
    "kept",
    "bfloat16",
    "LAMOL",
    "merged",
    "prompts",
    "slao",
    "learned",
    "best",
)
RUNS = {
    "DDP": list(VARIANTS)[1:],
    "ZeRO-1": ["dataset level"],
    "ZeRO-2": list(VARIANTS),
    "ZeRO-2 offload": ["dataset level", "EWC"],
    "ZeRO-3": FEW,  # all would take three minutes
    "ZeRO-3 offload": ["dataset level", "EWC"],
    "FSDP2": list(VARIANTS),
}


def method_of(name: str) -> type:
    """The method of a variant."""
    words = VARIANTS[name].split()
    return load_method(words[words.index("--method") + 1] if "--method" in words else "SEQ")


def can(name: str, mode: str) -> bool:
    """True if a variant may run in a mode."""
    kind = mode.split()[0]
    return kind in method_of(name).parallel and ("--classifier" not in VARIANTS[name] or kind in WHOLE_WEIGHTS)


def variants(mode: str) -> list[str]:
    """Those that are run in a mode; of a single method all that can."""
    one = len(TESTED) == 1
    chosen = VARIANTS if one else RUNS[mode]
    return [name for name in chosen if can(name, mode) and (not one or method_of(name) is load_method(TESTED[0]))]


def launch(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with these words."""
    return subprocess.run(
        [*LAUNCH, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def fork_all(runs: dict[str, list[str]], folder: Path) -> None:
    """As `launch_all` with DDP, in copies of this process, which spares the time to start accelerate's launcher."""
    write_json(folder / "runs.json", runs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    outs = [folder / f"{rank}.out" for rank in range(2)]
    children = [
        fork(partial(replicas.main, folder), out, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank, out in enumerate(outs)
    ]
    assert [exit_code(child) for child in children] == [0, 0], [out.read_text(encoding="utf-8") for out in outs]


def launch_all(mode: str, runs: dict[str, list[str]], folder: Path) -> None:
    """Do runs, by name, in two processes; each leaves what it holds in its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    done = launch([*MODES[mode][0].split(), "-m", "tests.stress.replicas"], REPLICAS=str(folder))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    assert "\r" not in done.stdout and "Traceback" not in done.stderr


def apart() -> Stream:
    """The micro stream with a separate dev split."""
    stream = micro_stream()
    return replace(stream, name="apart", tasks=tuple(replace(task, dev=task.train[1::2]) for task in stream.tasks))


def common_options(folder: Path) -> list[str]:
    """Options of all variants, with their streams in this folder."""
    for stream in (micro_stream(), class_stream(), word_stream(), apart()):
        save_stream(stream, folder)
    return [*shlex.split(OPTIONS), "--dataset_path", str(folder), "--backbone", backbone_folder()]


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    return common_options(tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def options(common):
    """Options of a variant."""
    encoder = backbone_folder("bert_encoder")
    return lambda name: [*common, *shlex.split(VARIANTS[name].replace("ENCODER", encoder))]


@pytest.fixture(scope="module")
def one(options, tmp_path_factory):
    """The folder of a variant's run in one process."""
    return cache(lambda name: run(options(name), tmp_path_factory.mktemp("one")))


def check(one: Path, folder: Path, mode: str, tolerance: float = LOSS_TOLERANCE) -> None:
    """Everything that has to hold for any options."""
    (two,) = folder.glob("two/*/*")
    replicas = [read_json(folder / f"{rank}.json") for rank in range(2)]
    assert read_json(two / "env.json")["processes"] == 2
    assert read_json(two / "env.json")["distributed_type"] == MODES[mode][1]
    assert read_json(two / "env.json")["mode"] == mode.split()[0]
    assert [replica["world_size"] for replica in replicas] == [2, 2]
    check_replicas(*replicas)
    check_shares(replicas, mode.split()[0])
    check_losses(one, two, tolerance)
    check_scores(one, two, replicas)


def check_replicas(a: dict, b: dict) -> None:
    learned = a["weights"]
    assert len(learned) == 3 and len(set(learned)) in (1, 3)  # it did learn, in every task; or it never does
    assert learned == b["weights"] and a["final"] == b["final"]
    assert a["memory"] == b["memory"]


def check_shares(replicas: list[dict], mode: str) -> None:
    """Each process holds what the mode says: half, with some padding, or all."""
    halves = {"ZeRO-1": {"adamw"}, "ZeRO-2": {"adamw"}, "ZeRO-3": {"adamw", "weights"}, "FSDP2": {"adamw", "weights"}}
    for kind in ("weights", "adamw"):
        shares = [one[kind] for replica in replicas for one in replica["held"]]
        limits = (0.3, 0.7) if kind in halves.get(mode, ()) else (1, 1)
        assert all(limits[0] <= share <= limits[1] for share in shares), (kind, shares)


def losses_of(folder: Path) -> dict[int, float]:
    """By step; those that were logged last, in a resumed run."""
    return {row["step"]: row["loss"] for row in read_jsonl(folder / "log.jsonl") if row["event"] == "train"}


def check_losses(one: Path, two: Path, tolerance: float) -> None:
    expected = losses_of(one)
    learns = not any(word in (two / "config.yaml").read_text() for word in ("method: ICL", "prediction: true"))
    assert len(expected) > 20 or not learns
    assert losses_of(two) == pytest.approx(expected, rel=tolerance, abs=5e-7)


def check_precision(exact: Path, folder: Path) -> None:
    """The processes did compute in bfloat16: their losses are not those of the same options in float32."""
    (two,) = folder.glob("two/*/*")
    expected, found = losses_of(exact), losses_of(two)  # of the first there are more: it has a recovery
    apart = [abs(found[step] / expected[step] - 1) for step in found]
    assert max(apart) > 10 * LOSS_TOLERANCE


def check_events(one: Path, folder: Path, event: str) -> int:
    """What was decided while a task was learned is the same; how often it was."""
    (two,) = folder.glob("two/*/*")
    told = [
        [(row["task"], row["epoch"]) for row in read_jsonl(run / "log.jsonl") if row["event"] == event]
        for run in (one, two)
    ]
    assert told[0] == told[1]
    return len(told[0])


def check_scores(one: Path, two: Path, replicas: list[dict]) -> None:
    names = ("base", "R", "R_train", "recovery", "summary", "probing")
    results = [read_json(folder / "results.json") for folder in (one, two)]
    assert [results[0].get(name) for name in names] == [results[1].get(name) for name in names]
    for name, values in results[0].get("drift", {}).items():
        assert results[1]["drift"][name] == pytest.approx(values, rel=0.05)
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


def cut(finished: Path, folder: Path) -> Path:
    """A copy of a run that was killed in the middle of task 1, having just written a checkpoint."""
    shutil.copytree(finished, folder)
    places = checkpoints(folder / "checkpoints")
    last = next(i for i, place in enumerate(places) if place.task == 1 and place.epoch == 2)
    for place in places[last + 1 :]:
        shutil.rmtree(folder / "checkpoints" / place.name)
    for later in ("after_1", "after_2", "task_1_epoch_4", "task_2_epoch_2", "task_2_epoch_4"):
        shutil.rmtree(folder / "predictions" / later)
    return folder


def check_resumed(folder: Path, finished: Path) -> None:
    """A run that was cut ends as the whole one did."""
    assert any(row["event"] == "resume" for row in read_jsonl(folder / "log.jsonl"))
    assert losses_of(folder) == pytest.approx(losses_of(finished), rel=LOSS_TOLERANCE)
    assert read_json(folder / "results.json")["R"] == read_json(finished / "results.json")["R"]


def test_two_processes_are_one(one, options, tmp_path):
    """Their files do not depend on the number of processes: one process resumes the run."""
    fork_all({"first": [*options("batch level"), "--dump_path", str(tmp_path / "first/two")]}, tmp_path)
    check(one("batch level"), tmp_path / "first", "DDP")
    (folder,) = tmp_path.glob("first/two/*/*")
    (folder / "predictions/after_2/task_1.jsonl").unlink()
    assert call(["--resume", str(folder)]) == 0
    assert read_json(folder / "results.json")["R"] == read_json(one("batch level") / "results.json")["R"]


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.slow if mode == "DDP" else pytest.mark.long) for mode in RUNS]
)
def test_two_processes_are_one_with(mode, one, options, tmp_path):
    """Every method that can run in a mode; and a run is resumed inside a task in another number of processes."""
    names = variants(mode)
    if not names:
        pytest.skip("the method does not run in this mode")
    runs = {name: [*options(name), "--dump_path", str(tmp_path / name / "two")] for name in names}
    if "kept" in names:
        runs["resumed"] = ["--resume", str(cut(one("kept"), tmp_path / "from one"))]
    launch_all(mode, runs, tmp_path)
    for name in names:
        print(name)  # the one that a failure is about
        check(one(name), tmp_path / name, mode, BF16_TOLERANCE if name == "bfloat16" else LOSS_TOLERANCE)
    for name, event in {"learned": "early_stop", "best": "keep_best"}.items():
        assert name not in names or check_events(one(name), tmp_path / name, event) > 0
    if "bfloat16" in names:
        check_precision(one("batch level"), tmp_path / "bfloat16")
    if "kept" in names:
        check_resumed(tmp_path / "from one", one("kept"))
        (two,) = tmp_path.glob("kept/two/*/*")
        folder = cut(two, tmp_path / "from two")
        assert call(["--resume", str(folder)]) == 0
        check_resumed(folder, one("kept"))


@pytest.mark.slow
def test_replicas_that_drift_apart_end_the_run(common, tmp_path):
    """A method with statistics that each process keeps for its own rows."""
    words = [*common, "--method", "tests.fixtures.drifting:Drifting", "--is_replay", "false"]
    done = launch([*MODES["DDP"][0].split(), "main_CL.py", *words, "--dump_path", str(tmp_path)])
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "method Drifting: after task 0 the processes have different weights (first: " in said
    assert "sum it with sum_over_processes" in said


def test_every_method_runs_in_two_processes_of_every_mode_it_allows():
    tested = {mode: {method_of(name) for name in names if can(name, mode)} for mode, names in RUNS.items()}
    for method in map(load_method, TESTED):
        assert method in tested["DDP"]
        assert all(method in tested[mode] for mode in {"ZeRO-2", "FSDP2"} & method.parallel)


REFUSED = {
    "cpu": (["--cpu", "--num_processes", "2"], "several processes were asked for, but this mode starts one"),
    "number": (["--num_processes", "2"], "several processes were asked for, but this mode starts one"),
    "fsdp": (["--use_fsdp", "--num_processes", "2", "--main_process_port", "0"], "FSDP 1 is not supported"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_would_not_synchronise_is_refused(name, common, tmp_path):
    words, expected = REFUSED[name]
    done = launch([*words, "main_CL.py", *common, "--dump_path", str(tmp_path / "runs")])
    assert done.returncode != 0
    assert f"error: accelerate launch: {expected}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variables", ["USE_FSDP", "USE_CPU MASTER_ADDR"])
def test_what_these_launches_set_is_refused(variables, common, tmp_path, monkeypatch, capsys):
    for name in variables.split():
        monkeypatch.setenv(name if name == "MASTER_ADDR" else f"ACCELERATE_{name}", "true")
    assert call([*common, "--dump_path", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("error: accelerate launch: ")
    assert not (tmp_path / "runs").exists()
