"""What is printed about the data of a run."""

from dataclasses import replace

import pytest

from tests import tiny
from utils.dataloader import Encoder
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.options import data


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


def method_of(stream, family="gpt2", **options):
    own = options.pop("own", {})
    config = tiny.make_config(backbone=tiny.backbone_folder(family), **options)
    return tiny.make_method(tiny.make_session(config, stream=stream), stream, **own)


def with_first(stream, **splits):
    """The stream with other examples in its first task."""
    return replace(stream, tasks=(replace(stream.tasks[0], **splits), *stream.tasks[1:]))


def test_test_sentences_that_the_model_cannot_read_whole_are_refused():
    stream, options = tiny.word_stream(), {"family": "bert_encoder", "classifier": "Linear", "il_mode": "CIL"}
    data.check_lengths(method_of(stream, **options))
    long = Example(" ".join(["cat"] * 5000), " ".join(["O"] * 5000))
    with pytest.raises(UserError, match="1 of 5 test sentences have more than the 256 tokens"):
        data.check_lengths(method_of(with_first(stream, test=(*stream.tasks[0].test, long)), **options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_seq_length": 248}, None),  # 256 positions less 8 of an answer
        ({"max_seq_length": 249}, "max_seq_length: expected at most 248 for task 0, as the backbone has 256 positions"),
        ({"max_seq_length_list": (9, 9, 250)}, "max_seq_length: expected at most 248 for task 2"),
        ({"max_seq_length": 246, "PEFT_type": "PromptTuning"}, "max_seq_length: expected at most 238"),
        (
            {"max_seq_length": 246, "method": "ProgPrompt", "own": {"ProgPrompt_num_tokens_per_task": 9}},
            "max_seq_length: expected at most 221",  # of three tasks
        ),
        ({"max_seq_length": 246, "method": "LFPT5"}, "max_seq_length: expected at most "),
        (
            {"backbone_max_new_token": 256},
            "backbone_max_new_token: answers of 256 tokens and 0 virtual tokens",
        ),
        ({"max_seq_length": 256, "family": "bart"}, None),  # answers have separate positions
        ({"backbone_max_new_token": 257, "family": "bart"}, "backbone_max_new_token: answers of 257 tokens"),
        ({"max_seq_length": 9999, "family": "neox"}, None),  # rotary positions
    ],
)
def test_limits_beyond_a_table_of_positions_are_refused(options, reason):
    method = method_of(tiny.micro_stream(), **options)
    if reason is None:
        data.check_lengths(method)
        return
    with pytest.raises(UserError) as caught:
        data.check_lengths(method)
    assert str(caught.value).startswith(reason)


def test_answers_that_cannot_be_learned_whole_are_refused():
    stream = tiny.micro_stream()

    def learning(count, **options):
        """An answer of this many tokens: a space, characters that no text holds, EOS."""
        train = (*stream.tasks[0].train, Example("q", "~" * (count - 2)))
        method = method_of(with_first(stream, train=train), **options)
        assert len(method.encoder(train[-1:], None)[0].answer) == count
        return method

    data.check_lengths(learning(255))  # 256 positions, one of them of the prompt
    for method in (learning(256), learning(4000), learning(250, PEFT_type="PromptTuning")):
        with pytest.raises(UserError, match=r"^micro 0: 1 of 13 answers to be learned have more tokens than the 2"):
            data.check_lengths(method)
    data.check_lengths(learning(4000, family="neox"))
    tested = with_first(stream, test=(Example("q", "~" * 4000),))
    data.check_lengths(method_of(tested))  # is compared as far as it is generated
