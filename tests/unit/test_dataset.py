import json
from dataclasses import replace
from pathlib import Path

import pytest

from utils.dataset import Example, Stream, TaskData, encode, load_stream, save_stream
from utils.errors import UserError

ROW = {"input": ["q"], "target": ["a"]}


def stream() -> Stream:
    tasks = []
    for k in range(2):
        row = (Example(f"q{k} é\u2028", f" a{k}\n", label=k, label_in_task=0, ids=(k, 5, 6), task=k),)
        tasks.append(TaskData(f"part {k}", row, (), row))
    config = {
        "NUM_TASK": 2,
        "TASK_NAMES": ["part 0", "part 1"],
        "CHANCE": [0.5, None],
        "METRIC": ["acc", "rouge-l"],
    }
    return Stream("small_task2", tuple(tasks), config)


def write(root: Path, data: object, config: object) -> None:
    (root / "s").mkdir()
    (root / "s/continual_data.json").write_text(json.dumps(data), encoding="utf-8")
    (root / "s/continual_config.json").write_text(json.dumps(config), encoding="utf-8")


def task(**changes: object) -> dict:
    return {"train": ROW, "dev": ROW, "test": ROW} | changes


def test_save_then_load_gives_the_same_stream(tmp_path):
    assert save_stream(stream(), tmp_path) == tmp_path / "small_task2"
    assert load_stream("small_task2", tmp_path) == stream()


def test_bytes_do_not_depend_on_the_machine(tmp_path):
    folder = save_stream(stream(), tmp_path)
    raw = (folder / "continual_data.json").read_bytes()
    assert raw == encode(stream())["continual_data.json"].encode("utf-8")
    assert b"\r" not in raw and raw.endswith(b"}\n") and "é".encode() in raw
    assert list(json.loads(raw)["0"]["train"]) == [
        *("input", "target", "concept_id", "relation_id", "instance_id"),
        *("label_idx_cil", "label_idx_til"),
    ]


def test_several_accepted_answers_are_kept_and_must_hold_the_target(tmp_path):
    both = {"input": ["q", "r"], "target": ["a", "b"], "references": [["a", "c"], None]}
    write(tmp_path, {"0": task(test=both)}, {"NUM_TASK": 1})
    loaded = load_stream("s", tmp_path)
    (test,) = (t.test for t in loaded.tasks)
    assert [e.accepted for e in test] == [("a", "c"), ("b",)] and test[1].references is None
    save_stream(replace(loaded, name="again"), tmp_path)
    assert load_stream("again", tmp_path).tasks == loaded.tasks
    assert "references" not in json.loads((tmp_path / "again/continual_data.json").read_text("utf-8"))["0"]["train"]
    for wrong, word in ([["b"]], "the target among them"), (["a"], "a list of texts"), ([[1]], "a list of texts"):
        for column in ("references", "choices"):
            data = {"0": task(test=ROW | {column: wrong})}
            (tmp_path / "s/continual_data.json").write_text(json.dumps(data), encoding="utf-8")
            with pytest.raises(UserError, match=f"task 0, test, row 0, {column}: expected {word}"):
                load_stream("s", tmp_path)


def test_stated_facts_and_defaults():
    stated, silent = stream(), Stream("s", stream().tasks)
    assert [stated.metric(1), stated.chance(0), stated.chance(1)] == ["rouge-l", 0.5, None]
    assert [silent.metric(1), silent.max_new_tokens(0), silent.max_seq_length(0)] == ["exact_match", 10, None]
    assert [silent.chance(0), silent.prompt_type, silent.il_mode, silent.dev_is_test] == [
        None,
        None,
        None,
        False,
    ]


def test_streams_made_elsewhere_load(tmp_path):
    write(tmp_path, {"0": task(extra=1), "1": task(train=ROW | {"note": [[]]})}, {"NUM_TASK": 2, "NUM_CLASS": 4})
    loaded = load_stream("s", tmp_path)
    assert [t.name for t in loaded.tasks] == ["task 0", "task 1"]
    assert loaded.tasks[1].train == (Example("q", "a", task=1),) and loaded.dev_is_test


def test_a_missing_stream_names_the_command(tmp_path):
    with pytest.raises(UserError) as error:
        load_stream("zsre_task10", tmp_path)
    path = tmp_path / "zsre_task10/continual_data.json"
    assert str(error.value) == f"{path} is missing; make it with: bash preprocess_dataset.sh zsre_task10"
    for name, command in {
        "nope_task2": "python utils/dataformat_preprocess.py --help; your own files: --dataset_files FILE, see "
        "docs/own-data.md",
        "trace": "python utils/dataformat_preprocess.py --help; did you mean 'TRACE_task8', made with: bash "
        "preprocess_dataset.sh TRACE_task8",
        "clinc150_task15_small": "python utils/dataformat_preprocess.py --dataset clinc150 --help; did you mean "
        "'clinc150_task15', made with: bash preprocess_dataset.sh clinc150_task15",
    }.items():
        with pytest.raises(
            UserError, match=rf"{name}/continual_data\.json is missing; .* lists no stream of this"
        ) as e:
            load_stream(name, tmp_path)
        assert str(e.value).endswith(f"options that make streams: {command}")
    with pytest.raises(UserError, match=r"nope_task2/continual_data\.json is missing; .* lists no stream of this name"):
        load_stream("nope_task2", tmp_path)


ONE = {"NUM_TASK": 1}
WRONG = {
    "columns": (
        task(test={"input": ["q", "r"], "target": ["a"]}),
        ONE,
        "task 0, test: 2 inputs but 1 entries in 'target'",
    ),
    "labels": (
        task(dev=ROW | {"label_idx_cil": []}),
        ONE,
        "task 0, dev: 1 inputs but 0 entries in 'label_idx_cil'",
    ),
    "cell": (
        task(train={"input": ["q"], "target": [3]}),
        ONE,
        "task 0, train, target, row 0: expected a text, got int '3'",
    ),
    "words": (
        task(train={"input": [["q"]], "target": ["a"]}),
        ONE,
        "train, input, row 0: expected a text, got list",
    ),
    "label": (
        task(train=ROW | {"label_idx_cil": ["1"]}),
        ONE,
        "label_idx_cil, row 0: expected an integer, got str '1'",
    ),
    "ids": (
        task(train=ROW | {"concept_id": [1]}),
        ONE,
        "expected all of concept_id, relation_id, instance_id",
    ),
    "column": (
        task(train={"input": ["q"]}),
        ONE,
        "task 0, train: expected a list named 'target', got nothing",
    ),
    "empty": (task(train={"input": [], "target": []}), ONE, "task 0: train has no examples"),
    "untested": (task(test={"input": [], "target": []}), ONE, "task 0: test has no examples"),
    "split": (
        {"train": ROW, "test": ROW},
        ONE,
        "expected the splits train, dev and test, got none named dev",
    ),
    "count": (task(), {"NUM_TASK": 3}, "NUM_TASK is 3, but continual_data.json has 1 tasks"),
    "no count": (task(), {}, "NUM_TASK is None"),
    "config": (task(), [], "NUM_TASK is list"),
    "facts": (task(), ONE | {"METRIC": ["acc", "acc"]}, "METRIC: expected 1 texts, got ['acc', 'acc']"),
    "chance": (task(), ONE | {"CHANCE": [50]}, "CHANCE: expected 1 numbers in 0..1 or null, got [50]"),
    "tokens": (
        task(),
        ONE | {"MAX_NEW_TOKENS": [0]},
        "MAX_NEW_TOKENS: expected 1 integers of at least 1, got [0]",
    ),
    "prompt": (task(), ONE | {"PROMPT_TYPE": ["qa"]}, "PROMPT_TYPE: expected a text, got list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_in_files_are_reported_with_their_place(tmp_path, name):
    content, config, text = WRONG[name]
    write(tmp_path, {"0": content}, config)
    with pytest.raises(UserError) as error:
        load_stream("s", tmp_path)
    assert text in str(error.value) and str(tmp_path / "s") in str(error.value)


@pytest.mark.parametrize("data", [{}, {"1": task()}, {"0": task(), "2": task()}, [task()]])
def test_task_keys_are_the_positions(tmp_path, data):
    write(tmp_path, data, {"NUM_TASK": len(data)})
    with pytest.raises(UserError, match="expected the keys '0', '1', "):
        load_stream("s", tmp_path)


def test_a_stream_that_could_not_be_loaded_is_not_saved(tmp_path):
    row = stream().tasks[0].train
    with pytest.raises(UserError, match="stream s, task 0: train has no examples"):
        save_stream(Stream("s", (TaskData("t", (), row, row),)), tmp_path)
    with pytest.raises(UserError, match="stream s: NUM_TASK is 2"):
        save_stream(Stream("s", (TaskData("t", row, row, row),), {"NUM_TASK": 2}), tmp_path)
    assert not list(tmp_path.iterdir())
