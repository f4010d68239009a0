import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.golden import streams
from utils import dataformat_preprocess
from utils.dataformat_preprocess import main, support_dataset_list
from utils.dataset import Example, TaskData, encode, load_stream
from utils.errors import UserError
from utils.preprocess import GENERATORS, PREPROCESSORS, biography_synth, load

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures"


def test_every_entry_of_the_table_has_its_functions():
    assert support_dataset_list == [*PREPROCESSORS, *GENERATORS]
    assert all(hasattr(load(name), "build") and load(name).Options() for name in PREPROCESSORS)
    assert all(hasattr(load(name), "write_raw") and load(name).Options() for name in GENERATORS)


def test_command_makes_a_stream_then_says_unchanged_then_refuses(tmp_path, capsys):
    command = ["--dataset", "biography_qa", "--preset", "micro", "--out-dir", str(tmp_path)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "biography_micro_task2: 2 tasks",
        "  task 0  persons 0-7  train      24  dev       6  test      24  chance 20.8%",
        "  task 1  persons 8-9  train      12  dev      12  test      12  chance 20.8%",
        "  from biography_synth/lists.json with preset micro, num_task 2, num_person 10, num_person_first_task 8, "
        "train_ratio_first_task 0.5, dev_persons_first 4, dev_persons_each 2, skip_first_task false, "
        "only_first_task false, seed 1",
        f"{tmp_path}/biography_micro_task2: written",
    ]
    assert main(command) == 0 and "unchanged" in capsys.readouterr().out
    assert main([*command, "--seed", "2"]) == 2
    error = capsys.readouterr().err
    assert "continual_data.json has other content; replace it with --force" in error and error.count("\n") == 1
    assert main([*command, "--seed", "2", "--name", "mine"]) == 0
    assert main([*command, "--seed", "2", "--force"]) == 0
    assert load_stream("mine", tmp_path).tasks == load_stream("biography_micro_task2", tmp_path).tasks


def test_the_options_of_a_stream_are_printed_as_written(tmp_path, capsys):
    order = ["--task-order", "FOMC,C-STANCE", "--sub-sample-test", "3"]
    assert main(["--dataset", "TRACE", "--raw-dir", str(FIXTURES), "--out-dir", str(tmp_path), *order]) == 0
    assert "task_order FOMC,C-STANCE, sub_sample_eval 10,10, sub_sample_test 3,3, length" in capsys.readouterr().out


def test_limit_shortens_and_renames(tmp_path):
    command = [
        "--dataset=concept_1k",
        f"--raw_dir={FIXTURES}",
        "--num_task=3",
        "--limit=2",
        f"--out_dir={tmp_path}",
    ]
    assert main(command) == 0
    stream = load_stream("concept_1k_task3_limit2", tmp_path)
    assert [len(t.train) for t in stream.tasks] == [2, 2, 2] and stream.config["SOURCE"]["limit"] == 2
    assert [note.partition(" ")[0] for note in stream.config["SOURCE"]["notes"]] == ["before"]  # they count all records


def test_max_words_keeps_the_short_examples_of_each_split_before_the_limit(tmp_path):
    common = ["--dataset=concept_1k", f"--raw-dir={FIXTURES}", "--num-task=3", f"--out-dir={tmp_path}"]
    assert main(common) == 0 and main([*common, "--max-words=9", "--limit=2"]) == 0
    whole, short = (load_stream(f"concept_1k_task3{end}", tmp_path) for end in ("", "_words9_limit2"))
    assert (short.config["SOURCE"]["max_words"], short.config["SOURCE"]["limit"]) == (9, 2)
    assert {note.partition(":")[0] for note in short.config["SOURCE"]["notes"]} == {"before --max-words"}
    for all_of, task in zip(whole.tasks, short.tasks, strict=True):
        assert task.train == [one for one in all_of.train if len(one.input.split()) <= 9][:2]
        assert len(task.train) < len(all_of.train)


def test_max_words_counts_all_turns_and_keeps_all_classes():
    turns = (("user", "a b c"), ("assistant", "d"), ("user", "ok?"), ("assistant", "yes"))
    chat = Example("ok?", "yes", messages=turns)
    assert dataformat_preprocess._words(chat) == 5 and dataformat_preprocess._words(Example("a b", "c d e")) == 2
    rows = (Example("a b", "long", label=0), Example("a", "short", label=1))
    task = TaskData("news", rows, (), rows)
    assert dataformat_preprocess._keep_short(task, 2).train == list(rows)
    with pytest.raises(UserError, match="no training example of news of the class 'long' has at most 1 words"):
        dataformat_preprocess._keep_short(task, 1)


RENAMED = (
    "TRACE",
    "banking77",
    "clinc150",
    "concept_1k",
    "conll2003",
    "fewrel",
    "safety_alignment",
    "topic3datasets",
    "zsre",
)


@pytest.mark.parametrize("name", RENAMED)
def test_the_folder_of_a_data_set_can_have_any_name(name, tmp_path):
    """--raw-dir names the folder of all raw data sets, or that of this one."""
    shutil.copytree(FIXTURES / name, tmp_path / "downloads (2)")
    module, options = load(name), streams.STREAMS[name][2]
    made = module.build(tmp_path / "downloads (2)", module.Options(**options), 1)
    assert encode(made) == encode(streams.build(name))


MISTAKES = {
    "--dataset biograpy_qa": "biography_synth, got 'biograpy_qa'; did you mean 'biography_qa'?",
    "": "--dataset: expected one of",
    "--dataset zsre --raw-dir a --raw_dir=b": "--raw-dir: given twice, so one would have no effect; give it once",
    "--dataset Trace2": "biography_synth, got 'Trace2'; did you mean 'TRACE'?",
    "--dataset alpaca": "got 'alpaca'; your own files: --dataset jsonl --raw-dir FOLDER, or main_CL.py --dataset_files",
    "--dataset biography_qa --num-tsk 2": "unknown option --num-tsk; did you mean --num-task?",
    "--dataset concept_1k --preset demo": "unknown option --preset; see --help",
    "--dataset biography_qa --num-task two": "--num-task: expected a valid integer, got 'two'",
    "--dataset biography_qa --preset huge": "--preset: expected 'micro', 'demo', 'small' or 'paper', got",
    "--dataset biography_qa --limit 0": "--limit: expected greater than or equal to 1, got '0'",
    "--dataset biography_qa --seed": "argument --seed: expected one argument; see --help",
    "--dataset biography_qa --name a/b": "--name: ",
    "--dataset biography_synth --limit 3": "--limit has no effect with biography_synth",
    "--dataset biography_synth --max-words 3": "--max-words has no effect with biography_synth",
    "--dataset biography_qa --preset micro --max-words 1": "--max-words: no example of ",
    "--dataset concept_1k --raw-dir nowhere": "concept_1k/dataset_2024_1_30_11_40.txt is missing; it comes from",
    "--dataset biography_qa --skip-first-task maybe": "--skip-first-task: expected a valid boolean",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_errors_are_one_sentence_with_exit_code_2(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert MISTAKES[command] in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_file_runs_as_a_script_without_torch():
    code = "import runpy, sys; sys.argv = ['x', '--dataset', 'concept_1k', '--help']\n"
    code += "try: runpy.run_path('utils/dataformat_preprocess.py', run_name='__main__')\n"
    code += "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--keep-last-record" in run.stdout and "--limit" in run.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_shell_script_ends_its_program_at_once(number, code, tmp_path):
    """With a program that writes its process id and then sleeps in the place of Python."""
    shutil.copy(ROOT / "preprocess_dataset.sh", tmp_path)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    command = ["bash", str(tmp_path / "preprocess_dataset.sh"), "biography_demo_task2"]
    script = subprocess.Popen(command, env=environment, preexec_fn=hear)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    script.send_signal(number)
    assert script.wait(10) == code
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.slow
def test_shell_script(tmp_path):
    shutil.copy(ROOT / "preprocess_dataset.sh", tmp_path)
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*words: str) -> subprocess.CompletedProcess:
        command = ["bash", str(tmp_path / "preprocess_dataset.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, cwd="/")

    first, wrong = run(), run("nope", "biography_demo_task6")
    assert first.returncode == 0, first.stderr
    assert "biography_qa_task2: skipped, dataset/biography_qa/qa/all.json is absent" in first.stdout
    assert "concept_1k_task10: skipped" in first.stdout and "biography_demo_task2: written" in first.stdout
    assert wrong.returncode == 2 and "unknown stream 'nope'" in wrong.stderr
    assert not (tmp_path / "dataset/biography_demo_task6").exists()
    for name in ("continual_data.json", "continual_config.json"):  # the stream shipped is the stream made
        made, shipped = (root / "dataset/biography_demo_task2" / name for root in (tmp_path, ROOT))
        assert made.read_bytes() == shipped.read_bytes()
    named = run("biography_qa_task2")
    assert named.returncode == 0 and "dataset/biography_qa/qa/all.json is absent" in named.stdout
    assert "biography_demo_task2: unchanged" in named.stdout and not (tmp_path / "dataset/biography_qa_task2").exists()
    biography_synth.write_raw(tmp_path / "dataset", biography_synth.Options(preset="micro"), 1, False)
    raw = run("biography_qa_task2")
    assert raw.returncode == 0 and "has 12 persons of the 120000 published" in raw.stdout
    assert "dataset/biography_qa_task2: written" in raw.stdout
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "dataset/biography_qa", tmp_path / "elsewhere")
    elsewhere = run("--force", "--raw-dir", str(tmp_path / "elsewhere").lstrip("/"), "biography_qa_task2")  # from /
    assert elsewhere.returncode == 0 and "has 12 persons of the 120000 published" in elsewhere.stdout
    for words in (["--rawdir", "x"], ["--raw-dir", "nowhere"], ["--raw-dir"]):
        assert run(*words).returncode == 2
