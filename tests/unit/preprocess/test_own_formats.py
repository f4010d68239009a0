"""Files as newcomers bring them: options inside of questions, several answers, weights of turns, pairs of splits."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from utils.dataset import Example
from utils.errors import UserError
from utils.factory import load_method
from utils.options.checks import Plan, problems
from utils.options.parse import ConfigError, resolve
from utils.preprocess import jsonl
from utils.preprocess.own import advice, names
from utils.preprocess.own.fields import OPTIONS_ONCE, OPTIONS_TWICE, parse
from utils.preprocess.shared.records import Row

PAIRS = [{"input": f"q{i}", "target": "t"} for i in range(9)]


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def make(*words: object, **options: object) -> jsonl.Stream:
    return jsonl.read_tasks(words, jsonl.Options(**options), 1)


def read(record: dict, text: str | None = None) -> Example:
    return parse(text or names.detect(record).text, is_given=text is not None).read(Row("a, line 1", record)).example


def test_options_that_a_question_lists_are_not_listed_again():
    agieval = "Which? Answer Choices: (A)a cat (B) two dogs\nA: Among A through B, the answer is"
    for question, options, made, remark in (
        (agieval, ["(A)a cat", "(B)two dogs"], agieval, OPTIONS_ONCE),
        ("Which?\nA. cat\nB. dog", ["cat", "dog"], "Which?\nA. cat\nB. dog", OPTIONS_ONCE),
        ("Which?", ["(A) cat", "(B) dog"], "Which?\nA. cat\nB. dog", None),
        ("Is a cat a dog?", ["cat", "dog"], "Is a cat a dog?\nA. cat\nB. dog", OPTIONS_TWICE),
        ("A. catfish B. dogs", ["cat", "dog"], "A. catfish B. dogs\nA. cat\nB. dog", OPTIONS_TWICE),
    ):
        fields = parse("input=query,choices=choices,target=gold")
        row = Row("a, line 1", {"query": question, "choices": options, "gold": [1]})
        assert fields.read(row).example == Example(made, "B", choices=("A", "B")), question
        assert fields.noticed.remarks == ({remark} if remark else set()), question


def test_options_with_names():
    for options in (
        {"A": "cat", "B": "dog", "C": None},
        [{"key": "A", "text": "cat"}, {"key": "B", "text": "dog"}],
        [{"label": "1", "text": "cat"}, {"label": "2", "text": "dog"}],
        {"text": ["cat", "dog"], "label": ["1", "2"]},
    ):
        assert read({"question": "q", "options": options, "answer": "dog"}) == Example(
            "q\nA. cat\nB. dog", "B", choices=("A", "B")
        )
    named = {"question": "q", "options": {"A": "dog", "B": "cat"}, "answer": "A"}
    assert read(named).target == "A"
    for options in ({}, {"A": ["x"]}, [{"text": "a"}, {"x": "b"}], {"text": "a"}):
        with pytest.raises(UserError, match="a list of 1 to 26 texts in the field 'options'"):
            read(named | {"options": options})
    value = {"question": "q", "answer": {"value": "x", "aliases": ["x", "y"]}}
    assert advice.suggestion(value) == "input=question,target=answer.value"
    assert read(value, "input=question,target=answer.value,references=answer.aliases").accepted == ("x", "y")


def test_a_list_of_answers_beside_an_answer_is_accepted_too():
    record = {"question": "q", "answer": "a", "answers": ["a", "b", 3]}
    assert read(record) == Example("q", "a", references=("a", "b", "3"))
    assert read(record | {"answers": []}) == Example("q", "a")
    squad = {"question": "q", "answer": "a", "answers": {"text": ["b", "a"], "answer_start": [0, 1]}}
    assert read(squad).accepted == ("a", "b")
    assert read(record | {"answer": "c"}) == Example("q", "c")  # the list is something else
    assert names.fitting("prompt_answer", record).endswith(",references=answers?")
    assert names.detect({"question": "q", "answer": "a", "answers": "b"}).text.endswith("target=answer")
    assert read(record, "input=question,target=answer,references=answers").accepted == ("a", "b", "3")
    with pytest.raises(UserError, match="expected a text in the field 'more', got nothing"):
        read(record, "input=question,target=answer,references=more")
    with pytest.raises(UserError, match="references are for input and target without chats or options"):
        parse("messages=m,references=r")


def test_turns_that_are_not_to_be_learned_are_refused():
    def chat(**more: object) -> dict:
        turns = [{"role": "user", "content": "Hi", "weight": 0}, {"role": "assistant", "content": "Ho", **more}]
        return {"messages": turns}

    assert read(chat(weight=1, name="x")).target == "Ho"
    for more, error in (
        ({"weight": 0}, "line 1, turn 2: weight 0 keeps an answer out of training"),
        ({"train": False}, "turn 2: train False keeps"),
        ({"tool_calls": [{}]}, "turn 2: 'tool_calls' is not supported; chats of text are"),
    ):
        with pytest.raises(UserError, match=error):
            read(chat(**more))
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
    assert read({"messages": [{"role": "user", "content": parts}, chat()["messages"][1]]}).input == "Hi you"
    with pytest.raises(UserError, match="'content', got list"):
        read({"messages": [{"role": "user", "content": [*parts, {"type": "image"}]}, chat()["messages"][1]]})


def test_messages_about_single_records(tmp_path):
    bot = {"conversations": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}]}
    with pytest.raises(UserError, match=r"turn 2: the role 'bot' in the field 'conversations' .* human, gpt, system"):
        read(bot)
    with pytest.raises(UserError, match="got user in the field 'talk'; leave this chat out"):
        read({"talk": [{"role": "user", "content": "a"}]}, "messages=talk")
    choices = {"question": "q", "choices": None, "answer": 0}
    with pytest.raises(UserError, match="a list of 1 to 26 texts in the field 'choices', got nothing"):
        read(choices)
    with pytest.raises(UserError, match="got a list of 27"):
        read(choices | {"choices": ["x"] * 27})
    with pytest.raises(UserError, match="got an empty list; leave it out"):
        read({"question": "q", "answer": []})
    with pytest.raises(UserError, match=r"got nothing; .* leave it out, or name those to read: --fields input=FIELD"):
        read({"question": "q", "answer": None})
    with pytest.raises(UserError, match="line 1: preset knowedit reads input=prompt,target=target_new or input=src"):
        make(write(tmp_path / "k.jsonl", [{"prompt": "q"}]), fields="knowedit")


def test_files_that_are_named_after_task_and_split(tmp_path):
    write(tmp_path / "law_train.jsonl", PAIRS)
    write(tmp_path / "law_test.jsonl", PAIRS[:2])
    write(tmp_path / "news.jsonl", PAIRS)
    write(tmp_path / "on-train.jsonl", PAIRS)  # alone, it is a name
    stream = make(tmp_path)
    assert {task.name: (len(task.train), len(task.test)) for task in stream.tasks} == {
        "law": (9, 2), "news": (6, 2), "on-train": (6, 2)
    }  # fmt: skip
    words = tmp_path / "law_train.jsonl", tmp_path / "law_test.jsonl"
    with pytest.raises(UserError, match=r"look like splits of one task, 'law', .* law/train.jsonl and law/test.jsonl"):
        make(*words)
    assert len(make(*words, task_names="a,b").tasks) == 2
    write(tmp_path / "two/a-train.jsonl", PAIRS)
    write(tmp_path / "two/a-dev.jsonl", PAIRS)
    with pytest.raises(UserError, match=r"two/a: expected files for train and test, such as a_test.jsonl, got no test"):
        make(tmp_path / "two")


def test_files_of_several_tasks_are_not_taken_for_one(tmp_path):
    for split in "train", "test":
        for name in "law", "news":
            write(tmp_path / f"folders/{split}/{name}.jsonl", PAIRS)
            write(tmp_path / f"names/{split}_{name}.jsonl", PAIRS)
            write(tmp_path / f"parts/{split}/part-{'law news'.index(name)}.jsonl", PAIRS)
    for folder in "folders", "names":
        with pytest.raises(UserError, match=r"of several tasks are named after task and split, such as .*law_t"):
            make(tmp_path / folder)
    assert len(make(tmp_path / "parts").tasks[0].train) == 18
    same = make(tmp_path / "folders/test/law.jsonl", tmp_path / "folders/test/news.jsonl")
    assert same.config["SOURCE"]["notes"] == ["law and news have the same files"]


def test_every_file_has_its_digest_in_the_stream(tmp_path):
    one, two = (write(tmp_path / f"{folder}/x.jsonl", PAIRS[:n]) for folder, n in (("train", 8), ("test", 7)))
    assert set(make(one, two, task_names="a,b").config["SOURCE"]["files"]) == {"x.jsonl", "b: x.jsonl"}
    names_of = {f"{tmp_path.name}/{split}/x.jsonl" for split in ("train", "test")}
    assert set(make(tmp_path).config["SOURCE"]["files"]) == names_of


def test_tables_as_programs_write_them(tmp_path):
    lines = {
        "pandas": ",input,target\n" + "".join(f"{i},q{i},t\n" for i in range(9)),
        "excel": "\ufeffinput;target;;\r\n" + "".join(f"q{i};t;;\r\n" for i in range(9)),
    }
    for name, text in lines.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
        stream = make(tmp_path / f"{name}.csv")
        (task,) = stream.tasks
        assert {e.input for e in (*task.train, *task.dev, *task.test)} == {f"q{i}" for i in range(9)}
        notes = " ".join(stream.config["SOURCE"]["notes"])
        assert notes == f"fields that are not read: {'column 1' if name == 'pandas' else 'column 3, column 4'}"
    (tmp_path / "tabs.csv").write_text("input\ttarget\n" + "".join(f"q, {i}\tt\n" for i in range(9)), encoding="utf-8")
    assert len(make(tmp_path / "tabs.csv").tasks[0].train) == 6
    (tmp_path / "latin.csv").write_text("input,target\nä,b\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"latin.csv: expected UTF-8 text, .*; convert it to UTF-8"):
        make(tmp_path / "latin.csv")
    none = pyarrow.table({"input": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(none, tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none.parquet holds no records, at least one is needed"):
        make(tmp_path / "none.parquet")


def test_objects_that_hold_the_records_and_names_that_need_quotes():
    for record, advised in (
        ({"version": "1", "data": [{"q": "a"}]}, "fields version, data; if 'data' holds the records, write that list"),
        ({"1": {"q": "a"}, "2": {"q": "b"}}, "1.q, 2.q; if each of them is a record, write a list of them"),
        ({"Question": "a", "Model Answer": "b"}, "name those to read: --fields input=FIELD"),
        ({"text é": "x", "Sentence": "a", "Label": 1}, "to read them: --fields input=Sentence,target=Label"),
        ({"translation": {"en": "a", "de": "b"}}, "the fields translation.en, translation.de; name those"),
        ({str(i): i for i in range(40)}, "28, 29, ... (40 in all); name"),
    ):
        assert advised in advice.advice(record), record


def test_edits_of_mend_are_read():
    record = {"src": "Where is X?", "alt": "Rome", "answers": ["Bern"], "rephrase": "In which town is X found?"}
    more = {"loc": "nq question: who wrote it then", "loc_ans": "Ann", "cond": "Bern >> Rome || Where is X now?"}
    assert names.detect(record | more).preset == "knowedit"
    assert read(record | more) == Example("Where is X?", "Rome")


def test_optional_fields_that_no_record_has_are_reported(tmp_path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    notes = make(path, fields="input=titel?+input,target=target").config["SOURCE"]["notes"]
    assert notes == ["fields of the option that no record has: titel"]
    other = write(tmp_path / "b.jsonl", [{**pair, "titel": "x"} for pair in PAIRS])
    assert not make(path, other, fields="input=titel?+input,target=target").config["SOURCE"]["notes"]
    with pytest.raises(UserError, match=r"fields: 'why\?' is the name of a field, and \? means optional; rename"):
        read({"why?": "q", "a": "b"}, "input=why?,target=a")


def test_files_that_are_not_written_as_expected(tmp_path):
    contents = {
        "x.jsonl.gz": ("", "unpack it first"),
        "one.json": ('{\n "version": 1,\n "data": [{}]\n}', "record 1: which fields .* if 'data' holds the records"),
        "x.xlsx": ("", "save it as CSV in UTF-8"),
        "many.jsonl": ('{\n "input": "a"\n}\n{\n}\n', r"objects over several lines: make it with jq -c \.\)"),
        "names.csv": ("q0,a0\nq1,a1\n", "the first line of the file holds the names"),
        "chat.csv": ('messages\n"[1]"\n', "JSON inside of a text is not read"),
        "nan.jsonl": ('{"input": "q", "target": NaN}', "got float, which is nan; the record has"),
    }
    for name, (text, error) in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=error):
            make(tmp_path / name)
    (tmp_path / "padded.csv").write_text("question, answer\n" + "q, a\n" * 3 + "r, b\n" * 3, encoding="utf-8")
    assert make(tmp_path / "padded.csv").config["SOURCE"]["notes"][0].endswith("question,target=answer")


def test_words_that_name_no_file(tmp_path):
    write(tmp_path / "law.jsonl", PAIRS)
    for word, error in {
        f"{tmp_path}/law.jsonl,news.jsonl": "several files are separated by spaces",
        f"{tmp_path}/law.jsonl,news": "several files are separated by spaces",
        f"{tmp_path}/*.json": "no file fits this pattern",
        f"{tmp_path}/laws.jsonl": f"did you mean {tmp_path}/law.jsonl",
        "": "dataset_files: expected files or folders, got an empty word",
        "~/law.jsonl": "~ is not expanded here",
        "https://x.org/law.jsonl": "files are read from this machine only",
        r"data\law.jsonl": "folders are separated by /, such as data/law.jsonl",
    }.items():
        with pytest.raises(UserError, match=error):
            make(word)


def test_an_entry_of_dataset_info_that_is_not_supported_names_the_way_to_the_others(tmp_path):
    write(tmp_path / "a.jsonl", [{"instruction": str(i), "output": "t"} for i in range(9)])
    info = {"one": {"file_name": "a.jsonl"}, "ranked": {"file_name": "a.jsonl", "ranking": True}}
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(UserError, match=f"ranked: 'ranking' is not supported; .* such as {path}:ENTRY"):
        make(path)
    assert len(make(f"{path}:one").tasks) == 1


def test_a_stream_of_classes_needs_labels(tmp_path):
    path = write(tmp_path / "a.jsonl", [pair | {"kind": "xy"[i % 2]} for i, pair in enumerate(PAIRS)])
    with pytest.raises(UserError, match="--il-mode: CIL needs the class of each record"):
        make(path, il_mode="CIL")
    stream = make(path, il_mode="CIL", fields="input=input,target=target,label=kind")
    assert stream.config["NUM_CLASS"] == 2
    for split, kind in ("train", "a"), ("test", "b"):
        write(tmp_path / f"t/{split}.jsonl", [pair | {"label": kind} for pair in PAIRS])
    assert make(tmp_path / "t").config["SOURCE"]["notes"][0] == "t: classes without training examples: b"


def test_options_about_files_that_have_no_effect_are_refused(tmp_path):
    path = str(write(tmp_path / "a.jsonl", PAIRS))
    with pytest.raises(ConfigError, match="dataset_files: given twice; write all its values behind one"):
        resolve(["--dataset_files", path, f"--dataset_files={path}"])
    with pytest.raises(ConfigError, match=r"dataset: expected letters.* files are given by --dataset_files"):
        resolve(["--dataset", path])
    for words, error in {
        ("--dataset", "x"): "dataset: has no effect, as dataset_files (--dataset_files) replaces it",
        ("--il_mode", "CIL"): "il_mode: CIL needs the class of each record, and none has a label",
        ("--metric_for_each_task", "exactmatch"): "metric_for_each_task: unknown metric 'exactmatch'",
    }.items():
        found = problems(Plan(resolve(["--dataset_files", path, *words]), load_method("SEQ")))
        assert any(one.startswith(error) for one in found), found
