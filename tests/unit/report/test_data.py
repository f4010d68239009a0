"""What is printed about the data of a run."""

from dataclasses import replace

import pytest

from tests import tiny
from utils.classifier import ClassEncoder, Classes
from utils.dataloader import Encoder
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.report import data


def stream_of(train, test, name="animals"):
    return Stream("s", (TaskData(name, tuple(train), (), tuple(test)),), {})


def lines(stream, **options):
    backbone = tiny.make_backbone()
    return data.lines(stream, Encoder(backbone.tokenizer, "none", **options), backbone)


def test_clean_data_are_not_mentioned():
    train = [Example(f"cat {i}", "moo") for i in range(9)]
    assert lines(stream_of(train, [Example("dog", "wuff")])) == []


def test_each_finding_is_counted():
    train = [Example("cat", "moo"), Example("cat ", "wuff"), Example("pig", " "), Example("dog", "a <eos> b")]
    found = lines(stream_of(train, [Example("pig", "moo"), Example("cow", "moo")]))
    assert found == [
        "data of animals: 1 repeated questions in train",
        "data of animals: 1 test questions that are in train too",
        "data of animals: 1 empty targets",
        "data of animals: 1 targets that hold special tokens, which are read as text",
    ]
    as_tokens = lines(stream_of(train, []), parse_special=True)
    assert any("which are read as tokens" in line for line in as_tokens)
    assert any("1 targets that another text comes back for" in line for line in as_tokens)  # cut at <eos>


def test_long_splits_are_checked_in_part(monkeypatch):
    monkeypatch.setattr(data, "CHECKED", 10)
    monkeypatch.setattr(data, "LEAST", 1)
    (line,) = lines(stream_of([Example("cat", "moo")] * 1000, []))
    assert line == (
        "data of animals: 9 repeated questions in train (of at most 10 examples of each split that were checked)"
    )


def test_test_sentences_that_the_model_cannot_read_whole_are_refused():
    stream = tiny.word_stream()
    backbone = tiny.make_backbone("bert_encoder")
    encoder = ClassEncoder(Encoder(backbone.tokenizer, "none", True), Classes(stream), "last_token")
    data.check_sentences(stream, encoder, backbone)
    first = stream.tasks[0]
    long = Example(" ".join(["cat"] * 5000), " ".join(["O"] * 5000))
    longer = replace(stream, tasks=(replace(first, test=(*first.test, long)), *stream.tasks[1:]))
    with pytest.raises(UserError, match="1 of"):
        data.check_sentences(longer, encoder, backbone)
