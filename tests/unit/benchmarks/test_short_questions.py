"""Questions for the general ability of a study."""

import json

import pytest

from benchmarks import short_questions
from utils.errors import UserError
from utils.storage.files import read_jsonl, write_text

COPA = {
    "input": 'Which sentence is the effect of "The egg fell."? Choose one between A and B.\nA: It broke.\nB: It sang.',
    "output": "A",
}
PROMPT = (
    "Choose an answer for the following question and give your reasons.\n\nQuestion:\n{}\n\nChoices:\n{}\n\nAnswer:"
)
SCIENCE = [
    {"prompt": PROMPT.format("Which is a metal?", "A. tin\nB. wood"), "answer": "A\nTin shines."},
    {"prompt": PROMPT.format("Which is better?\n\nHint:\nEstimate.", "A. 1 m\nB. 1 km"), "answer": "B\nIt is."},
    {"prompt": PROMPT.format("Which is longest?", f"A. {'x' * 61}\nB. y"), "answer": "B\nIt is."},
]


def test_questions_are_read_from_the_raw_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "raw/Long_Sequence/copa/test.json", json.dumps({"Instances": [COPA]}))
    write_text(tmp_path / "raw/Long_Sequence/imdb/train.json", json.dumps({"Instances": [{"input": "Fine."}] * 9}))
    write_text(tmp_path / "TRACE/ScienceQA/test.json", json.dumps(SCIENCE))
    assert short_questions.main([str(tmp_path / "raw"), str(tmp_path / "TRACE")]) == 0
    out = tmp_path / short_questions.OUT
    assert read_jsonl(out / "copa.jsonl") == [
        {"question": "The egg fell, so", "choices": ["it broke.", "it sang."], "answer": "it broke."}
    ]
    assert read_jsonl(out / "scienceqa.jsonl") == [
        {"question": "Question: Which is a metal?\nAnswer:", "choices": ["tin", "wood"], "answer": "tin"}
    ]
    assert (out / "reviews.txt").read_text() == "\n\n".join(["Fine."] * 4)


def test_another_wording_and_missing_files_are_one_sentence(tmp_path, capsys):
    with pytest.raises(UserError, match="COPA: expected the wording of CL_Benchmark, got 'Which\\?'"):
        list(short_questions.copa([{"input": "Which?", "output": "A"}]))
    assert short_questions.main([str(tmp_path), str(tmp_path)]) == 2
    assert "Long_Sequence/copa/test.json" in capsys.readouterr().err
