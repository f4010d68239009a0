import json
import shutil
from pathlib import Path

import pytest

from utils.dataset import Example, Stream
from utils.errors import UserError
from utils.preprocess import trace
from utils.preprocess.shared.records import read_rows

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures"
REAL = ROOT / "../shared/data"
SMALL = {"sub_sample_test": "3,-1,2,2,2,-1,-1,2"}


def make(raw_dir: Path = FIXTURES, **options: object) -> Stream:
    return trace.build(raw_dir, trace.Options(**options), 1)


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(FIXTURES / "TRACE", tmp_path / "TRACE")
    return tmp_path


def test_tasks_facts_and_counts():
    stream = make()
    assert stream.name == "TRACE_task8" and [task.name for task in stream.tasks] == list(trace.TASKS)
    assert [(len(t.train), len(t.dev), len(t.test)) for t in stream.tasks] == [(6, 10, 5)] * 8
    config = stream.config
    assert config["METRIC"] == [
        *("exact_match", "exact_match", "rouge_l", "edit_similarity", "first_letter", "numeric", "numeric", "sari")
    ]
    assert config["MAX_NEW_TOKENS"] == [3, 3, 256, 16, 128, 8, 8, 256] and config["MAX_SEQ_LENGTH"] == [1024] * 8
    assert (stream.prompt_type, stream.il_mode, stream.dev_is_test) == ("none", "CIT", False)
    # two, four, two, three and two choices
    assert config["CHANCE"][:5] == [1 / 3, 1 / 3, None, None, pytest.approx((3 / 2 + 1 / 4 + 1 / 3) / 5)]
    assert config["CHANCE"][5:] == [None] * 3
    notes = config["SOURCE"]["notes"]
    assert notes[0].startswith("not the 5000 training examples of the published benchmark: C-STANCE 6, FOMC 6")
    repeats = "FOMC: 1 of 6 train questions are repeats, 1 of 5 test questions are in train"
    assert f"{repeats}, 4 of 10 dev questions are in test" in notes


def test_the_folder_of_tasks_may_have_any_name(tmp_path):
    shutil.copytree(FIXTURES / "TRACE", tmp_path / "LLM-CL-Benchmark_500")
    for folder in (tmp_path, tmp_path / "LLM-CL-Benchmark_500"):
        assert make(folder) == make()
    with pytest.raises(UserError, match=r"TRACE/C-STANCE/train.json is missing"):
        make(tmp_path / "nowhere")


def test_texts_are_used_as_they_are():
    tasks = make().tasks
    assert tasks[0].train[0].input.endswith("\n对象：\n公园\n态度：") and tasks[0].train[0].target == "A"
    assert tasks[4].train[0].target == "A\n1 is larger than 0.\nSo A is right."
    assert tasks[7].train[0].input.endswith("gesperrt.\n\nSimplification:")
    assert {example.task for task in tasks for example in task.train[:1]} == set(range(8))


def test_shortest_are_kept_in_file_order_and_the_earlier_wins_a_tie():
    stream = make(**SMALL)
    assert [len(t.test) for t in stream.tasks] == [3, 5, 2, 2, 2, 5, 5, 2]
    every = make().tasks[0].test  # lengths 4, 4, long, 4, 4: three of the four
    assert stream.tasks[0].test == (every[0], every[1], every[3])
    assert [example.target for example in stream.tasks[3].test] == ["a += <NUM_LIT>", "return None"]
    examples = (Example("aa bb cc", "d"), Example("one", "twothree"))
    assert trace.shortest(examples, 1, len) == examples[:1]
    assert trace.shortest(examples, 1, trace.measure("words")) == examples[1:]
    assert trace.shortest(examples, -1, len) == examples == trace.shortest(examples, 9, len)


def test_length_by_a_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    tokenizer.enable_truncation(2)  # a folder's own limit must not count
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert trace.measure(str(tmp_path))("a.b.c.d") == 7
    stream = make(length=str(tmp_path), **SMALL)
    used = stream.config["SOURCE"]["options"]["length"]
    assert used.startswith("tokenizer.json ") and str(tmp_path) not in used
    with pytest.raises(
        UserError, match=r"--length: expected characters, words or a folder with tokenizer.json, got 'x'"
    ):
        make(length="x")


def test_order_number_and_sizes_are_options():
    stream = make(task_order="ScienceQA,FOMC", sub_sample_eval=-1, sub_sample_test="1,2", published_metrics=True)
    assert (stream.name, [t.name for t in stream.tasks]) == ("TRACE_task2", ["ScienceQA", "FOMC"])
    assert [(len(t.dev), len(t.test)) for t in stream.tasks] == [(12, 1), (12, 2)]
    assert stream.config["METRIC"] == ["exact_match"] * 2 and stream.config["CHANCE"] == [None, 1 / 3]
    assert make(num_task=1).name == "TRACE_task1"
    assert make(published_metrics=True).config["METRIC"][3:6] == ["edit_similarity", "exact_match", "exact_match"]


MISTAKES = {
    "--task-order: expected different names of C-STANCE, .*, got 'Fomc'": {"task_order": "Fomc"},
    "got 'FOMC'": {"task_order": "FOMC,FOMC"},
    "--num-task: expected at most the 1 tasks": {"task_order": "FOMC", "num_task": 2},
    "--sub-sample-test: expected 1 entry or 8, one for each task, got 2": {"sub_sample_test": "1,2"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_wrong_options(message):
    with pytest.raises(UserError, match=message):
        make(**MISTAKES[message])


def test_seed_changes_nothing():
    assert trace.build(FIXTURES, trace.Options(), 1) == trace.build(FIXTURES, trace.Options(), 2)


def test_byte_order_mark_and_crlf_change_nothing(copy):
    for path in copy.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert make(copy).tasks == make().tasks


def test_a_missing_file_is_reported_with_its_origin(copy):
    (copy / "TRACE/Py150/eval.json").unlink()
    with pytest.raises(
        UserError, match=r"Py150/eval.json is missing; .*github.com/BeyonderXX/TRACE .*Apache-2.0.*--raw-dir"
    ):
        make(copy)
    with pytest.raises(UserError, match=r"use the tasks that are there: --task-order C-STANCE,FOMC,MeetingBank,Scie"):
        make(copy)
    assert make(copy, task_order="FOMC,C-STANCE").name == "TRACE_task2"


BROKEN = {  # content of a file -> the error
    '[{"prompt": "a", "answer": "b"}, {"prompt": "c"}]': "record 2: expected a text in the field 'answer', got nothing",
    '[{"prompt": 3, "answer": "b"}]': "record 1: expected a text in the field 'prompt', got int",
    '["a"]': "record 1: expected an object with named fields, got str",
    "[]": "holds no records, at least one is needed",
    '[{"prompt": "a"': r"is not JSON \(truncated while copying\?\)",
    '{"prompt": "a"}\n{"prompt"': r"line 2 is not JSON: .*; expected a list \[..\] or one object a line",
    '{"prompt": "\\ud83d", "answer": "b"}': "line 1: 'prompt' holds half of a character",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_reported_with_record_and_field(content, copy):
    (copy / "TRACE/FOMC/train.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"FOMC/train.json.*{BROKEN[content]}") as error:
        make(copy)
    assert "\n" not in str(error.value)


def test_not_utf8(copy):
    (copy / "TRACE/FOMC/train.json").write_bytes("[ö]".encode("latin-1"))
    with pytest.raises(UserError, match=r"FOMC/train.json: expected UTF-8 text, got something else"):
        make(copy)


def test_long_and_empty_texts_and_odd_line_ends(tmp_path):
    long = "Wörter 会议 " * 20_000
    rows = [{"prompt": long, "answer": ""}, {"prompt": "", "answer": "a\u2028b\r\n"}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    read = read_rows(path)
    assert [row.fields for row in read] == rows and len(read[0].text("prompt")) == 200_000


def test_a_cell_of_a_csv_file_may_be_long(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n"' + "会议, Straße " * 15_000 + '",c\n', encoding="utf-8")
    assert len(read_rows(tmp_path / "x.csv")[0].text("a")) == 165_000


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason="raw data absent")
def test_real_trace():
    stream = make(REAL)
    assert [len(t.train) for t in stream.tasks] == [5000, 5000, 85, 1379, 1422, 5000, 5000, 1446]
    assert [len(t.dev) for t in stream.tasks] == [10] * 8
    assert [len(t.test) for t in stream.tasks] == [500, 496, 100, 100, 100, 81, 325, 100]
    notes = "\n".join(stream.config["SOURCE"]["notes"])
    assert "MeetingBank 85, Py150 1379, ScienceQA 1422, 20Minuten 1446" in notes
    assert f"FOMC: {5000 - 1915} of 5000 train questions are repeats, 16 of 496 test questions are in train" in notes
    assert f"NumGLUE-cm: {5000 - 282} of 5000 train questions are repeats\n" in notes
    assert f"NumGLUE-ds: {5000 - 1069} of 5000 train questions are repeats" in notes and "C-STANCE:" not in notes
    cars, number = stream.tasks[5].train[0].input, stream.tasks[5].train[0].target
    assert cars.startswith("Solve the following math problem.\nQuestion:\n") and number == "12"
    assert max(len(example.input) for example in stream.tasks[2].test) == 163_532
