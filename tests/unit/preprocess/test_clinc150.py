import json
from collections import Counter

import pytest

from tests.unit.preprocess.raw_data import REAL, as_windows, build, changed, check_classes, real, sizes
from utils.errors import UserError
from utils.prompt import render


def test_stream():
    stream = build("clinc150", classes_per_task=2)
    check_classes(stream)
    assert stream.name == "clinc150_task3" and sizes(stream) == [(8, 4, 4)] * 3
    assert stream.config["CLASSNAME_LIST"] == [
        *("tell joke", "café hours", "water plants", "open window", "play chess", "find keys")
    ]
    assert not stream.dev_is_test and stream.max_seq_length(0) == 50
    first = next(e for e in stream.tasks[0].train if e.label == 1)
    assert render(first, stream.prompt_type) == (
        "Input sentence: when does the café open\n The label:",
        " café hours",
    )


def test_number_of_tasks_and_what_is_left():
    assert build("clinc150", classes_per_task=4).config["CUR_NUM_CLASS"] == [4, 2]
    cut = build("clinc150", classes_per_task=2, num_task=2)
    check_classes(cut)
    assert cut.name == "clinc150_task2" and cut.config["NUM_CLASS"] == 4
    with pytest.raises(UserError, match=r"--num-task: expected at most 3 \(6 classes in .*, 2 a task\), got 4"):
        build("clinc150", classes_per_task=2, num_task=4)


def test_drawn_examples_and_order_are_the_seed():
    few = {"classes_per_task": 3, "num_sample_train_per_class": 2, "num_sample_test_per_class": 1}
    stream = build("clinc150", **few, class_order="shuffled")
    check_classes(stream)
    assert sizes(stream) == [(6, 3, 3)] * 2 and stream == build("clinc150", **few, class_order="shuffled")
    other = build("clinc150", **few, class_order="shuffled", seed=2)
    assert other.tasks != stream.tasks and set(other.config["idx2label"]) == set(stream.config["idx2label"])
    whole = [e.input for t in build("clinc150", classes_per_task=3).tasks for e in t.train]
    drawn = [e.input for t in build("clinc150", **few).tasks for e in t.train]
    assert len(set(drawn)) == 12 and drawn == [text for text in whole if text in drawn]  # the order of the file


def test_number_as_target():
    stream = build("clinc150", classes_per_task=2, variant="numbertarget")
    check_classes(stream)
    assert stream.name == "clinc150_task3_numbertarget" and stream.config["CLASSNAME_LIST"][5] == "find keys"
    assert {e.target for e in stream.tasks[2].test} == {"4", "5"}


def test_ids_moved_on_by_one_stay_inside_their_tasks():
    plain, moved = (
        build("clinc150", classes_per_task=2),
        build("clinc150", classes_per_task=2, variant="classidxplusone"),
    )
    check_classes(moved)
    before, after = ({e.input: e for t in s.tasks for e in t.train} for s in (plain, moved))
    assert all(after[text].label == (e.label + 1) % 6 for text, e in before.items())
    assert all(after[text].target == e.target for text, e in before.items())


def test_files_from_windows_give_the_same_stream(tmp_path):
    assert build("clinc150", as_windows(tmp_path, "clinc150")).tasks == build("clinc150").tasks


def edit(change):
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edited


MISTAKES = {
    "record 2: expected [text, intent], got": lambda d: d["train"].__setitem__(1, ["only a text"]),
    "record 3: expected a text in the field 'text', got int": lambda d: d["val"].__setitem__(2, [7, "tell_joke"]),
    "record 3: expected a text in the field 'text', got an empty one": lambda d: d["val"][2].__setitem__(0, " \n"),
    "in the field 'intent', got 'oos'": lambda d: d["test"][0].__setitem__(1, "oos"),
    "holds half of a character": lambda d: d["train"][0].__setitem__(0, "\ud800"),
    "expected a list named 'val', got none": lambda d: d.pop("val"),
    "train has none of 'find keys'": lambda d: d.update(train=[r for r in d["train"] if r[1] != "find_keys"]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_data(message, tmp_path):
    raw = changed(tmp_path, "clinc150/data_full.json", edit(MISTAKES[message]))
    with pytest.raises(UserError) as error:
        build("clinc150", raw)
    assert message in str(error.value) and "clinc150/data_full.json" in str(error.value)


@pytest.mark.parametrize("change", [lambda text: text.replace(": 5", ": 4"), lambda text: "[]", lambda text: text[:9]])
def test_broken_numbers_of_intents(change, tmp_path):
    with pytest.raises(UserError, match=r"label_dict\.json( is not JSON|: expected)"):
        build("clinc150", changed(tmp_path, "clinc150/label_dict.json", change))


def test_a_missing_file_is_reported_with_its_origin(tmp_path):
    with pytest.raises(UserError) as error:
        build("clinc150", tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/clinc150/label_dict.json is missing; it comes from github.com/")
    assert all(word in text for word in ("CC BY 3.0", "2 MB", "--raw-dir", "dataset/README.md")) and "\n" not in text


@pytest.mark.parametrize("variant", [pytest.param(v, marks=real("clinc150")) for v in (None, "classidxplusone")])
def test_real_clinc150(variant):
    stream = build("clinc150", REAL, variant=variant)
    check_classes(stream)
    assert stream.name.startswith("clinc150_task15") and sizes(stream) == [(1000, 200, 300)] * 15
    assert len(stream.config["label2idx"]) == 150 and "oos" not in stream.config["label2idx"]
    if variant is None:
        first = stream.tasks[0].train[0]
        assert first.input == "i need $20000 transferred from my savings to my checking"
        assert (first.target, first.label, first.label_in_task) == ("transfer", 2, 2)
        assert Counter(e.label for e in stream.tasks[14].train) == dict.fromkeys(range(140, 150), 100)
