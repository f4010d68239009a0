"""main_CL.py as a user calls it, in this process where possible, otherwise in a separate one."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest
import yaml
from transformers import PreTrainedModel

import main_CL
from tests.fixtures.deaf_host import deaf_host
from tests.stress.faults import compare_files
from tests.tiny import backbone_folder, forget_processes, make_config, micro_stream
from utils.dataset import save_stream
from utils.logger import make_run_folder
from utils.storage.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
SMALL = ["--cfg", "None", "--dataset", "micro", "--training_epochs", "2", "--batch_size", "4", "--lr", "3e-3"]
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="session")
def streams(tmp_path_factory):
    return save_stream(micro_stream(), tmp_path_factory.mktemp("streams")).parent


@pytest.fixture(scope="session")
def small(streams):
    """Options of a small run."""
    return [*SMALL, "--dataset_path", str(streams), "--backbone", backbone_folder()]


@pytest.fixture(scope="session")
def done(small, tmp_path_factory):
    """The folder of a finished run."""
    return run(small, tmp_path_factory.mktemp("done"))


@pytest.fixture(scope="session")
def rich(small, tmp_path_factory):
    """The folder of a run with everything that may be evaluated and kept."""
    options = "--il_mode IIL --evaluate_unseen --recovery --evaluate_interval 2 --save_llm_ckpt true"
    return run([*small, *options.split()], tmp_path_factory.mktemp("rich"))


def call(argv: list[str]) -> int:
    """main_CL.py in this process; its exit code."""
    forget_processes()
    return main_CL.main(argv)


def run(argv: list[str], dump: Path) -> Path:
    """Run to the end; returns the run folder."""
    assert call([*argv, "--dump_path", str(dump)]) == 0
    (folder,) = dump.glob("*/*")
    return folder


def start(argv: list[str], **environment: str) -> subprocess.Popen:
    """main_CL.py in a separate process."""
    command = [sys.executable, "main_CL.py", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell that runs the tests in the background makes them, and so this process, deaf to SIGINT
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, preexec_fn=hear, **pipes)


def test_a_run_leaves_all_its_files(done):
    files = {str(path.relative_to(done)) for path in done.rglob("*") if path.is_file()}
    cells = [f"predictions/base/task_{j}.jsonl" for j in range(3)]
    cells += [f"predictions/after_{i}/task_{j}.jsonl" for i in range(3) for j in range(i + 1)]
    plain = "config.yaml env.json facts.json cost.json log.jsonl train.log results.json results.md R.png accuracy.png"
    state = "model.safetensors config.json tokenizer.json state.safetensors state.json manifest.json"
    assert files >= {*plain.split(), *cells, *(f"checkpoints/task_2/{name}" for name in state.split())}
    assert not [name for name in files if name.endswith(".tmp") or Path(name).name.startswith(".")]
    assert [path.name for path in (done / "checkpoints").iterdir()] == ["task_2"]


def test_the_files_are_valid(done):
    for path in done.rglob("*.json"):
        assert read_json(path) or path.name == "state.json", path
    assert (done / "R.png").read_bytes().startswith(PNG) and (done / "accuracy.png").read_bytes().startswith(PNG)
    assert yaml.safe_load((done / "config.yaml").read_text())["seed"] == 1
    assert {"train", "evaluate"} <= {row["event"] for row in read_jsonl(done / "log.jsonl")}
    rows = read_jsonl(done / "predictions/after_2/task_1.jsonl")
    assert [row["index"] for row in rows] == list(range(len(micro_stream().tasks[1].test)))
    assert read_json(done / "results.json")["R"][2][1] == sum(row["score"] for row in rows) / len(rows)
    assert read_json(done / "env.json")["versions"]["torch"]


def test_the_saved_options_repeat_the_run(done, tmp_path):
    again = run(["--cfg", str(done / "config.yaml")], tmp_path)
    assert compare_files(done / "predictions", again / "predictions") == []
    weights = "checkpoints/task_2/model.safetensors"
    assert (done / weights).read_bytes() == (again / weights).read_bytes()


def test_transformers_loads_a_checkpoint(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = done / "checkpoints/task_2"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    row = max(read_jsonl(done / "predictions/after_2/task_2.jsonl"), key=lambda row: row["decided"] != "refuted")
    ids = model.generate(**tokenizer(row["input"], return_tensors="pt"), max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(ids[0], skip_special_tokens=True)[len(row["input"]) :].strip()
    assert answer == row["prediction"]


def test_runs_of_the_same_second_do_not_share_a_folder(tmp_path):
    config = make_config(dump_path=str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_run_folder(config), range(20)))
    assert len(set(folders)) == 20


def test_evaluate_only(small, tmp_path):
    folder = run([*small, "--is_evaluate_only"], tmp_path)
    assert [path.name for path in (folder / "predictions").iterdir()] == ["base"]
    assert not (folder / "checkpoints").exists()
    results = read_json(folder / "results.json")
    assert None not in results["base"] and all(cell is None for row in results["R"] for cell in row)


def test_evaluate_unseen_fills_the_upper_triangle(rich, done):
    assert all(cell is not None for row in read_json(rich / "results.json")["R"] for cell in row)
    assert [[cell is None for cell in row] for row in read_json(done / "results.json")["R"]] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]


def test_recovery(rich):
    recovery, rows = (
        read_json(rich / "results.json")["recovery"],
        read_jsonl(rich / "predictions/recovery/task_0.jsonl"),
    )
    assert recovery["after"] == sum(row["score"] for row in rows) / len(rows)
    assert recovery["before"] == read_json(rich / "results.json")["R"][2][0]


def test_evaluation_inside_a_task(rich):
    assert {path.name for path in rich.glob("predictions/task_*")} == {f"task_{t}_epoch_2" for t in range(3)}
    last, after = rich / "predictions/task_1_epoch_2", rich / "predictions/after_1"
    assert (last / "task_0.jsonl").read_bytes() == (after / "task_0.jsonl").read_bytes()


def test_instance_incremental_runs_also_score_training_questions(rich):
    rows = read_jsonl(rich / "predictions/after_0/train_task_0.jsonl")
    assert len(rows) == len(micro_stream().tasks[0].train)
    assert read_json(rich / "results.json")["R_train"][0][0] == sum(row["score"] for row in rows) / len(rows)


def test_save_llm_ckpt_keeps_every_task(rich):
    assert sorted(path.name for path in (rich / "checkpoints").iterdir()) == ["task_0", "task_1", "task_2"]


@pytest.mark.parametrize("inside", [False, True], ids=["the folder itself", "a folder of that name in it"])
def test_load_llm_ckpt(small, tmp_path, inside):
    cache = tmp_path / "cache"
    shutil.copytree(backbone_folder(), cache / "some-name" if inside else cache)
    given = ["--load_llm_ckpt", "True", "--backbone_cache_path", str(cache), "--backbone", "some-name"]
    folder = run([*small, *given, "--is_evaluate_only"], tmp_path / "runs")
    assert read_json(folder / "facts.json")["backbone"].startswith(str(cache))


def test_no_network_is_needed(small, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run([*small, "--training_epochs", "0"], tmp_path)


MISTAKES = {
    "no such stream": (["--dataset", "nope"], "preprocess_dataset.sh lists no stream of this name"),
    "no such YAML": (["--cfg", "{tmp}/SEQQ.yaml"], "did you mean {tmp}/SEQ.yaml?"),
    "not YAML": (["--cfg", "{tmp}/broken.yaml"], "broken.yaml is not YAML"),
    "unknown option": (["--trainin_epochs", "3"], "did you mean 'training_epochs'?"),
    "unknown option in YAML": (["--cfg", "{tmp}/typo.yaml"], "did you mean 'batch_size'?  ({tmp}/typo.yaml)"),
    "list too short": (["--training_epochs_list", "[1, 2]"], "training_epochs_list: expected 3 entries"),
    "unknown metric": (["--metric_for_each_task", "[acc, exact_mach, acc]"], "exact_mach"),
    "part that matches nothing": (["--freeze_parts", "[layers 7]"], "'layers 7' matches no parameter"),
    "all parts frozen": (["--freeze_parts", "[embeddings, gpt_neox, head]"], "nothing is left to train"),
    "unknown method": (["--method", "EWCC"], "method: expected one of SEQ,"),
    "method that excludes a setting": (["--method", "Joint", "--is_replay"], "Joint cannot be combined with is_replay"),
    "not a backbone": (["--backbone", "{tmp}"], "expected a folder with a saved model"),
    "hub name without a network": (["--backbone", "some/model"], "could not be fetched"),
    "no checkpoint to load": (["--load_llm_ckpt", "True", "--backbone_cache_path", "{tmp}"], "neither"),
    "file in place of a folder": (["--dump_path", "{tmp}/SEQ.yaml"], "dump_path: cannot make {tmp}/SEQ.yaml/"),
    "resume what is none": (["--resume", "{tmp}"], "config.yaml does not exist; expected a run folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_configuration_error_is_reported_and_leaves_no_files(name, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)  # no weights are loaded before
    for file, text in {"SEQ": "method: SEQ\n", "broken": "lr: [1\n", "typo": "batch_sise: 3\n"}.items():
        (tmp_path / f"{file}.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    *argv, expected = (word.replace("{tmp}", str(tmp_path)) for word in [*MISTAKES[name][0], MISTAKES[name][1]])
    base = [] if argv[0] == "--resume" else [*small, "--dump_path", str(tmp_path / "runs")]
    assert call([*base, *argv]) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert told.err.startswith("error: ") and told.err.count("error: ") == 1
    assert told.out == "" and "Traceback" not in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def copy(done, tmp_path):
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_resuming_a_finished_run_changes_nothing(copy, done, capsys):
    assert call(["--resume", str(copy)]) == 0
    assert "resuming after task_2" in capsys.readouterr().out
    assert compare_files(done / "predictions", copy / "predictions") == []
    assert (copy / "env.json").read_bytes() == (done / "env.json").read_bytes() and (copy / "env-2.json").exists()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_list_of_checksums_is_needed(copy, capsys, how):
    path = copy / "checkpoints/task_2/manifest.json"
    path.unlink()
    if how == "damaged":
        path.write_text("{")
    assert call(["--resume", str(copy)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path} is {how}; delete the folder {path.parent} and resume again")


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_not_used(copy, capsys, name):
    path = copy / "checkpoints/task_2" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert call(["--resume", str(copy)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path} is damaged; delete the folder {path.parent} and resume again")
    assert path.read_bytes() == damaged and (copy / "results.json").exists()
    if name == "state.json":
        shutil.rmtree(path.parent)  # as the error says
        shutil.rmtree(copy / "predictions/after_2")
        assert call(["--resume", str(copy)]) == 0


def test_a_resumed_run_takes_no_other_options(copy, capsys):
    assert call(["--resume", str(copy), "--lr", "1e-3", "--seed", "2"]) == 2
    told = capsys.readouterr().err
    assert "lr: cannot be changed in a resumed run" in told and "seed: cannot be changed" in told


def test_a_folder_in_use_is_not_resumed(copy, capsys):
    with open(copy / "log.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert call(["--resume", str(copy)]) == 2
    assert "is in use by a process that still runs" in capsys.readouterr().err


@pytest.mark.slow
def test_control_c_prints_how_to_resume(small, tmp_path, done):
    process = start([*small, "--dump_path", str(tmp_path)])
    while not list(tmp_path.glob("*/*/predictions/after_0/task_0.jsonl")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    (folder,) = tmp_path.glob("*/*")
    assert process.returncode == 130
    assert out.strip().split("\n")[-1].endswith(f" with: python main_CL.py --resume {folder}")
    assert errors == ""
    # There is no terminal: no bars, and no library speaks
    assert "\r" not in out and all(re.match(r"\[\d\d:\d\d:\d\d\] ", line) for line in out.strip().split("\n"))
    assert call(["--resume", str(folder)]) == 0
    assert compare_files(done / "predictions", folder / "predictions") == []


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_given_up_soon(small, tmp_path):
    argv = [*small, "--backbone", "some/model", "--dump_path", str(tmp_path / "runs")]
    process = start(argv, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and out == ""
    # One line: the library's retries, which take 50 s and print a line each, are switched off
    assert errors.startswith("error: invalid options:\n  - backbone: some/model is no local folder")
    assert errors.count("\n") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("begins", [False, True])
def test_a_tracker_host_that_does_not_answer_stops_no_run(begins, small, tmp_path, done):
    """Not at the beginning, and not at the end, where wandb itself would wait for ever."""
    with deaf_host(begins) as url:
        words = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4}
        process = start([*small, "--is_wandb", "--dump_path", str(tmp_path)], **words, HOME=str(tmp_path / "home"))
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 0 and "Traceback" not in out + errors
    (folder,) = tmp_path.glob("*/*/results.md")
    told = "from here on: Timed out finishing run.; what it has not sent: wandb sync"
    assert (told if begins else f"it writes to {folder.parent}/wandb instead") in out
    assert compare_files(done / "predictions", folder.parent / "predictions") == []


def test_help_and_errors_are_quick():
    code = """import sys, main_CL
try:
    main_CL.main(["--help"])
except SystemExit as end:
    codes = [end.code]
codes.append(main_CL.main(["--cfg", "None", "--lr", "fast"]))
print(codes, *sys.modules)"""
    before = getrusage(RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    after = getrusage(RUSAGE_CHILDREN)
    last = done.stdout.strip().split("\n")[-1]
    assert last.startswith("[0, 2] "), done.stderr
    loaded = set(last.split())
    assert "main_CL" in loaded and not loaded & {"transformers", "peft", "deepspeed", "accelerate", "datasets", "wandb"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4  # seconds of CPU, whatever the load
