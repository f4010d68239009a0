"""A run is resumed, reused or pooled only as what it was when it started."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_cli import call, run
from tests.tiny import backbone_folder, compare, micro_stream
from utils.dataset import save_stream
from utils.jobs.runs import Job
from utils.report.results import build, group
from utils.run import identity
from utils.storage.files import read_json, write_json, write_text


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A stream and a backbone that may be edited."""
    root = tmp_path_factory.mktemp("places")
    save_stream(micro_stream(), root / "streams")
    shutil.copytree(backbone_folder(), root / "model")
    return root


@pytest.fixture(scope="module")
def options(places):
    words = "--cfg None --dataset micro --training_epochs 1 --batch_size 4 --lr 3e-3 --save_llm_ckpt true"
    return [*words.split(), "--dataset_path", str(places / "streams"), "--backbone", str(places / "model")]


@pytest.fixture(scope="module")
def done(options, tmp_path_factory):
    return run(options, tmp_path_factory.mktemp("done"))


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def edited_option(copy, places):
    file = copy / "config.yaml"
    write_text(file, file.read_text(encoding="utf-8").replace("lr: 0.003", "lr: 0.5"))
    return file, ("lr: it has 0.003, now 0.5",)


def edited_seed(copy, places):
    file = copy / "config.yaml"
    write_text(file, file.read_text(encoding="utf-8").replace("seed: 1", "seed: 2"))
    return file, ("seed: it has 1, now 2",)


def edited_target(copy, places):
    file = places / "streams/micro/continual_data.json"
    content = read_json(file)
    content["0"]["train"]["target"][0] = "moo moo"
    write_json(file, content)
    return file, ("stream (digest)", read_json(copy / "facts.json")["identity"]["stream"])


def edited_weights(copy, places):
    file = places / "model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file, ("backbone (digest)", read_json(copy / "facts.json")["identity"]["backbone"])


@pytest.mark.parametrize("edit", [edited_option, edited_seed, edited_target, edited_weights])
def test_an_edited_run_is_not_resumed(edit, copy, places, capsys):
    originals = [copy / "config.yaml", places / "streams/micro/continual_data.json", places / "model/model.safetensors"]
    kept = {file: file.read_bytes() for file in originals}
    try:
        file, words = edit(copy, places)
        assert file.read_bytes() != kept[file]
        identity.of_folder.cache_clear()
        assert call(["--resume", str(copy)]) == 2
        errors = capsys.readouterr().err
        assert all(word in errors for word in ("has changed since it started", *words)), errors
        assert errors.splitlines()[1].startswith(f"  - {words[0]}"), errors
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
        identity.of_folder.cache_clear()


def test_what_saves_memory_may_be_edited_and_lost_predictions_are_made_again(copy, capsys):
    file = copy / "config.yaml"
    write_text(file, file.read_text(encoding="utf-8").replace("evaluate_batch_size: 64", "evaluate_batch_size: 2"))
    R = read_json(copy / "results.json")["R"]
    lost = ["after_0/task_0.jsonl", "after_1/task_0.jsonl", "base/task_2.jsonl"]
    texts = [(copy / "predictions" / name).read_bytes() for name in lost]
    for name in lost:
        (copy / "predictions" / name).unlink()
    assert call(["--resume", str(copy)]) == 0
    assert [(copy / "predictions" / name).read_bytes() for name in lost] == texts
    assert read_json(copy / "results.json")["R"] == R
    shutil.rmtree(copy / "checkpoints/task_0")
    shutil.rmtree(copy / "predictions/after_0")
    assert call(["--resume", str(copy)]) == 0
    assert "without the checkpoint of task 0" in capsys.readouterr().out
    assert read_json(copy / "results.json")["R"][0] == [None] * 3


def test_a_sweep_reuses_a_run_only_with_the_same_options(options, done, tmp_path):
    given = dict(zip(options[::2], options[1::2], strict=True))
    values = {name[2:]: yaml.safe_load(value) for name, value in given.items() if name != "--cfg"}
    write_text(tmp_path / "c/SEQ.yaml", yaml.safe_dump(values))
    job = Job(tmp_path / "c/SEQ.yaml", 1, "p", tmp_path, ())
    target = tmp_path / job.name / "2026-01-01-seed1"
    shutil.copytree(done, target)
    assert job.folder() == target
    assert job._replace(options=("--training_epochs", "7")).folder() is None
    facts = read_json(target / "facts.json")
    other = shutil.copytree(target, target.with_name("2026-01-02-seed1"))
    write_json(other / "facts.json", facts | {"identity": facts["identity"] | {"code": "0"}})
    assert job.folder() == target
    write_text(tmp_path / "c/SEQ.yaml", yaml.safe_dump(values | {"lr": 1e-5}))
    assert job._replace(prefix="p", options=("--lr", "1e-5")).folder() is None


def test_runs_of_other_streams_weights_or_code_are_not_pooled(done, tmp_path):
    facts, folders = read_json(done / "facts.json"), []
    for name, changes in (("a", {}), ("b", {"stream": "1"}), ("c", {"code": "2"}), ("d", {"backbone": "3"})):
        folders.append(Path(shutil.copytree(done, tmp_path / name)))
        write_json(folders[-1] / "facts.json", facts | {"identity": facts["identity"] | changes})
    pooled = shutil.copytree(done, tmp_path / "e")
    write_json(pooled / "facts.json", facts | {"seed": 2, "options": facts["options"] | {"seed": 2}})
    text = compare([*folders, pooled])
    for word in ("micro (1)", "code (digest)", "backbone (digest)"):
        assert word in text, text
    sections = group([(folder, build(folder)) for folder in (*folders, pooled)])
    assert sorted(row["seeds"] for section in sections for row in section["rows"]) == [[1], [1], [1], [1, 2]]


@pytest.mark.slow
def test_an_evaluated_checkpoint_is_named_after_its_run(options, tmp_path):
    trained = run([*options, "--seed", "2"], tmp_path / "trained")
    point = trained / "checkpoints/task_1"
    only = [*options, "--is_evaluate_only", "--evaluate_checkpoint", str(point)]
    made = run(only, tmp_path / "only")
    assert made.name.endswith("-seed2") and read_json(made / "facts.json")["seed"] == 2
    assert call([*only, "--seed", "1", "--dump_path", str(tmp_path / "no")]) == 2
