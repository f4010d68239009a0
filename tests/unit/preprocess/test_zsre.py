import json
from pathlib import Path

import pytest

from tests.unit.preprocess.raw_data import as_windows
from utils.dataset import Stream
from utils.errors import UserError
from utils.preprocess import zsre

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures"
REAL = ROOT / "../shared/data"


def make(raw_dir: Path = FIXTURES, **options: object) -> Stream:
    return zsre.build(raw_dir, zsre.Options(**options), 1)


def write(folder: Path, rows: list) -> Path:
    (folder / "zsre").mkdir(parents=True)
    (folder / zsre.RAW_FILE).write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_tasks_and_facts():
    stream = make()
    assert stream.name == "zsre_task10" and [len(t.train) for t in stream.tasks] == [2] * 10
    first = stream.tasks[0]
    assert [(e.input, e.target) for e in first.train] == [
        ("What was the year of Tall Tower?", "1800"),
        ("What was the year of Blue Bridge?", "1801"),
    ]
    assert (first.test[0].input, first.test[0].target) == ("When was Tall Tower built?", "1800")
    config = stream.config
    assert (config["NUM_ALL_SAMPLES"], config["NUM_SAMPLES_EACH_TASK"]) == (23, 2)
    assert config["SOURCE"]["dropped_records"] == 3 and config["LOCALITY_SPLIT"] == "dev"
    assert config["METRIC"] == ["exact_match"] * 10 and config["MAX_NEW_TOKENS"] == [10] * 10
    assert (stream.prompt_type, stream.il_mode, stream.dev_is_test) == ("none", "CKE", False)
    assert config["SOURCE"]["notes"] == [
        "3 of 23 records at the end are dropped",
        "1 edits have no rephrased question and are left out of test",
        "1 edits have no locality question and are left out of dev",
        "all tasks: 1 of 19 test questions are in train",
    ]
    assert [e.target for e in stream.tasks[5].train] == ["Zürich", "长城"]


def test_locality_asks_each_task_about_its_own_records():
    tasks = make().tasks
    assert [e.input for e in tasks[0].dev] == [
        "nq question: who wrote song number 0?",  # the mark was there
        "nq question: who wrote song number 1?",  # and here it was not
    ]
    questions = [e.input for t in tasks for e in t.dev]
    assert len(questions) == len(set(questions)) == 19 and {e.target for t in tasks for e in t.dev} == {""}
    assert make(locality_answers=True).tasks[0].dev[1].target == "Writer 1"


def test_a_file_from_windows_gives_the_same_stream(tmp_path):
    assert make(as_windows(tmp_path, "zsre")).tasks == make().tasks


def test_number_of_tasks_and_file_are_options():
    assert [len(t.train) for t in make(num_task=4).tasks] == [5] * 4
    with pytest.raises(UserError, match=r"--num-task: expected at most 23 \(records in .*\), got 24"):
        make(num_task=24)
    with pytest.raises(UserError, match=r"zsre/other.json is missing; .*EasyEdit .*MIT"):
        make(raw_file="zsre/other.json")


def test_pairs_without_rephrased_questions_are_refused(tmp_path):
    (tmp_path / "pairs.tsv").write_text("src\talt\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--raw-file: expected full records as .json or .jsonl, with rephrase and loc"):
        make(tmp_path, raw_file="pairs.tsv")


GOOD = {"src": "a?", "rephrase": "b?", "alt": "c", "loc": "d?"}
BROKEN = {
    "record 2: expected a text in the field 'rephrase', got nothing": {"src": "a?", "alt": "c", "loc": "d?"},
    "record 2: expected a text in the field 'loc', got list": GOOD | {"loc": []},
    "record 2: expected a text in the field 'alt', got an empty one": GOOD | {"alt": " "},
    "record 2: expected a text in the field 'src', got an empty one": GOOD | {"src": ""},
    "records 2 to 2: none has a text in the field 'rephrase'": GOOD | {"rephrase": ""},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_malformed_record_is_reported(message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(write(tmp_path, [GOOD, BROKEN[message]]), num_task=2)


def test_locality_answers_are_only_needed_when_asked_for(tmp_path):
    folder = write(tmp_path, [GOOD])
    assert make(folder, num_task=1).tasks[0].dev[0].input == "d?"
    with pytest.raises(UserError, match="record 1: expected a text in the field 'loc_ans', got nothing"):
        make(folder, num_task=1, locality_answers=True)


def test_true_answers_and_portability(tmp_path):
    rows = [
        GOOD | {"answers": ["x", "y"], "portability": {"New Question": "n?", "New Answer": "m"}},
        GOOD | {"answers": ["z"]},
    ]
    (task,) = make(write(tmp_path, rows), num_task=1, target="answers", test="portability").tasks
    assert [e.accepted for e in task.train] == [("x", "y"), ("z",)]
    assert [(e.input, e.target) for e in task.test] == [("n?", "m")] and [e.input for e in task.dev] == ["d?"] * 2
    with pytest.raises(UserError, match=r"record 1: expected a text in the field 'answers', got nothing"):
        make(write(tmp_path / "other", [GOOD]), num_task=1, target="answers")


KNOWEDIT = {
    "subject": "Tall Tower",
    "prompt": "The city of Tall Tower is",
    "target_new": "Oslo",
    "ground_truth": ["Rome", ["Roma"]],
    "portability": {"Reasoning": [{"prompt": "Its country is", "ground_truth": [["Norway", "Kingdom of Norway"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": ["It was built in"], "ground_truth": [["1900"]]}]},
}


def test_records_of_knowedit(tmp_path):
    folder = write(tmp_path, [KNOWEDIT])
    stream = make(folder, num_task=1, test="portability", locality_answers=True)
    (task,) = stream.tasks
    assert [(e.input, e.target) for e in task.train] == [("The city of Tall Tower is", "Oslo")]
    assert [(e.input, e.accepted) for e in task.test] == [("Its country is", ("Norway", "Kingdom of Norway"))]
    assert [(e.input, e.target) for e in task.dev] == [("It was built in", "1900")]
    true = make(folder, num_task=1, test="portability", target="answers").tasks[0].train[0]
    assert true.accepted == ("Rome", "Roma")
    with pytest.raises(UserError, match="field 'rephrase', got nothing; --test portability"):
        make(folder, num_task=1)
    for wrong, message in (
        ([], "expected an object of lists of {prompt, ground_truth} in the field 'portability', got list"),
        ({"Reasoning": [{"prompt": "a"}]}, "portability, Reasoning: expected a text in the field 'ground_truth'"),
    ):
        (folder / zsre.RAW_FILE).write_text(json.dumps([KNOWEDIT | {"portability": wrong}]), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            make(folder, num_task=1, test="portability")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason="raw data absent")
def test_real_zsre():
    stream = make(REAL, raw_file="zsre/zsre_mend_partial.json")
    assert [(len(t.train), len(t.dev), len(t.test)) for t in stream.tasks] == [(103, 103, 103)] * 10
    assert stream.config["NUM_ALL_SAMPLES"] == 1032 and stream.config["SOURCE"]["dropped_records"] == 2
    first = stream.tasks[0]
    assert (first.train[0].input, first.train[0].target) == (
        "When was the inception of IAAF Combined Events Challenge?",
        "2006",
    )
    assert first.test[0].input == "When was the IAAF Combined Events Challenge launched?"
    assert first.dev[0].input == "nq question: what is the name of the last episode of spongebob?"
