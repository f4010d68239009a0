import json
import shutil
from pathlib import Path

import pytest

from utils.dataset import Stream, encode, load_stream, save_stream
from utils.errors import UserError
from utils.preprocess import jsonl

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures/jsonl"


def make(raw_dir: Path | None = FIXTURES, seed: int = 1, **options: object) -> Stream:
    return jsonl.build(raw_dir, jsonl.Options(**options), seed)


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def pairs(count: int, **more: object) -> list[dict]:
    return [{"input": f"question {i}", "target": f"answer {i}"} | more for i in range(count)]


def test_a_folder_and_a_file_become_tasks():
    stream = make()
    assert stream.name == "jsonl_task2" and [t.name for t in stream.tasks] == ["colours", "sums"]
    assert [(len(t.train), len(t.dev), len(t.test)) for t in stream.tasks] == [(4, 1, 2), (9, 1, 2)]
    assert [e.input for e in stream.tasks[0].test] == ["Which colour has the sea?", "Which colour has snow?"]
    assert {e.task for e in stream.tasks[1].train} == {1}
    assert (stream.prompt_type, stream.il_mode, stream.dev_is_test) == ("none", "CIT", False)
    assert stream.config["METRIC"] == ["exact_match"] * 2 and stream.config["MAX_NEW_TOKENS"] == [32, 32]
    assert "NUM_CLASS" not in stream.config and stream.max_seq_length(0) is None
    notes = stream.config["SOURCE"]["notes"]
    assert notes[0] == "fields that are not read: id"
    assert notes[1] == "colours: 1 of 4 train questions are repeats, 1 of 2 test questions are in train"
    assert notes[2].endswith("1 answers are empty")
    assert list(stream.config["SOURCE"]["files"]) == [
        *("colours/train.jsonl", "colours/dev.json", "colours/test.json", "sums.jsonl")
    ]


def test_the_seed_splits_a_file_and_nothing_else_does(tmp_path):
    one = make(seed=1)
    assert one == make(seed=1) != make(seed=2) and make(seed=2).tasks[0] == one.tasks[0]
    shutil.copy(FIXTURES / "sums.jsonl", tmp_path)  # the same file in other company
    alone = make(tmp_path).tasks[0]
    assert [[e.input for e in getattr(alone, s)] for s in ("train", "dev", "test")] == [
        [e.input for e in getattr(one.tasks[1], s)] for s in ("train", "dev", "test")
    ]


def test_a_question_that_is_there_twice_stays_in_one_split(tmp_path):
    write(tmp_path / "a.jsonl", pairs(20) * 3)
    for seed in range(5):
        task = make(tmp_path, seed, dev_ratio=0.25, test_ratio=0.25).tasks[0]
        splits = [{e.input for e in s} for s in (task.train, task.dev, task.test)]
        assert [len(s) for s in splits] == [10, 5, 5] and len(set.union(*splits)) == 20
        assert [len(s) for s in (task.train, task.dev, task.test)] == [30, 15, 15]


def test_order_facts_and_name(tmp_path):
    stream = make(
        task_order="sums,colours", metric="rouge-l,acc", max_new_tokens="5,6", prompt_type="qa", il_mode="IIL"
    )
    assert [t.name for t in stream.tasks] == ["sums", "colours"]
    assert stream.config["METRIC"] == ["rouge_l", "exact_match"] and stream.config["MAX_NEW_TOKENS"] == [5, 6]
    assert (stream.prompt_type, stream.il_mode) == ("qa", "IIL")
    folder = tmp_path / "my data!"
    write(folder / "a.json", pairs(9))
    (folder / ".DS_Store").touch()
    (folder / "notes.txt").touch()
    assert make(folder).name == "my_data__task1"


def test_a_folder_of_splits_is_one_task(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"mine/{split}.jsonl", pairs(3))
    task = make(tmp_path / "mine").tasks[0]
    assert (task.name, len(task.train), len(task.dev), len(task.test)) == ("mine", 3, 0, 3)


def test_labels_become_classes(tmp_path):
    write(tmp_path / "b.jsonl", [{"input": f"q{i}", "target": "t", "label": "xyz"[i % 3]} for i in range(30)])
    write(tmp_path / "a.jsonl", [{"input": f"q{i}", "target": "t", "label": i % 2} for i in range(30)])
    stream = make(tmp_path)
    config = stream.config
    assert config["idx2label"] == ["0", "1", "x", "y", "z"] and config["CUR_CLASS"] == [[0, 1], [2, 3, 4]]
    for task in stream.tasks:
        for e in (*task.train, *task.dev, *task.test):
            assert config["CUR_CLASS"][e.task][e.label_in_task] == e.label
            assert config["idx2label"][e.label] == (
                str(int(e.input[1:]) % 2) if e.task == 0 else "xyz"[int(e.input[1:]) % 3]
            )


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
]


def test_chats(tmp_path):
    write(tmp_path / "a/train.jsonl", [{"messages": CHAT}, {"messages": CHAT[1:3]}])
    write(tmp_path / "a/test.jsonl", [{"messages": CHAT[:1] + CHAT[3:]}])
    task = make(tmp_path).tasks[0]
    example = task.train[0]
    assert (example.input, example.target) == ("1 + 1?", "2")
    assert example.messages == tuple((turn["role"], turn["content"]) for turn in CHAT)
    assert make(tmp_path).config["SOURCE"]["notes"] == []  # another talk before the same words is another question


def test_chats_are_still_chats_after_saving(tmp_path):
    write(tmp_path / "raw/a.jsonl", [{"messages": [{**CHAT[1], "content": str(i)}, CHAT[2]]} for i in range(9)])
    stream = make(tmp_path / "raw")
    save_stream(stream, tmp_path)
    assert load_stream(stream.name, tmp_path).tasks == stream.tasks


def test_long_texts_line_ends_and_alphabets(tmp_path):
    long = "Sitzung 会议 \u2028 \r\n" * 10_000
    write(tmp_path / "a/train.jsonl", [{"input": long, "target": long}, {"input": "", "target": ""}])
    data = json.dumps([{"input": "Größe?", "target": "groß"}], indent=1, ensure_ascii=False).replace("\n", "\r\n")
    (tmp_path / "a/test.json").write_bytes(b"\xef\xbb\xbf" + data.encode())
    stream = make(tmp_path)
    assert len(stream.tasks[0].train[0].input) == 150_000 and stream.tasks[0].test[0].target == "groß"
    assert stream.config["SOURCE"]["notes"] == ["a: 1 questions are empty, 1 answers are empty"]
    assert encode(stream)


def test_files_named_one_by_one(tmp_path):
    paths = [write(tmp_path / "z.jsonl", pairs(9)), FIXTURES / "colours"]
    stream = jsonl.read_tasks(paths, jsonl.Options(), 1)
    assert (stream.name, [t.name for t in stream.tasks]) == ("jsonl_task2", ["z", "colours"])
    with pytest.raises(UserError, match="expected files or folders with different names, one per task, got z, z"):
        jsonl.read_tasks([paths[0]] * 2, jsonl.Options(), 1)
    with pytest.raises(UserError, match=r"y.jsonl is missing; expected a file of records"):
        jsonl.read_tasks([tmp_path / "y.jsonl"], jsonl.Options(), 1)


WRONG = {  # file -> rows, and the error
    "input": ([{"target": "b"}], r"a.jsonl, line 1: which fields are question and answer\? .* has the fields target;"),
    "later": (
        [*pairs(9), {"question": "b", "target": "c"}],
        r"a.jsonl, line 10: expected a text in the field 'input', got nothing; the record has the fields question, "
        r"target; to read them: --fields 'input=input\?\+question\?,target=target'",
    ),
    "null": ([*pairs(9), {"input": "a", "target": None}], r"a.jsonl, line 10: .* the field 'target', got nothing"),
    "object": (
        [*pairs(9), {"input": "a", "target": {}}],
        r"line 10: expected a text or a number .* 'target', got dict",
    ),
    "label": (pairs(9, label=[1]), r"line 1: expected a text or an integer in the field 'label', got list"),
    "some labels": (
        [*pairs(9), *pairs(1, label="x")],
        r"line 10: expected the field 'label' in all records .* there here",
    ),
    "some chats": ([*pairs(9), {"messages": CHAT}], r"line 10: .* got nothing; the record has the fields messages"),
    "roles": (
        [{"messages": CHAT[2:]}],
        r"line 1: expected user and assistant in turns, .* got assistant, user, assistant",
    ),
    "no answer": ([{"messages": CHAT[:2]}], r"line 1: .* got system, user in the field 'messages'"),
    "no turns": ([{"messages": []}], r"got no turns"),
    "no list": ([{"messages": "hi"}], r"line 1: expected a list of {role, content} in the field 'messages', got str"),
    "content": (
        [{"messages": [{"role": "user"}]}],
        r"line 1, turn 1: expected a text in the field 'content', got nothing",
    ),
    "few": (pairs(1), r"a.jsonl: 1 different questions are too few for train, dev and test"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_record_is_reported(case, tmp_path):
    rows, message = WRONG[case]
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_class_in_two_tasks_is_reported(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", pairs(9, label="x"))
    with pytest.raises(UserError, match="label 'x' is in the tasks 'a' and 'b', but a class belongs to one task"):
        make(tmp_path)


def test_wrong_folders_and_options(tmp_path):
    with pytest.raises(UserError, match="--raw-dir: expected the folder with your files, got nothing"):
        make(None)
    with pytest.raises(UserError, match=r"expected files of records \(.json, .jsonl, .csv, .* got none"):
        make(tmp_path)
    with pytest.raises(UserError, match="--task-order: expected different names of colours, sums, got 'sum'"):
        make(task_order="colours,sum")
    with pytest.raises(UserError, match="--metric: expected 1 entry or 2, one for each task, got 3"):
        make(metric="acc,acc,acc")
    with pytest.raises(UserError, match="unknown metric 'accuracy'"):
        make(metric="accuracy")
    with pytest.raises(UserError, match=r"--prompt-type: expected one of none, default, .*, got 'chat'"):
        make(prompt_type="chat")
    with pytest.raises(UserError, match="--dev-ratio, --test-ratio: expected a sum below 1"):
        make(dev_ratio=0.5, test_ratio=0.5)
    write(tmp_path / "a/train.jsonl", pairs(2))
    with pytest.raises(UserError, match=r"a: expected files for train and test, such as test.jsonl, got no test"):
        make(tmp_path)
    write(tmp_path / "a/train.json", pairs(2))
    with pytest.raises(UserError, match=r"a: expected one file for train, got .*train.json and train.jsonl"):
        make(tmp_path)
    write(tmp_path / "a.json", pairs(2))
    with pytest.raises(UserError, match="expected one file or folder for each task, got two named 'a'"):
        make(tmp_path)
