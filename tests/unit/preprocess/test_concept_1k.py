from pathlib import Path

import pytest

from tests.unit.preprocess.raw_data import as_windows
from utils.dataset import Stream
from utils.errors import UserError
from utils.preprocess import concept_1k

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures"
REAL = ROOT / "../shared/data"
real = [pytest.mark.realdata, pytest.mark.skipif(not REAL.exists(), reason="raw data absent")]


def concept(raw_dir: Path = FIXTURES, seed: int = 1, **options: object) -> Stream:
    return concept_1k.build(raw_dir, concept_1k.Options(**options), seed)


def test_concept_records():
    text = (FIXTURES / "concept_1k/dataset_2024_1_30_11_40.txt").read_text(encoding="utf-8")
    records, dropped = concept_1k.parse(text)
    assert (len(records), dropped) == (19, 2)  # 21 blocks: one short, one with two different answers
    assert records[2].answer == "lamp, lens, and stairs" and records[2].relation == "HasA"
    assert records[4].questions[0] == "Fill in: a teapot is used for what?"
    assert records[-1].concept == "Café" and records[-1].answer == "tables"


def test_a_file_from_windows_gives_the_same_stream(tmp_path):
    assert concept(as_windows(tmp_path, "concept_1k"), num_task=3).tasks == concept(num_task=3).tasks


def test_dropped_records_are_reported_and_odd_line_ends_inside_a_text_are_kept():
    source = concept(num_task=3).config["SOURCE"]
    assert source["notes"] == ["2 records are dropped: no two questions with the same answer"]
    records, dropped = concept_1k.parse("(a, b, c)\nQ1: one\u2028two\x0c?\nA1: x\nQ2: y?\nA2: x\n")
    assert (records[0].questions[0], dropped) == ("one\u2028two\x0c?", 0)


def test_invalid_bytes_are_reported(tmp_path):
    (tmp_path / "concept_1k").mkdir()
    (tmp_path / concept_1k.RAW_FILES[1]).write_bytes("(é, b, c)".encode("latin-1"))
    with pytest.raises(UserError, match=r"concept_1k/dataset\.txt: expected UTF-8 text, got other bytes"):
        concept(tmp_path)


def test_concept_stream():
    stream = concept(num_task=3)
    config = stream.config
    assert stream.name == "concept_1k_task3" and config["CUR_NUM_CLASS"] == [3, 2, 2]
    assert config["ACCUM_NUM_CLASS"] == [3, 5, 7] and config["PRE_ACCUM_NUM_CLASS"] == [0, 3, 5]
    assert config["CONCEPT_2_TASK"] == [0, 0, 0, 1, 1, 2, 2] and config["NUM_CONCEPT"] == 7
    assert config["label2idx"] == config["idx2label"] == [] and config["RELATION_LIST"][:2] == [
        "IsA",
        "UsedFor",
    ]
    assert (stream.prompt_type, stream.il_mode, stream.chance(0)) == ("qa", "IIL", None)
    for task in stream.tasks:
        assert task.dev == task.test
        for asked, again in zip(task.train, task.test, strict=True):
            assert asked.input != again.input and asked.target == again.target and asked.ids == again.ids
            name = config["CONCEPT_LIST"][asked.ids[0]]
            assert name.lower() in asked.input.lower() + "s" and asked.label == asked.label_in_task == asked.ids[0]
            assert config["CONCEPT_2_TASK"][asked.label] == asked.task
    assert sorted(e.ids[2] for t in stream.tasks for e in t.train) == list(range(19))


def test_concept_order_is_the_seed_and_the_last_record_can_be_left_out():
    assert concept(num_task=3) == concept(num_task=3) != concept(num_task=3, seed=2)
    answers = [
        {e.target for t in concept(num_task=3, keep_last_record=keep).tasks for e in t.train} for keep in (True, False)
    ]
    assert answers[0] - answers[1] == {"tables"} and answers[1] < answers[0]


def test_too_many_tasks_are_reported():
    with pytest.raises(UserError, match=r"--num-task: expected at most 7 \(concepts in .*\), got 8"):
        concept(num_task=8)


@pytest.mark.parametrize("keep", [pytest.param(True, marks=real), pytest.param(False, marks=real)])
def test_real_concept_1k(keep):
    stream = concept(REAL, keep_last_record=keep)
    published = [1698, 1694, 1643, 1633, 1698, 1618, 1667, 1688, 1670, 1644]
    assert [len(t.train) for t in stream.tasks] == [published[0] + keep, *published[1:]]
    assert (stream.config["NUM_CONCEPT"], len(stream.config["RELATION_LIST"])) == (1023, 973)
    first = stream.tasks[0].train[0]
    assert first.input == "What is Natural Language Processing classified as?"
    assert (first.target, first.ids) == ("field of AI", (97, 0, 67))
