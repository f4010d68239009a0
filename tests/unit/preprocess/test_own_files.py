"""Records of any shape: fields, presets and choices; files of any kind; dataset_info.json."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from utils.dataset import Example, load_stream, save_stream
from utils.errors import UserError
from utils.preprocess import jsonl
from utils.preprocess.own import advice, names, sources, table
from utils.preprocess.own.fields import parse
from utils.preprocess.shared.records import Row
from utils.run import identity

RECORDS = {  # a record of each preset, and what is made of it
    "alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "output": 3, "text": "Add. 1 and 2 3"},
        Example("Add.\n1 and 2", "3"),
    ),
    "sharegpt": (
        {"id": "x", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Example("Hi", "Hello", messages=(("user", "Hi"), ("assistant", "Hello"))),
    ),
    "openai": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        Example("Hi", "Hello", messages=(("user", "Hi"), ("assistant", "Hello"))),
    ),
    "natural_instructions": ({"Definition": "Add.", "input": "1 2", "output": ["3"]}, Example("Add.\n1 2", "3")),
    "trace": ({"prompt": "1 + 1", "answer": "2"}, Example("1 + 1", "2")),
    "lm_eval": (
        {"question": "Which?", "choices": ["cat", "dog"], "answer": 1},
        Example("Which?\nA. cat\nB. dog", "B", choices=("A", "B")),
    ),
    "unlisted": (
        {"ctx": "It went", "endings": ["home", "away"], "label": "1"},
        Example("It went", "away", choices=("home", "away")),
    ),
    "knowedit": (
        {"subject": "X", "prompt": "X is in", "target_new": "Rome", "locality": {"a": []}},
        Example("X is in", "Rome"),
    ),
    "prompt_answer": ({"context": "", "question": "1 + 1", "answer": 2}, Example("1 + 1", "2")),
}


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def read(record: dict, text: str, is_given: bool = True) -> Example:
    return parse(text, is_given=is_given).read(Row("a.jsonl, line 1", record)).example


def make(*words: object, **options: object) -> list:
    return list(jsonl.read_tasks(words, jsonl.Options(**options), 1).tasks)


def test_every_preset_is_found_out_and_read():
    assert RECORDS.keys() == names.PRESETS.keys()
    for preset, (record, example) in RECORDS.items():
        if preset != names.UNLISTED:  # whose records are those of lm_eval
            found = names.detect(record)
            assert found is not None and found.preset in (preset, ""), preset
            assert read(record, found.text, is_given=False) == example, preset
        assert read(record, names.fitting(preset, record)) == example, preset


def test_nothing_that_may_belong_to_the_question_is_dropped_without_a_word():
    record = {"instruction": "Translate.", "input": "Haus", "target": "house"}
    found = names.detect(record)
    with pytest.raises(UserError, match=r"'instruction' may belong .* --fields input=instruction\+input,target=target"):
        read(record, found.text, is_given=False)
    assert read(record, advice.suggestion(record)).input == "Translate.\nHaus"
    assert read(record, found.text).input == "Haus"  # the user said so
    assert read(record | {"instruction": ""}, found.text, is_given=False).input == "Haus"
    for other in ({"system": "Be brief."}, {"context": "c"}, {"choices": ["a"]}, {"history": [["a", "b"]]}):
        with pytest.raises(UserError, match="may belong to the question"):
            read(RECORDS["alpaca"][0] | other, "input=instruction+input?,target=output", is_given=False)


def test_a_text_of_unknown_use_is_not_dropped_and_one_that_repeats_is():
    plain = {"question": "Who wrote it?", "answer": "Ann"}
    text = "input=question,target=answer"
    for other in ("text", "remark", "story"):
        with pytest.raises(UserError, match=f"'{other}' may belong to the question"):
            read(plain | {other: "It was a dark night."}, text, is_given=False)
    for other in (
        {"text": "Q: Who wrote it? A: Ann"},
        {"explanation": "It says so on the cover."},
        {"remark": "two words"},
        {"remark": 7},
    ):
        assert read(plain | other, text, is_given=False).input == "Who wrote it?"


def test_what_is_advised_reads_the_whole_question():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for record, advised in (
        (
            {"article": "Art", "question": "Q", "options": ["a", "b"], "answer": "B"},
            "input=article+question,target=answer,choices=options",
        ),
        ({"input": "x", "choices": ["a", "b"], "target": "a"}, "input=input,target=target,choices=choices"),
        ({"system": "Be nice.", "conversations": turns}, "messages=conversations,system=system"),
        (
            {"query": "q", "response": "r", "history": [["a", "b"]], "system": "s"},
            "input=query,target=response,history=history,system=system",
        ),
        ({"text": "good", "label": 1, "label_text": "positive"}, "input=text,target=label_text"),
    ):
        assert advice.suggestion(record) == advised
        read(record, advised)
    for record in (
        {"messages": turns, "tools": "[]"},
        {"question": "q", "context": {"title": ["a"]}, "answer": "yes"},
    ):
        assert advice.suggestion(record) is None, record


def test_an_integer_is_the_name_of_an_option_that_has_numbers_as_names():
    fields = "input=q,choices=c,target=a"
    named = {"q": "?", "c": {"text": ["w", "x", "y", "z"], "label": [1, 2, 3, 4]}, "a": 3}
    assert read(named, fields).target == "C" and read(named | {"c": ["w", "x", "y", "z"]}, fields).target == "D"


def test_a_refused_record_names_its_fields_and_an_option_that_reads_it():
    cases = {
        "instruction,query,generation": "--fields input=FIELD+FIELD,target=FIELD",
        "article,summary": "--fields input=article,target=summary",
        "instruction,context,response": "--fields input=instruction+context,target=response",
        "premise,hypothesis,label": "--fields input=premise+hypothesis,target=label",
    }
    for fields, advised in cases.items():
        record = dict.fromkeys(fields.split(","), "x")
        assert advice.advice(record) == (
            f"the record has the fields {', '.join(record)}; "
            + ("name those to read: " if "FIELD" in advised else "to read them: ")
            + advised
        )
        if "FIELD" not in advised:
            assert read(record, advised.removeprefix("--fields ")).target == "x"
    nested = {"question": "q", "context": "c", "answers": {"text": ["a", "b"], "start": [0, 3]}}
    assert advice.suggestion(nested) == "input=context+question,target=answers.text"
    assert read(nested, advice.suggestion(nested)).accepted == ("a", "b")
    assert names.detect({"instruction": "a", "input": "b", "output": "c", "target": "d"}) is None  # which answer?


def test_joining_optional_and_missing_fields():
    assert (
        parse("input=a+b?,target=c", joint=" | ").read(Row("x", {"a": "1", "b": "2", "c": 0.5})).example.input
        == "1 | 2"
    )
    assert read({"a": " ", "b": "2", "c": ""}, "input=a+b,target=c") == Example("2", "")
    assert read({"a": " x ", "c": "y "}, "input=a,target=c") == Example(" x ", "y ")
    for record in {"a": "1", "c": "2"}, {"a": "1", "b": None, "c": "2"}:
        with pytest.raises(UserError, match="line 1: expected a text in the field 'b', got nothing; the record has"):
            read(record, "input=a+b,target=c")
    with pytest.raises(UserError, match="expected a text or a number in the field 'a', got list"):
        read({"a": ["x"], "c": "y"}, "input=a,target=c")
    for text in (
        "alpaka",
        "input=a",
        "input=a,target",
        "inputs=a,target=b",
        "messages=a,input=b,target=c",
        "input=,target=a",
    ):
        with pytest.raises(UserError, match="fields: expected"):
            parse(text)


def test_choices():
    spec = "input=q,choices=c,target=a"
    arc = {"text": ["cat", "dog"], "label": ["1", "2"]}
    for options, answer, letter in (
        (["cat", "dog"], 0, "A"), (["cat", "dog"], "1", "B"), (["cat", "dog"], "B", "B"), (["cat", "dog"], "dog", "B"),
        (["cat", "dog"], [1], "B"), (arc, "1", "A"), (arc, "dog", "B"), (["2", "1"], 1, "B"),
    ):  # fmt: skip
        assert read({"q": "?", "c": options, "a": answer}, spec).target == letter, (options, answer)
    for options, answer, error in (
        (["cat", "dog"], 2, "got none"), (["cat", "dog"], "pig", "got none"), (["1", "0"], "1", "got several"),
        ([], 0, "a list of 1 to 26 texts in the field 'c'"), (None, 0, "the field 'c'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=error):
            read({"q": "?", "c": options, "a": answer}, spec)


def test_choices_have_their_metric(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["a", "b"], "gold": i % 2} for i in range(9)]
    path, other = (
        write(tmp_path / "mc.jsonl", rows),
        write(tmp_path / "qa.jsonl", [{"prompt": i, "answer": i} for i in range(9)]),
    )
    stream = jsonl.read_tasks([path, other], jsonl.Options(), 1)
    assert stream.config["METRIC"] == ["first_letter", "exact_match"]
    assert stream.config["SOURCE"]["notes"][:2] == [
        "mc: fields of lm_eval: input=context?+passage?+support?+question,choices=choices,target=gold",
        "qa: fields of trace: input=prompt,target=answer",
    ]
    assert [stream.config[name] for name in ("STRIP", "FIELDS_JOIN")] == [True, "\n"]
    chosen = jsonl.Options(metric="exact_match", strip=False, cut_side="middle", task_names="x,y", fields="auto;trace")
    stream = jsonl.read_tasks([path, other], chosen, 1)
    assert stream.config["METRIC"] == ["exact_match"] * 2 and [t.name for t in stream.tasks] == ["x", "y"]
    assert (stream.strip, stream.cut_side) == (False, "middle")
    assert jsonl.Options(fields_join=r"\n\n").fields_join == "\n\n"


def test_choices_that_are_not_listed_are_possible_answers(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["x", "y", "z"], "gold": i % 3} for i in range(9)]
    options = jsonl.Options(fields="unlisted")
    stream = jsonl.read_tasks([write(tmp_path / "mc.jsonl", rows)], options, 1)
    assert stream.config["METRIC"] == ["choice_likelihood"]
    save_stream(stream, tmp_path)
    loaded = load_stream(stream.name, tmp_path).tasks[0]
    assert loaded == stream.tasks[0] and {e.choices for e in loaded.train} == {("x", "y", "z")}
    empty = {"q": "?", "c": ["a", " "], "a": 0}
    for spec, error in (
        ("input=q,endings=c,target=a", "expected texts that are not empty in the field 'c'"),
        ("input=q,endings=c,choices=c,target=a", "expected choices=... or endings=..., got both"),
    ):
        with pytest.raises(UserError, match=error):
            read(empty, spec)


def test_chats_with_a_system_turn_and_a_history():
    record = {"s": "Be brief.", "h": [["1 + 1?", "2"]], "q": "1 + 2?", "a": "3"}
    example = read(record, "input=q,target=a,system=s?,history=h?")
    assert example.messages == (
        ("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "1 + 2?"), ("assistant", "3")
    )  # fmt: skip
    assert len(read(record | {"s": "", "h": []}, "input=q,target=a,system=s?,history=h?").messages) == 2
    with pytest.raises(UserError, match=r"expected a list of \[question, answer\]"):
        read(record | {"h": ["x"]}, "input=q,target=a,history=h")


def test_every_kind_of_file_gives_the_same_examples(tmp_path):
    rows = [{"input": f"q {i}", "target": f"ä{i}"} for i in range(20)]
    columns = pyarrow.table({name: [row[name] for row in rows] for name in rows[0]})
    write(tmp_path / "lines/t.jsonl", rows)
    (tmp_path / "list").mkdir()
    (tmp_path / "list/t.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for kind, mark in (("csv", ","), ("tsv", "\t")):
        (tmp_path / kind).mkdir()
        lines = [mark.join(("input", "target")), *(mark.join(row.values()) for row in rows)]
        (tmp_path / f"{kind}/t.{kind}").write_text("\n".join(lines), encoding="utf-8")
    for kind in "parquet", "arrow":
        (tmp_path / kind).mkdir()
    pyarrow.parquet.write_table(columns, tmp_path / "parquet/t.parquet")
    with pyarrow.ipc.new_stream(str(tmp_path / "arrow/t.arrow"), columns.schema) as file:
        file.write_table(columns)
    made = {folder.name: make(folder) for folder in sorted(tmp_path.iterdir())}
    assert len(made) == 6
    for kind, tasks in made.items():
        assert tasks == made["lines"], kind


def test_short_floats_are_written_as_they_were(tmp_path):
    cells = pyarrow.array([0.1, 2.5] * 10, pyarrow.float32())
    pyarrow.parquet.write_table(
        pyarrow.table({"input": [f"q{i}" for i in range(20)], "target": cells}), tmp_path / "f.parquet"
    )
    (task,) = make(tmp_path / "f.parquet")
    assert {e.target for e in (*task.train, *task.dev, *task.test)} == {"0.1", "2.5"}


def test_a_large_file_is_mapped_from_the_cache_and_reads_the_same(tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = {
        "chats": [{"messages": [{**turns[0], "content": str(i)}, turns[1]]} for i in range(9)],
        "several": [{"prompt": i, "answer": ["1", str(i)]} for i in range(30)],
        "plain": [{"prompt": i, "answer": 1} for i in range(30)],
        "classes": [{"input": f"{i or ''}", "target": "t" * (i > 3), "label": i % 3, "more": 1} for i in range(30)],
    }
    paths = [write(tmp_path / f"{name}.jsonl", records) for name, records in rows.items()]
    small = [jsonl.read_tasks([path], jsonl.Options(), 1) for path in paths]
    assert "fields that are not read: more" in small[3].config["SOURCE"]["notes"]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(table, "LARGE", 0)
    monkeypatch.setattr(table, "BLOCK", 4)
    assert [jsonl.read_tasks([path], jsonl.Options(), 1) for path in paths] == small
    first = {path.stem: Row("x", rows[path.stem][0]) for path in paths}
    monkeypatch.setattr(sources, "_json_lines", lambda path: iter([first[path.stem]]))
    assert [jsonl.read_tasks([path], jsonl.Options(), 1) for path in paths] == small, "not from the cache"
    assert not list((tmp_path / "cache").rglob(".*"))
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "plain.jsonl")
    monkeypatch.setattr(table, "LARGE", 0)
    with pytest.raises(UserError, match=r"cannot be used: .* set HF_HOME to a folder"):
        make(paths[0])


def test_the_identity_of_a_large_stream_is_known_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(table, "LARGE", 0)
    monkeypatch.setattr(identity, "_content", None)  # called for each example that is read
    rows = [{"input": f"{i}", "target": f"t{i}", "label": i % 3} for i in range(30)]

    def digest(rows, folder="one", seed=1):
        (tmp_path / folder).mkdir(exist_ok=True)
        return identity.of_stream(
            jsonl.read_tasks([write(tmp_path / folder / "law.jsonl", rows)], jsonl.Options(), seed)
        )

    first = digest(rows)
    assert digest(rows) == digest(rows, "two") == first
    others = [[*rows[:-1], rows[-1] | change] for change in ({"input": "x"}, {"target": "x"}, {"label": 1})]
    found = [first, digest(rows, seed=2), digest(rows[::-1]), *map(digest, others)]
    assert len(set(found)) == 6


def test_folders(tmp_path):
    """Shards, splits under other names, the hub's layout, and what is no file of records."""
    pairs = [{"input": f"q{i}", "target": "t"} for i in range(8)]
    write(tmp_path / "a/train-00000-of-00002.jsonl", pairs[:4])
    write(tmp_path / "a/train-00001-of-00002.jsonl", pairs[4:6])
    write(tmp_path / "a/validation.json", pairs[6:7])
    write(tmp_path / "a/test.jsonl", pairs[7:])
    write(tmp_path / "b/data/train-00000-of-00001.jsonl", pairs[:4])
    write(tmp_path / "b/data/test-00000-of-00001.jsonl", pairs[4:])
    write(tmp_path / "c.jsonl", pairs)
    (tmp_path / "d.csv").write_text("input,target\n" + "\n".join(f"q{i},t" for i in range(8)), encoding="utf-8")
    (tmp_path / "notes.xlsx").touch()
    stream = jsonl.build(tmp_path, jsonl.Options(), 1)
    sizes = {task.name: [len(task.train), len(task.dev), len(task.test)] for task in stream.tasks}
    assert sizes == {"a": [6, 1, 1], "b": [4, 0, 4], "c": [5, 1, 2], "d": [5, 1, 2]}
    assert "files that are not read: notes.xlsx" in stream.config["SOURCE"]["notes"]
    assert [task.name for task in make(tmp_path)] == list(sizes)
    write(tmp_path / "d.jsonl", pairs)
    with pytest.raises(UserError, match="got two named 'd'"):
        make(tmp_path)


def test_data_sets_that_the_library_saved(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": [str(i) for i in range(9)], "label": [0, 1, 1] * 3}, features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    one, two = make(tmp_path / "one", tmp_path / "two", fields="input=text,target=label")
    assert [len(one.train), len(one.dev), len(one.test)] == [6, 1, 2]
    assert [e.target for e in two.train] == ["no", "yes", "yes"] * 3 and two.name == "two"


def test_dataset_info_of_llama_factory(tmp_path):
    alpaca = [{"instruction": "Add.", "input": i, "output": i, "system": "s"} for i in range(9)]
    chats = [{"talk": [{"who": "u", "what": str(i)}, {"who": "a", "what": "x"}], "sys": "s"} for i in range(9)]
    write(tmp_path / "alpaca.json", alpaca)
    write(tmp_path / "chats.jsonl", chats)
    names_of = {"role_tag": "who", "content_tag": "what", "user_tag": "u", "assistant_tag": "a"}
    info = {
        "plain": {"file_name": "alpaca.json"},
        "named": {"file_name": "alpaca.json", "columns": {"prompt": "input", "response": "output", "system": "system"}},
        "chat": {"file_name": "chats.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk", "system": "sys"},
                 "tags": names_of},
        "far": {"hf_hub_url": "org/name", "subset": "en", "split": "train"},
        "ranked": {"file_name": "alpaca.json", "ranking": True}, "script": {"script_url": "x"},
        "few": {"file_name": "alpaca.json", "num_samples": 3}, "odd": {"file_name": "alpaca.json", "formatting": "x"},
        "spelt": {"file_name": "alpaca.json", "columns": {"promt": "input"}},
    }  # fmt: skip
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(UserError, match="'system' may belong to the question"):
        make(tmp_path / "alpaca.json")
    (plain,) = make(f"{path}:plain")
    assert plain.name == "plain" and plain.train[0].input.startswith("Add.\n") and plain.train[0].messages is None
    named, chat = make(f"{path}:named", f"{path}:chat")
    assert [turn[0] for turn in named.train[0].messages] == ["system", "user", "assistant"]
    assert chat.train[0].messages[0] == ("system", "s") and chat.train[0].messages[2] == ("assistant", "x")
    for entry, error in {
        "ranked": "'ranking' is not supported", "few": "'num_samples' is not supported", "script": "got script_url",
        "odd": "expected formatting alpaca, sharegpt or openai", "none": "expected one of plain, named",
        "spelt": "'promt' in 'columns': expected one of prompt, query",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=error):
            make(f"{path}:{entry}")


def test_bad_sources_are_reported_in_one_sentence(tmp_path, monkeypatch):
    good = [json.dumps({"input": f"q{i}", "target": "t"}) for i in range(5000)]
    lines = {
        "middle.jsonl": (
            "\n".join([*good[:3000], '{"input": "q', *good[3000:]]),
            "middle.jsonl, line 3001 is not JSON",
        ),
        "list.json": (f"[{', '.join([*good[:3000], '{1}', *good[3000:]])}]", "list.json, record 3001 is not JSON"),
        "cut.json": (f"[{', '.join(good)}"[:-9], "cut.json, record 5000 is not JSON .truncated"),
        "no.json": ("[1, 2]", "no.json, record 1: expected an object with named fields, got int"),
        "odd.csv": ("input,target\na,b\nc,d,e\n", "odd.csv, record 2: expected 2 cells, got more"),
        "twice.csv": ("input,target,target\na,b,c\n", "twice.csv: the column 'target' is there twice"),
        "quote.csv": ('input,target\na,b\n"a"x,b\n', "quote.csv, line 3 is not CSV"),
        "short.csv": (
            "input,target\na,b\nc\n",
            "short.csv, record 2: expected a text in the field 'target', got nothing",
        ),
        "no.parquet": ("no", "no.parquet cannot be read as parquet: "),
        "no.arrow": ("no", "no.arrow cannot be read as arrow: "),
        "notes.txt": ("no", "notes.txt: expected a folder or a file that ends with .json, .jsonl"),
        "void.jsonl": ("\n", "void.jsonl holds no records"),
    }
    for name, (text, error) in lines.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=error):
            make(tmp_path / name)
    (tmp_path / "bytes.jsonl").write_bytes(good[0].encode() + b'\n{"input": "\xff"}')
    with pytest.raises(UserError, match=r"bytes.jsonl, line 2: expected UTF-8 text"):
        make(tmp_path / "bytes.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"input": ["a"], "answer_text": ["b"]}), tmp_path / "c.parquet")
    with pytest.raises(
        UserError, match=r"c.parquet, record 1: which fields .* has the fields input, answer_text; name"
    ):
        make(tmp_path / "c.parquet")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for word, error in {
        "hub:org/name:en:train": "hub:org/name:en:train cannot be read: the hub cannot be reached",
        "org/name": "org/name is missing; .* a data set of the hub is written hub:org/name",
    }.items():
        with pytest.raises(UserError, match=error):
            make(word)
