"""Published numbers: what a study may state, and the table next to the measured ones."""

import pytest

from tests.unit.report.test_differences import last, make_run
from utils.report import published
from utils.report.__main__ import main
from utils.storage.files import read_json, write_json


def test_what_cannot_be_shown_is_refused_in_a_sentence():
    good = {"average_accuracy": 58.28, "mark": "paper"}
    assert published.problems_of({"SEQ": good}, ["SEQ", "EWC"]) == []
    for numbers, rows, problem in (
        ({"LwF": good}, ["SEQ", "EWC"], "published: 'LwF': there is no such row; expected one of SEQ, EWC"),
        ({"SEQ": good}, ["SEQ", "SEQ"], "published: 'SEQ': several rows have this name"),
        ({"SEQ": good | {"acc": 1}}, ["SEQ"], "published: SEQ: 'acc': unknown metric; expected one of task_0"),
        ({"SEQ": good | {"task_0": "high"}}, ["SEQ"], "published: SEQ: task_0: expected a number in percent, got 'hi"),
        ({"SEQ": good | {"task_0": True}}, ["SEQ"], "published: SEQ: task_0: expected a number in percent, got True"),
        ({"SEQ": good | {"task_0": float("nan")}}, ["SEQ"], "published: SEQ: task_0: expected a number in percent"),
        ({"SEQ": good | {"task_0": 5828}}, ["SEQ"], "published: SEQ: task_0: expected a number in percent, got 5828"),
        ({"SEQ": {"task_0": 1}}, ["SEQ"], "published: SEQ: mark: expected one of paper, figure"),
        ({"SEQ": 58.28}, ["SEQ"], "published: SEQ: expected entries task_0"),
    ):
        (found,) = published.problems_of(numbers, rows)
        assert found.startswith(problem), found


@pytest.mark.slow
def test_every_report_of_the_runs_shows_them(tmp_path, capsys):
    runs = [make_run(tmp_path / f"p-s-{name}", name, 1, last([1, 1, 0, 0], [1, 1])) for name in ("SEQ", "EWC")]
    numbers = {"average_accuracy": 70, "backward_transfer": -8.3, "mark": "summary"}
    published.keep(tmp_path / "p", {"p-s-SEQ": numbers}, "Somebody (2024), table 1")
    assert main([*map(str, runs), "--out", str(tmp_path / "p")]) == 0
    rows = {row["method"]: row for row in read_json(tmp_path / "p/compare.json")[0]["rows"]}
    assert rows["SEQ"]["published"]["average_accuracy"] == 0.7 and "published" not in rows["EWC"]
    shown = capsys.readouterr().out.split("read |\n")[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.split("\n")[1:3]]
    assert cells[0] == ["SEQ", "average", "1", "75.00", "70.00", "+5.00", "summary"]
    assert cells[1] == ["SEQ", "backward transfer", "1", "-50.00", "-8.30", "-41.70", "summary"]
    assert "Somebody (2024), table 1.\nsummary: read in a summary by others" in shown
    assert main([str(runs[0])]) == 0
    assert "| SEQ    | average " in capsys.readouterr().out  # of one run too


@pytest.mark.parametrize("content", [[], {"runs": {}}])
def test_a_damaged_file_is_named(tmp_path, capsys, content):
    run = make_run(tmp_path / "p-s-SEQ", "SEQ", 1, last([1], [1]))
    write_json(tmp_path / "p/published.json", content)
    assert main([str(run), str(run)]) == 2
    assert "published.json: expected source and runs" in capsys.readouterr().err


def test_training_questions_have_columns(tmp_path):
    from utils.report.columns import columns_of
    from utils.report.results import build

    results = build(make_run(tmp_path, "SEQ", 1, last([1, 0], [1, 1])))
    assert columns_of(results)["training_forgetting"] is None
    found = columns_of(results | {"R_train": [[1.0, None], [0.25, 0.75]]})
    assert (found["training_incremental_accuracy"], found["training_forgetting"]) == (0.75, 0.75)
