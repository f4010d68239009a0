"""Options in columns, places of right options, and the option that is advised for a record that is refused."""

import json
import re
from pathlib import Path

import pytest

from utils.dataset import Example
from utils.errors import UserError
from utils.preprocess import jsonl
from utils.preprocess.own import advice, names
from utils.preprocess.own.fields import SEVERAL, parse
from utils.preprocess.shared.records import Row

LETTERED = {"question": "q", "A": "cat", "B": "dog", "answer": "B"}


def make(path: Path, rows: list, fields: str | None = None) -> jsonl.Stream:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return jsonl.read_tasks([path], jsonl.Options(fields=fields), 1)


def read(record: dict, text: str) -> Example:
    return parse(text).read(Row("a, line 1", record)).example


def refused(path: Path, rows: list, fields: str | None = None) -> str:
    """The error about some records."""
    with pytest.raises(UserError) as error:
        make(path, rows, fields)
    return str(error.value)


def test_options_in_columns_are_never_left_out():
    for record, advised in (
        (LETTERED, "input=question,target=answer,choices=A+B"),
        (
            {"question": "q", "option_b": "b", "option_a": "a", "answer": "A"},
            "input=question,target=answer,choices=option_a+option_b",
        ),
        ({"goal": "q", "sol1": "a", "sol2": "b", "label": 0}, "input=goal,target=label,choices=sol1+sol2"),
        (
            {"sentence": "q", "option1": "a", "option2": "b", "answer": "2"},
            "input=sentence,number=answer,choices=option1+option2",
        ),
        (
            {"question": "q", "opa": "a", "opb": "b", "cop": 1, "exp": "a text of many words"},
            "input=question,target=cop,choices=opa+opb",
        ),
        (
            {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "c", "label": "1"},
            "input=context+question,target=label,choices=answerA+answerB+answerC",
        ),
        (LETTERED | {"C": ""}, "input=question,target=answer,choices=A+B+C?"),
    ):
        assert advice.suggestion(record) == advised
        assert len(read(record, advised).choices) == 2 + ("answerC" in record)
    with pytest.raises(UserError, match=r"'A' may belong to the question, .* --fields .*choices=A\+B$"):
        parse(names.detect(LETTERED).text, is_given=False).read(Row("a, line 1", LETTERED))


def test_a_column_of_an_option_may_be_empty_at_the_end_only():
    record = {"q": "?", "A": "cat", "B": "dog", "C": "", "t": "B"}
    assert read(record, "input=q,target=t,choices=A+B+C?") == Example("?\nA. cat\nB. dog", "B", choices=("A", "B"))
    with pytest.raises(UserError, match=r"'C', got nothing; .*choices=A\+B\+C\?'"):
        read(record, "input=q,target=t,choices=A+B+C")
    with pytest.raises(UserError, match="expected the text of an option in the field 'A', got nothing"):
        read(record | {"A": None}, "input=q,target=t,choices=A?+B+C?")


def test_places_that_may_be_counted_from_1_are_refused(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["a", "b", "c"], "gold": i % 2 + 1} for i in range(9)]
    error = refused(tmp_path / "a.jsonl", rows)
    number, index = re.findall(r"--fields '([^']+)'", error)
    for fields, letters in ((number, "AB"), (index, "BC")):
        train = make(tmp_path / "a.jsonl", rows, fields).tasks[0].train
        assert {e.target for e in train} == set(letters) and all(len(e.choices) == 3 for e in train)
    error = refused(tmp_path / "a.jsonl", [row | {"gold": 3} for row in rows])
    assert "got none; counted from 1: --fields" in error and "number=gold" in error
    assert make(tmp_path / "a.jsonl", [*rows, rows[0] | {"question": "q", "gold": 0}])
    record = {"q": "?", "c": ["a", "b"], "t": 2}
    with pytest.raises(UserError, match="expected a number from 0 to 1 in the field 't'; got 2"):
        read(record, "input=q,choices=c,index=t")
    for fields in ("input=q,number=t", "input=q,choices=c,number=t,target=t"):
        with pytest.raises(UserError, match="or with choices index="):
            parse(fields)


def test_advice_also_fits_earlier_records(tmp_path):
    early = [{"prompt": f"q{i}", "answer": "a"} for i in range(9)]
    late = {"prompt": "q", "answer": "a", "context": "c"}
    error = refused(tmp_path / "a.jsonl", [*early, late])
    assert error.endswith("--fields 'input=context?+prompt,target=answer'")
    assert make(tmp_path / "a.jsonl", [*early, late], "input=context?+prompt,target=answer")
    error = refused(tmp_path / "a.jsonl", [*early, {"promt": "q", "answer": "a"}])
    assert error.endswith("if 'promt' is 'prompt' misspelt, correct this record or leave it out")


def test_advice_never_reads_fewer_fields_than_the_user_named(tmp_path):
    record = {"instruction": "i", "output": "o"}
    given = "input=instruction+input,target=output,history=history,system=system"
    error = refused(tmp_path / "a.jsonl", [record], given)
    assert error.endswith("--fields 'input=instruction+input?,target=output,history=history?,system=system?'")
    error = refused(tmp_path / "a.jsonl", [record | {"input": "x"}], "input=instructon+input,target=output")
    assert error.endswith("--fields input=instruction+input,target=output")
    assert "FIELD" in refused(tmp_path / "a.jsonl", [record], "input=question,target=output,system=instruction")


def test_objects_inside_of_records():
    nested = {"question": {"stem": "s", "choices": [{"label": "A", "text": "x"}]}, "answerKey": "A"}
    assert advice.suggestion(nested) == "input=question.stem,target=answerKey,choices=question.choices"
    logged = {
        "doc_id": 1,
        "doc": {"question": "q", "choices": ["x", "y"], "answer": 1},
        "target": "1",
        "resps": [["a"]],
    }
    example = Example("q\nA. x\nB. y", "B", choices=("A", "B"))
    for found in (names.detect(logged).text, names.fitting("lm_eval", logged), advice.suggestion(logged)):
        assert read(logged, found) == example
    hidden = logged | {"doc": logged["doc"] | {"hint": "h"}}
    with pytest.raises(UserError, match="'hint' may belong"):
        parse(names.detect(logged).text, is_given=False).read(Row("a, line 1", hidden))
    assert advice.suggestion({"doc": {"question": "q", "answer": "a"}}) == "input=doc.question,target=doc.answer"


def test_columns_in_one_object_and_lists_of_answers_are_reported(tmp_path):
    error = refused(tmp_path / "a.jsonl", [{"question": ["a", "b"], "answer": ["c", "d"]}])
    assert error.endswith("if each field holds the values of all records, write one object for each record")
    rows = [{"instruction": f"i{i}", "output": ["a", "b"]} for i in range(9)]
    assert f"a: {SEVERAL}" in make(tmp_path / "a.jsonl", rows).config["SOURCE"]["notes"]


def test_a_chat_with_tools_has_a_next_step():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = {"messages": turns, "tools": "[]"}
    assert advice.advice(record).endswith("--fields messages=messages reads the chat alone")
    assert read(record, "messages=messages").target == "b"
