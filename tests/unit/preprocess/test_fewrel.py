import json
import pickle
import shutil

import pytest

from tests.unit.preprocess.raw_data import FIXTURES, as_windows, build, changed, check_classes, sizes
from utils.errors import UserError
from utils.preprocess.fewrel import _marked
from utils.preprocess.shared.safe_pickle import load_plain
from utils.prompt import render

FILE = "fewrel/FewRel-2021.json"


def test_stream():
    stream = build("fewrel", classes_per_task=2)
    check_classes(stream)
    assert stream.name == "fewrel_task2" and sizes(stream) == [(6, 2, 2)] * 2 and not stream.dev_is_test
    assert stream.config["idx2label"] == [
        "mother",
        "mouth of the watercourse",
        "licensed to broadcast to",
        "instrument",
    ]
    prompts = [render(e, stream.prompt_type)[0] for task in stream.tasks for e in (*task.train, *task.test)]
    assert prompts[1] == "Input sentence: clara had a son , dan .\n The relationship between dan and clara is"
    assert (
        "Input sentence: the new river delta is flat\n The relationship between new river and river delta is" in prompts
    )
    assert any("{second hand}" in prompt for prompt in prompts) and not any("[E" in prompt for prompt in prompts)


def test_pickle_and_json_give_the_same_stream(tmp_path):
    (tmp_path / "fewrel").mkdir()
    data = json.loads((FIXTURES / FILE).read_text(encoding="utf-8"))
    (tmp_path / "fewrel/FewRel-2021.pkl").write_bytes(pickle.dumps(tuple(data)))
    stream = build("fewrel", tmp_path)
    assert stream.tasks == build("fewrel").tasks and list(stream.config["SOURCE"]["files"]) == [
        "fewrel/FewRel-2021.pkl"
    ]


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


NOT_PLAIN = {
    "builtins.print": pickle.dumps([Harmful()]),
    "builtins.set": pickle.dumps({1}, protocol=2),
    "collections.Counter": b"\x80\x04\x8c\x0bcollections\x8c\x07Counter\x93.",
    "truncated": pickle.dumps([["long enough to be cut"]])[:-9],
    "no pickle": b"[1, 2]",
    "empty": b"",
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_pickles_of_more_than_plain_values_are_refused(name, tmp_path, capsys):
    path = tmp_path / "x.pkl"
    path.write_bytes(NOT_PLAIN[name])
    with pytest.raises(UserError) as error:
        load_plain(path)
    assert f"{path} cannot be read: " in str(error.value) and "x.json" in str(error.value)
    if "." in name:
        assert f"it names {name.replace('builtins.set', '__builtin__.set')}" in str(error.value)
    assert "harm" not in capsys.readouterr().out


def test_files_from_windows_give_the_same_stream(tmp_path):
    assert build("fewrel", as_windows(tmp_path, "fewrel")).tasks == build("fewrel").tasks


def drop(text: str, *path: object, value: object = None) -> str:
    data = json.loads(text)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


MISTAKES = {
    "train, relation 1, record 2: expected a text in the field 'text', got nothing": (0, 0, 1, "text", None),
    "train, relation 1, record 2: expected the marks": (0, 0, 1, "text", "[E11] a [E12] without a tail"),
    "train, relation 1, record 3: expected the marks": (0, 0, 2, "text", "[E12] a [E11] b [E21] c [E22]"),
    "dev, relation 2, record 1: expected 'mouth of the watercourse' in the field": (1, 1, 0, "semantic_label", "x"),
    "test, relation 4, record 1: expected an object with named fields, got list": (2, 3, 0, []),
    "test, relation 4: expected at least one record, got none": (2, 3, []),
    "test: expected a list for each of the 4 relations of train, got 1": (2, [[]]),
    "dev: expected a list of records for each relation, got int": (1, 3),
    "train: expected a list of records for each relation, got NoneType": (0, None),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_data(message, tmp_path):
    *path, value = MISTAKES[message]
    with pytest.raises(UserError) as error:
        build("fewrel", changed(tmp_path, FILE, lambda text: drop(text, *path, value=value)))
    assert message in str(error.value) and FILE in str(error.value)


@pytest.mark.parametrize("text", ['{"a": 1}', "[[], [], []]", "[1, 2"])
def test_other_content(text, tmp_path):
    shutil.copytree(FIXTURES / "fewrel", tmp_path / "fewrel")
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="FewRel-2021"):
        build("fewrel", tmp_path)


def wiki(relation: str, count: int = 5) -> dict:
    """A relation of FewRel's own files."""
    tokens = ["The", "New", "River", "joins", relation, "Bay", "here"]
    return {
        relation: [
            {"tokens": [*tokens, str(i)], "h": ["new river", "Q1", [[1, 2], [6]]], "t": ["bay", "Q2", [[4, 5]]]}
            for i in range(count)
        ]
    }


def test_the_published_files_are_read(tmp_path):
    folder = tmp_path / "fewrel"
    folder.mkdir()
    (folder / "train_wiki.json").write_text(json.dumps(wiki("P1") | wiki("P2")), encoding="utf-8")
    (folder / "val_wiki.json").write_text(json.dumps(wiki("P3")), encoding="utf-8")
    (folder / "pid2name.json").write_text(json.dumps({"P1": ["mouth", "of a river"], "P3": ["inlet", ""]}), "utf-8")
    stream = build("fewrel", tmp_path, classes_per_task=2)
    check_classes(stream)
    assert sizes(stream) == [(6, 2, 2), (3, 1, 1)] and stream.config["idx2label"] == ["mouth", "P2", "inlet"]
    first = stream.tasks[0].train[0]
    assert first.input.startswith("The [E11] New River [E12] joins [E21] P1 Bay [E22] here ")
    assert render(first, stream.prompt_type)[0].endswith("The relationship between New River and P1 Bay is")
    assert len(stream.config["SOURCE"]["files"]) == 3
    assert stream.config["SOURCE"]["notes"] == [
        "relations that are called by their identifier, as fewrel/pid2name.json has no names for them: P2"
    ]
    assert stream.tasks != build("fewrel", tmp_path, seed=2, classes_per_task=2).tasks
    for wrong, message in (
        ([1], "expected {relation: .* got "),
        (wiki("P1", 2), "P1: expected at least 3 sentences, got 2"),
        ({"P1": [{"tokens": "a b"}]}, "P1, record 1: expected a list of texts in the field 'tokens', got str"),
        *(
            (
                {"P1": [{"tokens": ["a", " ", "b"], "h": ["a", "Q", places]}]},
                "positions, .*in the field 'h'.* from 0 to 2",
            )
            for places in ([[3]], [[-1]], [[]], [], [[0], [7]], [[0, 2]], [[1]], [["0"]], [2])
        ),
    ):
        (folder / "train_wiki.json").write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            build("fewrel", tmp_path)


def test_absent_files_are_in_the_notes(tmp_path):
    folder = tmp_path / "fewrel"
    folder.mkdir()
    (folder / "train_wiki.json").write_text(json.dumps(wiki("P1") | wiki("P2")), encoding="utf-8")
    assert build("fewrel", tmp_path, classes_per_task=2).config["SOURCE"]["notes"] == [
        "fewrel/val_wiki.json is absent: 2 of the 80 relations of FewRel",
        "relations that are called by their identifier, as fewrel/pid2name.json is absent: P1 and 1 more",
    ]


def test_entities_that_meet_or_overlap_are_marked():
    record = {"tokens": ["a", "b", "c"], "h": ["", "", [[0, 1]]], "t": ["", "", [[1, 2]]]}
    assert _marked(record, "x") == "[E11] a [E21] b [E12] c [E22]"
    record["t"] = ["", "", [[2]]]
    assert _marked(record, "x") == "[E11] a b [E12] [E21] c [E22]"


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"fewrel/FewRel-2021\.pkl is missing; it comes from .*MIT.*--raw-dir"):
        build("fewrel", tmp_path)
