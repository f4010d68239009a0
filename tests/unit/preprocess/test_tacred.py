import pytest

from tests.unit.preprocess.raw_data import as_windows, build, check_classes, sizes
from utils.errors import UserError
from utils.preprocess.tacred import readable
from utils.prompt import render


def test_stream():
    stream = build("tacred", classes_per_task=2)
    check_classes(stream)
    assert [task.name for task in stream.tasks] == [
        "org and per: founded by, city of residence",
        "org and per: top members/employees, countries of residence",
    ]
    assert stream.name == "tacred_task2" and sizes(stream) == [(6, 2, 2)] * 2 and stream.dev_is_test
    assert stream.config["idx2label"] == [
        "organization related: founded by",
        "person related: city of residence",
        "organization related: top members/employees",
        "person related: countries of residence",
    ]
    assert render(stream.tasks[0].train[1], stream.prompt_type) == (
        "Input sentence: Vic Young founded Zed Pencils in a garage .\n"
        " The relationship between Zed Pencils and Vic Young is",
        " organization related: founded by",
    )


def test_names_of_relations():
    assert readable("per:employee_of") == "person related: employee of"
    assert readable("org:political/religious_affiliation") == "organization related: political/religious affiliation"


def test_dev_held_out_of_train():
    held = build("tacred", dev_share=0.3)
    check_classes(held)
    assert sizes(held) == [(8, 4, 4)] and not held.dev_is_test


def test_files_from_windows_give_the_same_stream(tmp_path):
    assert build("tacred", as_windows(tmp_path, "tacred")).tasks == build("tacred").tasks


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"tacred/TACRED-2021\.pkl is missing; it comes from .*LDC licence.*--raw-dir"):
        build("tacred", tmp_path)
