"""Texts that are long, empty, twice there, not English or full of special tokens: from the file to the score."""

import json

import pytest

from tests import tiny
from utils.dataloader import Encoder
from utils.dataset import Example, load_stream, save_stream
from utils.preprocess import jsonl
from utils.storage.files import read_jsonl

LONG = "Der Rat beschließt: 会议记录 <EOL> " * 6_000  # 192,000 characters
PAIRS = [
    (LONG, "Die Straße wird breiter."),
    ("判断以下文本对指定对象的态度。\n文本：\n公园\n态度：", "支持"),
    ("Vereinfache: Die Maßnahmen gemäss Artikel 5 gelten überall.", "Das gilt für alle. Größe zählt nicht."),
    ("<s> from django import forms <EOL> x = <STR_LIT:a> [INST] <|im_end|>", "<NUM_LIT:0> </s>"),
    ("cat <eos> dog <pad>", "<bos> moo"),
    ("", "an answer to nothing"),
    ("a question without an answer", ""),
    ("twice", "moo"),
    ("twice", "moo"),
    ("two lines\r\nof a page", "one\r\nother"),
]
LIMIT = 48  # tokens


@pytest.fixture(scope="module", params=["\n", "\r\n"], ids=["LF", "CRLF"])
def stream(request, tmp_path_factory):
    """The pairs, for training and for testing, from a file with these line ends; written and read again."""
    folder = tmp_path_factory.mktemp("odd")
    for split in ("train", "test"):
        lines = [json.dumps({"input": x, "target": y}, ensure_ascii=False) for x, y in PAIRS]
        path = folder / f"raw/odd/{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((request.param.join(lines) + request.param).encode())
    made = jsonl.build(folder / "raw", jsonl.Options(max_new_tokens="8"), 1)
    save_stream(made, folder)
    return load_stream(made.name, folder)


def test_no_text_changes_on_its_way_through_the_files(stream):
    (task,) = stream.tasks
    assert [(e.input, e.target) for e in task.train] == [(e.input, e.target) for e in task.test] == PAIRS


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("i", range(len(PAIRS)))
def test_the_end_of_the_prompt_and_the_whole_answer_are_seen(i, bos):
    words, example = tiny.tokenizer(bos), Example(*PAIRS[i])
    encoder = Encoder(words, "none")
    (row,), (whole,) = encoder([example], LIMIT), encoder([example], None)
    assert words.decode(row.answer) == f" {example.target.strip()}<eos>"
    assert words.decode(whole.prompt) == "<bos>" * bos + example.input.strip() or not example.input
    kept = row.prompt[bos:]
    assert kept == whole.prompt[len(whole.prompt) - len(kept) :] and row.prompt  # there is something to predict from
    assert len(row.prompt) + len(row.answer) == min(LIMIT, len(whole.prompt) + len(whole.answer)) or len(kept) < 2


@pytest.mark.slow
def test_a_run_scores_each_of_them(stream, tmp_path):
    rows = {}
    for mode in ("verify", "generate"):
        config = tiny.make_config(max_seq_length=LIMIT, evaluation_mode=mode, lr=1e-3)
        result = tiny.run(tmp_path / mode, config, stream)
        assert all(0 < loss < 100 for loss in result.losses)
        rows[mode] = read_jsonl(tmp_path / mode / "predictions/after_0/task_0.jsonl")
        assert [(row["input"], row["target"]) for row in rows[mode]] == PAIRS
        assert sum("examples have more than 48 tokens" in told for told in result.log.messages) == 1
    assert [row["score"] for row in rows["verify"]] == [row["score"] for row in rows["generate"]]
    assert rows["generate"][7]["prediction"] == rows["generate"][8]["prediction"]  # the same question twice
