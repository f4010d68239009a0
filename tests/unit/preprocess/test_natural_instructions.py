import json

import pytest

from tests.unit.preprocess.raw_data import FIXTURES, build, sizes
from utils.errors import UserError

RAW = FIXTURES / "natural_instructions"


def test_files_are_divided_and_folders_keep_their_splits():
    stream = build("natural_instructions", RAW, test_share=0.3)
    assert stream.name == "natural_instructions_task2" and sizes(stream) == [(3, 3, 3), (2, 1, 1)]
    assert [task.name for task in stream.tasks] == ["task363_sst2", "task748_glucose"]
    assert stream.config["METRIC"] == ["rouge_l_stemmed"] * 2 and stream.dev_is_test
    one = stream.tasks[1]
    assert len({e.input for e in one.train + one.test}) == 3
    assert one.train[0].input.startswith("Definition: Name an event that {one} sentence causes.\n\nNow complete")
    other = build("natural_instructions", RAW, seed=2, test_share=0.3, task_order="748", metric="rouge_l")
    assert sizes(other) == [(2, 1, 1)] and other.config["METRIC"] == ["rouge_l"]


def test_a_folder_with_splits_is_a_single_task():
    assert sizes(build("natural_instructions", RAW / "task363_sst2")) == [(3, 3, 3)]


def test_all_texts_of_a_definition_are_in_the_prompt(tmp_path):
    content = {"Definition": ["One. ", "Two."], "Instances": [{"input": f"q{i}", "output": "a"} for i in range(9)]}
    (tmp_path / "task1_x.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "notes.txt").touch()
    stream = build("natural_instructions", tmp_path)
    assert stream.config["SOURCE"]["notes"] == ["not read, as they are no tasks: notes.txt"]
    (task,) = stream.tasks
    assert {e.input.partition("\n\n")[0] for e in task.train} == {"Definition: One.\nTwo."}


def test_mistakes(tmp_path):
    with pytest.raises(
        UserError, match=r"--raw-dir: expected task files .* got none; they come from github.com/allenai"
    ):
        build("natural_instructions", tmp_path)
    for options, message in {
        ("task_order", "999"): "--task-order: expected tasks of task363_sst2, task748_glucose, got '999'",
        ("task_order", "748,task748"): "--task-order: expected different tasks",
        ("test_share", 0.99): "task748_glucose: 3 instances are too few to divide",
        ("metric", "rouge"): "unknown metric 'rouge'",
        ("metric", "bleu,bleu,bleu"): "--metric: expected 1 entry or 2",
    }.items():
        with pytest.raises(UserError, match=message):
            build("natural_instructions", RAW, **dict([options]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/train.json").write_text(json.dumps({"Instances": [{"input": "a", "output": "b"}]}), "utf-8")
    with pytest.raises(UserError, match=r"expected train.json and test.json, got no test.json"):
        build("natural_instructions", tmp_path)
