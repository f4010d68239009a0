"""Large files: read in pieces of any size, with the same outcome."""

import json

import pytest

from tests.tiny import class_stream, micro_stream
from utils.dataset import encode, load_stream, save_stream
from utils.errors import UserError
from utils.storage import large_json
from utils.storage.packed_columns import Texts

VALUE = {
    "0": {"a": ["x", 'é"\\\n', "😀 \ud83d", ""], "b": [1, -23.5e7, 1234567890, True, None], "c": [["u", ["v"]], {}]},
    "12": {},
    "x": [],
    "y": "text",
    "z": {"n": 12345},
}


@pytest.fixture(params=[1, 2, 7, 4_000_000])
def pieces(request, monkeypatch):
    monkeypatch.setattr(large_json, "LARGE", 0)
    monkeypatch.setattr(large_json, "PIECE", request.param)


@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_the_same_comes_out(tmp_path, pieces, monkeypatch, indent):
    monkeypatch.setattr(large_json, "read_json", None)
    for value in (VALUE, [], {}, 12, "x", [VALUE, VALUE], {"a": {"a": {"a": [[[1]]]}}}):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(value, indent=indent) + "\n \r\n", encoding="utf-8-sig")
        assert large_json.read_large_json(path) == value


def test_errors_are_those_of_a_small_file(tmp_path, pieces):
    path = tmp_path / "file.json"
    short = ["", " ", "{", '{"a"', "{1: 2}", '["\n"]', "[1 2]", "{'a': 1}", "\\"]
    for text in (*short, '{"a": [1,]}', '{"a": 1} x', '{"a": 1,}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="is not JSON: "):
            large_json.read_large_json(path)
    with pytest.raises(UserError, match="is missing"):
        large_json.read_large_json(tmp_path / "none.json")


def test_bytes_that_are_no_text_are_an_error(tmp_path, pieces):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="cannot be read"):
        large_json.read_large_json(path)


def test_texts_are_packed(tmp_path, pieces):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"a": ["x", "y"] * 20, "b": ["x", 1, "y", "z"], "c": [1, "x"]}))
    read = large_json.read_large_json(path)
    assert {key: type(value) for key, value in read.items()} == {"a": Texts, "b": list, "c": list}
    assert read["a"][1:3] == ("y", "x") and read["a"][-1] == "y"
    assert read["a"] != ["x", "y"] * 19 and read["a"] != 7
    with pytest.raises(IndexError):
        read["a"][40]


def test_errors_in_a_packed_column_are_reported(tmp_path, pieces):
    folder = save_stream(micro_stream(), tmp_path)
    good = json.loads((folder / "continual_data.json").read_text())
    count = len(good["0"]["train"]["input"])
    for column, cells, told in (
        ("target", ["x"], "but 1 entries in 'target'"),
        ("label_idx_cil", ["x"] * count, "expected an integer, got str"),
        ("target", [3] * count, "target, row 0: expected a text, got int"),
    ):
        bad = json.loads(json.dumps(good))
        bad["0"]["train"][column] = cells
        (folder / "continual_data.json").write_text(json.dumps(bad))
        with pytest.raises(UserError, match=told):
            load_stream("micro", tmp_path)


@pytest.mark.parametrize("stream", [micro_stream(), class_stream()], ids=["micro", "classes"])
def test_a_stream_comes_back(tmp_path, pieces, stream):
    save_stream(stream, tmp_path)
    read = load_stream(stream.name, tmp_path)
    assert encode(read) == encode(stream)
    assert all(task.dev is task.test for task in read.tasks)  # equal splits are in memory once
