import pytest

from tests.unit.preprocess.raw_data import as_windows, build, changed, check_classes, sizes
from utils.errors import UserError
from utils.prompt import render


def test_stream():
    stream = build("banking77", classes_per_task=2)
    check_classes(stream)
    assert stream.name == "banking77_task3" and sizes(stream) == [(8, 4, 4)] * 3
    assert stream.dev_is_test and all(task.dev == task.test for task in stream.tasks)
    assert stream.config["idx2label"][2:5] == ["free calendar?", "lost umbrella", "Queue too long"]
    texts = {e.input: e for task in stream.tasks for e in task.train}
    assert 'How much do you take for counting "loose change"?' in texts
    assert render(texts["I have been waiting\nfor an hour"], stream.prompt_type) == (
        "Input sentence: I have been waiting\nfor an hour\n The label:",
        " Queue too long",
    )


def test_published_shape_is_the_default():
    assert build("banking77").config["CUR_NUM_CLASS"] == [6] and build("banking77").max_seq_length(0) == 64


def test_dev_held_out_of_train():
    plain, held = build("banking77"), build("banking77", dev_share=0.25)
    check_classes(held)
    assert sizes(held) == [(18, 6, 12)] and not held.dev_is_test
    assert {e.label for e in held.tasks[0].dev} == set(range(6)) and held.tasks[0].test == plain.tasks[0].test
    assert {*held.tasks[0].train, *held.tasks[0].dev} == set(plain.tasks[0].train)
    assert held != build("banking77", dev_share=0.25, seed=2)


def test_files_from_windows_give_the_same_stream(tmp_path):
    assert build("banking77", as_windows(tmp_path, "banking77")).tasks == build("banking77").tasks


MISTAKES = {
    "record 1: expected a text in the field 'text'": lambda text: text.replace("text,category", "question,category"),
    "in the field 'text', got an empty one": lambda text: text.replace("I need a pen to sign", ""),
    "in the field 'category', got 'pen_is_lost'": lambda text: text.replace("pen_is_missing", "pen_is_lost", 1),
    "in the field 'category', got 'I am'": lambda text: text.replace("I cannot get in", "Here, I am"),
    "is not CSV": lambda text: text + '"cut off',
    "test.csv holds no records": lambda text: "text,category\n",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_data(message, tmp_path):
    file = "banking77/test.csv" if "test.csv" in message else "banking77/train.csv"
    with pytest.raises(UserError) as error:
        build("banking77", changed(tmp_path, file, MISTAKES[message]))
    assert message in str(error.value) and file in str(error.value)


def test_a_repeated_class_is_reported(tmp_path):
    twice = changed(tmp_path, "banking77/categories.json", lambda text: text.replace("coin_counting", "door_is_locked"))
    with pytest.raises(UserError, match="expected every class once, got 'door_is_locked' twice"):
        build("banking77", twice)
